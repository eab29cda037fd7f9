//! Which paths a manifest may name, and the order they stand in.

use std::cmp::Ordering;

use super::ManifestError;

/// The longest path, in bytes.
pub const MAX_PATH: usize = 1024;

/// The longest name of a file or folder, in bytes: what Linux file systems take.
pub const MAX_NAME: usize = 255;

/// The most names that a path may have.
pub const MAX_DEPTH: usize = 64;

/// Why a path may not stand in a manifest.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum BadPath {
    /// The path, or one of its names, is empty; a leading, trailing or double slash makes it so.
    #[error("it is absolute, or has an empty name")]
    Empty,
    /// A name that is `.` or `..`.
    #[error("it has a name that is . or ..")]
    Dots,
    /// Longer than [`MAX_PATH`], or a name longer than [`MAX_NAME`].
    #[error("it is longer than {MAX_PATH} bytes, or a name in it than {MAX_NAME}")]
    TooLong,
    /// More names than [`MAX_DEPTH`].
    #[error("it is deeper than {MAX_DEPTH} names")]
    TooDeep,
    /// A control character, which could fool a terminal or a script.
    #[error("it has a control character")]
    Control,
}

/// Checks that `path` is relative, plain and short, with `/` between its names.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_path(path: &str) -> Result<(), BadPath> {
    if path.len() > MAX_PATH {
        return Err(BadPath::TooLong);
    }
    let mut depth = 0;
    for name in path.split('/') {
        depth += 1;
        match name {
            "" => return Err(BadPath::Empty),
            "." | ".." => return Err(BadPath::Dots),
            _ if name.len() > MAX_NAME => return Err(BadPath::TooLong),
            _ if name.chars().any(char::is_control) => return Err(BadPath::Control),
            _ => {}
        }
    }
    if depth > MAX_DEPTH { Err(BadPath::TooDeep) } else { Ok(()) }
}

/// What the files of a manifest are sorted by: the path in lower case, a zero byte for each slash.
///
/// Lower case puts paths that differ only in case beside each other. Zero sorts below every byte of
/// a name, so what lies in a folder follows directly after a file of the folder's name. Both kinds
/// of conflict are thus seen by comparing neighbours, without a set of a million names.
#[must_use]
pub fn sort_key(path: &str) -> String {
    path.chars().flat_map(|c| if c == '/' { '\0' } else { c }.to_lowercase()).collect()
}

/// Sees that checked paths come in strictly rising order and none lies below a file.
#[derive(Debug, Default)]
pub(super) struct Order {
    last_key: String,
    last_path: String,
}

impl Order {
    pub(super) fn accept(&mut self, path: &str) -> Result<(), ManifestError> {
        let bad = |source| ManifestError::Path { path: path.escape_debug().to_string(), source };
        check_path(path).map_err(bad)?;
        let key = sort_key(path);
        let other = || self.last_path.clone();
        match key.cmp(&self.last_key) {
            Ordering::Equal => {
                return Err(ManifestError::SamePath { path: path.to_owned(), other: other() });
            }
            Ordering::Less => {
                return Err(ManifestError::Unordered { path: path.to_owned(), other: other() });
            }
            Ordering::Greater => {}
        }
        let below = key.strip_prefix(&self.last_key).is_some_and(|rest| rest.starts_with('\0'));
        if below && !self.last_key.is_empty() {
            return Err(ManifestError::BelowFile { path: path.to_owned(), file: other() });
        }
        self.last_key = key;
        path.clone_into(&mut self.last_path);
        Ok(())
    }
}
