//! Folders that are held open, so that nothing is read or written outside of them.
//!
//! Every step names one entry of a folder that is already open, through its descriptor in `/proc`, and
//! follows no link. Renaming or replacing folders meanwhile leads nowhere else.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    file: File,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder that its owner named; links on the way there are the owner's own.
    ///
    /// # Errors
    /// When there is no such folder or it may not be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        Ok(Self { file: options.open(path)?, path: path.to_owned() })
    }

    /// Opens a folder, creating it and those above when they are absent.
    ///
    /// # Errors
    /// When it cannot be created or may not be read.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// As [`Folder::create`], for nobody but the owner when it is new.
    ///
    /// # Errors
    /// When it cannot be created or may not be read.
    pub fn create_private(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::open(path)
    }

    /// Where the folder was when it was opened, for people.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a folder in this one.
    ///
    /// # Errors
    /// When there is none, or a link or file in its place.
    pub fn folder(&self, name: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        Ok(Self { file: options.open(self.entry(name)?)?, path: self.path.join(name) })
    }

    /// Opens a folder in this one, creating it when it is absent.
    ///
    /// # Errors
    /// When it cannot be created, or a link or file is in its place.
    pub fn create_folder(&self, name: &str) -> io::Result<Self> {
        match fs::create_dir(self.entry(name)?) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => self.folder(name),
        }
    }

    /// Creates a file that was not there, for writing.
    ///
    /// # Errors
    /// When something has that name already, or the folder may not be written.
    pub fn create_file(&self, name: &str, executable: bool) -> io::Result<File> {
        let mode = if executable { 0o755 } else { 0o644 };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode).custom_flags(libc::O_NOFOLLOW);
        options.open(self.entry(name)?)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// When there is none, or anything but a plain file in its place.
    pub fn file(&self, name: &str) -> io::Result<File> {
        open_plain(&self.entry(name)?, libc::O_NOFOLLOW)
    }

    /// Gives an entry of this folder another name, in place of what had that name.
    ///
    /// # Errors
    /// When the folder may not be written, or a folder has the new name.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.entry(from)?, self.entry(to)?)
    }

    /// Moves an entry of this folder into another folder of the same disk, in place of what has that name there.
    ///
    /// # Errors
    /// When one of the folders may not be written, or a folder has the new name.
    pub fn rename_into(&self, from: &str, folder: &Self, to: &str) -> io::Result<()> {
        fs::rename(self.entry(from)?, folder.entry(to)?)
    }

    /// Removes a file or link.
    ///
    /// # Errors
    /// When there is none or the folder may not be written.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.entry(name)?)
    }

    /// Makes the names in this folder durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn entry(&self, name: &str) -> io::Result<PathBuf> {
        if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of an entry"));
        }
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        path.push(name);
        Ok(path)
    }
}

/// Opens a plain file that its owner named, for reading; links are followed.
///
/// # Errors
/// When there is none, or a folder, pipe or device in its place.
pub fn open_file(path: &Path) -> io::Result<File> {
    open_plain(path, 0)
}

fn open_plain(path: &Path, flags: i32) -> io::Result<File> {
    // A pipe would hold up the opening until somebody writes into it.
    let file = OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file"))
    }
}

/// The folders between a top folder and the file that is visited, kept open while files come in the
/// order of their folders.
#[derive(Debug)]
pub struct Descent {
    top: Arc<Folder>,
    open: Vec<(String, Arc<Folder>)>,
}

impl Descent {
    /// Starts at `top`.
    #[must_use]
    pub fn new(top: Folder) -> Self {
        Self { top: Arc::new(top), open: Vec::new() }
    }

    /// The folder that is reached through `names`, created when it is absent. Folders that are left
    /// behind go to `leave` first.
    ///
    /// # Errors
    /// When one cannot be created, a link or file is in its place, or `leave` fails.
    pub fn enter(
        &mut self,
        names: &[&str],
        mut leave: impl FnMut(&Folder) -> io::Result<()>,
    ) -> io::Result<&Folder> {
        let same = self.open.iter().zip(names).take_while(|((open, _), name)| open == *name);
        let same = same.count();
        while self.open.len() > same {
            if let Some((_, folder)) = self.open.pop() {
                leave(&folder)?;
            }
        }
        for name in &names[same..] {
            let folder = self.here().create_folder(name)?;
            self.open.push(((*name).to_owned(), Arc::new(folder)));
        }
        Ok(self.here())
    }

    /// The folder that was entered last.
    #[must_use]
    pub fn here(&self) -> &Folder {
        self.open.last().map_or(&self.top, |(_, folder)| folder)
    }

    /// The same, to be kept open also when it is left behind.
    #[must_use]
    pub fn shared(&self) -> Arc<Folder> {
        Arc::clone(self.open.last().map_or(&self.top, |(_, folder)| folder))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_is_read_or_written_through_a_link() {
        let home = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        symlink(outside.path(), home.path().join("folder")).unwrap();
        symlink(outside.path().join("secret"), home.path().join("file")).unwrap();
        symlink(outside.path().join("new"), home.path().join("dangling")).unwrap();
        let folder = Folder::open(home.path()).unwrap();
        assert!(folder.folder("folder").is_err() && folder.create_folder("folder").is_err());
        assert!(folder.file("file").is_err());
        assert!(folder.create_file("file", false).is_err());
        assert!(folder.create_file("dangling", false).is_err());
        for name in ["..", ".", "", "a/b", "/etc"] {
            assert!(folder.create_folder(name).is_err() && folder.file(name).is_err(), "{name}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_leads_nowhere_else() {
        let home = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let folder = Folder::open(home.path()).unwrap().create_folder("a").unwrap();
        fs::rename(home.path().join("a"), home.path().join("b")).unwrap();
        symlink(outside.path(), home.path().join("a")).unwrap();
        folder.create_file("x", true).unwrap().write_all(b"here").unwrap();
        let mut text = String::new();
        folder.file("x").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
        assert!(home.path().join("b/x").exists());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_pipe_is_no_file_and_does_not_block() {
        let home = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(home.path().join("p")).status();
        assert!(made.unwrap().success());
        let error = Folder::open(home.path()).unwrap().file("p").unwrap_err();
        assert!(error.to_string().contains("not a plain file"), "{error}");
    }
}
