//! Collecting the outputs of a jail that is dead: regular files with plain names, within limits, and nothing else.
//!
//! The folder was written by hostile code. Every name is opened below its folder's descriptor and never
//! through a link, so that a link in it leads nowhere; what is not a file is said and left.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use crate::sys;

/// How much is collected at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, and looked-at names of any kind, each.
    pub files: u64,
    /// Folders within folders; 1 is files directly in the root only.
    pub depth: usize,
}

impl Default for CollectLimits {
    fn default() -> Self {
        Self { bytes: 64 << 30, files: 100_000, depth: 8 }
    }
}

/// What was collected and what was not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files given to the caller.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that were left, with the reason; the first thousand.
    pub skipped: Vec<Skipped>,
    /// How many names were left, listed or not.
    pub n_skipped: u64,
}

/// A name that was left where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Relative to the root, with doubtful characters replaced.
    pub path: PathBuf,
    /// Why.
    pub why: Reason,
}

/// Why a name was not collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// A symbolic link, wherever it points.
    #[error("a link")]
    Link,
    /// A device, pipe or socket.
    #[error("neither a file nor a folder")]
    Special,
    /// A further name of a file: its other name may lie elsewhere.
    #[error("a file with several names")]
    HardLink,
    /// Not UTF-8, longer than 255 bytes, or with a character that controls, breaks lines or turns text around.
    #[error("a name with unfit characters")]
    Name,
    /// Deeper than the limit.
    #[error("too deep")]
    Depth,
    /// The file would exceed the limit of bytes.
    #[error("too many bytes")]
    Bytes,
    /// The limit of files is reached.
    #[error("too many files")]
    Files,
    /// It could not be opened, or is on another filesystem.
    #[error("cannot be opened")]
    Closed,
}

/// Longest list of skipped names; beyond it they are only counted.
const MOST_LISTED: usize = 1000;

struct Walk<'a, F> {
    limits: CollectLimits,
    each: &'a mut F,
    seen: u64,
    done: Collected,
}

/// Walk a folder, behind a descriptor, and hand each regular file to `each`, opened, with its relative path and length in bytes.
///
/// Call it only when nothing of the jail is left: a live job could change what was looked at.
/// Read at most the stated length. The order is that of names, so that two walks agree.
///
/// # Errors
/// When `each` refuses, at that file; what was collected before stays with the caller.
pub fn collect<F>(root: impl AsFd, limits: CollectLimits, mut each: F) -> io::Result<Collected>
where
    F: FnMut(&Path, File, u64) -> io::Result<()>,
{
    let mut walk = Walk { limits, each: &mut each, seen: 0, done: Collected::default() };
    walk.folder(root.as_fd(), Path::new(""), 1)?;
    Ok(walk.done)
}

impl<F> Walk<'_, F>
where
    F: FnMut(&Path, File, u64) -> io::Result<()>,
{
    fn folder(&mut self, folder: BorrowedFd<'_>, path: &Path, depth: usize) -> io::Result<()> {
        // The list is bounded before it is sorted: a folder of a hundred million names must not fill memory.
        let room = self.limits.files.saturating_sub(self.seen);
        let mut names = Vec::new();
        let listing = sys::list(folder)?;
        for entry in listing.take(usize::try_from(room).unwrap_or(usize::MAX).saturating_add(1)) {
            names.push(entry?);
        }
        names.sort();
        for name in names {
            let shown = path.join(String::from_utf8_lossy(name.as_bytes()).as_ref());
            if self.seen >= self.limits.files {
                self.skip(shown, Reason::Files);
                return Ok(());
            }
            self.seen += 1;
            if is_plain(name.as_bytes()) {
                self.name(folder, &name, &shown, depth)?;
            } else {
                let shown = shown.to_string_lossy().replace(is_misleading, "\u{fffd}");
                self.skip(shown.into(), Reason::Name);
            }
        }
        Ok(())
    }

    fn name(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &std::ffi::OsStr,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let c_name = sys::c_path(Path::new(name))?;
        let open = |flags| sys::open_below(folder, &c_name, flags, sys::RESOLVE_CONFINED);
        // A mere name first: opening a pipe or a device could block or do something.
        let looked = sys::open_below(folder, &c_name, sys::LOOK, sys::RESOLVE_NAME);
        let Ok(kind) = looked.map(File::from).and_then(|f| f.metadata()) else {
            self.skip(path.into(), Reason::Closed);
            return Ok(());
        };
        if kind.is_symlink() {
            self.skip(path.into(), Reason::Link);
        } else if kind.is_dir() && depth >= self.limits.depth {
            self.skip(path.into(), Reason::Depth);
        } else if kind.is_dir() {
            match open(sys::FOLDER) {
                Ok(inner) => self.folder(inner.as_fd(), path, depth + 1)?,
                Err(_) => self.skip(path.into(), Reason::Closed),
            }
        } else if kind.is_file() {
            match open(sys::READ).map(File::from).and_then(|f| Ok((f.metadata()?, f))) {
                Ok((found, file)) => self.file(path, file, &found)?,
                Err(_) => self.skip(path.into(), Reason::Closed),
            }
        } else {
            self.skip(path.into(), Reason::Special);
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, file: File, found: &fs::Metadata) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let length = found.len();
        if !found.is_file() {
            self.skip(path.into(), Reason::Special);
        } else if found.nlink() != 1 {
            self.skip(path.into(), Reason::HardLink);
        } else if length > self.limits.bytes - self.done.bytes {
            self.skip(path.into(), Reason::Bytes);
        } else {
            (self.each)(path, file, length)?;
            self.done.files += 1;
            self.done.bytes += length;
        }
        Ok(())
    }

    fn skip(&mut self, path: PathBuf, why: Reason) {
        self.done.n_skipped += 1;
        if self.done.skipped.len() < MOST_LISTED {
            self.done.skipped.push(Skipped { path, why });
        }
    }
}

fn is_plain(name: &[u8]) -> bool {
    name.len() <= 255 && std::str::from_utf8(name).is_ok_and(|n| !n.contains(is_misleading))
}

/// Control characters, separators of lines and paragraphs, and the marks that force a direction upon text:
/// with them a program's name reads like a picture's. Right-to-left letters need none of them.
fn is_misleading(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::symlink};

    use super::*;

    fn texts(root: &Path, limits: CollectLimits) -> (Vec<(String, String)>, Collected) {
        let mut texts = Vec::new();
        let done = collect(File::open(root).unwrap(), limits, |path, mut file, length| {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            assert_eq!(text.len() as u64, length);
            texts.push((path.display().to_string(), text));
            Ok(())
        });
        (texts, done.unwrap())
    }

    fn reasons(done: &Collected) -> Vec<(String, Reason)> {
        done.skipped.iter().map(|s| (s.path.display().to_string(), s.why)).collect()
    }

    #[test]
    fn files_come_in_order_and_links_pipes_and_second_names_stay() {
        let room = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new_in(room.path()).unwrap();
        fs::write(&outside, "secret").unwrap();
        let root = room.path().join("out");
        fs::create_dir_all(root.join("b")).unwrap();
        fs::write(root.join("b/two"), "2").unwrap();
        fs::write(root.join("a"), "one").unwrap();
        symlink(outside.path(), root.join("link")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        fs::hard_link(outside.path(), root.join("twin")).unwrap();
        std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let (found, done) = texts(&root, CollectLimits::default());
        let expected = [("a", "one"), ("b/two", "2")].map(|(p, t)| (p.into(), t.into()));
        assert_eq!(found, expected);
        let left = [
            ("link", Reason::Link),
            ("slash", Reason::Link),
            ("socket", Reason::Special),
            ("twin", Reason::HardLink),
        ];
        assert_eq!(reasons(&done), left.map(|(p, r)| (p.to_owned(), r)));
        assert_eq!((done.files, done.bytes, done.n_skipped), (2, 4, 4));
    }

    #[test]
    fn unfit_names_deep_folders_and_too_much_are_left() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
        fs::write(root.path().join("line\nbreak"), "x").unwrap();
        fs::write(root.path().join("picture\u{202e}gnp.exe"), "x").unwrap();
        fs::write(root.path().join("\u{5ea}\u{5de}\u{5d5}\u{5e0}\u{5d4}"), "x").unwrap();
        fs::create_dir_all(root.path().join("d/e/f")).unwrap();
        fs::write(root.path().join("d/e/ok"), "12345").unwrap();
        fs::write(root.path().join("z"), "123456").unwrap();
        let limits = CollectLimits { bytes: 10, files: 100, depth: 3 };
        let (found, done) = texts(root.path(), limits);
        let hebrew = "\u{5ea}\u{5de}\u{5d5}\u{5e0}\u{5d4}";
        assert_eq!(found, [("d/e/ok", "12345"), (hebrew, "x")].map(|(p, t)| (p.into(), t.into())));
        let kinds: Vec<Reason> = done.skipped.iter().map(|s| s.why).collect();
        assert_eq!(kinds, [Reason::Name, Reason::Depth, Reason::Name, Reason::Name, Reason::Bytes]);
        let limits = CollectLimits { files: 2, ..CollectLimits::default() };
        let (_, done) = texts(root.path(), limits);
        assert_eq!(done.skipped.last().unwrap().why, Reason::Files);
    }
}
