//! Which files a task left: what is new or changed beneath the output roots.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use meshfarm_protocol::session::{OutputPath, OutputRoot};

/// More files than this beneath the output roots are not looked at: the task fails.
const MAX_SCANNED: usize = 1_000_000;

/// What tells one state of a file from another. The change time cannot be set by the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

/// The files beneath the output roots at one moment.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<OutputPath, Stamp>);

impl Seen {
    /// Looks at every file beneath `roots`. Links are no outputs and are not followed.
    ///
    /// # Errors
    /// When a folder cannot be read, a name is not UTF-8, or there are too many files.
    pub(crate) fn look(roots: &[OutputRoot]) -> io::Result<Self> {
        let mut seen = Self::default();
        for root in roots {
            seen.look_beneath(root)?;
        }
        Ok(seen)
    }

    fn look_beneath(&mut self, root: &OutputRoot) -> io::Result<()> {
        let top = Path::new(&root.path);
        let mut folders = vec![top.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                // What the job left running may still clear its temporary folders away.
                Err(error) if error.kind() == io::ErrorKind::NotFound && folder != top => continue,
                listed => listed.map_err(|error| name(&folder, error))?,
            };
            for entry in entries {
                let entry = entry.map_err(|error| name(&folder, error))?;
                let kind = entry.file_type().map_err(|error| name(&folder, error))?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    let path = entry.path();
                    // A file that is gone again, such as a renderer's temporary one, is none.
                    if let Ok(stamp) = stamp(&path) {
                        self.0.insert(output_path(root, top, &path)?, stamp);
                    }
                }
                if self.0.len() + folders.len() > MAX_SCANNED {
                    return Err(io::Error::other(format!(
                        "more than {MAX_SCANNED} files lie beneath the output folders"
                    )));
                }
            }
        }
        Ok(())
    }

    /// What is new or changed since `before`, in order.
    pub(crate) fn since(&self, before: &Self) -> Vec<OutputPath> {
        let changed = self.0.iter().filter(|(path, stamp)| before.0.get(*path) != Some(*stamp));
        let mut changed: Vec<_> = changed.map(|(path, _)| path.clone()).collect();
        changed.sort_unstable();
        changed
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(Stamp {
        inode: metadata.ino(),
        len: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn output_path(root: &OutputRoot, top: &Path, path: &Path) -> io::Result<OutputPath> {
    let relative = path.strip_prefix(top).unwrap_or(path).to_owned();
    let relative: PathBuf = relative.components().collect();
    let text = relative.into_os_string().into_string().map_err(|name| {
        io::Error::other(format!("the name of the output {name:?} is not UTF-8"))
    })?;
    Ok(OutputPath { root: root.id.clone(), path: text })
}

fn name(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_and_changed_files_are_outputs_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("sub/deep")).unwrap();
        for old in ["old", "rewritten", "sub/replaced"] {
            fs::write(at(old), "1").unwrap();
        }
        let roots = [OutputRoot { id: "r1".into(), path: folder.path().to_str().unwrap().into() }];
        let before = Seen::look(&roots).unwrap();
        fs::write(at("rewritten"), "22").unwrap();
        fs::write(at("sub/deep/new"), "1").unwrap();
        fs::write(at("tmp"), "1").unwrap();
        fs::rename(at("tmp"), at("sub/replaced")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        let changed = Seen::look(&roots).unwrap().since(&before);
        let paths: Vec<_> = changed.iter().map(|output| output.path.as_str()).collect();
        assert_eq!(paths, ["rewritten", "sub/deep/new", "sub/replaced"]);
    }
}
