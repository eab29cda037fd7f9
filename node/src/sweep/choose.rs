//! Which cached content goes: decided from what is stored, what uses it and how long ago, and how much room
//! there should be.
//!
//! Content goes by roots, the longest unused first: a chunk stays as long as one root that stays uses it. What
//! no root uses (of transfers that broke off) goes by its own age. What is pinned is never chosen.

use std::collections::BTreeMap;

use meshfarm_protocol::id::{Millis, SiteId};

use crate::chunks::Spot;
use crate::pins::marks::Marks;
use crate::pins::{Known, Owner};

/// A root that was used so lately is not chosen, whatever the room: somebody is about to pin it.
pub const RECENT: Millis = Millis::seconds(600);

/// How much is kept for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// This site, whose own tenants have no quota.
    pub me: SiteId,
    /// How long content stays after its last use.
    pub keep: Millis,
    /// The most bytes of all chunks together.
    pub total: Option<u64>,
    /// The most bytes of each tenant of another site.
    pub tenant: u64,
    /// So many bytes shall become free now, because the disk is nearly full.
    pub wanted: u64,
}

/// All chunks, and which root of a list uses each: the first that does.
#[derive(Clone, Debug)]
pub struct Census {
    spots: Vec<Spot>,
    /// The number of the first root that uses the chunk, or [`NOBODY`].
    users: Vec<u32>,
}

const NOBODY: u32 = u32::MAX;

/// What goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Numbers of roots to be forgotten.
    pub forget: Vec<usize>,
    /// Chunks that no root uses go when they were stored before this, in seconds since 1970.
    pub strays_before: u32,
}

impl Census {
    /// All chunks, in any order; nobody uses them yet.
    #[must_use]
    pub fn new(mut spots: Vec<Spot>) -> Self {
        spots.sort_unstable_by_key(|spot| spot.mark);
        let users = vec![NOBODY; spots.len()];
        Self { spots, users }
    }

    /// Root number `user` uses these. Numbers are given in rising order.
    pub fn charge(&mut self, user: usize, marks: &Marks) {
        let user = u32::try_from(user).unwrap_or(NOBODY - 1);
        let mut marks = marks.iter().peekable();
        for (spot, held) in self.spots.iter().zip(&mut self.users) {
            while marks.next_if(|mark| *mark < spot.mark).is_some() {}
            // Several chunks may have one mark.
            if marks.peek() == Some(&spot.mark) {
                *held = (*held).min(user);
            }
        }
    }

    /// Nobody uses them any more.
    pub fn clear(&mut self) {
        self.users.fill(NOBODY);
    }

    /// Bytes for each of `n` roots; those that several use belong to the first of them.
    #[must_use]
    pub fn bytes(&self, n: usize) -> Vec<u64> {
        let mut bytes = vec![0; n];
        for (spot, user) in self.spots.iter().zip(&self.users) {
            if let Some(sum) = bytes.get_mut(*user as usize) {
                *sum += u64::from(spot.span);
            }
        }
        bytes
    }

    /// Ages and bytes of chunks that nobody uses, the oldest first.
    #[must_use]
    pub fn strays(&self) -> Vec<(u32, u64)> {
        let nobody = self.spots.iter().zip(&self.users).filter(|(_, user)| **user == NOBODY);
        let mut strays: Vec<_> =
            nobody.map(|(spot, _)| (spot.born, u64::from(spot.span))).collect();
        strays.sort_unstable();
        strays
    }

    /// Whether each chunk is used by somebody, in the order of the marks.
    #[must_use]
    pub fn used(&self) -> Vec<bool> {
        self.users.iter().map(|user| *user != NOBODY).collect()
    }

    /// The chunks that go, when before the choice [these](Census::used) were used, and now those that the
    /// remaining roots use: their marks in order, how many they are, and their bytes.
    #[must_use]
    pub fn goes(&self, before: &[bool], strays_before: u32) -> (Vec<u32>, u64, u64) {
        let (mut marks, mut n, mut bytes) = (Vec::new(), 0, 0);
        for ((spot, user), was_used) in self.spots.iter().zip(&self.users).zip(before) {
            if *user == NOBODY && (*was_used || spot.born < strays_before) {
                marks.push(spot.mark);
                n += 1;
                bytes += u64::from(spot.span);
            }
        }
        marks.dedup();
        (marks, n, bytes)
    }
}

/// Sorts roots as [`choose`] wants them: what is pinned first, then by use, the latest first.
pub fn sort(roots: &mut [Known]) {
    roots.sort_by(|a, b| {
        b.pinned.cmp(&a.pinned).then(b.used.cmp(&a.used)).then(a.root.cmp(&b.root))
    });
}

/// Chooses among `roots`, which are [sorted](sort) and use so many `bytes` each, and among what no root uses.
#[must_use]
pub fn choose(
    now: Millis,
    rules: &Rules,
    roots: &[Known],
    bytes: &[u64],
    strays: &[(u32, u64)],
) -> Choice {
    let mut work =
        Work { now, rules, roots, bytes, strays, gone: vec![false; roots.len()], cut: 0 };
    work.by_age();
    work.by_quota();
    work.by_room();
    let forget = work.gone.iter().enumerate().filter(|(_, gone)| **gone);
    Choice {
        forget: forget.map(|(number, _)| number).collect(),
        strays_before: match work.cut {
            0 => 0,
            cut => strays[cut - 1].0.saturating_add(1),
        },
    }
}

struct Work<'a> {
    now: Millis,
    rules: &'a Rules,
    roots: &'a [Known],
    bytes: &'a [u64],
    strays: &'a [(u32, u64)],
    gone: Vec<bool>,
    /// So many strays go.
    cut: usize,
}

impl Work<'_> {
    fn may_go(&self, number: usize) -> bool {
        let root = &self.roots[number];
        !root.pinned && !self.gone[number] && self.now.since(root.used) >= RECENT
    }

    fn by_age(&mut self) {
        for number in 0..self.roots.len() {
            // Results of tasks share nothing with anything that may come: they go when they have arrived.
            let is_result = self.roots[number].owner.tenant.is_none();
            let is_old = self.now.since(self.roots[number].used) >= self.rules.keep;
            if self.may_go(number) && (is_result || is_old) {
                self.gone[number] = true;
            }
        }
        let (now, keep) = (self.now, self.rules.keep);
        let is_old = |(born, _): &(u32, u64)| now.since(Millis::seconds((*born).into())) >= keep;
        self.cut = self.strays.partition_point(is_old);
    }

    fn by_quota(&mut self) {
        let mut sums: BTreeMap<Owner, u64> = BTreeMap::new();
        for (number, root) in self.roots.iter().enumerate() {
            if root.owner.site != self.rules.me && !self.gone[number] {
                *sums.entry(root.owner).or_default() += self.bytes[number];
            }
        }
        for number in (0..self.roots.len()).rev() {
            if !self.may_go(number) {
                continue;
            }
            let sum = sums.get_mut(&self.roots[number].owner);
            if let Some(sum) = sum.filter(|sum| **sum > self.rules.tenant) {
                *sum -= self.bytes[number];
                self.gone[number] = true;
            }
        }
    }

    /// The oldest of roots and strays until there is room enough.
    fn by_room(&mut self) {
        let all: u64 =
            self.bytes.iter().sum::<u64>() + self.strays.iter().map(|(_, span)| span).sum::<u64>();
        let mut freed: u64 = self.strays[..self.cut].iter().map(|(_, span)| span).sum();
        freed +=
            (0..self.roots.len()).filter(|n| self.gone[*n]).map(|n| self.bytes[n]).sum::<u64>();
        let over = self.rules.total.map_or(0, |total| all.saturating_sub(total));
        let goal = over.max(self.rules.wanted);
        let mut next = self.roots.len();
        while freed < goal {
            while next > 0 && !self.may_go(next - 1) {
                next -= 1;
            }
            let root = next.checked_sub(1).map(|number| self.roots[number].used);
            let stray = self.strays.get(self.cut).map(|(born, _)| Millis::seconds((*born).into()));
            match (root, stray) {
                (Some(used), stray) if stray.is_none_or(|born| used <= born) => {
                    next -= 1;
                    self.gone[next] = true;
                    freed += self.bytes[next];
                }
                (_, Some(_)) => {
                    freed += self.strays[self.cut].1;
                    self.cut += 1;
                }
                (_, None) => break,
            }
        }
    }
}

#[cfg(test)]
#[path = "choose/tests.rs"]
mod tests;
