//! An index over what many sites offer: which of them fit a requirement, without a look at each.
//!
//! What a host is like hardly changes, and stands in sets of bits: one for each value of each attribute, and one for each
//! level of isolation. Amounts stand in columns and are checked for what is left. The rest, such as who is connected
//! or has slots free, changes all the time and is not indexed.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::SiteId;
use meshfarm_protocol::profile::{HostClass, Level, Requirement};

const LEVELS: [Level; 4] = [Level::S0, Level::S1, Level::S2, Level::S3];

/// A set of row numbers.
#[derive(Clone, Debug, Default)]
struct Rows(Vec<u64>);

impl Rows {
    fn insert(&mut self, row: usize) {
        if self.0.len() <= row / 64 {
            self.0.resize(row / 64 + 1, 0);
        }
        self.0[row / 64] |= 1 << (row % 64);
    }

    fn remove(&mut self, row: usize) {
        if let Some(word) = self.0.get_mut(row / 64) {
            *word &= !(1 << (row % 64));
        }
    }

    fn and(&mut self, other: Option<&Self>) {
        let other = other.map_or(&[][..], |other| &other.0);
        self.0.truncate(other.len());
        self.0.iter_mut().zip(other).for_each(|(word, other)| *word &= other);
    }

    fn or(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(n, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(n * 64 + bit)
            })
        })
    }
}

/// Sites by what their hosts offer. A site with several kinds of hosts stands in several rows.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Whose each row is, and whether it is that site's only one; rows that are free are nobody's.
    rows: Vec<Option<(SiteId, bool)>>,
    free: Vec<usize>,
    of: BTreeMap<SiteId, Vec<usize>>,
    /// Rows by attribute and value, both in lower case.
    values: BTreeMap<String, BTreeMap<String, Rows>>,
    /// Rows that isolate at least so much.
    levels: [Rows; 4],
    /// Of each amount, by its name in lower case, how much each row has, in thousandths.
    amounts: BTreeMap<String, Vec<u64>>,
}

impl Index {
    /// A site offers these hosts now, whatever it offered before.
    pub fn set(&mut self, site: SiteId, hosts: &[HostClass]) {
        self.remove(site);
        for host in hosts {
            let row = self.free.pop().unwrap_or(self.rows.len());
            if row == self.rows.len() {
                self.rows.push(None);
            }
            self.rows[row] = Some((site, hosts.len() == 1));
            self.of.entry(site).or_default().push(row);
            for (name, values) in first_of_each(&host.attributes) {
                let known = self.values.entry(name).or_default();
                for value in values {
                    known.entry(value.to_ascii_lowercase()).or_default().insert(row);
                }
            }
            for (level, rows) in LEVELS.iter().zip(&mut self.levels) {
                if host.level >= *level {
                    rows.insert(row);
                }
            }
            for (name, amount) in first_of_each(&host.amounts) {
                let column = self.amounts.entry(name).or_default();
                if column.len() <= row {
                    column.resize(row + 1, 0);
                }
                column[row] = amount.0;
            }
        }
    }

    /// How many sites offer something.
    pub(crate) fn n_sites(&self) -> usize {
        self.of.len()
    }

    /// A site offers nothing any more.
    pub fn remove(&mut self, site: SiteId) {
        for row in self.of.remove(&site).unwrap_or_default() {
            self.rows[row] = None;
            self.free.push(row);
            // Names and values stay for others; what nobody offers any more goes.
            self.values.retain(|_, values| {
                values.retain(|_, rows| {
                    rows.remove(row);
                    rows.0.iter().any(|word| *word != 0)
                });
                !values.is_empty()
            });
            self.levels.iter_mut().for_each(|rows| rows.remove(row));
            for column in self.amounts.values_mut() {
                if let Some(amount) = column.get_mut(row) {
                    *amount = 0;
                }
            }
        }
    }

    /// Sites that have a host which fits, as [`meshfarm_protocol::matching::fit`] says it.
    #[must_use]
    pub fn fitting(&self, need: &Requirement, floor: Level) -> Vec<SiteId> {
        let wanted = need.amounts.iter().map(|(name, need)| {
            let column = self.amounts.get(&name.to_ascii_lowercase());
            (column.map_or(&[][..], Vec::as_slice), need.min.0, need.max.map_or(u64::MAX, |m| m.0))
        });
        let wanted: Vec<_> = wanted.collect();
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for row in self.like(need, floor).iter() {
            let has = wanted.iter().all(|(column, min, max)| {
                (*min..=*max).contains(&column.get(row).copied().unwrap_or(0))
            });
            if let Some((site, alone)) = self.rows[row].filter(|_| has)
                && (alone || seen.insert(site))
            {
                found.push(site);
            }
        }
        found
    }

    /// Rows whose attributes and isolation fit.
    fn like(&self, need: &Requirement, floor: Level) -> Rows {
        let at = LEVELS.iter().position(|level| *level == floor).unwrap_or(0);
        let mut rows = self.levels[at].clone();
        for (name, need) in &need.attributes {
            let values = self.values.get(&name.to_ascii_lowercase());
            let of =
                |value: &String| values.and_then(|known| known.get(&value.to_ascii_lowercase()));
            for value in &need.all_of {
                rows.and(of(value));
            }
            if !need.any_of.is_empty() {
                let mut any = Rows::default();
                need.any_of.iter().filter_map(of).for_each(|rows| any.or(rows));
                rows.and(Some(&any));
            }
        }
        rows
    }
}

/// A host's names in lower case. Of names that only case tells apart the first counts, as in matching.
fn first_of_each<T>(named: &BTreeMap<String, T>) -> impl Iterator<Item = (String, &T)> {
    let mut seen = BTreeSet::new();
    let lower = named.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    lower.filter(move |(name, _)| seen.insert(name.clone()))
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::matching::fits;
    use meshfarm_protocol::profile::{Amount, AmountNeed, AttributeNeed};
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![Just("a"), Just("A"), Just("b"), Just("c")].prop_map(str::to_owned)
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![Just("v3"), Just("V3"), Just("v3_4"), Just("any")].prop_map(str::to_owned)
    }

    fn level() -> impl Strategy<Value = Level> {
        (0..4usize).prop_map(|n| LEVELS[n])
    }

    fn host() -> impl Strategy<Value = HostClass> {
        let amounts = btree_map(name(), (0..4u64).prop_map(Amount), 0..3);
        let attributes = btree_map(name(), btree_set(value(), 0..3), 0..3);
        (amounts, attributes, level()).prop_map(|(amounts, attributes, level)| HostClass {
            count: 1,
            description: String::new(),
            amounts,
            attributes: attributes.into(),
            software: BTreeMap::new(),
            slots: 1,
            speed: 1000,
            level,
        })
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let amount = (0..4u64, proptest::option::of(0..4u64))
            .prop_map(|(min, max)| AmountNeed { min: Amount(min), max: max.map(Amount) });
        let values = (btree_set(value(), 0..3), btree_set(value(), 0..2))
            .prop_map(|(any_of, all_of)| AttributeNeed { any_of, all_of });
        (btree_map(name(), amount, 0..2), btree_map(name(), values, 0..2))
            .prop_map(|(amounts, attributes)| Requirement { amounts, attributes })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 1000, failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn it_finds_what_a_look_at_each_finds(
            changes in vec((0..80u8, vec(host(), 0..3)), 0..120),
            need in requirement(),
            floor in level(),
        ) {
            let (mut index, mut all) = (Index::default(), BTreeMap::new());
            for (site, hosts) in changes {
                let site = SiteId([site; 32]);
                index.set(site, &hosts);
                all.insert(site, hosts);
            }
            let fit = |hosts: &Vec<HostClass>| hosts.iter().any(|host| fits(&need, floor, host));
            let linear: Vec<_> = all.iter().filter(|(_, h)| fit(h)).map(|(site, _)| *site).collect();
            let mut found = index.fitting(&need, floor);
            found.sort();
            prop_assert_eq!(found, linear);
            all.keys().for_each(|site| index.remove(*site));
            prop_assert!(index.values.is_empty() && index.of.is_empty(), "something stayed");
        }
    }
}
