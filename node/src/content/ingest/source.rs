//! Files as they are found on the disk: how long, how old, and whether they changed since.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::thread;

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::seal::MAX_PLAIN;

use super::{Input, Source};
use crate::beneath::{self, Folder};
use crate::content::ContentError;

/// A file up to this length is read in one go by the thread that seals it, in bytes.
pub(super) const SMALL: u64 = MAX_PLAIN as u64;

/// So many files are looked at by one thread: on a network's file server a look may take a millisecond.
const LOOKS: usize = 256;

/// Threads that look at files at the same time.
const MAX_LOOKING: usize = 16;

/// What tells one state of a file from another: nobody can write to a file and leave all of it as it was,
/// unless within one tick of the file system's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::content) struct Stamp {
    pub(in crate::content) dev: u64,
    pub(in crate::content) ino: u64,
    pub(in crate::content) size: u64,
    /// Seconds and nanoseconds.
    pub(in crate::content) modified: (i64, i64),
    pub(in crate::content) changed: (i64, i64),
}

/// A file as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) size: u64,
    pub(super) executable: bool,
    /// Nothing where the contents come from memory.
    pub(super) modified: Option<Millis>,
    pub(super) stamp: Option<Stamp>,
}

impl Found {
    pub(super) fn of(about: &Metadata) -> Self {
        let stamp = Stamp {
            dev: about.dev(),
            ino: about.ino(),
            size: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        };
        let millis = about.mtime().saturating_mul(1000) + about.mtime_nsec() / 1_000_000;
        Self {
            size: about.len(),
            executable: about.permissions().mode() & 0o100 != 0,
            modified: Some(Millis(u64::try_from(millis).unwrap_or(0))),
            stamp: Some(stamp),
        }
    }
}

/// Looks at all files, several at a time, in their order.
pub(super) fn look(inputs: &[Input]) -> Result<Vec<Found>, ContentError> {
    let n_threads = inputs.len().div_ceil(LOOKS).min(MAX_LOOKING);
    if n_threads < 2 {
        return inputs.iter().map(|input| input.source.look()).collect();
    }
    thread::scope(|scope| {
        let look = |part: &[Input]| part.iter().map(|input| input.source.look()).collect();
        let parts = inputs.chunks(inputs.len().div_ceil(n_threads));
        let looking: Vec<_> = parts
            .map(|part| scope.spawn(move || -> Result<Vec<Found>, ContentError> { look(part) }))
            .collect();
        let mut found = Vec::with_capacity(inputs.len());
        for part in looking {
            found.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(found)
    })
}

impl Source {
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Bytes(_) => PathBuf::new(),
            Self::File(path) => path.clone(),
            Self::Beneath { folder, path } => folder.join(path),
        }
    }

    pub(super) fn fails(&self) -> impl FnOnce(io::Error) -> ContentError + use<'_> {
        |source| ContentError::Source { path: self.path(), source }
    }

    fn look(&self) -> Result<Found, ContentError> {
        let about = match self {
            Self::Bytes(bytes) => {
                let size = bytes.len() as u64;
                return Ok(Found { size, executable: false, modified: None, stamp: None });
            }
            Self::File(path) => fs::metadata(path),
            Self::Beneath { .. } => self.open().and_then(|file| file.metadata()),
        };
        let about = about.map_err(self.fails())?;
        if about.is_file() {
            Ok(Found::of(&about))
        } else {
            Err(self.fails()(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file")))
        }
    }

    pub(super) fn open(&self) -> io::Result<File> {
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

/// Reads a small file to its end; nothing when it is large by now.
pub(super) fn read_small(
    source: &Source,
    into: &mut Vec<u8>,
) -> Result<Option<Found>, ContentError> {
    let mut file = source.open().map_err(source.fails())?;
    let before = Found::of(&file.metadata().map_err(source.fails())?);
    if before.size > SMALL {
        return Ok(None);
    }
    // One byte more shows a file that grows, and ends it without another question.
    let room = usize::try_from(before.size).expect("it is small") + 1;
    into.resize(room, 0);
    let len = fill(&mut file, into).map_err(source.fails())?;
    into.truncate(len);
    let after = Found::of(&file.metadata().map_err(source.fails())?);
    if len as u64 != before.size || before.stamp != after.stamp {
        return Err(ContentError::Changed { path: source.path() });
    }
    Ok(Some(before))
}

/// Reads until `into` is full or nothing is left.
pub(super) fn fill(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < into.len() {
        match from.read(&mut into[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
