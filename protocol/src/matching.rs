//! Whether a host can run a step: `fit`, with every reason when it cannot.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::profile::attributes::mark;
use crate::profile::{Amount, AmountNeed, AttributeNeed, HostClass, Level, Requirement};

/// One thing that a host lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misfit {
    /// Too little or too much of an amount.
    Amount {
        /// The capability's name.
        name: String,
        /// What was asked.
        need: AmountNeed,
        /// What is there; zero when the host does not have it at all.
        have: Amount,
    },
    /// Wanted attribute values are missing.
    Attribute {
        /// The capability's name.
        name: String,
        /// What was asked.
        need: AttributeNeed,
        /// The values that are there.
        have: Vec<String>,
    },
    /// The host isolates less than the job asks.
    Isolation {
        /// What was asked.
        need: Level,
        /// What is there.
        have: Level,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount { name, need, have } => {
                write!(f, "{name}: asks {}, has {have}", amount_words(need))
            }
            Self::Attribute { name, need, have } => {
                let words = list(have);
                let have = if have.is_empty() { "none" } else { &words };
                write!(f, "{name}: asks {}, has {have}", attribute_words(need))
            }
            Self::Isolation { need, have } => {
                write!(f, "isolation: asks {need} or stronger, reaches {have}")
            }
        }
    }
}

fn amount_words(need: &AmountNeed) -> String {
    match (need.min, need.max) {
        (Amount(0), Some(max)) => format!("at most {max}"),
        (min, Some(max)) => format!("at least {min} and at most {max}"),
        (min, None) => format!("at least {min}"),
    }
}

fn attribute_words(need: &AttributeNeed) -> String {
    let mut words = Vec::new();
    if !need.any_of.is_empty() {
        words.push(format!("one of {}", list(&need.any_of)));
    }
    if !need.all_of.is_empty() {
        words.push(format!("all of {}", list(&need.all_of)));
    }
    words.join(" and ")
}

fn list<'a>(values: impl IntoIterator<Item = &'a String>) -> String {
    let values: Vec<_> = values.into_iter().map(String::as_str).collect();
    values.join(", ")
}

/// Every reason why `host` cannot run a step that asks for `requirement` at isolation `floor`; empty when it can.
///
/// Pure, and run by both sides: the borrower before it offers, the lender before it grants.
#[must_use]
pub fn fit(requirement: &Requirement, floor: Level, host: &HostClass) -> Vec<Misfit> {
    let mut misfits = Vec::new();
    for (name, need) in &requirement.amounts {
        let have = amount_of(host, name);
        if !within(need, have) {
            misfits.push(Misfit::Amount { name: name.clone(), need: *need, have });
        }
    }
    for (name, need) in &requirement.attributes {
        let have = values_of(host, name);
        if !answers(need, have) {
            let have = have.map_or_else(Vec::new, |values| values.iter().cloned().collect());
            misfits.push(Misfit::Attribute { name: name.clone(), need: need.clone(), have });
        }
    }
    if host.level < floor {
        misfits.push(Misfit::Isolation { need: floor, have: host.level });
    }
    misfits
}

/// One thing that a step asks, and what a host has of it, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The capability's name.
    pub name: String,
    /// What was asked.
    pub asks: String,
    /// What is there.
    pub has: String,
    /// Whether that will do.
    pub fits: bool,
}

/// Everything that a step asks, and what `host` has of it: [`fit`] is what of it does not fit.
#[must_use]
pub fn look(requirement: &Requirement, floor: Level, host: &HostClass) -> Vec<Look> {
    let amounts = requirement.amounts.iter().map(|(name, need)| {
        let have = amount_of(host, name);
        let (asks, has) = (amount_words(need), have.to_string());
        Look { name: name.clone(), asks, has, fits: within(need, have) }
    });
    let attributes = requirement.attributes.iter().map(|(name, need)| {
        let have = values_of(host, name);
        let words = have.map(list).filter(|words| !words.is_empty());
        let has = words.unwrap_or_else(|| "none".to_owned());
        Look { name: name.clone(), asks: attribute_words(need), has, fits: answers(need, have) }
    });
    let isolation = Look {
        name: "isolation".to_owned(),
        asks: format!("{floor} or stronger"),
        has: host.level.to_string(),
        fits: host.level >= floor,
    };
    amounts.chain(attributes).chain([isolation]).collect()
}

/// Whether [`fit`] finds nothing that `host` lacks. Quicker, because it gives no reasons.
#[must_use]
pub fn fits(requirement: &Requirement, floor: Level, host: &HostClass) -> bool {
    // Names with a vendor's prefix come last in their order, and are what most hosts lack.
    let mut attributes = requirement.attributes.iter().rev();
    host.level >= floor
        && attributes.all(|(name, need)| answers(need, values_of(host, name)))
        && requirement.amounts.iter().all(|(name, need)| within(need, amount_of(host, name)))
}

/// What a step asks, made ready to be held against very many hosts.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    requirement: Cow<'a, Requirement>,
    floor: Level,
    /// Of each attribute of which one value of several will do, the marks of all of them.
    one_of: Vec<u128>,
    /// The marks of all values that must be there.
    all_of: u128,
}

impl<'a> Asked<'a> {
    /// A step that asks for `requirement` at isolation `floor`.
    #[must_use]
    pub fn new(requirement: Cow<'a, Requirement>, floor: Level) -> Self {
        let marks = |name: &str, values: &BTreeSet<String>| {
            values.iter().fold(0, |marks, value| marks | mark(name, value))
        };
        let needs = || requirement.attributes.iter();
        let one_of = needs().filter(|(_, need)| !need.any_of.is_empty());
        let one_of = one_of.map(|(name, need)| marks(name, &need.any_of)).collect();
        let all_of = needs().fold(0, |all, (name, need)| all | marks(name, &need.all_of));
        Self { requirement, floor, one_of, all_of }
    }

    /// As [`fits`]. Of hosts that lack an attribute most are told apart without a look at what they have.
    #[must_use]
    pub fn fits(&self, host: &HostClass) -> bool {
        let marks = host.attributes.marks();
        host.level >= self.floor
            && marks & self.all_of == self.all_of
            && self.one_of.iter().all(|one_of| marks & one_of != 0)
            && fits(&self.requirement, self.floor, host)
    }
}

fn within(need: &AmountNeed, have: Amount) -> bool {
    have >= need.min && need.max.is_none_or(|max| have <= max)
}

fn answers(need: &AttributeNeed, have: Option<&BTreeSet<String>>) -> bool {
    let has = |want: &String| {
        have.is_some_and(|have| have.iter().any(|value| value.eq_ignore_ascii_case(want)))
    };
    (need.any_of.is_empty() || need.any_of.iter().any(has)) && need.all_of.iter().all(has)
}

fn amount_of(host: &HostClass, name: &str) -> Amount {
    let found = host.amounts.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
    found.map_or(Amount(0), |(_, amount)| *amount)
}

fn values_of<'a>(host: &'a HostClass, name: &str) -> Option<&'a BTreeSet<String>> {
    let found = host.attributes.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
    found.map(|(_, values)| values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::profile::{MEMORY, VCPU, version_values};

    const BLENDER: &str = "meshfarm:attr.software.blender";

    fn host() -> HostClass {
        HostClass {
            count: 1,
            description: "test".into(),
            amounts: BTreeMap::from([
                (VCPU.into(), Amount::whole(8)),
                (MEMORY.into(), Amount::whole(16384)),
            ]),
            attributes: [
                (BLENDER.into(), version_values("3.4.1")),
                ("attr.worker.os.family".into(), BTreeSet::from(["linux".to_owned()])),
            ]
            .into(),
            software: BTreeMap::new(),
            slots: 8,
            speed: 1000,
            level: Level::S2,
        }
    }

    fn asks(name: &str, values: &[&str]) -> Requirement {
        let any_of = values.iter().map(ToString::to_string).collect();
        let need = AttributeNeed { any_of, all_of: BTreeSet::new() };
        Requirement {
            attributes: BTreeMap::from([(name.to_owned(), need)]),
            ..Requirement::default()
        }
    }

    #[test]
    fn not_asked_is_dont_care() {
        assert_eq!(fit(&Requirement::default(), Level::S0, &host()), []);
    }

    #[test]
    fn a_job_may_ask_a_version_at_any_precision() {
        for asked in ["any", "v3", "v3_4", "v3_4_1", "V3_4"] {
            assert_eq!(fit(&asks(BLENDER, &[asked]), Level::S0, &host()), [], "{asked}");
        }
        for asked in ["v3_5", "v4", "v3_4_10"] {
            assert_eq!(fit(&asks(BLENDER, &[asked]), Level::S0, &host()).len(), 1, "{asked}");
        }
        assert_eq!(fit(&asks(BLENDER, &["v4", "v3_4"]), Level::S0, &host()), []);
    }

    #[test]
    fn every_reason_is_given_not_the_first() {
        let mut requirement = asks("meshfarm:attr.software.povray", &["v3_7"]);
        let need = AmountNeed { min: Amount::whole(16), max: None };
        requirement.amounts.insert(VCPU.into(), need);
        let misfits = fit(&requirement, Level::S3, &host());
        let said: Vec<_> = misfits.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "amount.worker.vcpu: asks at least 16, has 8",
                "meshfarm:attr.software.povray: asks one of v3_7, has none",
                "isolation: asks S3 or stronger, reaches S2",
            ]
        );
    }

    #[test]
    fn every_kind_of_requirement_is_understood_and_said() {
        let need = |any_of: &[&str], all_of: &[&str]| AttributeNeed {
            any_of: any_of.iter().map(ToString::to_string).collect(),
            all_of: all_of.iter().map(ToString::to_string).collect(),
        };
        let asks = |name: &str, need: AttributeNeed| Requirement {
            attributes: BTreeMap::from([(name.to_owned(), need)]),
            ..Requirement::default()
        };
        let amount = |name: &str, min: u64, max: Option<u64>| Requirement {
            amounts: BTreeMap::from([(
                name.to_owned(),
                AmountNeed { min: Amount::whole(min), max: max.map(Amount::whole) },
            )]),
            ..Requirement::default()
        };
        let licence = "meshfarm:amount.licence.nuke";
        let cases = [
            (asks(BLENDER, need(&["v4", "V3"], &["any", "v3_4_1"])), None),
            (
                asks(BLENDER, need(&["v4"], &["v3", "v3_5"])),
                Some(format!(
                    "{BLENDER}: asks one of v4 and all of v3, v3_5, has any, v3, v3_4, v3_4_1"
                )),
            ),
            (asks("ATTR.worker.OS.family", need(&["Linux"], &[])), None),
            (
                asks("studio:attr.gpu.pool", need(&[], &["film"])),
                Some("studio:attr.gpu.pool: asks all of film, has none".to_owned()),
            ),
            (amount("AMOUNT.WORKER.VCPU", 8, Some(8)), None),
            (amount(VCPU, 0, Some(4)), Some(format!("{VCPU}: asks at most 4, has 8"))),
            (
                amount(VCPU, 2, Some(4)),
                Some(format!("{VCPU}: asks at least 2 and at most 4, has 8")),
            ),
            (amount(licence, 1, None), Some(format!("{licence}: asks at least 1, has 0"))),
            (amount(licence, 0, Some(1)), None),
        ];
        for (requirement, said) in cases {
            let misfits = fit(&requirement, Level::S0, &host());
            assert_eq!(misfits.first().map(ToString::to_string), said, "{requirement:?}");
            assert_eq!(fits(&requirement, Level::S0, &host()), misfits.is_empty());
            assert_eq!(
                Asked::new(Cow::Borrowed(&requirement), Level::S0).fits(&host()),
                misfits.is_empty()
            );
            let looks = look(&requirement, Level::S0, &host());
            assert_eq!(looks.iter().filter(|look| !look.fits).count(), misfits.len());
            assert_eq!(looks.len(), 2, "what was asked, and isolation");
        }
        assert!(!fits(&Requirement::default(), Level::S3, &host()));
        assert!(!Asked::new(Cow::Owned(Requirement::default()), Level::S3).fits(&host()));
    }

    #[test]
    fn an_amount_above_the_most_is_a_misfit() {
        let mut requirement = Requirement::default();
        let need = AmountNeed { min: Amount::whole(1), max: Some(Amount::whole(4)) };
        requirement.amounts.insert(VCPU.into(), need);
        assert_eq!(fit(&requirement, Level::S0, &host()).len(), 1);
    }
}
