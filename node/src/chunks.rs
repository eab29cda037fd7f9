//! Chunk bytes on disk: append-only segments, indexed by address, durable in groups.
//!
//! A chunk is appended to the newest segment and can be read at once. A commit syncs the segments and
//! then writes the index in one synced batch, so the index never points at bytes that a crash could
//! take. What lies behind the committed length of a segment after a crash is cut off and fetched again.
//! The room of removed chunks comes back at once where the file system can punch holes, and everywhere when
//! a segment that is less than half live is copied to the newest one, while chunks are read and stored.

mod append;
mod check;
mod commit;
mod compact;
mod hold;
mod place;
mod remove;
pub mod segment;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshfarm_protocol::id::{ChunkId, Millis};
use meshfarm_protocol::seal::{self, Fresh, OpenError};

use crate::store::{Family, Store, StoreError};
pub use check::{Counted, Seen, Spot};
pub use hold::Hold;
use hold::Holds;
use place::{Extent, Place, seconds};
pub use remove::Removed;

const HEADER: u64 = segment::HEADER as u64;

/// A commit is due after so many chunks, which bounds the memory for those not yet indexed.
const MAX_PENDING: usize = 1 << 16;

/// Segments kept open for reading.
const MAX_OPEN: usize = 64;

/// How chunks are kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A segment ends before it passes this many bytes.
    pub segment_bytes: u64,
    /// A commit is due after so many appended bytes.
    pub commit_bytes: u64,
    /// A commit is due so long after the first append since the last one.
    pub commit_after: Duration,
    /// So many bytes of the disk stay free for everything else.
    pub keep_free: u64,
    /// How many bytes are free on the disk of a folder.
    pub free_bytes: fn(&Path) -> io::Result<u64>,
    /// Gives the room of some bytes of a file back, from an offset on, where the file system can.
    pub punch: fn(&File, u64, u64) -> io::Result<()>,
    /// What time it is.
    pub now: fn() -> Millis,
}

impl Settings {
    /// What a node uses: segments of 1 GiB, a commit every 128 MiB or 500 ms, 1 GiB kept free.
    #[must_use]
    pub fn new(
        free_bytes: fn(&Path) -> io::Result<u64>,
        punch: fn(&File, u64, u64) -> io::Result<()>,
        now: fn() -> Millis,
    ) -> Self {
        Self {
            segment_bytes: 1 << 30,
            commit_bytes: 128 << 20,
            commit_after: Duration::from_millis(500),
            keep_free: 1 << 30,
            free_bytes,
            punch,
            now,
        }
    }
}

/// Why a chunk was not stored, found or made durable.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The bytes are not those of the address. Nothing was stored; blame who sent them.
    #[error(transparent)]
    Wrong(#[from] OpenError),
    /// The disk is nearly full. Nothing was stored; make room, or lower what is kept free.
    #[error(
        "the disk of {} is full: {free} bytes are free and {keep} are kept for other uses",
        .folder.display()
    )]
    DiskFull {
        /// The segments' folder.
        folder: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are to stay free.
        keep: u64,
    },
    /// The disk refused. A chunk of this call may be lost; those that were flushed are not.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A sync failed earlier, and what is on the disk is unknown since. Restart the node.
    #[error("a write to {} failed earlier: check the disk and restart the node", .folder.display())]
    Broken {
        /// The segments' folder.
        folder: PathBuf,
    },
    /// The index refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChunkError {
    /// Whether there is no room for it on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Store(StoreError::NoSpace { .. }) => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Wrong(_) | Self::Broken { .. } | Self::Store(_) => false,
        }
    }
}

/// All chunks of a node. Shared between threads; every call blocks on the disk.
#[derive(Debug)]
pub struct Chunks {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    folder: PathBuf,
    settings: Settings,
    state: Mutex<State>,
    /// A commit ended, or the first chunk after one arrived, or the node stops.
    changed: Condvar,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

#[derive(Debug, Default)]
struct State {
    /// What the index says about each segment, or will after the commit under way.
    extents: HashMap<u32, Extent>,
    /// The segment that grows.
    active: Option<(u32, Arc<File>)>,
    tail: u64,
    /// The number of the next segment: none is used twice while the node runs, so that nobody who knows a
    /// segment that is gone finds another in its place.
    next_segment: u32,
    holds: Holds,
    /// Appended since the last commit began.
    pending: BTreeMap<ChunkId, Pending>,
    pending_bytes: u64,
    /// When the first of them was appended.
    since: Option<Instant>,
    /// Segments that grew since the last commit began.
    dirty: HashMap<u32, Arc<File>>,
    /// How many chunks are being written to each segment now.
    writing: HashMap<u32, usize>,
    /// Being committed now.
    committing: Option<BTreeMap<ChunkId, Pending>>,
    /// How many commits have begun.
    begun: u64,
    /// The last one that was not refused by the index.
    ended: u64,
    unasked_bytes: u64,
    free_was_asked: bool,
    broken: bool,
    stopping: bool,
}

/// A chunk that the index does not show there yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    place: Place,
    /// Where the index shows it: it is being moved.
    from: Option<Place>,
}

/// A chunk was written.
struct Stored {
    /// False when another thread was faster with it.
    is_new: bool,
    /// Whether a commit is due now.
    is_due: bool,
}

/// What tells chunks apart where a few false likenesses do no harm: the first bytes of the address.
#[must_use]
pub fn mark(cid: &ChunkId) -> u32 {
    u32::from_be_bytes([cid.0[0], cid.0[1], cid.0[2], cid.0[3]])
}

impl Chunks {
    /// Opens the chunks in `folder`, which is created when it is absent, and cuts off what a crash
    /// left undone. Their index is in `store`.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn open(folder: &Path, store: Arc<Store>, settings: Settings) -> Result<Self, ChunkError> {
        fs::create_dir_all(folder).map_err(|source| io_error("create", folder, source))?;
        let shared = Arc::new(Shared {
            store,
            folder: folder.to_owned(),
            settings,
            state: Mutex::default(),
            changed: Condvar::new(),
            open: Mutex::default(),
        });
        shared.recover()?;
        let committer = std::thread::Builder::new()
            .name("chunk-commit".into())
            .spawn({
                let shared = shared.clone();
                move || shared.commit_in_time()
            })
            .map_err(|source| io_error("start a thread for", folder, source))?;
        Ok(Self { shared, committer: Some(committer) })
    }

    /// Whether the chunk is here, durable or not.
    ///
    /// # Errors
    /// When the index refuses.
    pub fn has(&self, cid: &ChunkId) -> Result<bool, ChunkError> {
        Ok(self.shared.look(cid)?.is_some())
    }

    /// Whether all of them are here, durable or not.
    ///
    /// # Errors
    /// When the index refuses.
    pub fn has_all<'a>(
        &self,
        cids: impl IntoIterator<Item = &'a ChunkId>,
    ) -> Result<bool, ChunkError> {
        for cid in cids {
            if !self.has(cid)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The sealed bytes of a chunk, if it is here and undamaged. One that is damaged is forgotten,
    /// so that it is fetched again.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn get(&self, cid: &ChunkId) -> Result<Option<Vec<u8>>, ChunkError> {
        let mut bytes = Vec::new();
        Ok(self.get_onto(cid, &mut bytes)?.then_some(bytes))
    }

    /// As [`Chunks::get`], behind what is in `bytes`. Says whether it is here.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn get_onto(&self, cid: &ChunkId, bytes: &mut Vec<u8>) -> Result<bool, ChunkError> {
        let before = bytes.len();
        let mut place = self.shared.look(cid)?;
        while let Some(here) = place {
            if self.shared.read(here, before, bytes)? {
                if seal::check_chunk(cid, &bytes[before..]).is_ok() {
                    return Ok(true);
                }
                bytes.truncate(before);
            }
            // A chunk that was moved or removed meanwhile has another place, or none.
            place = self.shared.place(cid)?;
            if place == Some(here) {
                self.forget_damaged(cid, here)?;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// The sealed bytes of a chunk into `bytes`, and whether it is here. They were checked when they were stored and
    /// are not now: for who finds out by opening them. [`Chunks::get`] says what to make of those that do not open.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn read(&self, cid: &ChunkId, bytes: &mut Vec<u8>) -> Result<bool, ChunkError> {
        match self.shared.look(cid)? {
            Some(place) if self.shared.read(place, 0, bytes)? => Ok(true),
            Some(_) => {
                // It was moved or removed meanwhile, or lost.
                bytes.clear();
                self.get_onto(cid, bytes)
            }
            None => Ok(false),
        }
    }

    /// The address of a chunk that is here and begins so; the first, should there be several.
    ///
    /// # Errors
    /// When the index refuses.
    pub fn beginning(&self, beginning: &[u8]) -> Result<Option<ChunkId>, ChunkError> {
        let found = self.shared.lock().find_beginning(beginning);
        if found.is_some() {
            return Ok(found);
        }
        let mut found = None;
        self.shared.store.scan(Family::Chunk, beginning, |key, _| {
            found = key.try_into().ok().map(ChunkId);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Looks at the disk now: something new should only be begun while there is room.
    ///
    /// # Errors
    /// When the disk is nearly full or refuses.
    pub fn check_room(&self) -> Result<(), ChunkError> {
        let mut state = self.shared.lock();
        state.free_was_asked = false;
        self.shared.ask_space(&mut state, 0)
    }

    /// Stores a chunk after checking its address, and says whether it was new. It can be read at
    /// once, and is durable after the next commit: at the latest when [`Chunks::flush`] returns.
    ///
    /// # Errors
    /// When the bytes are not those of `cid`, or the disk is full or refuses.
    pub fn put(&self, cid: &ChunkId, bytes: &[u8]) -> Result<bool, ChunkError> {
        seal::check_chunk(cid, bytes)?;
        self.put_checked(cid, bytes)
    }

    /// As [`Chunks::put`], for a chunk of our own, whose address needs no check.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub fn put_sealed(&self, chunk: &Fresh<'_>) -> Result<bool, ChunkError> {
        self.put_checked(chunk.cid(), chunk.bytes())
    }

    fn put_checked(&self, cid: &ChunkId, bytes: &[u8]) -> Result<bool, ChunkError> {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.holds.look(cid);
        if state.find(cid).is_some() || shared.indexed(cid)?.is_some() {
            return Ok(false);
        }
        let born = seconds((shared.settings.now)());
        let stored = shared.append(state, (cid, bytes), born, None)?;
        if stored.is_due {
            shared.commit()?;
        }
        Ok(stored.is_new)
    }

    /// Makes all chunks durable that were put before. Callers at the same time share one commit.
    ///
    /// # Errors
    /// When the disk or the index refuses.
    pub fn flush(&self) -> Result<(), ChunkError> {
        self.shared.commit()
    }
}

impl Drop for Chunks {
    /// Commits what is pending. After a failure the chunks are fetched again, so it is only logged.
    fn drop(&mut self) {
        if let Err(error) = self.shared.commit() {
            tracing::warn!(%error, "the newest chunks were not made durable");
        }
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(committer) = self.committer.take() {
            drop(committer.join());
        }
    }
}

impl State {
    fn find_beginning(&self, beginning: &[u8]) -> Option<ChunkId> {
        let mut from = [0; 32];
        from.get_mut(..beginning.len())?.copy_from_slice(beginning);
        let first = |places: &BTreeMap<ChunkId, Pending>| {
            let (cid, _) = places.range(ChunkId(from)..).next()?;
            cid.0.starts_with(beginning).then_some(*cid)
        };
        first(&self.pending).or_else(|| first(self.committing.as_ref()?))
    }

    fn find(&self, cid: &ChunkId) -> Option<Place> {
        let committing = self.committing.as_ref().and_then(|places| places.get(cid));
        self.pending.get(cid).or(committing).map(|pending| pending.place)
    }

    /// A chunk was written to a segment, or not.
    fn written(&mut self, segment: u32) {
        if let Some(n) = self.writing.get_mut(&segment) {
            *n -= 1;
            if *n == 0 {
                self.writing.remove(&segment);
            }
        }
    }

    /// Whether bytes are still appended to a segment, or were and are not durable.
    fn grows(&self, segment: u32) -> bool {
        self.dirty.contains_key(&segment)
            || self.writing.contains_key(&segment)
            || self.active.as_ref().is_some_and(|(active, _)| *active == segment)
    }
}

impl Shared {
    /// A panic while the lock is held leaves counters that no longer match the segments' bytes, but
    /// bytes are only believed once their commit succeeded, so going on is safe.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> ChunkError {
        ChunkError::Broken { folder: self.folder.clone() }
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.folder.join(format!("{segment:08x}.seg"))
    }

    /// Where a chunk is, for somebody who may rely on it from now on.
    fn look(&self, cid: &ChunkId) -> Result<Option<Place>, ChunkError> {
        // Marked before it is looked for: a collection either sees the mark or has removed the chunk.
        self.lock().holds.look(cid);
        self.place(cid)
    }

    fn is_due(&self, state: &State) -> bool {
        state.pending_bytes >= self.settings.commit_bytes || state.pending.len() >= MAX_PENDING
    }

    fn place(&self, cid: &ChunkId) -> Result<Option<Place>, ChunkError> {
        // A commit moves places from memory to the index, so the index is asked second.
        let found = self.lock().find(cid);
        if found.is_some() { Ok(found) } else { self.indexed(cid) }
    }

    fn indexed(&self, cid: &ChunkId) -> Result<Option<Place>, ChunkError> {
        let value = self.store.get(Family::Chunk, &cid.0)?;
        Ok(value.and_then(|value| Place::from_bytes(&value)))
    }

    /// Reads what lies at a place behind the first `before` of `bytes`, in place of what is there. False, and nothing
    /// is read, when the segment is gone or shorter than it should be.
    fn read(&self, place: Place, before: usize, bytes: &mut Vec<u8>) -> Result<bool, ChunkError> {
        let path = self.path(place.segment);
        let file = match self.segment(place.segment, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(|source| io_error("open", &path, source))?,
        };
        if place.len as usize > seal::MAX_SEALED {
            return Ok(false);
        }
        // What is there already need not be zeroed.
        bytes.resize(before + place.len as usize, 0);
        let read = file.read_exact_at(&mut bytes[before..], u64::from(place.offset) + HEADER);
        if read.is_err() {
            bytes.truncate(before);
        }
        match read {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    fn segment(&self, segment: u32, path: &Path) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(path)?);
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(segment, file.clone());
        Ok(file)
    }

    fn forget(&self, segment: u32) -> Result<(), ChunkError> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        let path = self.path(segment);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(io_error("delete", &path, source))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn sync_folder(folder: &Path) -> Result<(), ChunkError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| io_error("sync", folder, source))
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> ChunkError {
    ChunkError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
