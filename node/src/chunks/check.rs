//! Looking at what is stored: counts, every chunk against its address, segments without an index.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use meshfarm_protocol::id::{ChunkId, Millis};
use meshfarm_protocol::seal;

use super::place::{Extent, Place, seconds};
use super::segment::Walk;
use super::{ChunkError, Chunks, Shared, io_error, mark};
use crate::store::{Batch, Family};

/// So many chunks that were found again are indexed together.
const AT_ONCE: usize = 4096;

/// How a chunk was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// As it was stored; so many bytes.
    Good(u64),
    /// It was removed meanwhile.
    Gone,
    /// It is not what its address says. It was forgotten.
    Damaged,
}

/// A chunk as the index shows it, in as little as a decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// [Its mark](super::mark).
    pub mark: u32,
    /// Bytes that it takes.
    pub span: u32,
    /// When it was stored, in seconds since 1970.
    pub born: u32,
}

/// The segments counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many there are.
    pub segments: u64,
    /// Bytes of chunks in them.
    pub live: u64,
    /// Bytes that they take on the disk.
    pub disk: u64,
    /// Of how many the index is lost and not read again yet.
    pub unread: u64,
}

impl Chunks {
    /// Counts the segments.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn count(&self) -> Result<Counted, ChunkError> {
        self.shared.commit()?;
        let state = self.shared.settled()?;
        let mut counted = Counted { segments: state.extents.len() as u64, ..Counted::default() };
        for (segment, extent) in &state.extents {
            counted.live += extent.live;
            counted.unread += u64::from(extent.unread);
            let about = self.shared.path(*segment).metadata();
            counted.disk += about.map_or(0, |about| about.blocks() * 512);
        }
        Ok(counted)
    }

    /// Every chunk, in the order of their marks.
    ///
    /// # Errors
    /// When the index refuses.
    pub fn spots(&self) -> Result<Vec<Spot>, ChunkError> {
        self.shared.commit()?;
        let mut spots = Vec::new();
        self.each(|cid, place| {
            let span = u32::try_from(place.span()).unwrap_or(u32::MAX);
            spots.push(Spot { mark: mark(&cid), span, born: place.born });
        })?;
        Ok(spots)
    }

    /// Every chunk that `wanted` names.
    ///
    /// # Errors
    /// When the index refuses.
    pub fn find(&self, wanted: impl Fn(&ChunkId) -> bool) -> Result<Vec<ChunkId>, ChunkError> {
        let mut found = Vec::new();
        self.each(|cid, _| {
            if wanted(&cid) {
                found.push(cid);
            }
        })?;
        Ok(found)
    }

    fn each(&self, mut visit: impl FnMut(ChunkId, Place)) -> Result<(), ChunkError> {
        self.shared.store.scan(Family::Chunk, &[], |key, value| {
            if let (Ok(cid), Some(place)) = (key.try_into(), Place::from_bytes(value)) {
                visit(ChunkId(cid), place);
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// The numbers of all segments, in order.
    ///
    /// # Errors
    /// When a write failed earlier.
    pub fn segments(&self) -> Result<Vec<u32>, ChunkError> {
        let state = self.shared.settled()?;
        let mut segments: Vec<_> = state.extents.keys().copied().collect();
        segments.sort_unstable();
        Ok(segments)
    }

    /// The chunks of a segment from an offset on, in the order in which they lie.
    ///
    /// # Errors
    /// When the index refuses.
    pub fn chunks_in(&self, segment: u32, from: u32) -> Result<Vec<(u32, ChunkId)>, ChunkError> {
        let found = self.shared.places_in(&[segment])?.pop().map(|(_, chunks)| chunks);
        let chunks = found.unwrap_or_default().into_iter();
        Ok(chunks.map(|(cid, place)| (place.offset, cid)).filter(|(at, _)| *at >= from).collect())
    }

    /// Looks whether a chunk is what its address says, and forgets it where it is not.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn check(&self, cid: &ChunkId) -> Result<Seen, ChunkError> {
        let mut place = self.shared.place(cid)?;
        let mut bytes = Vec::new();
        while let Some(here) = place {
            if self.shared.read(here, 0, &mut bytes)? && seal::check_chunk(cid, &bytes).is_ok() {
                return Ok(Seen::Good(here.span()));
            }
            place = self.shared.place(cid)?;
            if place == Some(here) {
                self.forget_damaged(cid, here)?;
                return Ok(Seen::Damaged);
            }
        }
        Ok(Seen::Gone)
    }

    /// Segments whose index is lost.
    ///
    /// # Errors
    /// When a write failed earlier.
    pub fn unread(&self) -> Result<Vec<u32>, ChunkError> {
        let state = self.shared.settled()?;
        let unread = state.extents.iter().filter(|(_, extent)| extent.unread);
        Ok(unread.map(|(segment, _)| *segment).collect())
    }

    /// Reads a segment without its index, and shows in the index again what is found and was not there. Says
    /// how many chunks that were. `on_progress` is told how far it is, in bytes.
    ///
    /// # Errors
    /// When the disk or the index refuses. What was indexed before stays.
    pub fn read_again(
        &self,
        segment: u32,
        mut on_progress: impl FnMut(u64),
    ) -> Result<u64, ChunkError> {
        let shared = &self.shared;
        let path = shared.path(segment);
        let fails = |doing, source| io_error(doing, &path, source);
        let file = File::open(&path).map_err(|source| fails("open", source))?;
        let about = file.metadata().map_err(|source| fails("read", source))?;
        let modified = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let modified = modified.and_then(|at| u64::try_from(at.as_millis()).ok()).unwrap_or(0);
        let born = seconds(Millis(modified));
        let mut walk = Walk::new(&file, seal::MAX_SEALED);
        let mut found = Vec::new();
        let mut added = 0;
        while let Some(chunk) =
            walk.next(|bytes| seal::chunk_id(bytes).0).map_err(|source| fails("read", source))?
        {
            let (offset, len) = (u32::try_from(chunk.offset), u32::try_from(chunk.bytes.len()));
            let (Ok(offset), Ok(len)) = (offset, len) else { break };
            found.push((ChunkId(chunk.address), Place { segment, offset, len, born }));
            if found.len() >= AT_ONCE {
                added += shared.index_again(segment, &std::mem::take(&mut found), false)?;
                on_progress(walk.offset());
            }
        }
        added += shared.index_again(segment, &found, true)?;
        on_progress(about.len());
        Ok(added)
    }
}

impl Shared {
    fn index_again(
        &self,
        segment: u32,
        found: &[(ChunkId, Place)],
        is_last: bool,
    ) -> Result<u64, ChunkError> {
        self.commit()?;
        let mut state = self.settled()?;
        let Some(Extent { committed, live, unread }) = state.extents.get(&segment).copied() else {
            return Ok(0);
        };
        let mut extent = Extent { committed, live, unread: unread && !is_last };
        let mut batch = Batch::new();
        let mut added = std::collections::HashSet::new();
        for (cid, place) in found {
            let known = state.find(cid).is_some() || self.indexed(cid)?.is_some();
            // What lies behind the durable end is not promised to anybody, and may be overwritten.
            if !known && place.end() <= committed && added.insert(*cid) {
                batch.put(Family::Chunk, cid.0, place.to_bytes());
                extent.live += place.span();
            }
        }
        batch.put(Family::Segment, segment.to_be_bytes(), extent.to_bytes());
        self.store.commit(batch)?;
        state.extents.insert(segment, extent);
        Ok(added.len() as u64)
    }
}
