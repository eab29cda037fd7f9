//! Removing chunks, and giving their room back.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};

use meshfarm_protocol::id::ChunkId;

use super::place::Place;
use super::{ChunkError, Chunks, Shared, State};
use crate::store::{Batch, Family};

/// So many chunks are removed while others wait: each is looked up first.
const AT_ONCE: usize = 128;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Chunks.
    pub chunks: u64,
    /// Bytes that they took in their segments.
    pub bytes: u64,
}

/// What to ask before a chunk is removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Nothing,
    /// Whether a [hold](super::Hold) keeps it.
    Holds,
}

/// Removed places by their segment, and the file of the segment, opened while it was surely the right one.
type Holes = BTreeMap<u32, (Option<File>, Vec<Place>)>;

impl Chunks {
    /// Removes chunks, whoever may want them, and deletes segments in which none is left. Their room comes
    /// back at once where the file system can, and with their segment elsewhere.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn remove(&self, cids: &[ChunkId]) -> Result<Removed, ChunkError> {
        self.remove_some(cids.iter().map(|cid| (*cid, None)), Ask::Nothing)
    }

    /// The same for chunks that nothing pins, apart from those that a [hold](super::Hold) keeps.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn collect(&self, cids: &[ChunkId]) -> Result<Removed, ChunkError> {
        self.remove_some(cids.iter().map(|cid| (*cid, None)), Ask::Holds)
    }

    /// Forgets a chunk that is damaged at this place; one that was stored anew meanwhile stays.
    pub(super) fn forget_damaged(&self, cid: &ChunkId, place: Place) -> Result<(), ChunkError> {
        tracing::warn!(%cid, ?place, "a stored chunk is damaged and will be fetched again");
        self.remove_some([(*cid, Some(place))].into_iter(), Ask::Nothing).map(drop)
    }

    fn remove_some(
        &self,
        mut cids: impl Iterator<Item = (ChunkId, Option<Place>)>,
        ask: Ask,
    ) -> Result<Removed, ChunkError> {
        let mut removed = Removed::default();
        loop {
            let some: Vec<_> = cids.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                return Ok(removed);
            }
            self.shared.commit()?;
            let state = self.shared.settled()?;
            let holes = self.shared.unindex(state, &some, ask)?;
            for place in holes.values().flat_map(|(_, places)| places) {
                removed.chunks += 1;
                removed.bytes += place.span();
            }
            self.shared.punch(holes);
        }
    }
}

impl Shared {
    /// Takes chunks out of the index. When this returns, no crash brings them back.
    fn unindex(
        &self,
        mut state: std::sync::MutexGuard<'_, State>,
        cids: &[(ChunkId, Option<Place>)],
        ask: Ask,
    ) -> Result<Holes, ChunkError> {
        let mut batch = Batch::new();
        let mut found: HashMap<ChunkId, Place> = HashMap::new();
        for (cid, damaged) in cids {
            let Some(place) = self.indexed(cid)? else { continue };
            if damaged.is_some_and(|damaged| damaged != place)
                || (ask == Ask::Holds && state.holds.keeps(cid))
            {
                continue;
            }
            batch.delete(Family::Chunk, cid.0);
            found.insert(*cid, place);
        }
        let mut holes = Holes::new();
        for (cid, place) in found {
            // It is being moved: the move would bring it back.
            state.pending.remove(&cid);
            holes.entry(place.segment).or_default().1.push(place);
        }
        let mut extents = HashMap::new();
        for (segment, (file, places)) in &mut holes {
            let span: u64 = places.iter().map(|place| place.span()).sum();
            let mut extent = state.extents.get(segment).copied().unwrap_or_default();
            extent.live = extent.live.saturating_sub(span);
            batch.put(Family::Segment, segment.to_be_bytes(), extent.to_bytes());
            extents.insert(*segment, extent);
            *file = OpenOptions::new().write(true).open(self.path(*segment)).ok();
        }
        self.store.commit(batch)?;
        state.extents.extend(extents);
        self.delete_empty(&mut state, holes.keys().copied())?;
        Ok(holes)
    }

    /// Deletes those of these segments in which no chunk is left and to which none is appended.
    pub(super) fn delete_empty(
        &self,
        state: &mut State,
        segments: impl Iterator<Item = u32>,
    ) -> Result<u64, ChunkError> {
        let mut batch = Batch::new();
        let mut gone = Vec::new();
        for segment in segments {
            let extent = state.extents.get(&segment);
            let empty = extent.is_some_and(|extent| extent.live == 0 && !extent.unread);
            if empty && !state.grows(segment) {
                batch.delete(Family::Segment, segment.to_be_bytes());
                gone.push(segment);
            }
        }
        self.store.commit(batch)?;
        for segment in &gone {
            state.extents.remove(segment);
            self.forget(*segment)?;
        }
        Ok(gone.len() as u64)
    }

    /// Gives the room of removed chunks back. The index has forgotten them, so where the file system cannot do
    /// it, or a crash comes first, only the room stays away until their segment is compacted.
    fn punch(&self, holes: Holes) {
        for (segment, (file, places)) in holes {
            let Some(file) = file else { continue };
            for (from, to) in runs(places) {
                if let Err(error) = (self.settings.punch)(&file, from, to - from) {
                    tracing::debug!(segment, %error, "no hole was punched");
                    break;
                }
            }
        }
    }
}

/// Neighbouring places as one run of bytes, so that blocks that they share come back too.
fn runs(mut places: Vec<Place>) -> Vec<(u64, u64)> {
    places.sort_by_key(|place| place.offset);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for place in places {
        let (from, to) = (u64::from(place.offset), place.end());
        match runs.last_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ => runs.push((from, to)),
        }
    }
    runs
}
