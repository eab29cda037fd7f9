//! What a policy requires of the report: the names of mechanisms, long and short, and the least version.

use std::fmt;

use crate::{Mechanism, Report};

/// Short names, and the mechanisms of the report that they stand for.
const SHORT: [(&str, &str); 12] = [
    ("userns", "user namespace"),
    ("mountns", "mnt namespace"),
    ("pidns", "pid namespace"),
    ("netns", "net namespace"),
    ("ipcns", "ipc namespace"),
    ("utsns", "uts namespace"),
    ("cgroupns", "cgroup namespace"),
    ("nnp", "no new privileges"),
    ("caps", "no capabilities"),
    ("uid", "tenant user"),
    ("proc", "process list"),
    ("disk", "quota"),
];

/// Mechanisms whose names are short already.
const PLAIN: [&str; 6] = ["landlock", "seccomp", "cgroup", "quota", "services", "windows paths"];

/// One required mechanism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Demand {
    name: String,
    least: Option<u32>,
}

/// A required mechanism that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Its name in the report.
    pub name: String,
    /// What the report says of it.
    pub evidence: String,
    /// What would help.
    pub better: Option<String>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.evidence)
    }
}

impl Demand {
    /// `netns`, `net namespace` or `landlock>=3`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (name, least) = match text.split_once(">=") {
            Some((name, least)) => (name.trim(), Some(least.trim())),
            None => (text.trim(), None),
        };
        let long = SHORT.iter().find(|(short, long)| name == *short || name == *long);
        let known = long.map(|(_, long)| *long).or_else(|| PLAIN.into_iter().find(|p| name == *p));
        let known = known.ok_or_else(|| {
            let all: Vec<_> = SHORT.iter().map(|(short, _)| *short).chain(PLAIN).collect();
            format!("{text:?} names no mechanism: {}", all.join(", "))
        })?;
        let least = match least {
            None => None,
            Some(number) if known == "landlock" => {
                let wanted = || format!("{text:?}: a version is wanted, such as landlock>=3");
                Some(number.parse().map_err(|_no_number| wanted())?)
            }
            Some(_) => return Err(format!("{text:?}: only landlock has versions")),
        };
        Ok(Self { name: known.to_owned(), least })
    }

    /// Why it is not met.
    pub(super) fn unmet(&self, report: &Report) -> Option<Unmet> {
        let found = report.mechanisms.iter().find(|m| m.name == self.name);
        let Some(found) = found else {
            let evidence = "not asked for by this policy, or not known to this launcher".to_owned();
            return Some(Unmet { name: self.name.clone(), evidence, better: None });
        };
        let recent = self.least.is_none_or(|least| version(found).is_some_and(|v| v >= least));
        if found.in_force && recent {
            return None;
        }
        let evidence = match self.least.filter(|_| found.in_force) {
            Some(least) => format!("{}; {least} is required", found.evidence),
            None => found.evidence.clone(),
        };
        Some(Unmet { name: self.name.clone(), evidence, better: found.better.clone() })
    }
}

/// The number in `version 7, 24 rules`.
fn version(mechanism: &Mechanism) -> Option<u32> {
    let rest = mechanism.evidence.split("version ").nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn a_requirement_is_met_by_what_the_report_says_and_by_nothing_else() {
        let report = Report {
            level: Level::S2,
            mechanisms: vec![
                Mechanism::held("landlock", "version 7, 24 rules, fully enforced"),
                Mechanism::held("net namespace", "net:[1]"),
                Mechanism::missing("cgroup", "not writable", "run as root"),
            ],
        };
        let unmet = |text: &str| Demand::parse(text).unwrap().unmet(&report).map(|u| u.to_string());
        for met in ["landlock", "landlock>=3", "landlock >= 7", "netns", "net namespace"] {
            assert_eq!(unmet(met), None, "{met}");
        }
        assert!(unmet("landlock>=8").unwrap().contains("8 is required"));
        assert_eq!(unmet("cgroup").as_deref(), Some("cgroup: not writable"));
        assert!(unmet("disk").unwrap().starts_with("quota: not asked"));
        for (bad, word) in
            [("nets", "netns"), ("seccomp>=2", "only landlock"), ("landlock>=x", "version")]
        {
            let error = Demand::parse(bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
