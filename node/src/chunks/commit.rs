//! Making chunks durable in groups, and finding after a crash what was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use super::place::Extent;
use super::{ChunkError, Pending, Shared, State, io_error, sync_folder};
use crate::store::{Batch, Family};

impl Shared {
    /// Waits until no commit is under way.
    pub(super) fn settled(&self) -> Result<MutexGuard<'_, State>, ChunkError> {
        let mut state = self.lock();
        while state.committing.is_some() {
            state = self.wait(state);
        }
        if state.broken { Err(self.broken()) } else { Ok(state) }
    }

    /// Makes durable what is pending now, or waits for another caller who does.
    pub(super) fn commit(&self) -> Result<(), ChunkError> {
        let mut state = self.lock();
        if state.broken {
            return Err(self.broken());
        }
        // What is pending now is covered by the next commit that begins.
        let covered_by = state.begun + u64::from(!state.pending.is_empty());
        while state.committing.is_some() {
            state = self.wait(state);
        }
        if state.broken {
            return Err(self.broken());
        }
        if state.ended >= covered_by || state.pending.is_empty() {
            return Ok(());
        }
        self.commit_pending(state)
    }

    fn commit_pending(&self, mut state: MutexGuard<'_, State>) -> Result<(), ChunkError> {
        let places = std::mem::take(&mut state.pending);
        let bytes = std::mem::take(&mut state.pending_bytes);
        let dirty = std::mem::take(&mut state.dirty);
        let mut batch = Batch::new();
        let mut touched: BTreeSet<u32> = dirty.keys().copied().collect();
        for (cid, Pending { place, from }) in &places {
            batch.put(Family::Chunk, cid.0, place.to_bytes());
            let extent = state.extents.entry(place.segment).or_default();
            extent.committed = extent.committed.max(place.end());
            extent.live += place.span();
            if let Some(from) = from {
                let extent = state.extents.entry(from.segment).or_default();
                extent.live = extent.live.saturating_sub(from.span());
                touched.insert(from.segment);
            }
        }
        for segment in touched {
            let extent = state.extents.get(&segment).copied().unwrap_or_default();
            batch.put(Family::Segment, segment.to_be_bytes(), extent.to_bytes());
        }
        state.committing = Some(places);
        state.since = None;
        state.begun += 1;
        drop(state);

        let synced = dirty.iter().try_for_each(|(segment, file)| {
            file.sync_data().map_err(|source| io_error("sync", &self.path(*segment), source))
        });
        let written = match &synced {
            Ok(()) => self.store.commit(batch),
            Err(_) => Ok(()),
        };

        let mut state = self.lock();
        let places = state.committing.take().unwrap_or_default();
        if written.is_err() {
            // The bytes are durable, only the index is not: the next commit tries again.
            for Pending { place, from } in places.values() {
                let extent = state.extents.entry(place.segment).or_default();
                extent.live = extent.live.saturating_sub(place.span());
                if let Some(from) = from {
                    state.extents.entry(from.segment).or_default().live += from.span();
                }
            }
            state.pending.extend(places);
            state.pending_bytes += bytes;
            state.dirty.extend(dirty);
            state.since = Some(Instant::now());
        } else {
            state.ended = state.begun;
        }
        // After a failed sync the kernel may drop the bytes and report success next time.
        state.broken |= synced.is_err();
        self.changed.notify_all();
        drop(state);
        synced?;
        Ok(written?)
    }

    /// Runs on a thread of its own: sleeps until a commit is due, for ever when nothing is pending.
    pub(super) fn commit_in_time(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let Some(since) = state.since.filter(|_| state.committing.is_none()) else {
                state = self.wait(state);
                continue;
            };
            let left = self.settings.commit_after.saturating_sub(since.elapsed());
            if left.is_zero() {
                drop(state);
                if let Err(error) = self.commit() {
                    tracing::warn!(%error, "chunks are not durable yet");
                }
                state = self.lock();
            } else {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Reads how far each segment is durable, and cuts off or deletes what is not.
    pub(super) fn recover(&self) -> Result<(), ChunkError> {
        let mut extents = HashMap::new();
        self.store.scan(Family::Segment, &[], |key, value| {
            if let (Ok(key), Some(extent)) = (key.try_into(), Extent::from_bytes(value)) {
                extents.insert(u32::from_be_bytes(key), extent);
            }
            ControlFlow::Continue(())
        })?;
        let files = self.files()?;
        if extents.is_empty() {
            extents = self.adopt(&files)?;
        }
        let newest = extents.keys().max().copied();
        for (segment, path) in files {
            let Some(extent) = extents.get(&segment) else {
                fs::remove_file(&path).map_err(|source| io_error("delete", &path, source))?;
                continue;
            };
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(|source| io_error("open", &path, source))?;
            let len = file.metadata().map_err(|source| io_error("read", &path, source))?.len();
            if len > extent.committed {
                file.set_len(extent.committed)
                    .map_err(|source| io_error("shorten", &path, source))?;
            }
            // A segment that lost bytes must not grow again over the hole.
            if len < extent.committed {
                tracing::warn!(path = %path.display(), len, "a segment is shorter than it was");
            } else if Some(segment) == newest && !extent.unread {
                let mut state = self.lock();
                state.tail = extent.committed;
                state.active = Some((segment, Arc::new(file)));
            }
        }
        sync_folder(&self.folder)?;
        let mut state = self.lock();
        state.next_segment = newest.map_or(0, |newest| newest + 1);
        state.extents = extents;
        Ok(())
    }

    /// The segments' files by their numbers.
    fn files(&self) -> Result<BTreeMap<u32, PathBuf>, ChunkError> {
        let listing = |source| io_error("list", &self.folder, source);
        let mut files = BTreeMap::new();
        for file in fs::read_dir(&self.folder).map_err(listing)? {
            let path = file.map_err(listing)?.path();
            if let Some(segment) = segment_number(&path) {
                files.insert(segment, path);
            }
        }
        Ok(files)
    }

    /// Without any index there are either chunks that no commit has covered yet, or the index was lost: what
    /// the segments hold is kept, to be [read again](super::Chunks::read_again).
    fn adopt(&self, files: &BTreeMap<u32, PathBuf>) -> Result<HashMap<u32, Extent>, ChunkError> {
        let mut extents = HashMap::new();
        let mut batch = Batch::new();
        for (segment, path) in files {
            let about = fs::metadata(path).map_err(|source| io_error("read", path, source))?;
            if about.len() > 0 {
                let extent = Extent { committed: about.len(), live: 0, unread: true };
                batch.put(Family::Segment, segment.to_be_bytes(), extent.to_bytes());
                extents.insert(*segment, extent);
            }
        }
        self.store.commit(batch)?;
        Ok(extents)
    }
}

fn segment_number(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    if name.len() == 8 { u32::from_str_radix(name, 16).ok() } else { None }
}
