//! What a node would take of the outputs, and what in it should not be.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use meshfarm_sandbox::{CollectLimits, collect};

use crate::yard::Yard;

/// Few, so that more is quickly seen.
const LIMITS: CollectLimits = CollectLimits { bytes: 8 << 20, files: 100, depth: 4 };
/// Where the careless collector of the controls gives up.
const MOST: usize = 500;

/// One thing that was taken.
struct Taken {
    path: PathBuf,
    kind: fs::FileType,
    links: u64,
    bytes: u64,
    head: Vec<u8>,
}

/// Take the outputs as a node does, or as a careless one would, and say what should not have been taken.
pub(crate) fn judge(
    yard: &Yard,
    out: &OwnedFd,
    careless: bool,
    longest: u64,
) -> io::Result<Vec<String>> {
    // Wherever the outputs lie: the very folder behind the descriptor.
    let out = PathBuf::from(format!("/proc/self/fd/{}", out.as_raw_fd()));
    let mut taken = Vec::new();
    if careless {
        take_carelessly(&out, Path::new(""), 0, &mut taken);
    } else {
        collect(File::open(&out)?, LIMITS, |path, file, bytes| {
            let found = file.metadata()?;
            let (kind, links) = (found.file_type(), found.nlink());
            taken.push(Taken { path: path.into(), kind, links, bytes, head: head_of(file)? });
            Ok(())
        })?;
    }
    let mut found = Vec::new();
    for one in &taken {
        let mut say = |what: &str| found.push(format!("{what} was taken: {:?}", one.path));
        if !one.kind.is_file() {
            say("what is no file");
        }
        if one.links != 1 {
            say("a file with several names");
        }
        if is_unfit(one.path.as_os_str().as_bytes()) {
            say("an unfit name");
        }
        if one.path.components().count() > LIMITS.depth {
            say("a file too deep");
        }
        if is_behind_a_link(&out, &one.path) {
            say("what lies behind a link");
        }
        if yard.is_in(&one.head) {
            say("a secret");
        }
    }
    if taken.len() as u64 > LIMITS.files {
        found.push(format!("{} files were taken", taken.len()));
    }
    let bytes: u64 = taken.iter().map(|one| one.bytes).sum();
    if bytes > LIMITS.bytes {
        found.push(format!("{bytes} bytes were taken"));
    }
    for name in ["out", "work"] {
        left(yard, &yard.path(name), longest, &mut found);
    }
    Ok(found)
}

fn head_of(file: File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

/// Control characters, other than text, or marks that change the direction of text or break lines unseen.
fn is_unfit(path: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(path) else { return true };
    text.contains(|c: char| {
        c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

fn is_behind_a_link(out: &Path, path: &Path) -> bool {
    path.ancestors()
        .filter(|part| !part.as_os_str().is_empty())
        .any(|part| fs::symlink_metadata(out.join(part)).is_ok_and(|m| m.is_symlink()))
}

/// What a loop over names and paths gives that nobody thought hard about.
fn take_carelessly(out: &Path, path: &Path, depth: usize, taken: &mut Vec<Taken>) {
    for entry in fs::read_dir(out.join(path)).into_iter().flatten().filter_map(Result::ok) {
        let path = path.join(entry.file_name());
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        if taken.len() > MOST || depth > 40 {
            return;
        }
        if found.is_dir() {
            take_carelessly(out, &path, depth + 1, taken);
            continue;
        }
        let head = if found.is_file() {
            File::open(entry.path()).and_then(head_of)
        } else {
            Ok(Vec::new())
        };
        let (kind, links, bytes) = (found.file_type(), found.nlink(), found.len());
        taken.push(Taken { path, kind, links, bytes, head: head.unwrap_or_default() });
    }
}

/// What the job left in its folders on the host that is dangerous where it lies.
fn left(yard: &Yard, folder: &Path, longest: u64, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let Ok(what) = fs::symlink_metadata(entry.path()) else { continue };
        let mut say = |text: String| found.push(format!("{text}: {:?}", entry.file_name()));
        let kind = what.file_type();
        if kind.is_block_device() || kind.is_char_device() {
            say("a device on the host".to_owned());
        }
        if !kind.is_symlink() && what.mode() & 0o6000 != 0 {
            say(format!("a set-id mode on the host, {:o}", what.mode()));
        }
        if kind.is_file() && what.len() > longest {
            say(format!("a file of {} bytes, {longest} allowed", what.len()));
        }
        if kind.is_file() && what.len() < 1 << 20 {
            let text = fs::read(entry.path()).unwrap_or_default();
            if yard.is_in(&text) {
                say("a secret in a file of the job".to_owned());
            }
        }
        if kind.is_dir() {
            left(yard, &entry.path(), longest, found);
        }
    }
}
