//! What a host is like: attribute values by name, with marks that tell at a glance most of what it has not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use serde::{Deserialize, Serialize, Serializer};

/// Attribute values of a host, by name. Both are compared without regard to ASCII case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<String, BTreeSet<String>>")]
pub struct Attributes {
    values: BTreeMap<String, BTreeSet<String>>,
    marks: u128,
}

impl Attributes {
    /// The bits of every value that is there; see [`mark`]. Others may have the same ones.
    pub(crate) const fn marks(&self) -> u128 {
        self.marks
    }
}

/// One bit of 128 for a value of an attribute, the same whatever their case. Who has not got the bit has not got the value.
pub(crate) fn mark(name: &str, value: &str) -> u128 {
    // FNV-1a: nothing depends on it but speed, and nobody gains from making it slow.
    let bytes = name.bytes().chain([0]).chain(value.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    });
    1 << ((hash ^ (hash >> 29)) % 128)
}

impl From<BTreeMap<String, BTreeSet<String>>> for Attributes {
    fn from(values: BTreeMap<String, BTreeSet<String>>) -> Self {
        let each = values.iter().flat_map(|(name, of)| of.iter().map(move |value| (name, value)));
        let marks = each.fold(0, |marks, (name, value)| marks | mark(name, value));
        Self { values, marks }
    }
}

impl<const N: usize> From<[(String, BTreeSet<String>); N]> for Attributes {
    fn from(values: [(String, BTreeSet<String>); N]) -> Self {
        BTreeMap::from(values).into()
    }
}

impl Deref for Attributes {
    type Target = BTreeMap<String, BTreeSet<String>>;

    fn deref(&self) -> &Self::Target {
        &self.values
    }
}

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.values.serialize(serializer)
    }
}
