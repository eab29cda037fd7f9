//! Floating licences that the site has: the tables `[[licence]]` of its head's `meshfarm.toml`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::profile::{Amount, HostClass, LICENCE, is_licence};

/// More kinds of licences, or more of one kind, are a slip of the finger.
const MOST: u32 = 100_000;

/// Licences of one kind. A task that asks for some holds them while it runs; on all machines of the site together, never
/// more are in use than there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LicenceConfig {
    /// Its name, as jobs ask for it: `nuke` in `meshfarm:amount.licence.nuke`.
    pub name: String,
    /// How many there are.
    pub count: u32,
    /// Whether tasks of other sites may have them too.
    #[serde(default)]
    pub lend: bool,
}

impl LicenceConfig {
    fn amount(&self) -> String {
        format!("{LICENCE}{}", self.name)
    }

    fn problem(&self) -> Option<String> {
        let name = self.name.as_bytes();
        let letters = name.first().is_some_and(u8::is_ascii_lowercase)
            && name.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'_');
        if !letters || name.len() > 60 {
            let name = &self.name;
            return Some(format!(
                "{name:?} names no licence: small letters, digits and _ are wanted"
            ));
        }
        (self.count > MOST).then(|| format!("{}: at most {MOST} are possible", self.name))
    }
}

pub(super) fn check(licences: &[LicenceConfig]) -> Result<(), (&'static str, String)> {
    let mut names = BTreeSet::new();
    for licence in licences {
        if let Some(problem) = licence.problem() {
            return Err(("licence", problem));
        }
        if !names.insert(&licence.name) {
            return Err(("licence", format!("{} stands there twice", licence.name)));
        }
    }
    Ok(())
}

pub(super) fn to_text(licences: &[LicenceConfig]) -> String {
    let mut text = "# Floating licences of this site, for all its machines together; a job asks for the amount\n\
                    # meshfarm:amount.licence.NAME. Tasks of other sites get them only with lend = true.\n\
                    # [[licence]]\n# name = \"nuke\"\n# count = 2\n# lend = false\n"
        .to_owned();
    for LicenceConfig { name, count, lend } in licences {
        let name = toml::Value::String(name.clone());
        text.push_str(&format!("[[licence]]\nname = {name}\ncount = {count}\nlend = {lend}\n"));
    }
    text
}

/// A host with the site's licences: these, and no others that it was remembered with.
#[must_use]
pub fn with_licences(mut host: HostClass, licences: &[LicenceConfig]) -> HostClass {
    host.amounts.retain(|name, _| !is_licence(name));
    let amounts = licences.iter().map(|l| (l.amount(), Amount::whole(l.count.into())));
    host.amounts.extend(amounts);
    host
}

/// Amounts that are for the site's own jobs only.
#[must_use]
pub fn kept_licences(licences: &[LicenceConfig]) -> BTreeSet<String> {
    licences.iter().filter(|licence| !licence.lend).map(LicenceConfig::amount).collect()
}
