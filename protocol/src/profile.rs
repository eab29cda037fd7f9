//! What a site offers (profile) and what a step needs (requirement), in Open Job Description's capability names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{Millis, SiteId};
use crate::receipt::Price;
use crate::seal::SealingKey;

pub(crate) mod attributes;

pub use attributes::Attributes;

/// Prefix of the capability names that are ours: the standard's model refuses unknown names without one.
pub const VENDOR: &str = "meshfarm:";

/// Logical processors, in thousandths.
pub const VCPU: &str = "amount.worker.vcpu";
/// Memory in MiB, in thousandths.
pub const MEMORY: &str = "amount.worker.memory";
/// GPUs, in thousandths.
pub const GPU: &str = "amount.worker.gpu";
/// Memory of the smallest GPU in MiB, in thousandths.
pub const GPU_MEMORY: &str = "amount.worker.gpu.memory";
/// Scratch disk in GiB, in thousandths.
pub const SCRATCH: &str = "amount.worker.disk.scratch";

/// What the amount of a floating licence is called, before the licence's name.
pub const LICENCE: &str = "meshfarm:amount.licence.";

/// Whether an amount counts floating licences.
#[must_use]
pub fn is_licence(amount: &str) -> bool {
    amount.get(..LICENCE.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(LICENCE))
}

/// An amount in thousandths of its unit: sites must agree on comparisons, so no floating point.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Amount(pub u64);

impl Amount {
    /// So many whole units.
    #[must_use]
    pub const fn whole(n: u64) -> Self {
        Self(n.saturating_mul(1000))
    }

    /// The nearest representable amount; negative and non-finite numbers become zero.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float-to-int cast saturates, which is what is wanted"
    )]
    pub fn from_f64(n: f64) -> Self {
        Self((n * 1000.0).round() as u64)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let text = format!("{whole}.{rest:03}");
        f.write_str(text.trim_end_matches('0'))
    }
}

/// What a step asks of a host. Not asked is "don't care".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// Amounts by name, within bounds.
    pub amounts: BTreeMap<String, AmountNeed>,
    /// Attributes by name. Names and values are compared without regard to ASCII case, as the standard says.
    pub attributes: BTreeMap<String, AttributeNeed>,
}

/// Bounds on one amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AmountNeed {
    /// At least this much.
    pub min: Amount,
    /// At most this much.
    pub max: Option<Amount>,
}

/// Wanted values of one attribute. Both lists hold when both are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeNeed {
    /// The host has at least one of these. Empty: not asked.
    pub any_of: BTreeSet<String>,
    /// The host has every one of these. Empty: not asked.
    pub all_of: BTreeSet<String>,
}

/// How strongly a host isolates a foreign job. Stronger is greater.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Level {
    /// Path relocation only: no isolation, own jobs only.
    #[default]
    S0,
    /// Landlock, seccomp and rlimits under one uid.
    S1,
    /// All namespaces, no capabilities, Landlock and seccomp; limits by rlimits and a watchdog.
    S2,
    /// As S2, with a uid of its own, cgroup limits and a quota.
    S3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Hosts of a site that are alike: what each of them has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostClass {
    /// How many hosts are like this.
    pub count: u32,
    /// What a person would call the machine: CPU model, OS and its version, for display.
    pub description: String,
    /// Amounts that one host has in all.
    pub amounts: BTreeMap<String, Amount>,
    /// Attribute values of one host. A version stands at every precision: `any`, `v3`, `v3_4`, `v3_4_1`.
    pub attributes: Attributes,
    /// Exact versions of the software found, for display: `blender` -> `3.4.1`.
    pub software: BTreeMap<String, String>,
    /// Slots of one host.
    pub slots: u32,
    /// Measured speed of one slot, in thousandths of the reference core.
    pub speed: u32,
    /// The isolation it reaches.
    pub level: Level,
}

/// What a site offers, as it tells the mesh. Soft state: the newest sequence wins, and it expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Layout version of this record.
    pub version: u16,
    /// Whose it is. Receivers check it against the signature's key.
    pub site: SiteId,
    /// The site's name, as its certificate has it.
    pub name: String,
    /// Start of the node's life in the upper half, a counter in the lower: later is greater, over restarts too.
    pub sequence: u64,
    /// When it was made, by the site's own clock.
    pub issued: Millis,
    /// How long after receipt it counts.
    pub ttl: Millis,
    /// What its hosts are like.
    pub hosts: Vec<HostClass>,
    /// Slots that could take a foreign task now.
    pub free: u32,
    /// Whether it takes foreign work at all now.
    pub lending: bool,
    /// Whether it hands work for which it has no room on to further sites, when the job lets it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub passes_on: bool,
    /// X25519 public key that envelopes for this site are sealed to.
    pub sealing_key: SealingKey,
    /// Multiaddresses at which it listens, for members that have not met it.
    pub addresses: Vec<String>,
    /// What it asks for its slots.
    #[serde(default, skip_serializing_if = "Price::is_free")]
    pub price: Price,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The layout version that this program writes.
pub const PROFILE_VERSION: u16 = 1;

/// An encoded profile longer than this is refused.
pub const MAX_PROFILE_BYTES: usize = 32 * 1024;

/// The attribute values of a version at every precision: `3.4.1` gives `any`, `v3`, `v3_4`, `v3_4_1`.
///
/// Values must be identifiers in Open Job Description, hence the letter and the underscores.
#[must_use]
pub fn version_values(version: &str) -> BTreeSet<String> {
    let mut values = BTreeSet::from(["any".to_owned()]);
    let mut value = String::from("v");
    for (i, part) in version.split('.').take(8).enumerate() {
        let part: String = part.chars().filter(char::is_ascii_alphanumeric).collect();
        if part.is_empty() {
            break;
        }
        if i > 0 {
            value.push('_');
        }
        value.push_str(&part.to_ascii_lowercase());
        values.insert(value.clone());
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_stands_at_every_precision() {
        let values: Vec<_> = version_values("3.4.1").into_iter().collect();
        assert_eq!(values, ["any", "v3", "v3_4", "v3_4_1"]);
        assert_eq!(version_values("3.7.0.10.unofficial").len(), 6);
        assert_eq!(version_values("").len(), 1);
    }

    #[test]
    fn amounts_print_as_people_write_them() {
        assert_eq!(Amount::from_f64(1.5).to_string(), "1.5");
        assert_eq!(Amount::whole(8).to_string(), "8");
        assert_eq!(Amount::from_f64(-1.0), Amount(0));
    }
}
