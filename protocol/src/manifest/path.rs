//! Which paths a manifest may name, and the order they stand in.

use std::cmp::Ordering;

use unicode_normalization::{UnicodeNormalization, is_nfc};

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
    /// A control character, or one that ends lines or reverses the direction of text: they could
    /// fool a terminal, a script or a reader.
    #[error("it has a control character, or one that reverses text")]
    Control,
    /// Letters and their accents stand apart, as old Macs wrote them. Two spellings of one name would
    /// look alike and be two files here, one there.
    #[error("it is not in Unicode's composed form (NFC): rename it")]
    Decomposed,
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
            _ if name.chars().any(misleads) => return Err(BadPath::Control),
            _ if !is_nfc(name) => return Err(BadPath::Decomposed),
            _ => {}
        }
    }
    if depth > MAX_DEPTH { Err(BadPath::TooDeep) } else { Ok(()) }
}

fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

/// What the files of a manifest are sorted by: the path without differences of case and of Unicode's
/// spelling, a zero byte for each slash.
///
/// That puts paths that are one on some file systems beside each other. Zero sorts below every byte
/// of a name, so what lies in a folder follows directly after a file of the folder's name. Both kinds
/// of conflict are thus seen by comparing neighbours, without a set of a million names.
#[must_use]
pub fn sort_key(path: &str) -> String {
    let slash = |c: char| if c == '/' { '\0' } else { c };
    if path.is_ascii() {
        return path.chars().map(|c| slash(c.to_ascii_lowercase())).collect();
    }
    path.nfd().flat_map(fold).map(slash).nfd().collect()
}

/// One letter for all its cases. The detour over the upper case joins those that have several lower
/// ones: the two sigmas of Greek, or the sharp s and its spelling with two.
fn fold(c: char) -> impl Iterator<Item = char> {
    c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

/// Checks paths, sorted by [`sort_key`], before a manifest is built of them.
///
/// # Errors
/// Says which of them, counted from 0, would be refused and why.
pub fn check_all<'a>(
    paths: impl Iterator<Item = &'a str>,
) -> Result<(), (usize, Box<ManifestError>)> {
    let mut order = Order::default();
    for (place, path) in paths.enumerate() {
        order.accept(path).map_err(|error| (place, Box::new(error)))?;
    }
    Ok(())
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
