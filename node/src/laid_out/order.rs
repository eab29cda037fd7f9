//! In which order the files of a content are fetched and laid out, and which of them sessions need not wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use meshfarm_protocol::job::{Access, Layout};
use meshfarm_protocol::manifest;

use crate::content::ContentError;
use crate::content::tree::{Files, Surveyed};
use crate::traces::{MAX_MARKS, Mark, Marks, Trace};

/// A shorter file is not worth being late, nor a place in a trace.
const WORTH: u64 = 64 << 10;

/// More files than this are not late: each has a watch, of which a system has some ten thousands.
const MAX_LATE: usize = 4096;

/// A shorter file is laid out before any session begins.
const WORTH_HOLDING: u64 = 1 << 20;

/// More files than this are not kept closed: each is open here.
const MAX_HELD: usize = 256;

/// Nor more bytes: a slow machine lays them out before who waits for one of them may open it all the same.
const MAX_HELD_BYTES: u64 = 8 << 30;

/// In which order a content is fetched and laid out.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Chunks that come first; all alike when there are none.
    pub(super) first: Vec<Range<u64>>,
    pub(super) late: BTreeSet<u64>,
    /// Files that are laid out while sessions run, and kept closed until then.
    pub(super) held: BTreeSet<u64>,
    /// The folders of files that are worth knowing about: here, and as the artist calls them.
    pub(super) folders: BTreeMap<String, String>,
    pub(super) files: BTreeSet<Mark>,
}

impl Order {
    /// Which files come first. A file may be late when it lies where tasks only read, is worth it, is not here, and
    /// was there before without being opened.
    pub(super) fn of(
        files: &Files<'_>,
        layout: &Layout,
        (marks, trace): (&Marks, Option<&Trace>),
    ) -> Result<Self, ContentError> {
        let read_only = layout.roots.iter().filter(|root| root.access == Access::In);
        let read_only: BTreeMap<_, _> =
            read_only.map(|root| (root.id.as_str(), root.source.as_str())).collect();
        // Under the artist's own path, because roots may be numbered otherwise in the next version.
        let name_of = |file: &manifest::File| {
            let (root, rest) = file.path.split_once('/')?;
            let source = read_only.get(root).filter(|_| file.size >= WORTH)?;
            Some(format!("{source}/{rest}"))
        };
        let may_wait = |file: &manifest::File| {
            trace.is_some_and(|t| name_of(file).is_some_and(|name| t.may_wait(marks.of(&name))))
        };
        // A program file cannot be started while it is open here.
        let may_be_held = |file: &manifest::File| {
            file.size >= WORTH_HOLDING && !file.executable && name_of(file).is_some()
        };
        let asks = |file: &manifest::File| may_be_held(file) || may_wait(file);
        let (mut order, mut late, mut too_many) = (Self::default(), Vec::new(), false);
        let (mut large, mut all) = (Vec::new(), 0);
        files.survey(asks, |Surveyed { number, file, chunks, missing }| {
            all += file.size;
            if may_be_held(&file) {
                large.push((file.size, number, missing));
            }
            if let Some(name) = name_of(&file) {
                too_many |= order.files.len() >= MAX_MARKS;
                if !too_many {
                    order.files.insert(marks.of(&name));
                    let folders = file.path.rsplit_once('/').zip(name.rsplit_once('/'));
                    let folders = folders.map(|((here, _), (name, _))| (here.into(), name.into()));
                    order.folders.extend(folders);
                }
            }
            if missing && may_wait(&file) {
                late.push((file.size, number, chunks));
            }
        })?;
        if too_many {
            (order.files, order.folders) = Default::default();
        }
        late.sort_by_key(|(size, ..)| std::cmp::Reverse(*size));
        late.truncate(MAX_LATE);
        late.sort_by_key(|(_, number, _)| *number);
        let mut at = 0;
        for (_, number, chunks) in &late {
            order.late.insert(*number);
            order.first.push(at..chunks.start);
            at = chunks.end;
        }
        if !late.is_empty() {
            order.first.push(at..u64::MAX);
        }
        order.held = held(large, all, late.is_empty());
        Ok(order)
    }

    /// Whether sessions begin only when everything has come: who opens a file that is kept closed waits for the disk
    /// then, and not for the network.
    pub(super) fn all_comes_first(&self) -> bool {
        self.late.is_empty() && !self.held.is_empty()
    }
}

/// Which of the large files are kept closed, of which size and number are known and whether something of them is
/// missing: none when most of the content must come first, and otherwise those that are here, or `all_come` before
/// sessions begin.
fn held(mut large: Vec<(u64, u64, bool)>, bytes: u64, all_come: bool) -> BTreeSet<u64> {
    let here: u64 = large.iter().filter(|(.., missing)| !missing).map(|(size, ..)| size).sum();
    if here < bytes / 2 {
        return BTreeSet::new();
    }
    large.retain(|(.., missing)| all_come || !missing);
    large.sort_by_key(|(size, ..)| std::cmp::Reverse(*size));
    let mut left = MAX_HELD_BYTES;
    large.retain(|(size, ..)| {
        let fits = *size <= left;
        left -= if fits { *size } else { 0 };
        fits
    });
    large.into_iter().take(MAX_HELD).map(|(_, number, _)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn large_files_are_kept_closed_when_most_of_the_content_is_here() {
        let large = || vec![(4 * MIB, 0, false), (2 * MIB, 1, true), (3 * MIB, 2, false)];
        assert_eq!(held(large(), 14 * MIB, true), [0, 1, 2].into());
        assert_eq!(held(large(), 14 * MIB, false), [0, 2].into(), "the network is not waited for");
        assert_eq!(held(large(), 15 * MIB, true), [].into(), "too much has to come first");
    }

    #[test]
    fn no_more_is_kept_closed_than_a_slow_machine_lays_out_in_time() {
        let large = vec![(MAX_HELD_BYTES, 0, false), (MIB, 1, false)];
        assert_eq!(held(large, MAX_HELD_BYTES, true), [0].into());
        let many = (0..1000).map(|number| (MIB, number, false)).collect();
        assert_eq!(held(many, 1000 * MIB, true).len(), MAX_HELD);
    }
}
