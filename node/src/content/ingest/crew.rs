//! The threads of an ingestion: any of them reads and cuts, any of them seals and stores.
//!
//! Small files are read, sealed and stored by one thread, many in one go. A large file is read and cut by
//! one thread; what it cut is sealed by whoever is free, by itself when nobody is. So all cores work
//! whatever the files are like, and what waits is bounded. The thread that started it puts the files into
//! the manifest, in order.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use meshfarm_protocol::manifest::build::{Builder, Built};
use meshfarm_protocol::manifest::{Body, Entry, File, INLINE_BELOW};
use meshfarm_protocol::seal::{Form, MAX_PLAIN, SealedChunk, Sealer};

use super::cut::Cutter;
use super::source::{Found, SMALL, Stamp, fill, read_small};
use super::{Ingest, Input, Progress, Source};
use crate::content::ContentError;
use crate::content::memory::{Memory, WORTH_KNOWING};

/// What is read of a large file before it is sealed, in bytes: a few average chunks for each thread.
const SPAN: usize = 2 << 20;

/// Small files of one go: so many, of so many bytes together.
const GO: (usize, u64) = (64, 4 << 20);

/// Files that may be begun before an earlier one stands in the manifest.
const MAX_AHEAD: usize = 8192;

/// Threads that take files.
const MAX_THREADS: usize = 16;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    pub(super) ingest: &'a Ingest<'a>,
    pub(super) memory: Option<&'a Memory<'a>>,
    pub(super) compress: bool,
    pub(super) inputs: &'a [Input],
    pub(super) found: &'a [Found],
}

type OnProgress<'a> = &'a mut (dyn FnMut(Progress) -> ControlFlow<()> + Send);

/// All threads of one ingestion, and what they share.
pub(super) struct Crew<'a> {
    work: Work<'a>,
    n_threads: usize,
    board: Mutex<Board>,
    changed: Condvar,
    told: Mutex<(Progress, OnProgress<'a>)>,
}

impl fmt::Debug for Crew<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crew(..)")
    }
}

/// Who does what.
#[derive(Default)]
struct Board {
    /// The first file that nobody has begun.
    next: usize,
    /// The first file that does not stand in the manifest.
    first: usize,
    /// Large files that are being read.
    reading: usize,
    /// Cut, and to be sealed.
    spans: VecDeque<Span>,
    /// Files of which not all is sealed.
    open: HashMap<usize, Open>,
    /// Files that wait for earlier ones.
    taken: HashMap<usize, Taken>,
    /// Buffers that nobody uses.
    spare: Vec<Vec<u8>>,
    /// Nothing more is begun.
    ended: bool,
    failed: Option<ContentError>,
}

/// A part of a large file: which file, which part, and where its chunks end.
struct Span {
    file: usize,
    place: usize,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    form: Form,
}

/// A large file on its way.
#[derive(Default)]
struct Open {
    spans: Vec<Option<Vec<Piece>>>,
    missing: usize,
    /// As it was when it had been read to its end.
    read: Option<Found>,
}

/// A chunk of a file, with the name to remember it by.
#[derive(Debug)]
struct Piece {
    entry: Entry,
    name: Option<[u8; 16]>,
}

/// A file that is ready for the manifest.
#[derive(Debug)]
struct Taken {
    found: Found,
    inline: Vec<u8>,
    pieces: Vec<Piece>,
    /// Set when the file should be remembered.
    stamp: Option<Stamp>,
}

/// What a thread does next.
enum Turn {
    Seal(Span),
    Small(Range<usize>),
    Large(usize),
    Nothing,
}

impl<'a> Crew<'a> {
    pub(super) fn new(
        work: Work<'a>,
        bytes_total: u64,
        on_progress: OnProgress<'a>,
    ) -> Result<Self, ContentError> {
        let files_total = work.inputs.len();
        let progress = Progress { bytes_done: 0, bytes_total, files_done: 0, files_total };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let crew = Self {
            work,
            n_threads: cores.min(MAX_THREADS),
            board: Mutex::default(),
            changed: Condvar::new(),
            told: Mutex::new((progress, on_progress)),
        };
        crew.tell(0, 0)?;
        Ok(crew)
    }

    /// Takes all files and returns the manifest, whose chunks are stored and not yet durable.
    pub(super) fn run(&self) -> Result<Built, ContentError> {
        thread::scope(|scope| {
            // Whatever happens here, the threads must not wait for it.
            let _leaving = Leaving(self);
            let n_threads = self.n_threads.min(self.work.inputs.len());
            for _ in 0..n_threads {
                scope.spawn(|| Hand::new(self).work());
            }
            self.build()
        })
    }

    fn build(&self) -> Result<Built, ContentError> {
        let Ingest { secret, created, limits, .. } = *self.work.ingest;
        let mut builder = Builder::new(secret, created, limits);
        let mut draft = self.work.memory.map(Memory::draft);
        while let Some(ready) = self.ready()? {
            for (place, taken) in ready {
                let Taken { found, inline, pieces, stamp } = taken;
                let entries: Vec<_> = pieces.iter().map(|piece| piece.entry.clone()).collect();
                if let Some(draft) = &mut draft {
                    for Piece { entry, name } in &pieces {
                        name.map_or(Ok(()), |name| draft.chunk(&name, entry))?;
                    }
                    stamp.map_or(Ok(()), |stamp| draft.file(&stamp, &entries))?;
                }
                let body = match entries.len() {
                    0 => Body::Inline(inline),
                    n => Body::Chunks(n as u64),
                };
                let file = File {
                    path: self.work.inputs[place].path.clone(),
                    size: found.size,
                    executable: found.executable,
                    modified: found.modified.unwrap_or(created),
                    body,
                };
                builder.add(file, &entries)?;
                self.store(builder.take_nodes())?;
            }
        }
        let (built, nodes) = builder.finish()?;
        self.store(nodes)?;
        draft.map_or(Ok(()), |mut draft| draft.write())?;
        Ok(built)
    }

    fn store(&self, nodes: Vec<SealedChunk>) -> Result<(), ContentError> {
        for node in nodes {
            self.work.ingest.chunks.put(&node.cid, &node.bytes)?;
        }
        Ok(())
    }

    /// The next files of the manifest, as soon as there are some; nothing after the last one.
    fn ready(&self) -> Result<Option<Vec<(usize, Taken)>>, ContentError> {
        let mut board = self.board();
        loop {
            if let Some(error) = board.failed.take() {
                return Err(error);
            }
            let mut ready = Vec::new();
            let mut first = board.first;
            while let Some(taken) = board.taken.remove(&first) {
                ready.push((first, taken));
                first += 1;
            }
            board.first = first;
            if !ready.is_empty() {
                self.changed.notify_all();
                return Ok(Some(ready));
            }
            if board.first == self.work.inputs.len() {
                return Ok(None);
            }
            // Only a thread that panics ends it without a word; the scope passes the panic on.
            if board.ended {
                return Err(ContentError::Cancelled);
            }
            board = self.wait(board);
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'b>(&self, board: MutexGuard<'b, Board>) -> MutexGuard<'b, Board> {
        self.changed.wait(board).unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes and files that are done.
    fn tell(&self, bytes: u64, files: usize) -> Result<(), ContentError> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (progress, on_progress) = &mut *told;
        // A file may have grown since it was counted.
        progress.bytes_done = progress.bytes_total.min(progress.bytes_done.saturating_add(bytes));
        progress.files_done += files;
        if on_progress(*progress).is_break() { Err(ContentError::Cancelled) } else { Ok(()) }
    }

    /// What a thread that is free does now. Sealing comes first, because what is cut takes memory.
    fn turn(&self) -> Turn {
        let n_files = self.work.inputs.len();
        let mut board = self.board();
        loop {
            if board.ended {
                return Turn::Nothing;
            }
            if let Some(span) = board.spans.pop_front() {
                return Turn::Seal(span);
            }
            if board.next < n_files.min(board.first + MAX_AHEAD) {
                return self.begin(&mut board);
            }
            if board.next == n_files && board.reading == 0 {
                return Turn::Nothing;
            }
            board = self.wait(board);
        }
    }

    fn begin(&self, board: &mut Board) -> Turn {
        let from = board.next;
        let size = |file: usize| self.work.found[file].size;
        if size(from) > SMALL {
            board.next += 1;
            board.reading += 1;
            return Turn::Large(from);
        }
        let (mut end, mut bytes) = (from, 0);
        while end < self.work.inputs.len() && end - from < GO.0 && size(end) <= SMALL {
            bytes += size(end);
            end += 1;
            if bytes >= GO.1 {
                break;
            }
        }
        board.next = end;
        Turn::Small(from..end)
    }

    fn fail(&self, error: ContentError) {
        let mut board = self.board();
        board.failed.get_or_insert(error);
        board.ended = true;
        self.changed.notify_all();
    }

    /// Files are ready, and their bytes were counted.
    fn deliver(&self, files: Vec<(usize, Taken)>) -> Result<(), ContentError> {
        for _ in &files {
            self.tell(0, 1)?;
        }
        self.board().taken.extend(files);
        self.changed.notify_all();
        Ok(())
    }

    /// Hands a part of a large file to whoever is free. Returns one that the caller must seal itself when
    /// too much waits.
    fn hand_over(&self, span: Span) -> Option<Span> {
        let mut board = self.board();
        let open = board.open.entry(span.file).or_default();
        open.spans.push(None);
        open.missing += 1;
        board.spans.push_back(span);
        if board.spans.len() > self.n_threads {
            return board.spans.pop_front();
        }
        self.changed.notify_all();
        None
    }

    fn sealed(&self, span: Span, pieces: Vec<Piece>) -> Result<(), ContentError> {
        let mut board = self.board();
        board.spare.push(span.bytes);
        if let Some(open) = board.open.get_mut(&span.file) {
            open.spans[span.place] = Some(pieces);
            open.missing -= 1;
        }
        self.close(board, span.file)
    }

    fn read_to_end(&self, file: usize, found: Found) -> Result<(), ContentError> {
        let mut board = self.board();
        board.open.entry(file).or_default().read = Some(found);
        self.close(board, file)
    }

    /// Delivers a large file when nothing of it is missing.
    fn close(&self, mut board: MutexGuard<'_, Board>, file: usize) -> Result<(), ContentError> {
        let is_whole = |open: &Open| open.missing == 0 && open.read.is_some();
        if !board.open.get(&file).is_some_and(is_whole) {
            return Ok(());
        }
        let Some(Open { spans, read: Some(found), .. }) = board.open.remove(&file) else {
            return Ok(());
        };
        drop(board);
        let pieces = spans.into_iter().flatten().flatten().collect();
        let stamp = found.stamp;
        self.deliver(vec![(file, Taken { found, inline: Vec::new(), pieces, stamp })])
    }

    fn buffer(&self) -> Vec<u8> {
        let spare = self.board().spare.pop();
        spare.unwrap_or_else(|| vec![0; SPAN])
    }
}

/// Ends the others' waiting when a thread leaves early.
struct Leaving<'c, 'a>(&'c Crew<'a>);

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        self.0.board().ended = true;
        self.0.changed.notify_all();
    }
}

/// One thread.
struct Hand<'c, 'a> {
    crew: &'c Crew<'a>,
    work: Work<'a>,
    sealer: Sealer,
    cutter: Cutter,
    /// The bytes of a small file.
    small: Vec<u8>,
}

impl<'c, 'a> Hand<'c, 'a> {
    fn new(crew: &'c Crew<'a>) -> Self {
        let work = crew.work;
        let sealer = Sealer::new(work.ingest.secret.chunks());
        Self { crew, work, sealer, cutter: Cutter::new(work.ingest.cutting), small: Vec::new() }
    }

    fn work(mut self) {
        loop {
            let panicked = Leaving(self.crew);
            let done = match self.crew.turn() {
                Turn::Seal(span) => self.seal_span(span),
                Turn::Small(files) => self.take_all(files),
                Turn::Large(file) => {
                    let done = self.take_large(file);
                    self.crew.board().reading -= 1;
                    self.crew.changed.notify_all();
                    done
                }
                Turn::Nothing => {
                    std::mem::forget(panicked);
                    return;
                }
            };
            std::mem::forget(panicked);
            if let Err(error) = done {
                return self.crew.fail(error);
            }
        }
    }

    /// A file that need not be read.
    fn remembered(&self, file: usize) -> Result<Option<Taken>, ContentError> {
        let found = self.work.found[file];
        let (Some(memory), Some(stamp)) = (self.work.memory, found.stamp) else {
            return Ok(None);
        };
        if found.size < INLINE_BELOW {
            return Ok(None);
        }
        let Some(known) = memory.file(&stamp)? else {
            return Ok(None);
        };
        self.crew.tell(found.size, 0)?;
        let pieces = known.what.into_iter().map(|entry| Piece { entry, name: None }).collect();
        let stamp = known.is_old.then_some(stamp);
        Ok(Some(Taken { found, inline: Vec::new(), pieces, stamp }))
    }

    fn take_all(&mut self, files: Range<usize>) -> Result<(), ContentError> {
        let mut ready = Vec::with_capacity(files.len());
        for file in files {
            if let Some(taken) = self.take_small(file)? {
                ready.push((file, taken));
            }
        }
        self.crew.deliver(ready)
    }

    /// Nothing when the file is large by now, and therefore delivers itself.
    fn take_small(&mut self, file: usize) -> Result<Option<Taken>, ContentError> {
        if let Some(taken) = self.remembered(file)? {
            return Ok(Some(taken));
        }
        let mut buffer = std::mem::take(&mut self.small);
        buffer.clear();
        let found = match &self.work.inputs[file].source {
            Source::Bytes(bytes) => {
                buffer.extend_from_slice(bytes);
                self.work.found[file]
            }
            source => match read_small(source, &mut buffer)? {
                Some(found) => found,
                None => return self.take_large(file).map(|()| None),
            },
        };
        let taken = self.seal_small(found, &buffer)?;
        self.small = buffer;
        self.crew.tell(found.size, 0)?;
        Ok(Some(taken))
    }

    fn seal_small(&mut self, found: Found, bytes: &[u8]) -> Result<Taken, ContentError> {
        if found.size < INLINE_BELOW {
            let inline = bytes.to_vec();
            return Ok(Taken { found, inline, pieces: Vec::new(), stamp: None });
        }
        let form = self.form(bytes);
        let (mut pieces, mut start) = (Vec::new(), 0);
        while start < bytes.len() {
            let end = start + self.cutter.next(&bytes[start..]);
            pieces.push(self.seal(&bytes[start..end], form)?);
            start = end;
        }
        Ok(Taken { found, inline: Vec::new(), pieces, stamp: found.stamp })
    }

    fn take_large(&mut self, file: usize) -> Result<(), ContentError> {
        if let Some(taken) = self.remembered(file)? {
            return self.crew.deliver(vec![(file, taken)]);
        }
        let source = &self.work.inputs[file].source;
        if let Source::Bytes(bytes) = source {
            self.cut(file, &mut bytes.as_slice())?;
            return self.crew.read_to_end(file, self.work.found[file]);
        }
        let opened = source.open().map_err(source.fails())?;
        let before = Found::of(&opened.metadata().map_err(source.fails())?);
        // One byte more shows a file that grows, without following it for ever.
        let len = self.cut(file, &mut (&opened).take(before.size.saturating_add(1)))?;
        let after = Found::of(&opened.metadata().map_err(source.fails())?);
        if len != before.size || before.stamp != after.stamp || len < INLINE_BELOW {
            return Err(ContentError::Changed { path: source.path() });
        }
        self.crew.read_to_end(file, before)
    }

    /// Reads and cuts to the end, and returns how many bytes there were.
    fn cut(&mut self, file: usize, from: &mut dyn Read) -> Result<u64, ContentError> {
        let mut bytes = self.crew.buffer();
        let (mut held, mut total) = (0, 0);
        let mut form = None;
        for place in 0.. {
            let got = fill(from, &mut bytes[held..]);
            let got = got.map_err(self.work.inputs[file].source.fails())?;
            let is_end = held + got < SPAN;
            held += got;
            total += got as u64;
            let form = *form.get_or_insert_with(|| self.form(&bytes[..held]));
            let (mut ends, mut start) = (Vec::new(), 0);
            while start < held && (is_end || held - start >= MAX_PLAIN) {
                start += self.cutter.next(&bytes[start..held]);
                ends.push(start);
            }
            // What is left begins the next span.
            let mut next = if is_end { Vec::new() } else { self.crew.buffer() };
            if !is_end {
                next[..held - start].copy_from_slice(&bytes[start..held]);
            }
            self.crew.tell(start as u64, 0)?;
            let span = Span { file, place, bytes, ends, form };
            (bytes, held) = (next, held - start);
            if let Some(span) = self.crew.hand_over(span) {
                self.seal_span(span)?;
            }
            if is_end {
                break;
            }
        }
        Ok(total)
    }

    fn seal_span(&mut self, span: Span) -> Result<(), ContentError> {
        let (mut pieces, mut start) = (Vec::with_capacity(span.ends.len()), 0);
        for &end in &span.ends {
            pieces.push(self.seal(&span.bytes[start..end], span.form)?);
            start = end;
        }
        self.crew.sealed(span, pieces)
    }

    /// Seals and stores a chunk, unless its bytes were sealed before and are still here.
    fn seal(&mut self, plain: &[u8], form: Form) -> Result<Piece, ContentError> {
        let keyed = self.sealer.key(plain);
        let mut name = None;
        if let Some(memory) = self.work.memory.filter(|_| plain.len() >= WORTH_KNOWING) {
            let its = memory.chunk_name(keyed.key());
            name = Some(its);
            if let Some(known) = memory.chunk(&its)?
                && known.what.len as usize == plain.len()
            {
                return Ok(Piece { entry: known.what, name: name.filter(|_| known.is_old) });
            }
        }
        let fresh = self.sealer.seal(keyed, form);
        self.work.ingest.chunks.put_sealed(&fresh)?;
        Ok(Piece { entry: Entry::from(&fresh), name })
    }

    fn form(&mut self, beginning: &[u8]) -> Form {
        if self.work.compress && self.sealer.compress.pays(beginning) {
            Form::Compressed
        } else {
            Form::Plain
        }
    }
}
