//! Tar archives of job bundles: unpacked into a fresh folder, regular files and folders only, within limits.

use std::fs::File;
use std::io::{self, BufReader, Seek};
use std::path::{Path, PathBuf};

use meshfarm_protocol::manifest::path::check_path;
use tar::{Archive, EntryType};

use crate::beneath::{Descent, Folder};

/// More entries than this are refused.
const MAX_ENTRIES: usize = 100_000;

/// More bytes than this, unpacked, are refused: a bundle is a template and its support files.
const MAX_BYTES: u64 = 64 << 30;

/// A longer description of one entry is refused, in bytes: it is held in memory, and says names and dates.
const MAX_DESCRIPTION: u64 = 64 * 1024;

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
    /// An entry is described by more than any name and date needs.
    #[error("{} describes one entry with {bytes} bytes: pack the bundle again with shorter names", .path.display())]
    Description {
        /// The archive.
        path: PathBuf,
        /// How long the description says it is.
        bytes: u64,
    },
    /// A length stands outside of the entry that it belongs to, where two readers may differ about what follows.
    #[error("{} holds a file of 8 GiB or more: hand the bundle over as a folder", .0.display())]
    Long(PathBuf),
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

/// Unpack `archive` into `folder`, which exists and is empty. Nothing is written outside of it, whatever
/// the archive says and whatever is put there meanwhile.
///
/// Owners, modes, times and extended attributes in it are ignored; a file that occurs twice is refused.
///
/// # Errors
/// At the first entry that a bundle does not hold.
pub fn unpack(archive: &Path, folder: &Path) -> Result<(), ArchiveError> {
    let path = || archive.to_owned();
    let cannot_open = |source| ArchiveError::Open { path: path(), source };
    let broken = |source| ArchiveError::Broken { path: path(), source };
    let mut open = File::open(archive).map_err(cannot_open)?;
    check_descriptions(archive, &open)?;
    open.rewind().map_err(cannot_open)?;
    let top = Folder::open(folder)
        .map_err(|source| ArchiveError::Write { path: folder.to_owned(), source })?;
    let mut folders = Descent::new(top);
    let mut tar = Archive::new(BufReader::new(open));
    let mut room = MAX_BYTES;
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        room = room.saturating_sub(entry.size());
        if room == 0 {
            return Err(ArchiveError::TooMuch(path()));
        }
        let Some(names) = plain(&name) else {
            return Err(ArchiveError::Name { path: path(), name });
        };
        let written = match kind {
            EntryType::Directory => folders.enter(&names, |_| Ok(())).map(drop),
            EntryType::Regular | EntryType::Continuous => write(&mut folders, &names, &mut entry),
            _ => {
                return Err(ArchiveError::Kind { path: path(), name });
            }
        };
        let path = || folder.join(names.join("/"));
        written.map_err(|source| ArchiveError::Write { path: path(), source })?;
    }
    Ok(())
}

/// Looks at every entry as it stands there, before the descriptions among them are read into memory.
fn check_descriptions(archive: &Path, open: &File) -> Result<(), ArchiveError> {
    let path = || archive.to_owned();
    let broken = |source| ArchiveError::Broken { path: path(), source };
    let mut tar = Archive::new(BufReader::new(open));
    let mut n_entries = 0;
    for entry in tar.entries_with_seek().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        if !kind.is_gnu_longname()
            && !kind.is_gnu_longlink()
            && !kind.is_pax_local_extensions()
            && !kind.is_pax_global_extensions()
        {
            n_entries += 1;
            if n_entries > MAX_ENTRIES {
                return Err(ArchiveError::TooMuch(path()));
            }
            continue;
        }
        let bytes = entry.header().entry_size().map_err(broken)?;
        if bytes > MAX_DESCRIPTION {
            return Err(ArchiveError::Description { path: path(), bytes });
        }
        // With a length of its own the body ends elsewhere than here, and hides entries from this look.
        for said in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
            if said.map_err(broken)?.key_bytes() == b"size" {
                return Err(ArchiveError::Long(path()));
            }
        }
    }
    Ok(())
}

fn write(folders: &mut Descent, names: &[&str], from: &mut impl io::Read) -> io::Result<()> {
    let Some((name, parents)) = names.split_last() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file without a name"));
    };
    let mut file = folders.enter(parents, |_| Ok(()))?.create_file(name, false)?;
    io::copy(from, &mut file).map(drop)
}

/// The names in the path `name`, none for the folder itself, if the path could stand in a manifest. What `tar`
/// writes in front of it and behind a folder's name counts for nothing.
fn plain(name: &str) -> Option<Vec<&str>> {
    if name.starts_with('/') || name.contains(['\u{fffd}', '\\']) {
        return None;
    }
    let names: Vec<_> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let fits = names.is_empty() || check_path(&names.join("/")).is_ok();
    fits.then_some(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

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
            ("a\u{1b}[2J", EntryType::Regular),
            ("a\\..\\evil", EntryType::Regular),
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
    fn a_link_that_somebody_puts_there_leads_nowhere() {
        let scratch = tempfile::tempdir().unwrap();
        let (folder, outside) = (scratch.path().join("into"), scratch.path().join("outside"));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("a")).unwrap();
        std::os::unix::fs::symlink(outside.join("new"), folder.join("file")).unwrap();
        for name in ["a/evil", "file"] {
            let path = archive(scratch.path(), &[(name, EntryType::Regular, b"evil")]);
            assert!(matches!(unpack(&path, &folder), Err(ArchiveError::Write { .. })), "{name}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_occurs_twice_is_refused_and_modes_are_our_own() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("into");
        fs::create_dir(&folder).unwrap();
        let path = scratch.path().join("bundle.tar");
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        for contents in [b"first", b"other"] {
            let mut header = tar::Header::new_ustar();
            header.set_size(5);
            header.set_mode(0o6777);
            tar.append_data(&mut header, "a", &contents[..]).unwrap();
        }
        tar.finish().unwrap();
        assert!(matches!(unpack(&path, &folder), Err(ArchiveError::Write { .. })));
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"first");
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder.join("a")).unwrap());
        assert_eq!(mode & 0o7133, 0, "{mode:o}");
    }

    #[test]
    fn a_description_or_a_count_beyond_all_reason_is_refused_before_anything_is_written() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("into");
        fs::create_dir(&folder).unwrap();
        let long = vec![b'a'; 70_000];
        for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::XGlobalHeader] {
            let entries = [("a", EntryType::Regular, &b""[..]), ("long", kind, &long)];
            let path = archive(scratch.path(), &entries);
            let error = unpack(&path, &folder).unwrap_err();
            assert!(matches!(error, ArchiveError::Description { bytes: 70_000, .. }), "{error}");
        }
        let entries =
            [("size", EntryType::XHeader, &b"12 size=512\n"[..]), ("a", EntryType::Regular, b"")];
        let path = archive(scratch.path(), &entries);
        assert!(matches!(unpack(&path, &folder), Err(ArchiveError::Long(_))));
        let many = vec![("a", EntryType::Directory, &b""[..]); MAX_ENTRIES + 1];
        let path = archive(scratch.path(), &many);
        assert!(matches!(unpack(&path, &folder), Err(ArchiveError::TooMuch(_))));
        let deep = "a/".repeat(65);
        let path = archive(
            scratch.path(),
            &[("a", EntryType::Regular, b""), (&deep[..99], EntryType::Directory, b"")],
        );
        unpack(&path, &folder).unwrap_err();
        assert!(fs::read_dir(&folder).unwrap().count() <= 1);
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
