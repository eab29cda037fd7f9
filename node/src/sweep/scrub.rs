//! Slow verification: every chunk is looked at once a month, a little at a time, from where a restart left off.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::codec;
use meshfarm_protocol::id::{ChunkId, Millis};

use super::{SweepError, Sweeper, lock};
use crate::chunks::Seen;
use crate::store::{Batch, Family, Store, StoreError};

/// Where it stands is written down under this key.
const KEY: &[u8] = b"scrub";

/// Longer than that was not written by us.
const MAX_MARK: usize = 1024;

/// A round begins so long after the last one began.
const ROUND: Millis = Millis::seconds(30 * 86_400);

/// Where it stands is written down after so many bytes.
const NOTE_EVERY: u64 = 256 << 20;

/// How far the slow verification is.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    mark: Mark,
    /// The rest of the segment that it reads.
    queue: VecDeque<(u32, ChunkId)>,
    since_note: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// The segment and the offset in it that come next. None between two rounds.
    next: Option<(u32, u32)>,
    /// When the last round began.
    began: Millis,
    /// When a whole round ended, without anything left out.
    ended: Option<Millis>,
    /// Damaged chunks that were ever found.
    damaged: u64,
}

impl Scrub {
    pub(super) fn load(store: &Store) -> Result<Self, StoreError> {
        let bytes = store.get(Family::Meta, KEY)?;
        let mark = bytes.and_then(|bytes| codec::decode(&bytes, MAX_MARK).ok()).unwrap_or_default();
        Ok(Self { mark, ..Self::default() })
    }

    pub(super) const fn damaged(&self) -> u64 {
        self.mark.damaged
    }

    pub(super) const fn verified(&self) -> Option<Millis> {
        self.mark.ended
    }

    pub(super) fn count_damage(&mut self) {
        self.mark.damaged += 1;
    }

    /// Every chunk was looked at now.
    pub(super) fn complete(&mut self, store: &Store, now: Millis) -> Result<(), StoreError> {
        self.queue.clear();
        self.mark = Mark { next: None, began: now, ended: Some(now), ..self.mark };
        self.note(store)
    }

    pub(super) fn note(&mut self, store: &Store) -> Result<(), StoreError> {
        self.since_note = 0;
        let mut batch = Batch::new();
        batch.put(Family::Meta, KEY, codec::encode(&self.mark));
        store.commit(batch)
    }
}

impl Sweeper {
    /// Look at the next chunks, about so many bytes of them. False when nothing is to be done now.
    ///
    /// # Errors
    /// When the disk or a database refuses.
    pub fn scrub(&self, now: Millis, bytes: u64) -> Result<bool, SweepError> {
        if let Some(segment) = self.chunks.unread()?.first() {
            let found = self.chunks.read_again(*segment, |_| {})?;
            tracing::info!(segment, found, "a segment without an index was read again");
            return Ok(true);
        }
        let mut done = 0;
        while done < bytes {
            let Some(cid) = self.next_chunk(now)? else { return Ok(false) };
            match self.chunks.check(&cid)? {
                Seen::Good(span) => done += span,
                Seen::Gone => {}
                Seen::Damaged => drop(self.tell_damage(&cid)?),
            }
        }
        let mut scrub = lock(&self.scrub);
        scrub.since_note += done;
        if scrub.since_note >= NOTE_EVERY {
            scrub.note(&self.store)?;
        }
        Ok(true)
    }

    /// The chunk that comes next. None when the round is over, or none is due.
    fn next_chunk(&self, now: Millis) -> Result<Option<ChunkId>, SweepError> {
        let mut scrub = lock(&self.scrub);
        let scrub = &mut *scrub;
        loop {
            if let Some((offset, cid)) = scrub.queue.pop_front() {
                if let Some((_, next)) = &mut scrub.mark.next {
                    *next = offset + 1;
                }
                return Ok(Some(cid));
            }
            let Some((segment, from)) = scrub.mark.next else {
                if now.since(scrub.mark.began) < ROUND {
                    return Ok(None);
                }
                scrub.mark = Mark { next: Some((0, 0)), began: now, ..scrub.mark };
                continue;
            };
            let segments = self.chunks.segments()?;
            let Some(at) = segments.into_iter().find(|at| *at >= segment) else {
                scrub.mark = Mark { next: None, ended: Some(now), ..scrub.mark };
                scrub.note(&self.store)?;
                return Ok(None);
            };
            let from = if at == segment { from } else { 0 };
            scrub.queue = self.chunks.chunks_in(at, from)?.into();
            scrub.mark.next = Some(if scrub.queue.is_empty() { (at + 1, 0) } else { (at, from) });
        }
    }
}
