//! Reads the table: every access is checked, so that a spoiled table does no harm.

use crate::{
    fold::folded,
    format::{COUNT, ENTRY, HEAD, INSENSITIVE, MAGIC, POSIX, RULE, SEED, WATCHED, hash_part},
};

/// Deepest folder at which rules and names are looked for.
const MOST_CUTS: usize = 48;

/// A table whose bytes hold together as far as they are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    bytes: &'a [u8],
    n_rules: usize,
    n_entries: usize,
    n_watched: usize,
    text: &'a [u8],
    /// One bit for each rule, by its hash: most parts of a path end no rule, and this says so.
    perhaps: [u64; 4],
    /// `format::REVERSE`, or nothing.
    pub(crate) flags: u32,
    /// The path of the file of records, with its NUL; empty when nothing is recorded.
    pub(crate) records: &'a [u8],
}

/// One rule of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule<'a> {
    hash: u64,
    /// `c:/show`, `//server/share` or `/home/artist`.
    pub(crate) source: &'a [u8],
    /// What the source stands for.
    pub(crate) at: &'a [u8],
    /// Whether names are looked up in the index.
    pub(crate) insensitive: bool,
    /// Whether the source is a path of this system.
    pub(crate) posix: bool,
    first: usize,
    count: usize,
}

impl<'a> Table<'a> {
    /// Read the head of a table; `None` when the bytes are none.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        let field = |n: usize| number(bytes, 8 + 4 * n);
        let (n_rules, n_entries, n_watched) = (field(0)?, field(1)?, field(2)?);
        let start = field(3)?;
        let text = bytes.get(start..start.checked_add(field(4)?)?)?;
        let lists = HEAD
            + n_rules.checked_mul(RULE)?
            + n_entries.checked_mul(ENTRY)?
            + n_watched.checked_mul(WATCHED)?;
        if lists > start {
            return None;
        }
        let records = text.get(field(6)?..field(6)?.checked_add(field(7)?)?)?;
        if !records.is_empty() && records.iter().position(|b| *b == 0) != Some(records.len() - 1) {
            return None;
        }
        let flags = u32::try_from(field(5)?).ok()?;
        let perhaps = [0; 4];
        let mut table =
            Self { bytes, n_rules, n_entries, n_watched, text, perhaps, flags, records };
        for n in 0..n_rules {
            let (word, bit) = bit_of(table.long(HEAD + n * RULE)?);
            table.perhaps[word] |= bit;
        }
        Some(table)
    }

    fn rule(&self, n: usize) -> Option<Rule<'a>> {
        let at = HEAD + n.checked_mul(RULE)?;
        let field = |i: usize| number(self.bytes, at + 8 + 4 * i);
        let count = u32::try_from(field(5)?).ok()?;
        Some(Rule {
            hash: self.long(at)?,
            source: self.piece(field(0)?, field(1)?)?,
            at: self.piece(field(2)?, field(3)?)?,
            insensitive: count & INSENSITIVE != 0,
            posix: count & POSIX != 0,
            first: field(4)?,
            count: usize::try_from(count & COUNT).ok()?,
        })
    }

    /// All rules, in order of their hashes.
    pub(crate) fn rules(&self) -> impl Iterator<Item = Rule<'a>> + '_ {
        (0..self.n_rules).filter_map(|n| self.rule(n))
    }

    /// Whether a path lies in a watched folder.
    pub(crate) fn watches(&self, path: &[u8]) -> bool {
        let lists = HEAD + self.n_rules * RULE + self.n_entries * ENTRY;
        (0..self.n_watched).any(|n| {
            let at = lists + n * WATCHED;
            let folder = number(self.bytes, at).zip(number(self.bytes, at + 4));
            let folder = folder.and_then(|(offset, length)| self.piece(offset, length));
            folder.is_some_and(|folder| below(path, folder).is_some())
        })
    }

    /// The longest Windows rule that a plain path lies under, and where what follows it begins.
    pub(crate) fn longest(&self, plain: &[u8], cuts: &Cuts) -> Option<(Rule<'a>, usize)> {
        cuts.longest_first().find_map(|(end, hash)| {
            let (word, bit) = bit_of(hash);
            if self.perhaps[word] & bit == 0 {
                return None;
            }
            let mut n = first_not_below(0, self.n_rules, |n| {
                self.long(HEAD + n * RULE).is_some_and(|other| other < hash)
            });
            while let Some(rule) = self.rule(n).filter(|_| n < self.n_rules) {
                if rule.hash != hash {
                    return None;
                }
                if !rule.posix && same(rule.source, &plain[..end]) {
                    return Some((rule, end));
                }
                n += 1;
            }
            None
        })
    }

    /// The true name of the longest part of a path that the index knows, and where that part ends. `start` is
    /// where the rule ends and the names begin.
    ///
    /// Among names that differ only in case, the one that is spelled alike, and else the first in byte order.
    pub(crate) fn known(
        &self,
        rule: &Rule<'a>,
        plain: &[u8],
        start: usize,
        cuts: &Cuts,
    ) -> Option<(&'a [u8], usize)> {
        let last = rule.first.checked_add(rule.count).filter(|last| *last <= self.n_entries)?;
        cuts.longest_first().take_while(|(end, _)| *end > start).find_map(|(end, hash)| {
            let first = first_not_below(rule.first, last, |n| {
                self.long(self.entry_at(n)).is_some_and(|other| other < hash)
            });
            let wanted = &plain[start..end];
            let alike = || {
                let entries = (first..last).map_while(|n| self.entry(n));
                entries.take_while(|entry| entry.0 == hash).map(|(_, name)| name)
            };
            let found = alike().find(|name| *name == wanted);
            let found = found.or_else(|| alike().find(|name| same(name, wanted)));
            found.map(|name| (name, end))
        })
    }

    /// Where an entry lies. The head was checked to have room for all of them.
    fn entry_at(&self, n: usize) -> usize {
        HEAD + self.n_rules * RULE + n.min(self.n_entries) * ENTRY
    }

    fn entry(&self, n: usize) -> Option<(u64, &'a [u8])> {
        let at = self.entry_at(n);
        let name = self.piece(number(self.bytes, at + 8)?, number(self.bytes, at + 12)?)?;
        Some((self.long(at)?, name))
    }

    fn long(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn piece(&self, offset: usize, length: usize) -> Option<&'a [u8]> {
        self.text.get(offset..offset.checked_add(length)?)
    }
}

fn bit_of(hash: u64) -> (usize, u64) {
    (usize::from(hash.to_be_bytes()[0] >> 6), 1 << (hash >> 56 & 63))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// The first number from `low` up to `high` for which `is_below` no longer holds.
fn first_not_below(mut low: usize, mut high: usize, is_below: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = low + (high - low) / 2;
        if is_below(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn same(one: &[u8], other: &[u8]) -> bool {
    if one.is_ascii() && other.is_ascii() {
        return one.eq_ignore_ascii_case(other);
    }
    folded(one).eq(folded(other))
}

/// What follows a folder in a path, if the folder ends where a part of the path ends.
pub(crate) fn below<'p>(path: &'p [u8], folder: &[u8]) -> Option<&'p [u8]> {
    let rest = path.strip_prefix(folder)?;
    (rest.is_empty() || rest[0] == b'/').then_some(rest)
}

/// Where the parts of a path end, with the hash of all up to there.
#[derive(Debug)]
pub(crate) struct Cuts {
    ends: [u16; MOST_CUTS],
    hashes: [u64; MOST_CUTS],
    n: usize,
}

impl Cuts {
    pub(crate) fn of(path: &[u8]) -> Self {
        let mut cuts = Self { ends: [0; MOST_CUTS], hashes: [0; MOST_CUTS], n: 0 };
        let (mut hash, mut end) = (SEED, 0);
        for part in path.split(|b| *b == b'/').take(MOST_CUTS) {
            hash = hash_part(hash, part);
            end += usize::from(cuts.n > 0) + part.len();
            cuts.ends[cuts.n] = u16::try_from(end).unwrap_or(u16::MAX);
            cuts.hashes[cuts.n] = hash;
            cuts.n += 1;
        }
        cuts
    }

    fn longest_first(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let ends = self.ends[..self.n].iter().map(|end| usize::from(*end));
        ends.zip(self.hashes[..self.n].iter().copied()).rev()
    }
}
