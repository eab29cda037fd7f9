//! Files become sealed chunks and a manifest: one thread reads and cuts, the others seal and store.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use fastcdc::v2020::{FastCDC, Normalization};
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::manifest::build::{Builder, Built};
use meshfarm_protocol::manifest::path::sort_key;
use meshfarm_protocol::manifest::{self, Body, Entry, INLINE_BELOW, Limits};
use meshfarm_protocol::seal::{self, ChunkSecret, MAX_PLAIN, TenantSecret};

use super::ContentError;
use crate::beneath::{self, Folder};
use crate::chunks::Chunks;

/// Smallest and average cut of file contents, in bytes; the largest is [`MAX_PLAIN`].
const MIN_CUT: usize = 64 << 10;
const AVERAGE_CUT: usize = 256 << 10;

/// What is read of a file at once, in bytes.
const READ: usize = 4 << 20;

/// Chunks between reading and storing for each sealing thread: with [`MAX_PLAIN`] this bounds memory.
const IN_FLIGHT: usize = 4;

/// Files that may wait for an earlier one to be sealed.
const MAX_WAITING: usize = 1024;

/// A file to be taken.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its path in the manifest; the first name is the id of a root.
    pub path: String,
    /// Where its contents come from.
    pub source: Source,
}

/// Where the contents of a file come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From memory.
    Bytes(Vec<u8>),
    /// From a file that its owner named; links are followed.
    File(PathBuf),
    /// From a file in a folder that a job has written: no link beneath `folder` is followed.
    Beneath {
        /// The folder.
        folder: PathBuf,
        /// Names with `/` between them.
        path: String,
    },
}

/// How files are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutting {
    /// Where the content says so: versions of a file share chunks. For inputs.
    ByContent,
    /// Every MiB: frames are new data anyway. For outputs.
    Fixed,
}

/// How far an ingestion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were read and cut.
    pub bytes_done: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Files that were read and cut.
    pub files_done: usize,
    /// All files.
    pub files_total: usize,
}

/// Takes files into the chunk store.
#[derive(Clone, Copy, Debug)]
pub struct Ingest<'a> {
    /// Where the chunks go.
    pub chunks: &'a Chunks,
    /// Under whose secret they are sealed.
    pub secret: &'a TenantSecret,
    /// How files are cut.
    pub cutting: Cutting,
    /// What the manifest says about when it was made.
    pub created: Millis,
    /// What readers of the manifest accept.
    pub limits: Limits,
}

impl Ingest<'_> {
    /// Takes the files, in any order, and returns the manifest when everything is durable.
    /// `on_progress` is told now and then, and stops it by breaking.
    ///
    /// # Errors
    /// When a file cannot be read or changes, two paths collide, or the disk is full. Chunks that
    /// were stored stay and are found again by the next try.
    pub fn run(
        &self,
        mut inputs: Vec<Input>,
        mut on_progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Built, ContentError> {
        inputs.sort_by_cached_key(|input| sort_key(&input.path));
        let mut progress =
            Progress { bytes_done: 0, bytes_total: 0, files_done: 0, files_total: inputs.len() };
        for input in &inputs {
            progress.bytes_total += input.source.len()?;
        }
        let n_sealers = thread::available_parallelism().map_or(1, usize::from).min(16);
        let max_in_flight = n_sealers * IN_FLIGHT;
        let secret = self.secret.chunks();
        let (cut_tx, cut_rx) = sync_channel(max_in_flight);
        let (sealed_tx, sealed_rx) = sync_channel(max_in_flight);
        let cut_rx = Mutex::new(cut_rx);
        let built = thread::scope(|scope| {
            for _ in 0..n_sealers {
                let (sealed_tx, secret, cut_rx) = (sealed_tx.clone(), &secret, &cut_rx);
                scope.spawn(move || seal_all(self.chunks, secret, cut_rx, &sealed_tx));
            }
            drop(sealed_tx);
            let mut line = Line {
                ingest: self,
                builder: Builder::new(self.secret, self.created, self.limits),
                cut_tx,
                sealed_rx,
                waiting: VecDeque::new(),
                first: 0,
                in_flight: 0,
                max_in_flight,
            };
            for input in inputs {
                line.take(input, &mut |bytes| {
                    progress.bytes_done += bytes;
                    proceed(on_progress(progress))
                })?;
                progress.files_done += 1;
                proceed(on_progress(progress))?;
            }
            line.finish()
            // Dropping the line closes the channel, which ends the sealing threads.
        })?;
        self.chunks.flush()?;
        Ok(built)
    }
}

fn proceed(flow: ControlFlow<()>) -> Result<(), ContentError> {
    if flow.is_break() { Err(ContentError::Cancelled) } else { Ok(()) }
}

/// A piece of a file on its way to be sealed: which file, which of its chunks, and the bytes.
type Cut = (usize, usize, Vec<u8>);

/// The same piece, sealed and stored.
type Sealed = (usize, usize, Result<Entry, ContentError>);

fn seal_all(
    chunks: &Chunks,
    secret: &ChunkSecret,
    cuts: &Mutex<Receiver<Cut>>,
    sealed: &SyncSender<Sealed>,
) {
    loop {
        let cut = cuts.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((file, place, plain)) = cut else {
            return;
        };
        let chunk = seal::seal_chunk(secret, &plain);
        let len = u32::try_from(plain.len()).expect("no cut is longer than a chunk");
        let entry = Entry { cid: chunk.cid, key: chunk.key, len, flags: 0 };
        let stored = chunks.put(&chunk.cid, &chunk.bytes);
        let result = stored.map(|_| entry).map_err(ContentError::from);
        if sealed.send((file, place, result)).is_err() {
            return;
        }
    }
}

/// A file whose chunks are being sealed.
struct Waiting {
    file: manifest::File,
    entries: Vec<Option<Entry>>,
    missing: usize,
}

/// Files in the order of the manifest, from being cut to standing in it.
struct Line<'a> {
    ingest: &'a Ingest<'a>,
    builder: Builder,
    cut_tx: SyncSender<Cut>,
    sealed_rx: Receiver<Sealed>,
    waiting: VecDeque<Waiting>,
    /// The number of the first file that waits.
    first: usize,
    in_flight: usize,
    max_in_flight: usize,
}

impl Line<'_> {
    fn take(
        &mut self,
        input: Input,
        read: &mut dyn FnMut(u64) -> Result<(), ContentError>,
    ) -> Result<(), ContentError> {
        let Input { path, source } = input;
        let (executable, modified) = match source {
            Source::Bytes(bytes) => {
                self.begin(path, bytes.len() as u64);
                let executable = false;
                self.cut(&mut bytes.as_slice(), bytes.len() as u64, read)?;
                (executable, self.ingest.created)
            }
            Source::File(_) | Source::Beneath { .. } => {
                let named = source.path();
                let fails = |source| ContentError::Source { path: named.clone(), source };
                let mut file = source.open().map_err(fails)?;
                let before = file.metadata().map_err(fails)?;
                self.begin(path, before.len());
                let len = self.cut_file(&named, &mut file, before.len(), read)?;
                let after = file.metadata().map_err(fails)?;
                let stamp = |about: &std::fs::Metadata| {
                    (
                        about.len(),
                        about.mtime(),
                        about.mtime_nsec(),
                        about.ctime(),
                        about.ctime_nsec(),
                    )
                };
                if len != before.len() || stamp(&before) != stamp(&after) {
                    return Err(ContentError::Changed { path: named });
                }
                (before.permissions().mode() & 0o100 != 0, modified(&before))
            }
        };
        let waiting = self.waiting.back_mut().expect("the file was begun above");
        waiting.file.executable = executable;
        waiting.file.modified = modified;
        // From here on the file may leave the line, so its last piece is only counted now.
        waiting.missing -= 1;
        self.settle()?;
        while self.waiting.len() > MAX_WAITING && self.in_flight > 0 {
            self.receive()?;
            self.settle()?;
        }
        Ok(())
    }

    fn begin(&mut self, path: String, size: u64) {
        let body = Body::Inline(Vec::new());
        let modified = Millis(0);
        let file = manifest::File { path, size, executable: false, modified, body };
        self.waiting.push_back(Waiting { file, entries: Vec::new(), missing: 1 });
    }

    fn cut_file(
        &mut self,
        path: &Path,
        file: &mut File,
        size: u64,
        read: &mut dyn FnMut(u64) -> Result<(), ContentError>,
    ) -> Result<u64, ContentError> {
        // One byte more shows a file that grows, without following it for ever.
        let mut reader = Named { path, inner: file.take(size + 1), error: None };
        let len = self.cut(&mut reader, size, read);
        match reader.error {
            Some(source) => Err(ContentError::Source { path: path.to_owned(), source }),
            None => len,
        }
    }

    fn cut(
        &mut self,
        from: &mut dyn Read,
        size: u64,
        read: &mut dyn FnMut(u64) -> Result<(), ContentError>,
    ) -> Result<u64, ContentError> {
        let room = usize::try_from(size.saturating_add(1)).unwrap_or(READ).min(READ);
        let mut buffer = Vec::with_capacity(room);
        let mut total = 0;
        loop {
            let want = READ - buffer.len();
            let before = buffer.len();
            let got = (&mut *from).take(want as u64).read_to_end(&mut buffer).unwrap_or(0);
            debug_assert_eq!(before + got, buffer.len());
            let is_end = got < want;
            total += got as u64;
            if is_end && total < INLINE_BELOW {
                read(total)?;
                self.back().file.body = Body::Inline(buffer);
                return Ok(total);
            }
            let mut start = 0;
            while start < buffer.len() && (is_end || buffer.len() - start >= MAX_PLAIN) {
                let end = start + self.next_cut(&buffer[start..]);
                self.send(buffer[start..end].to_vec())?;
                read((end - start) as u64)?;
                start = end;
            }
            if is_end {
                return Ok(total);
            }
            buffer.drain(..start);
        }
    }

    fn next_cut(&self, bytes: &[u8]) -> usize {
        match self.ingest.cutting {
            Cutting::Fixed => bytes.len().min(MAX_PLAIN),
            Cutting::ByContent => {
                let level = Normalization::Level2;
                let cutter = FastCDC::with_level(bytes, MIN_CUT, AVERAGE_CUT, MAX_PLAIN, level);
                cutter.cut(0, bytes.len()).1
            }
        }
    }

    fn back(&mut self) -> &mut Waiting {
        self.waiting.back_mut().expect("a file is begun before it is cut")
    }

    fn send(&mut self, plain: Vec<u8>) -> Result<(), ContentError> {
        while self.in_flight >= self.max_in_flight {
            self.receive()?;
        }
        let number = self.first + self.waiting.len() - 1;
        let waiting = self.back();
        let place = waiting.entries.len();
        waiting.entries.push(None);
        waiting.missing += 1;
        self.in_flight += 1;
        self.cut_tx.send((number, place, plain)).expect("sealing threads end after the line does");
        Ok(())
    }

    fn receive(&mut self) -> Result<(), ContentError> {
        let (number, place, sealed) =
            self.sealed_rx.recv().expect("sealing threads answer every piece");
        self.in_flight -= 1;
        let waiting = &mut self.waiting[number - self.first];
        waiting.entries[place] = Some(sealed?);
        waiting.missing -= 1;
        Ok(())
    }

    /// Moves the files that are complete into the manifest, as long as none before them is missing.
    fn settle(&mut self) -> Result<(), ContentError> {
        while self.waiting.front().is_some_and(|waiting| waiting.missing == 0) {
            let Some(Waiting { mut file, entries, .. }) = self.waiting.pop_front() else {
                break;
            };
            self.first += 1;
            let entries: Vec<_> = entries.into_iter().flatten().collect();
            if !entries.is_empty() {
                file.body = Body::Chunks(entries.len() as u64);
            }
            self.builder.add(file, &entries)?;
            for node in self.builder.take_nodes() {
                self.ingest.chunks.put(&node.cid, &node.bytes)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Built, ContentError> {
        while self.in_flight > 0 {
            self.receive()?;
        }
        self.settle()?;
        let (built, nodes) = self.builder.finish()?;
        for node in nodes {
            self.ingest.chunks.put(&node.cid, &node.bytes)?;
        }
        Ok(built)
    }
}

/// Keeps the error of a reader whose caller only wants bytes.
struct Named<'a, R> {
    path: &'a Path,
    inner: R,
    error: Option<io::Error>,
}

impl<R: Read> Read for Named<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(into) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                tracing::debug!(path = %self.path.display(), %error, "reading stopped");
                self.error = Some(error);
                Ok(0)
            }
            other => other,
        }
    }
}

impl Source {
    fn path(&self) -> PathBuf {
        match self {
            Self::Bytes(_) => PathBuf::new(),
            Self::File(path) => path.clone(),
            Self::Beneath { folder, path } => folder.join(path),
        }
    }

    fn len(&self) -> Result<u64, ContentError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(path) => match std::fs::metadata(path) {
                Ok(about) => Ok(about.len()),
                Err(source) => Err(ContentError::Source { path: path.clone(), source }),
            },
            Self::Beneath { .. } => {
                let about = self.open().and_then(|file| file.metadata());
                let about =
                    about.map_err(|source| ContentError::Source { path: self.path(), source })?;
                Ok(about.len())
            }
        }
    }

    fn open(&self) -> io::Result<File> {
        match self {
            Self::Bytes(_) => Err(io::ErrorKind::Unsupported.into()),
            Self::File(path) => beneath::open_file(path),
            Self::Beneath { folder, path } => {
                let mut here = Folder::open(folder)?;
                let mut names = path.split('/').peekable();
                while let Some(name) = names.next() {
                    if names.peek().is_none() {
                        return here.file(name);
                    }
                    here = here.folder(name)?;
                }
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }
}

fn modified(about: &std::fs::Metadata) -> Millis {
    let millis = about.mtime().saturating_mul(1000) + about.mtime_nsec() / 1_000_000;
    Millis(u64::try_from(millis).unwrap_or(0))
}
