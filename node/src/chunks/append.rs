//! Chunks written behind all others: room asked for, room taken, segments begun.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use meshfarm_protocol::id::ChunkId;

use super::place::{Extent, Place};
use super::{ChunkError, HEADER, Pending, Shared, State, Stored, io_error, segment, sync_folder};

/// Free space is asked for again after so many appended bytes.
const ASK_SPACE_EVERY: u64 = 16 << 20;

/// Chunks shorter than this are written with their headers in one call.
const SHORT: usize = 16 << 10;

impl Shared {
    /// Writes a chunk behind all others. Its room is taken first, so that several threads write at once; a write
    /// that fails leaves a gap that nothing points to.
    pub(super) fn append(
        &self,
        mut state: MutexGuard<'_, State>,
        (cid, bytes): (&ChunkId, &[u8]),
        born: u32,
        from: Option<Place>,
    ) -> Result<Stored, ChunkError> {
        if state.broken {
            return Err(self.broken());
        }
        let len = u32::try_from(bytes.len()).expect("a chunk's length was checked");
        let span = HEADER + u64::from(len);
        self.ask_space(&mut state, span)?;
        let (number, file) = self.active(&mut state, span)?;
        let offset = u32::try_from(state.tail).expect("segments are shorter than 4 GiB");
        state.tail += span;
        state.unasked_bytes += span;
        *state.writing.entry(number).or_default() += 1;
        let ended = state.ended;
        drop(state);
        let written = write_record(&file, &segment::header(len, &cid.0), bytes, offset.into());

        let mut state = self.lock();
        state.written(number);
        written.map_err(|source| self.full(number, source))?;
        // Another thread was faster with the same chunk, or took away what is being moved.
        let is_new = match from {
            // What is in neither place now and was not before is in the index only when a commit ended meanwhile.
            None if state.find(cid).is_some() => false,
            None => state.ended == ended || self.indexed(cid)?.is_none(),
            Some(_) => state.find(cid).is_none() && self.indexed(cid)? == from,
        };
        if is_new {
            let place = Place { segment: number, offset, len, born };
            state.pending.insert(*cid, Pending { place, from });
            state.pending_bytes += span;
            state.dirty.insert(number, file);
            if state.since.is_none() {
                state.since = Some(Instant::now());
                self.changed.notify_all();
            }
        }
        Ok(Stored { is_new, is_due: self.is_due(&state) })
    }

    pub(super) fn ask_space(&self, state: &mut State, span: u64) -> Result<(), ChunkError> {
        if state.free_was_asked && state.unasked_bytes + span <= ASK_SPACE_EVERY {
            return Ok(());
        }
        state.free_was_asked = false;
        let free = (self.settings.free_bytes)(&self.folder)
            .map_err(|source| io_error("see the free space of", &self.folder, source))?;
        let keep = self.settings.keep_free;
        if free < keep.saturating_add(span) {
            return Err(ChunkError::DiskFull { folder: self.folder.clone(), free, keep });
        }
        // Near the mark every append asks again.
        state.free_was_asked = free > keep.saturating_add(ASK_SPACE_EVERY);
        state.unasked_bytes = 0;
        Ok(())
    }

    fn full(&self, segment: u32, source: io::Error) -> ChunkError {
        if source.kind() == io::ErrorKind::StorageFull {
            let keep = self.settings.keep_free;
            return ChunkError::DiskFull { folder: self.folder.clone(), free: 0, keep };
        }
        io_error("write", &self.path(segment), source)
    }

    /// The segment that grows, a new one when `span` more bytes would be too many for the last.
    fn active(&self, state: &mut State, span: u64) -> Result<(u32, Arc<File>), ChunkError> {
        let fits = state.tail == 0 || state.tail + span <= self.settings.segment_bytes;
        if let Some((segment, file)) = state.active.as_ref().filter(|_| fits) {
            return Ok((*segment, file.clone()));
        }
        let segment = state.next_segment;
        let path = self.path(segment);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| self.full(segment, source))?;
        sync_folder(&self.folder)?;
        let file = Arc::new(file);
        state.extents.insert(segment, Extent::default());
        state.next_segment += 1;
        state.active = Some((segment, file.clone()));
        state.tail = 0;
        Ok((segment, file))
    }
}

/// A chunk behind its header. A long one is not copied for that.
fn write_record(file: &File, header: &[u8], bytes: &[u8], at: u64) -> io::Result<()> {
    if bytes.len() < SHORT {
        return file.write_all_at(&[header, bytes].concat(), at);
    }
    file.write_all_at(header, at)?;
    file.write_all_at(bytes, at + header.len() as u64)
}
