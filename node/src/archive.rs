//! Tar archives of job bundles: unpacked into a fresh folder, regular files and folders only, within limits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

/// More entries than this are refused.
const MAX_ENTRIES: usize = 100_000;

/// More bytes than this, unpacked, are refused: a bundle is a template and its support files.
const MAX_BYTES: u64 = 64 << 30;

/// A longer path is refused, in bytes.
const MAX_PATH: usize = 1024;

/// Why an archive was not unpacked. What was unpacked before is in the folder, which the caller removes.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be opened.
    #[error("cannot read {}", .path.display())]
    Open {
        /// The archive.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not a tar archive, or cut short.
    #[error("{} is not a whole tar archive", .path.display())]
    Broken {
        /// The archive.
        path: PathBuf,
        /// Where it breaks.
        #[source]
        source: io::Error,
    },
    /// A name in it leaves the folder, is too long, or is not text.
    #[error("{} holds {name:?}, which is not a plain relative path", .path.display())]
    Name {
        /// The archive.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// It holds something else than files and folders.
    #[error("{} holds {name:?}, which is neither a file nor a folder: pack the bundle without links", .path.display())]
    Kind {
        /// The archive.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Too much.
    #[error("{} holds more than {MAX_ENTRIES} entries or {} GiB", .0.display(), MAX_BYTES >> 30)]
    TooMuch(PathBuf),
    /// The folder cannot be written.
    #[error("cannot unpack to {}", .path.display())]
    Write {
        /// The file that was being written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Unpack `archive` into `folder`, which exists, is empty and is entered by nobody else.
///
/// Owners, modes, times and extended attributes in it are ignored; a file that occurs twice is refused.
///
/// # Errors
/// At the first entry that a bundle does not hold.
pub fn unpack(archive: &Path, folder: &Path) -> Result<(), ArchiveError> {
    let path = archive.to_owned();
    let open = File::open(archive).map_err(|source| ArchiveError::Open { path, source })?;
    let broken = |source| ArchiveError::Broken { path: archive.to_owned(), source };
    let mut tar = Archive::new(BufReader::new(open));
    let mut room = MAX_BYTES;
    for (n, entry) in tar.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        room = room.saturating_sub(entry.size());
        if n >= MAX_ENTRIES || room == 0 {
            return Err(ArchiveError::TooMuch(archive.to_owned()));
        }
        let Some(relative) = plain(&name) else {
            return Err(ArchiveError::Name { path: archive.to_owned(), name });
        };
        let target = folder.join(relative);
        let written = match kind {
            EntryType::Directory => fs::create_dir_all(&target),
            EntryType::Regular | EntryType::Continuous => write(&target, &mut entry),
            _ => {
                return Err(ArchiveError::Kind { path: archive.to_owned(), name });
            }
        };
        written.map_err(|source| ArchiveError::Write { path: target, source })?;
    }
    Ok(())
}

fn write(target: &Path, from: &mut impl io::Read) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    io::copy(from, &mut file).map(drop)
}

/// The path in `name`, if it is relative, climbs nowhere and is of reasonable length.
fn plain(name: &str) -> Option<PathBuf> {
    let fits = name.len() <= MAX_PATH && !name.contains('\u{fffd}') && !name.contains('\\');
    let parts = Path::new(name).components();
    let plain = parts.filter(|part| *part != Component::CurDir).map(|part| match part {
        Component::Normal(part) => Some(part),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => {
            None
        }
    });
    plain.collect::<Option<PathBuf>>().filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path, entries: &[(&str, EntryType, &[u8])]) -> PathBuf {
        let path = folder.join("bundle.tar");
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        for (name, kind, bytes) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            if *kind == EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.finish().unwrap();
        path
    }

    #[test]
    fn files_and_folders_are_unpacked() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("into");
        fs::create_dir(&folder).unwrap();
        let path = archive(
            scratch.path(),
            &[
                ("./b/", EntryType::Directory, b""),
                ("./b/template.yaml", EntryType::Regular, b"name: x"),
            ],
        );
        unpack(&path, &folder).unwrap();
        assert_eq!(fs::read(folder.join("b/template.yaml")).unwrap(), b"name: x");
    }

    #[test]
    fn what_could_leave_the_folder_is_refused() {
        for (name, kind) in [
            ("../evil", EntryType::Regular),
            ("/etc/evil", EntryType::Regular),
            ("a/../../evil", EntryType::Regular),
            ("link", EntryType::Symlink),
            ("hard", EntryType::Link),
            ("pipe", EntryType::Fifo),
            ("disk", EntryType::Block),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            let folder = scratch.path().join("into");
            fs::create_dir(&folder).unwrap();
            let path = archive(scratch.path(), &[(name, kind, b"")]);
            assert!(unpack(&path, &folder).is_err(), "{name}");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{name}");
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2, "{name}");
        }
    }

    #[test]
    fn a_cut_or_foreign_file_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = archive(scratch.path(), &[("a", EntryType::Regular, &[1; 5000])]);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..2000]).unwrap();
        let folder = scratch.path().join("into");
        fs::create_dir(&folder).unwrap();
        assert!(matches!(
            unpack(&path, &folder),
            Err(ArchiveError::Write { .. } | ArchiveError::Broken { .. })
        ));
        fs::write(&path, vec![7; 4096]).unwrap();
        assert!(matches!(unpack(&path, &folder), Err(ArchiveError::Broken { .. })));
    }
}
