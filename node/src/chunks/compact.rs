//! Compaction: chunks of segments that are less than half live move to the newest segment, while serving.
//!
//! A chunk is copied, the copy is synced, one batch of the index points to it and takes it from the old
//! segment's count, and only when nothing is left there is the old segment deleted, from the index first. A
//! crash between any two of these leaves a chunk where the index says it is.

use std::ops::ControlFlow;

use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::seal;

use super::place::Place;
use super::{ChunkError, Chunks, Shared};
use crate::store::Family;

/// So many segments are emptied in one go, which bounds the memory for their chunks' places.
const AT_ONCE: usize = 4;

/// A segment and the chunks in it.
type PlacesIn = (u32, Vec<(ChunkId, Place)>);

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments that were deleted.
    pub segments: u64,
    /// Bytes that were copied for that.
    pub moved: u64,
}

impl Chunks {
    /// Empties segments that are less than half live into the newest one, a few at a time, and deletes them.
    ///
    /// # Errors
    /// When the disk or the index refuses, or the disk is too full for the copies. What was copied is kept.
    pub fn compact(&self) -> Result<Compacted, ChunkError> {
        self.shared.commit()?;
        let mut done = Compacted::default();
        let sparse = self.shared.sparse()?;
        for (segment, chunks) in self.shared.places_in(&sparse)? {
            for (cid, place) in chunks {
                done.moved += self.move_chunk(&cid, place)?;
            }
            self.shared.commit()?;
            tracing::debug!(segment, "a segment was emptied");
        }
        let mut state = self.shared.settled()?;
        done.segments = self.shared.delete_empty(&mut state, sparse.into_iter())?;
        Ok(done)
    }

    /// How many bytes were copied.
    pub(super) fn move_chunk(&self, cid: &ChunkId, from: Place) -> Result<u64, ChunkError> {
        let shared = &self.shared;
        let mut bytes = Vec::new();
        if !shared.read(from, 0, &mut bytes)? || seal::check_chunk(cid, &bytes).is_err() {
            if shared.place(cid)? == Some(from) {
                self.forget_damaged(cid, from)?;
            }
            return Ok(0);
        }
        let state = shared.lock();
        // It was removed or moved meanwhile.
        if state.find(cid).is_some() || shared.indexed(cid)? != Some(from) {
            return Ok(0);
        }
        let stored = shared.append(state, (cid, &bytes), from.born, Some(from))?;
        if stored.is_due {
            shared.commit()?;
        }
        Ok(if stored.is_new { from.span() } else { 0 })
    }
}

impl Shared {
    /// Segments that are worth emptying, the emptiest first.
    fn sparse(&self) -> Result<Vec<u32>, ChunkError> {
        let state = self.settled()?;
        let sparse = state.extents.iter().filter(|(segment, extent)| {
            !extent.unread && !state.grows(**segment) && extent.live * 2 < extent.committed
        });
        let mut sparse: Vec<_> = sparse.map(|(segment, extent)| (extent.live, *segment)).collect();
        sparse.sort_unstable();
        Ok(sparse.into_iter().take(AT_ONCE).map(|(_, segment)| segment).collect())
    }

    /// The chunks of some segments, in the order in which they lie.
    pub(super) fn places_in(&self, segments: &[u32]) -> Result<Vec<PlacesIn>, ChunkError> {
        let mut found: Vec<_> = segments.iter().map(|segment| (*segment, Vec::new())).collect();
        if segments.is_empty() {
            return Ok(found);
        }
        self.store.scan(Family::Chunk, &[], |key, value| {
            if let (Ok(cid), Some(place)) = (key.try_into(), Place::from_bytes(value))
                && let Some((_, chunks)) = found.iter_mut().find(|(s, _)| *s == place.segment)
            {
                chunks.push((ChunkId(cid), place));
            }
            ControlFlow::Continue(())
        })?;
        for (_, chunks) in &mut found {
            chunks.sort_unstable_by_key(|(_, place)| place.offset);
        }
        Ok(found)
    }
}
