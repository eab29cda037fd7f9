//! A manifest becomes a private tree of files while its chunks are still arriving, several files at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use meshfarm_protocol::manifest::{self, Body, Entry};

use super::ContentError;
use super::tree::{Files, Written, split, stamp};
use crate::arrivals::Arrivals;
use crate::beneath::{Descent, Folder};

/// A file longer than this is written by several threads, each so many bytes at a time.
const PART: u64 = 4 << 20;

/// So many bytes of short files are given to a thread together,
const FEW_BYTES: u64 = 1 << 20;

/// and so many files at most.
const FEW_FILES: usize = 64;

/// What is laid out, and with how many threads.
#[derive(Debug)]
pub struct Unpack<'a> {
    /// The manifest. Its nodes are here; its chunks may be on their way.
    pub files: Files<'a>,
    /// Tells when they have come.
    pub arrivals: &'a Arrivals,
    /// How many files are written at a time.
    pub threads: usize,
}

/// Files that stand in their places without their bytes while everything else is laid out, closed to all who want to
/// open them until they are whole.
pub struct Held<'a> {
    /// Which files, by their number in the manifest. None of them is empty.
    pub which: &'a BTreeSet<u64>,
    /// Closes a new file, unless that cannot be done.
    pub close: &'a (dyn Fn(&File, &Path) -> bool + Sync),
    /// It is whole.
    pub open: &'a (dyn Fn(&File, &Path) + Sync),
}

impl std::fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({} files)", self.which.len())
    }
}

/// What may come after everything else is in place.
pub struct Late<'a> {
    /// Which files, by their number in the manifest. None of them is empty.
    pub which: &'a BTreeSet<u64>,
    /// Where they are written before they take their places: a folder of ours on the same disk.
    pub aside: &'a Path,
    /// A placeholder of the right length, mode and date stands in place of a late file.
    pub placed: &'a (dyn Fn(&Path) + Sync),
    /// Every other file is in place.
    pub enough: &'a (dyn Fn() + Sync),
    /// What is laid out next, before what is late.
    pub held: Held<'a>,
}

impl std::fmt::Debug for Late<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Late({} files)", self.which.len())
    }
}

/// What one thread does next.
enum Job {
    Few(Vec<Short>),
    Part { of: Arc<Long>, at: u64, entries: Vec<Entry> },
}

/// A file that one thread writes from its beginning to its end.
struct Short {
    folder: Arc<Folder>,
    name: String,
    file: manifest::File,
    entries: Vec<Entry>,
}

/// A file that is written in parts, and dated and put in its place by whoever writes the last one.
struct Long {
    out: File,
    path: PathBuf,
    file: manifest::File,
    bytes_left: AtomicU64,
    then: Then,
}

/// What happens to a file when it is whole.
enum Then {
    Nothing,
    Move(Move),
    /// It is let open.
    Open,
}

/// From where to where a file that came late is renamed.
struct Move {
    aside: Arc<Folder>,
    part: String,
    folder: Arc<Folder>,
    name: String,
}

/// What the threads of one pass share.
struct Pass<'a> {
    unpack: &'a Unpack<'a>,
    held: Option<&'a Held<'a>>,
    jobs: Mutex<Receiver<Job>>,
    over: AtomicBool,
    failed: Mutex<Option<ContentError>>,
}

impl Unpack<'_> {
    /// Writes the tree into a private folder that no other program writes to, first what is not late.
    /// Nothing there is replaced but our own placeholders: a file that exists is an error. Blocks until
    /// everything has come.
    ///
    /// # Errors
    /// When a chunk does not come, the manifest is refused or the folder cannot be written. What was
    /// written stays, for the caller to remove with the folder.
    pub fn run(&self, into: &Path, late: Option<&Late<'_>>) -> Result<Written, ContentError> {
        let late = late.filter(|late| !late.which.is_empty() || !late.held.which.is_empty());
        let mut closed = BTreeMap::new();
        let held = late.map(|late| &late.held);
        let mut written =
            self.pass(held, |jobs| self.lay_first(into, late, (jobs, &mut closed)))?;
        if let Some(late) = late {
            (late.enough)();
            self.pass(held, |jobs| self.lay_held(closed, jobs))?;
        }
        if let Some(late) = late.filter(|late| !late.which.is_empty()) {
            let more = self.run_late(into, late)?;
            written.files += more.files;
            written.bytes += more.bytes;
        }
        Ok(written)
    }

    /// Writes what is late in a tree where everything else is in place. It can be done again after a failure.
    ///
    /// # Errors
    /// As [`Unpack::run`].
    pub fn run_late(&self, into: &Path, late: &Late<'_>) -> Result<Written, ContentError> {
        match fs::remove_dir_all(late.aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ContentError::target("empty", late.aside)(error));
            }
            Ok(()) | Err(_) => {}
        }
        self.pass(None, |jobs| self.lay_late(into, late, jobs))
    }

    /// One walk through the manifest by `walk`, while threads do the jobs that it finds.
    fn pass<T>(
        &self,
        held: Option<&Held<'_>>,
        walk: impl FnOnce(&mut Jobs<'_>) -> Result<T, ContentError>,
    ) -> Result<T, ContentError> {
        let threads = self.threads.max(1);
        let (job_tx, job_rx) = sync_channel(2 * threads);
        let pass = Pass {
            unpack: self,
            held,
            jobs: Mutex::new(job_rx),
            over: AtomicBool::new(false),
            failed: Mutex::default(),
        };
        let walked = thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| pass.work());
            }
            let mut jobs = Jobs { pass: &pass, job_tx, few: Vec::new(), few_bytes: 0 };
            let walked = walk(&mut jobs);
            jobs.hand_over();
            walked.map_err(|error| pass.fail(error))
        });
        let failed = pass.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (walked, failed) {
            (Ok(written), None) => Ok(written),
            (_, Some(error)) => Err(error),
            (Err(()), None) => Err(ContentError::Cancelled),
        }
    }

    fn lay_first(
        &self,
        into: &Path,
        late: Option<&Late<'_>>,
        (jobs, closed): (&mut Jobs<'_>, &mut BTreeMap<u64, Long>),
    ) -> Result<Written, ContentError> {
        let top = Folder::create_private(into).map_err(ContentError::target("create", into))?;
        let mut folders = Descent::new(top);
        let mut written = Written::default();
        let mut reader = self.files.reader()?;
        let mut number = 0;
        while let Some(file) = reader.next_file()? {
            if jobs.pass.over.load(Ordering::Relaxed) {
                break;
            }
            let (names, name) = split(&file.path);
            let path = into.join(&file.path);
            let entered = folders.enter(&names, |_| Ok(()));
            entered.map_err(ContentError::target("create the folder of", &path))?;
            let folder = folders.shared();
            let is_late = late.filter(|late| late.which.contains(&number));
            let is_held = late.filter(|late| late.held.which.contains(&number));
            number += 1;
            if let Some(late) = is_late {
                hold_place(&folder, name, &file, &path)?;
                (late.placed)(&path);
                continue;
            }
            written.files += 1;
            written.bytes += file.size;
            let mut entries = || reader.next_entry().map_err(ContentError::from);
            if file.size > PART || is_held.is_some() {
                let create = || {
                    let out = folder.create_file(name, file.executable);
                    out.map_err(ContentError::target("create", &path))
                };
                let out = create()?;
                if let Some(late) = is_held {
                    fill_place(&out, &file, &path)?;
                    if (late.held.close)(&out, &path) {
                        closed.insert(number - 1, Long::new(out, path, file, Then::Open));
                        continue;
                    }
                }
                jobs.long(Long::new(out, path, file, Then::Nothing), &mut entries)?;
            } else {
                let name = name.to_owned();
                let mut all = Vec::new();
                while let Some(entry) = entries()? {
                    all.push(entry);
                }
                jobs.short(Short { folder, name, file, entries: all });
            }
        }
        Ok(written)
    }

    /// Fills the files that are closed.
    fn lay_held(
        &self,
        mut closed: BTreeMap<u64, Long>,
        jobs: &mut Jobs<'_>,
    ) -> Result<(), ContentError> {
        let mut reader = self.files.reader()?;
        let mut number = 0;
        while reader.next_file()?.is_some() && !closed.is_empty() {
            if jobs.pass.over.load(Ordering::Relaxed) {
                break;
            }
            if let Some(long) = closed.remove(&number) {
                let mut entries = || reader.next_entry().map_err(ContentError::from);
                jobs.long(long, &mut entries)?;
            }
            number += 1;
        }
        Ok(())
    }

    fn lay_late(
        &self,
        into: &Path,
        late: &Late<'_>,
        jobs: &mut Jobs<'_>,
    ) -> Result<Written, ContentError> {
        let create = |path: &Path| {
            Folder::create_private(path).map_err(ContentError::target("create", path))
        };
        let aside = Arc::new(create(late.aside)?);
        let mut folders = Descent::new(create(into)?);
        let mut written = Written::default();
        let mut reader = self.files.reader()?;
        let mut number = 0;
        while let Some(file) = reader.next_file()? {
            if jobs.pass.over.load(Ordering::Relaxed) {
                break;
            }
            number += 1;
            if !late.which.contains(&(number - 1)) {
                continue;
            }
            let (names, name) = split(&file.path);
            let path = into.join(&file.path);
            let entered = folders.enter(&names, |_| Ok(()));
            entered.map_err(ContentError::target("create the folder of", &path))?;
            let (folder, name) = (folders.shared(), name.to_owned());
            let part = format!("{number}.part");
            let out = aside.create_file(&part, file.executable);
            let out = out.map_err(ContentError::target("create a part of", &path))?;
            let then = Then::Move(Move { aside: Arc::clone(&aside), part, folder, name });
            written.files += 1;
            written.bytes += file.size;
            let mut entries = || reader.next_entry().map_err(ContentError::from);
            jobs.long(Long::new(out, path, file, then), &mut entries)?;
        }
        Ok(written)
    }
}

/// Where the walk leaves what it finds.
struct Jobs<'a> {
    pass: &'a Pass<'a>,
    job_tx: SyncSender<Job>,
    few: Vec<Short>,
    few_bytes: u64,
}

impl Jobs<'_> {
    fn send(&self, job: Job) {
        // The receiver lives as long as the pass; the threads take everything also when one has failed.
        drop(self.job_tx.send(job));
    }

    fn short(&mut self, short: Short) {
        self.few_bytes += short.file.size;
        self.few.push(short);
        if self.few.len() >= FEW_FILES || self.few_bytes >= FEW_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        self.few_bytes = 0;
        if !self.few.is_empty() {
            let few = std::mem::take(&mut self.few);
            self.send(Job::Few(few));
        }
    }

    fn long(
        &mut self,
        long: Long,
        next: &mut dyn FnMut() -> Result<Option<Entry>, ContentError>,
    ) -> Result<(), ContentError> {
        // What was found before is fetched before.
        self.hand_over();
        let of = Arc::new(long);
        let (mut at, mut len, mut entries) = (0, 0, Vec::new());
        while let Some(entry) = next()? {
            len += u64::from(entry.len);
            entries.push(entry);
            if len >= PART {
                let entries = std::mem::take(&mut entries);
                self.send(Job::Part { of: Arc::clone(&of), at, entries });
                at += len;
                len = 0;
            }
        }
        if !entries.is_empty() {
            self.send(Job::Part { of, at, entries });
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Does jobs until there are no more. After a failure they are only taken.
    fn work(&self) {
        let mut plain = Vec::new();
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            if self.over.load(Ordering::Relaxed) {
                continue;
            }
            let done = match job {
                Job::Few(files) => files.iter().try_for_each(|short| self.short(short, &mut plain)),
                Job::Part { of, at, entries } => self.part(&of, (at, &entries), &mut plain),
            };
            if let Err(error) = done {
                self.fail(error);
            }
        }
    }

    /// The first failure counts, and wakes who waits for chunks.
    fn fail(&self, error: ContentError) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(error);
        self.over.store(true, Ordering::Relaxed);
        self.unpack.arrivals.end();
    }

    /// The plain bytes of a chunk, as soon as it is here.
    fn plain(&self, entry: &Entry, plain: &mut Vec<u8>) -> Result<(), ContentError> {
        let Unpack { files, arrivals, .. } = self.unpack;
        arrivals.wait_for(files.chunks, &entry.cid, plain)?;
        if entry.open_stored(plain).is_err() {
            // Either our disk has damaged it, and then it is missing, or it never was what its entry says.
            *plain = files.open(entry)?;
        }
        Ok(())
    }

    fn short(&self, short: &Short, plain: &mut Vec<u8>) -> Result<(), ContentError> {
        let Short { folder, name, file, entries } = short;
        let path = || folder.path().join(name);
        let fails = |doing| move |source| ContentError::target(doing, &path())(source);
        let out = folder.create_file(name, file.executable).map_err(fails("create"))?;
        let mut at = 0;
        let mut write = |bytes: &[u8]| {
            out.write_all_at(bytes, at).map_err(fails("write"))?;
            at += bytes.len() as u64;
            Ok::<_, ContentError>(())
        };
        match &file.body {
            Body::Inline(bytes) => write(bytes)?,
            Body::Chunks(_) => {
                for entry in entries {
                    self.plain(entry, plain)?;
                    write(plain)?;
                }
            }
        }
        stamp(&out, file).map_err(fails("date"))
    }

    fn part(
        &self,
        of: &Long,
        (mut at, entries): (u64, &[Entry]),
        plain: &mut Vec<u8>,
    ) -> Result<(), ContentError> {
        let mut len = 0;
        for entry in entries {
            if self.over.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.plain(entry, plain)?;
            of.out.write_all_at(plain, at).map_err(ContentError::target("write", &of.path))?;
            at += plain.len() as u64;
            len += plain.len() as u64;
        }
        if of.bytes_left.fetch_sub(len, Ordering::AcqRel) == len {
            of.finish(self.held)
        } else {
            Ok(())
        }
    }
}

impl Long {
    fn new(out: File, path: PathBuf, file: manifest::File, then: Then) -> Self {
        let bytes_left = AtomicU64::new(file.size);
        Self { out, path, file, bytes_left, then }
    }

    fn finish(&self, held: Option<&Held<'_>>) -> Result<(), ContentError> {
        stamp(&self.out, &self.file).map_err(ContentError::target("date", &self.path))?;
        match (&self.then, held) {
            (Then::Move(Move { aside, part, folder, name }), _) => {
                let moved = aside.rename_into(part, folder, name);
                moved.map_err(ContentError::target("put in place", &self.path))
            }
            (Then::Open, Some(held)) => {
                (held.open)(&self.out, &self.path);
                Ok(())
            }
            (Then::Nothing | Then::Open, _) => Ok(()),
        }
    }
}

/// Puts a file of the right length, mode and date, but without its bytes, where one will come later.
fn hold_place(
    folder: &Folder,
    name: &str,
    file: &manifest::File,
    path: &Path,
) -> Result<(), ContentError> {
    let out = folder.create_file(name, file.executable);
    fill_place(&out.map_err(ContentError::target("create", path))?, file, path)
}

/// The right length and date, without the bytes.
fn fill_place(out: &File, file: &manifest::File, path: &Path) -> Result<(), ContentError> {
    out.set_len(file.size).map_err(ContentError::target("hold the place of", path))?;
    stamp(out, file).map_err(ContentError::target("date", path))
}
