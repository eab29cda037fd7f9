//! Chunks become files in the folders that people named, and what layouts share with that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use meshfarm_protocol::id::{ChunkId, hex};
use meshfarm_protocol::manifest::{self, Body, Entry, Limits, Reader, RootLink};
use meshfarm_protocol::seal;

use super::ContentError;
use crate::beneath::{Descent, Folder};
use crate::chunks::Chunks;

/// A manifest whose chunks are all here.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// Where the chunks are.
    pub chunks: &'a Chunks,
    /// What finds and opens the manifest.
    pub link: RootLink,
    /// What is accepted from it.
    pub limits: Limits,
}

/// Brings the sealed bytes of a node.
pub(super) type Fetch<'a> = Box<dyn FnMut(&ChunkId) -> Result<Vec<u8>, ContentError> + 'a>;

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A file of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Which one, counted in the manifest's order.
    pub number: u64,
    /// What it is.
    pub file: manifest::File,
    /// Its chunks, as a range in the flattened list of all.
    pub chunks: Range<u64>,
    /// Whether one of them is not here, when that was asked.
    pub missing: bool,
}

/// A file that is at its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landed {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether it was written. One that was there already with the same contents is left alone.
    pub is_new: bool,
}

impl Files<'_> {
    /// The head of the manifest. The reader refuses files that are more than it says.
    ///
    /// # Errors
    /// When the root is missing or refused.
    pub fn head(&self) -> Result<manifest::Root, ContentError> {
        Ok(self.reader()?.root().clone())
    }

    /// Visits all files in order, and says of those that `asks` is true for whether a chunk is missing here.
    ///
    /// # Errors
    /// When a node is missing, the manifest is refused or the store fails.
    pub fn survey(
        &self,
        asks: impl Fn(&manifest::File) -> bool,
        mut visit: impl FnMut(Surveyed),
    ) -> Result<(), ContentError> {
        let mut reader = self.reader()?;
        let (mut number, mut at) = (0, 0);
        while let Some(file) = reader.next_file()? {
            let (asked, begin) = (asks(&file), at);
            let mut missing = false;
            while let Some(entry) = reader.next_entry()? {
                at += 1;
                missing |= asked && !missing && !self.chunks.has(&entry.cid)?;
            }
            visit(Surveyed { number, file, chunks: begin..at, missing });
            number += 1;
        }
        Ok(())
    }

    /// The paths of all files, in order.
    ///
    /// # Errors
    /// When a node is missing or the manifest is refused.
    pub fn paths(&self) -> Result<Vec<String>, ContentError> {
        let mut reader = self.reader()?;
        let mut paths = Vec::new();
        while let Some(file) = reader.next_file()? {
            while reader.next_entry()?.is_some() {}
            paths.push(file.path);
        }
        Ok(paths)
    }

    /// Writes each file beneath the destination of its root: aside, synced, then renamed, so that
    /// nobody ever sees half a file. When this returns, all of them survive a crash.
    ///
    /// # Errors
    /// When a chunk is missing, the manifest is refused, a destination cannot be written, or a
    /// file's root has none. Files that landed before stay; landing again is harmless.
    pub fn land(
        &self,
        destinations: &BTreeMap<String, PathBuf>,
    ) -> Result<Vec<Landed>, ContentError> {
        let mut landed = Vec::new();
        let mut reader = self.reader()?;
        let mut folders: Option<(String, Descent)> = None;
        while let Some(file) = reader.next_file()? {
            let no_place = || ContentError::NoPlace { path: file.path.clone() };
            let (root, rest) = file.path.split_once('/').ok_or_else(no_place)?;
            let destination = destinations.get(root).ok_or_else(no_place)?;
            let (names, name) = split(rest);
            if folders.as_ref().is_none_or(|(open, _)| open != root) {
                if let Some((_, folders)) = &mut folders {
                    leave_all(folders)?;
                }
                let top = Folder::create(destination)
                    .map_err(ContentError::target("write into", destination))?;
                folders = Some((root.to_owned(), Descent::new(top)));
            }
            let Some((_, folders)) = &mut folders else {
                continue;
            };
            let path = destination.join(rest);
            let folder = folders
                .enter(&names, Folder::sync)
                .map_err(ContentError::target("create the folder of", &path))?;
            let mut entries = Vec::new();
            while let Some(entry) = reader.next_entry()? {
                entries.push(entry);
            }
            let is_new = !self.is_there(folder, name, &file, &entries)?;
            if is_new {
                self.replace(folder, name, &file, &entries)?;
            }
            landed.push(Landed { path, bytes: file.size, is_new });
        }
        if let Some((_, mut folders)) = folders {
            leave_all(&mut folders)?;
        }
        Ok(landed)
    }

    /// Reads the manifest, whose nodes are here.
    pub(super) fn reader(&self) -> Result<Reader<Fetch<'_>>, ContentError> {
        let fetch: Fetch<'_> = Box::new(|cid| self.sealed(cid));
        Ok(Reader::new(&self.link, self.limits, fetch)?)
    }

    fn sealed(&self, cid: &ChunkId) -> Result<Vec<u8>, ContentError> {
        self.chunks.get(cid)?.ok_or(ContentError::Missing(*cid))
    }

    /// The plain bytes of a chunk that is here.
    pub(super) fn open(&self, entry: &Entry) -> Result<Vec<u8>, ContentError> {
        let mut bytes = self.sealed(&entry.cid)?;
        entry.open_stored(&mut bytes)?;
        Ok(bytes)
    }

    fn is_there(
        &self,
        folder: &Folder,
        name: &str,
        file: &manifest::File,
        entries: &[Entry],
    ) -> Result<bool, ContentError> {
        let Ok(mut there) = folder.file(name) else {
            return Ok(false);
        };
        if there.metadata().is_ok_and(|about| about.len() != file.size) {
            return Ok(false);
        }
        let mut same = |bytes: &[u8]| {
            let mut found = vec![0; bytes.len()];
            there.read_exact(&mut found).is_ok() && found == bytes
        };
        if let Body::Inline(bytes) = &file.body {
            return Ok(same(bytes));
        }
        for entry in entries {
            if !same(&self.open(entry)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn replace(
        &self,
        folder: &Folder,
        name: &str,
        file: &manifest::File,
        entries: &[Entry],
    ) -> Result<(), ContentError> {
        let path = folder.path().join(name);
        let fails = |doing| ContentError::target(doing, &path);
        // The same name when the same results land again after a crash, so that no part stays behind.
        let whose = seal::content_hash(&[&self.link.cid.0[..], name.as_bytes()].concat());
        let part = format!(".meshfarm-{}.part", hex(&whose[..8]));
        match folder.remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fails("write")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut out = folder.create_file(&part, file.executable).map_err(fails("write"))?;
        let done = self.write(&mut out, file, entries, &path).and_then(|()| {
            stamp(&out, file).map_err(fails("date"))?;
            out.sync_all().map_err(fails("sync"))?;
            folder.rename(&part, name).map_err(fails("write"))
        });
        if done.is_err() {
            // The first error says more than a second one could.
            drop(folder.remove_file(&part));
        }
        done
    }

    fn write(
        &self,
        out: &mut File,
        file: &manifest::File,
        entries: &[Entry],
        path: &Path,
    ) -> Result<(), ContentError> {
        let mut write =
            |bytes: &[u8]| out.write_all(bytes).map_err(ContentError::target("write", path));
        if let Body::Inline(bytes) = &file.body {
            write(bytes)?;
        }
        for entry in entries {
            write(&self.open(entry)?)?;
        }
        Ok(())
    }
}

/// The folders of a path, and the name of the file.
pub(super) fn split(path: &str) -> (Vec<&str>, &str) {
    let mut names: Vec<_> = path.split('/').collect();
    let name = names.pop().unwrap_or_default();
    (names, name)
}

/// Syncs every folder that is still open, the top one last.
fn leave_all(folders: &mut Descent) -> Result<(), ContentError> {
    let path = folders.here().path().to_owned();
    folders
        .enter(&[], Folder::sync)
        .and_then(Folder::sync)
        .map_err(ContentError::target("sync", &path))
}

/// Gives a file its date. One before 1970 or beyond the system's range stays as it is.
pub(super) fn stamp(out: &File, file: &manifest::File) -> io::Result<()> {
    match SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(file.modified.0)) {
        Some(modified) if file.modified.0 > 0 => match out.set_modified(modified) {
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
        Some(_) | None => Ok(()),
    }
}
