//! A backup of a home in one file: its keys, settings and records, and the content that its own jobs still need.
//!
//! Not in it: what other sites brought, what was rendered for them, logs, and renderers' folders. The file is a row of
//! entries, each with its hash, and says at its end how many there were; nothing in it names a path, so that whatever
//! it says nothing is written outside of the home that it is restored to.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshfarm_core::{JobPhase, Record};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::seal;

use crate::chunks::{ChunkError, Chunks, Settings};
use crate::config::{Config, ConfigError, Home};
use crate::pins::marks::Marks;
use crate::records::{self, RecordsError};
use crate::store::{Batch, Family, Store, StoreError};
use crate::{net, sys};

/// What every backup begins with.
const MAGIC: &[u8] = b"meshfarm backup 1\n";

/// A longer name of an entry was not written by us, in bytes.
const MAX_NAME: u32 = 64 << 10;

/// A longer entry was not written by us, in bytes.
const MAX_ENTRY: u64 = 256 << 20;

/// A longer key file was not written by us, in bytes.
const MAX_KEY: usize = 256;

/// So many bytes of records are written at a time.
const BATCH: usize = 4 << 20;

/// What is in a backup of the records. Everything else is made anew or belongs to others.
const FAMILIES: [Family; 7] = [
    Family::Job,
    Family::Task,
    Family::Membership,
    Family::Receipt,
    Family::Output,
    Family::Neighbour,
    Family::Root,
];

/// Why a backup was not written or restored. No home and no file was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A backup never overwrites.
    #[error("{} exists already: a backup overwrites nothing", .0.display())]
    Exists(PathBuf),
    /// A home that is in use is never overwritten.
    #[error("{} is not empty: a backup is restored to a new home", .0.display())]
    HomeExists(PathBuf),
    /// Not a backup, cut short, or changed since.
    #[error("{} is no whole backup: {what}", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        what: String,
    },
    /// The settings in it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records in it.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The content.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// The system refused.
    #[error("{what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What went into a backup or came out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Records.
    pub records: u64,
    /// Chunks of content.
    pub chunks: u64,
}

/// What an entry is. Its number never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    End = 0,
    Settings = 1,
    Key = 2,
    Record = 3,
    Chunk = 4,
}

impl Kind {
    const ALL: [Self; 5] = [Self::End, Self::Settings, Self::Key, Self::Record, Self::Chunk];
}

/// Write a backup of `home` to `file`, which must not exist and is readable by its owner only. The records are those of
/// one moment, whatever the node does meanwhile.
///
/// # Errors
/// When the file exists, or something cannot be read or written.
pub fn write(
    home: &Home,
    (store, chunks): (&Store, &Chunks),
    file: &Path,
) -> Result<Counted, BackupError> {
    if file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let draft = PathBuf::from(name);
    let written = write_draft(home, (store, chunks), &draft).and_then(|counted| {
        // A hard link fails where a rename would overwrite.
        let linked = fs::hard_link(&draft, file);
        linked.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(file.to_owned()),
            _ => BackupError::Io { what: "write", path: file.to_owned(), source },
        })?;
        Ok(counted)
    });
    drop(fs::remove_file(&draft));
    written
}

fn write_draft(
    home: &Home,
    (store, chunks): (&Store, &Chunks),
    draft: &Path,
) -> Result<Counted, BackupError> {
    let failed = |source| BackupError::Io { what: "write", path: draft.to_owned(), source };
    let _own = fs::remove_file(draft);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    let mut out = BufWriter::new(opened.map_err(failed)?);
    out.write_all(MAGIC).map_err(failed)?;
    let mut put = |kind, name: &[u8], bytes: &[u8]| {
        put(&mut out, kind, name, bytes).map_err(|source| BackupError::Io {
            what: "write",
            path: draft.to_owned(),
            source,
        })
    };
    put(Kind::Settings, b"", &read(&home.config())?)?;
    for (name, path) in key_files(home)? {
        put(Kind::Key, name.as_bytes(), &read(&path)?)?;
    }
    let mut counted = Counted::default();
    let (mut roots, mut marks) = (BTreeSet::new(), Vec::new());
    let mut failure = None;
    // Jobs come first, and then what their content uses.
    store.snapshot(&FAMILIES, |family, key, value| {
        if family == Family::Job {
            roots.extend(roots_in_use(value));
        }
        if !belongs(family, key, &roots) {
            return ControlFlow::Continue(());
        }
        if family == Family::Root && key.first() == Some(&b'm') {
            marks.extend(Marks::from_bytes(value));
        }
        counted.records += 1;
        let name = [family.name().as_bytes(), b"/", key].concat();
        match put(Kind::Record, &name, value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    for cid in chunks.find(|cid| marks.iter().any(|marks| marks.may_have(cid)))? {
        if let Some(bytes) = chunks.get(&cid)? {
            put(Kind::Chunk, &cid.0, &bytes)?;
            counted.chunks += 1;
        }
    }
    let n = [counted.records.to_be_bytes(), counted.chunks.to_be_bytes()].concat();
    put(Kind::End, b"", &n)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(counted)
}

/// Whether a record goes into a backup. Content that only others need does not, nor does any lease: what was leased when
/// the backup was written may have been accepted since, and its lender would neither run it nor tell of it again.
fn belongs(family: Family, key: &[u8], roots: &BTreeSet<ChunkId>) -> bool {
    match family {
        Family::Root => {
            let root = key.get(1..).and_then(|root| <[u8; 32]>::try_from(root).ok());
            root.is_some_and(|root| roots.contains(&ChunkId(root)))
        }
        Family::Job
        | Family::Task
        | Family::Membership
        | Family::Receipt
        | Family::Output
        | Family::Neighbour => true,
        Family::Meta
        | Family::Lease
        | Family::Attempt
        | Family::Profile
        | Family::Chunk
        | Family::Segment
        | Family::Xfer
        | Family::Trace
        | Family::Stat => false,
    }
}

/// Content that the job of a record reads, when it has not ended.
fn roots_in_use(record: &[u8]) -> Vec<ChunkId> {
    match codec::decode(record, records::MAX_RECORD) {
        Ok(Record::Job(job)) if job.phase == JobPhase::Active => {
            let inputs = job.inputs.iter().map(|(_, root, _)| *root);
            std::iter::once(job.root).chain(inputs).collect()
        }
        Ok(_) | Err(_) => Vec::new(),
    }
}

fn key_files(home: &Home) -> Result<Vec<(String, PathBuf)>, BackupError> {
    let folder = home.secrets();
    let failed = |source| BackupError::Io { what: "read", path: folder.clone(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_key(&name) {
            files.push((name, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file of this name holds a key: no other file of a backup is written, and such a name leads nowhere.
fn is_key(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let stem = name.strip_suffix(".key");
    stem.is_some_and(|stem| !stem.is_empty() && stem.len() <= 128 && stem.chars().all(plain))
}

fn read(path: &Path) -> Result<Vec<u8>, BackupError> {
    fs::read(path).map_err(|source| BackupError::Io { what: "read", path: path.to_owned(), source })
}

fn put(out: &mut impl Write, kind: Kind, name: &[u8], bytes: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a name of 4 GiB");
    let n = u32::try_from(name.len()).map_err(too_long)?;
    out.write_all(&[kind as u8])?;
    out.write_all(&n.to_be_bytes())?;
    out.write_all(&(bytes.len() as u64).to_be_bytes())?;
    out.write_all(&hash(name, bytes))?;
    out.write_all(name)?;
    out.write_all(bytes)
}

fn hash(name: &[u8], bytes: &[u8]) -> [u8; 32] {
    let of_name = seal::content_hash(name);
    let of_bytes = seal::content_hash(bytes);
    seal::content_hash(&[of_name, of_bytes].concat())
}

/// One entry of a backup.
struct Entry {
    kind: Kind,
    name: Vec<u8>,
    bytes: Vec<u8>,
}

/// The next entry, or what is wrong with it in words.
fn take(from: &mut impl Read) -> Result<Entry, String> {
    let cut = |_: io::Error| "it is cut short".to_owned();
    let mut head = [0; 1 + 4 + 8 + 32];
    from.read_exact(&mut head).map_err(cut)?;
    let odd = || "it holds something that is not understood".to_owned();
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == head[0]).ok_or_else(odd)?;
    let n = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let len = u64::from_be_bytes([5, 6, 7, 8, 9, 10, 11, 12].map(|at| head[at]));
    if n > MAX_NAME || len > MAX_ENTRY {
        return Err(odd());
    }
    // Room grows with what is there, not with what is claimed.
    let mut name = Vec::new();
    from.take(u64::from(n)).read_to_end(&mut name).map_err(cut)?;
    let mut bytes = Vec::new();
    from.take(len).read_to_end(&mut bytes).map_err(cut)?;
    if name.len() as u64 != u64::from(n) || bytes.len() as u64 != len {
        return Err("it is cut short".to_owned());
    }
    if hash(&name, &bytes)[..] != head[13..] {
        return Err("it was changed since it was written".to_owned());
    }
    Ok(Entry { kind, name, bytes })
}

/// Make a home of a backup. The home is there whole, or not at all.
///
/// # Errors
/// When the home is not empty, the file is no whole backup, or the disk refuses.
pub fn restore(home: &Home, file: &Path) -> Result<Counted, BackupError> {
    let root = home.root();
    let failed = |what| {
        let path = root.to_owned();
        move |source| BackupError::Io { what, path, source }
    };
    match fs::read_dir(root).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(BackupError::HomeExists(root.to_owned())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("look at")(error));
        }
        Ok(false) | Err(_) => {}
    }
    let parent = root.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(parent).map_err(failed("make the folder of"))?;
    let draft = Home::find(Some(parent.join(format!(".mf{}", std::process::id()))))?;
    let _own = fs::remove_dir_all(draft.root());
    let restored = unpack(&draft, file).and_then(|counted| {
        // Onto an empty folder or none: the system refuses any other.
        fs::rename(draft.root(), root).map_err(failed("move the restored home to"))?;
        Ok(counted)
    });
    if restored.is_err() {
        drop(fs::remove_dir_all(draft.root()));
    }
    restored
}

fn unpack(home: &Home, file: &Path) -> Result<Counted, BackupError> {
    let broken = |what: &str| BackupError::Broken { path: file.to_owned(), what: what.to_owned() };
    let opened = File::open(file);
    let opened =
        opened.map_err(|source| BackupError::Io { what: "read", path: file.to_owned(), source })?;
    let mut from = BufReader::new(opened);
    let mut magic = [0; MAGIC.len()];
    if from.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Err(broken("it does not begin like one"));
    }
    let folder = home.store().join("records");
    for folder in [home.root(), &home.secrets(), &folder] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| BackupError::Io { what: "make", path: folder.to_owned(), source })?;
    }
    let store = Arc::new(Store::open(&folder)?);
    let now = || net::Clock::now(&net::SystemClock);
    let settings = Settings::new(sys::free_bytes, sys::punch_hole, now);
    let chunks = Chunks::open(&home.store().join("segments"), Arc::clone(&store), settings)?;
    let (mut counted, mut batch, mut pending) = (Counted::default(), Batch::new(), 0);
    let mut has_settings = false;
    loop {
        let Entry { kind, name, bytes } = take(&mut from).map_err(|what| broken(&what))?;
        match kind {
            Kind::Settings => {
                let text = String::from_utf8(bytes).map_err(|_text| broken("its settings"))?;
                Config::parse(&home.config(), &text)?;
                create(&home.config(), text.as_bytes())?;
                has_settings = true;
            }
            Kind::Key => {
                let name = String::from_utf8(name).unwrap_or_default();
                if !is_key(&name) || bytes.len() > MAX_KEY {
                    return Err(broken("it holds a key under a name that no key has"));
                }
                create(&home.secrets().join(name), &bytes)?;
            }
            Kind::Record => {
                let (family, key) = place(&name).ok_or_else(|| broken("a record of no kind"))?;
                pending += key.len() + bytes.len();
                batch.put(family, key, bytes);
                counted.records += 1;
                if pending >= BATCH {
                    store.commit(std::mem::take(&mut batch))?;
                    pending = 0;
                }
            }
            Kind::Chunk => {
                let cid =
                    <[u8; 32]>::try_from(name).map_err(|_name| broken("a chunk of no name"))?;
                chunks.put(&ChunkId(cid), &bytes)?;
                counted.chunks += 1;
            }
            Kind::End => {
                let n = [counted.records.to_be_bytes(), counted.chunks.to_be_bytes()].concat();
                if bytes != n || !has_settings {
                    return Err(broken("parts of it are missing"));
                }
                break;
            }
        }
    }
    store.commit(batch)?;
    chunks.flush()?;
    records::load(&store)?;
    Ok(counted)
}

/// The family and the key that the name of a record names.
fn place(name: &[u8]) -> Option<(Family, &[u8])> {
    let slash = name.iter().position(|byte| *byte == b'/')?;
    let (family, key) = (&name[..slash], &name[slash + 1..]);
    let family = FAMILIES.into_iter().find(|known| known.name().as_bytes() == family)?;
    (!key.is_empty()).then_some((family, key))
}

/// Write a file that is not there yet, for its owner only.
fn create(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let failed = |source| BackupError::Io { what: "write", path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
#[path = "backup/tests.rs"]
mod tests;
