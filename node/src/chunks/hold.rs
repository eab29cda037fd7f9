//! Holds: what a transfer has looked at is not collected before the transfer has said what it relies on.
//!
//! A transfer that finds a chunk in the store does not fetch it, and learns only at its end which chunks its
//! manifest names. Between the two nothing durable says that the chunk is in use. While a hold lives, every
//! chunk that anybody asks for, reads or stores is marked, and marked chunks are not collected. Marks are
//! gathered in generations, one for each hold, so that long transfers that overlap without end do not
//! gather marks without end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use meshfarm_protocol::id::ChunkId;

use super::{Shared, mark};

/// Keeps what was looked at since it was taken. Dropping it lets go.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
    generation: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.lock().holds.end(self.generation);
    }
}

#[derive(Debug, Default)]
pub(super) struct Holds {
    next: u64,
    /// How many holds of each generation live.
    live: BTreeMap<u64, usize>,
    /// Marks by the newest generation at the moment of the look.
    marks: BTreeMap<u64, HashSet<u32>>,
}

impl Holds {
    pub(super) fn begin(&mut self) -> u64 {
        let generation = self.next;
        self.next += 1;
        self.live.insert(generation, 1);
        self.marks.insert(generation, HashSet::new());
        generation
    }

    /// One that also keeps everything that is kept now.
    pub(super) fn begin_with_all(&mut self) -> u64 {
        let Some(mut oldest) = self.live.first_entry() else {
            return self.begin();
        };
        *oldest.get_mut() += 1;
        *oldest.key()
    }

    pub(super) fn end(&mut self, generation: u64) {
        if let Some(n) = self.live.get_mut(&generation) {
            *n -= 1;
            if *n == 0 {
                self.live.remove(&generation);
            }
        }
        let oldest = self.live.keys().next().copied().unwrap_or(u64::MAX);
        self.marks = self.marks.split_off(&oldest);
    }

    pub(super) fn look(&mut self, cid: &ChunkId) {
        if let Some(mut newest) = self.marks.last_entry() {
            newest.get_mut().insert(mark(cid));
        }
    }

    pub(super) fn keeps(&self, cid: &ChunkId) -> bool {
        self.marks.values().any(|marks| marks.contains(&mark(cid)))
    }
}

impl super::Chunks {
    /// Keeps every chunk that anybody asks for, reads or stores from now on, until it is dropped.
    #[must_use]
    pub fn hold(&self) -> Hold {
        let generation = self.shared.lock().holds.begin();
        Hold { shared: self.shared.clone(), generation }
    }

    /// The same, and also whatever is kept at this moment: for a collection, which decides by what is pinned
    /// now and must not take what was about to be.
    #[must_use]
    pub fn hold_all(&self) -> Hold {
        let generation = self.shared.lock().holds.begin_with_all();
        Hold { shared: self.shared.clone(), generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cid(number: u8) -> ChunkId {
        ChunkId([number; 32])
    }

    #[test]
    fn marks_live_as_long_as_a_hold_that_may_rely_on_them() {
        let mut holds = Holds::default();
        holds.look(&cid(0));
        assert!(!holds.keeps(&cid(0)), "nobody holds");
        let first = holds.begin();
        holds.look(&cid(1));
        let second = holds.begin();
        holds.look(&cid(2));
        holds.end(first);
        assert!(!holds.keeps(&cid(1)) && holds.keeps(&cid(2)));
        let collection = holds.begin_with_all();
        holds.end(second);
        assert!(holds.keeps(&cid(2)), "the collection keeps what was kept when it began");
        holds.end(collection);
        assert!(!holds.keeps(&cid(2)) && holds.marks.is_empty() && holds.live.is_empty());
    }

    #[test]
    fn a_collection_that_nobody_disturbs_keeps_what_is_stored_while_it_runs() {
        let mut holds = Holds::default();
        let collection = holds.begin_with_all();
        let fetch = holds.begin();
        holds.look(&cid(1));
        holds.end(fetch);
        assert!(holds.keeps(&cid(1)));
        holds.end(collection);
        assert!(!holds.keeps(&cid(1)));
    }
}
