//! What happens to a message between two sites: lost, late, twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::scenario::LinkEntry;
use crate::streams::Streams;

/// All links of the mesh.
#[derive(Debug)]
pub(crate) struct Links {
    entry: LinkEntry,
    cuts: BTreeMap<(usize, usize), u32>,
    sent: BTreeMap<(usize, usize), u64>,
    /// Whether messages may be lost or doubled: links behave once the faults are over.
    pub(crate) calm: bool,
    /// Pairs whose first member was told that the second is connected.
    pub(crate) told: BTreeSet<(usize, usize)>,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Links {
    pub(crate) fn new(entry: LinkEntry) -> Self {
        Self {
            entry,
            cuts: BTreeMap::new(),
            sent: BTreeMap::new(),
            calm: false,
            told: BTreeSet::new(),
        }
    }

    /// Whether the line between two sites is whole.
    pub(crate) fn is_whole(&self, a: usize, b: usize) -> bool {
        a == b || self.cuts.get(&pair(a, b)).is_none_or(|cuts| *cuts == 0)
    }

    /// Cut a line, once more if it is cut already.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        *self.cuts.entry(pair(a, b)).or_default() += 1;
    }

    /// Undo one cut.
    pub(crate) fn mend(&mut self, a: usize, b: usize) {
        if let Some(cuts) = self.cuts.get_mut(&pair(a, b)) {
            *cuts = cuts.saturating_sub(1);
        }
    }

    /// After how many milliseconds each copy of a message arrives.
    pub(crate) fn send(&mut self, streams: Streams, from: usize, to: usize) -> Vec<u64> {
        if !self.is_whole(from, to) {
            return Vec::new();
        }
        let n = self.sent.entry((from, to)).or_default();
        *n += 1;
        let key = (((from as u64) << 32) | to as u64, *n);
        if !self.calm && streams.chance("loss", key, self.entry.loss_percent) {
            return Vec::new();
        }
        let mut copies = vec![streams.between("latency", key, self.entry.latency_ms)];
        if !self.calm && streams.chance("duplicate", key, self.entry.duplicate_percent) {
            copies.push(streams.between("copy", key, self.entry.latency_ms));
        }
        copies
    }

    /// How long `bytes` travel, in milliseconds.
    pub(crate) fn transfer(&self, bytes: u64) -> u64 {
        self.entry.latency_ms[1] + bytes / self.entry.rate.max(1)
    }
}
