//! Tells the session what a program looked for and did not find: lines in a file of the session's folder.
//!
//! `missing PATH` for a look that found nothing, `opened PATH` and `made PATH` for what was there, or is now.
//! The file is the tenant's own and only helps to say which texture an artist forgot. So nothing here
//! ever fails: a filter of fixed size keeps repetitions out, and what it forgets is written twice.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::{
    format::SEED,
    kernel,
    redirect::{ENOENT, PATH_MAX},
    rules::Table,
};

/// The file of records grows no further.
const MOST_BYTES: usize = 1 << 20;
/// Records, and names of missing files, that are remembered: 8 bytes each, in memory that is used when needed.
const MOST_REMEMBERED: usize = 4096;
/// Places that are tried for one of them.
const TRIES: usize = 8;

/// What a call does with its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Looks at what is there.
    Look,
    /// Opens what is there.
    Open,
    /// Opens what is there, or makes it.
    Create,
    /// Makes it.
    Make,
    /// Anything else, which tells nothing about missing files.
    Change,
}

/// How a call ended: the errno of a failure.
pub(crate) type Ending = Result<(), i32>;

/// A set of hashes that any number of threads and signal handlers share without waiting.
struct Filter([AtomicU64; MOST_REMEMBERED]);

static RECORDS: Filter = Filter([const { AtomicU64::new(0) }; MOST_REMEMBERED]);
static MISSING_NAMES: Filter = Filter([const { AtomicU64::new(0) }; MOST_REMEMBERED]);
static N_MISSING: AtomicUsize = AtomicUsize::new(0);

impl Filter {
    fn places(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let start = usize::try_from(hash % MOST_REMEMBERED as u64).unwrap_or(0);
        (start..start + TRIES).map(|n| &self.0[n % MOST_REMEMBERED])
    }

    fn holds(&self, hash: u64) -> bool {
        self.places(hash).any(|place| place.load(Ordering::Relaxed) == hash)
    }

    /// Whether the hash is new. When its places are taken, the oldest there is forgotten.
    fn add(&self, hash: u64) -> bool {
        for place in self.places(hash) {
            match place.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(there) if there == hash => return false,
                Err(_) => {}
            }
        }
        if let Some(first) = self.places(hash).next() {
            first.store(hash, Ordering::Relaxed);
        }
        true
    }
}

/// Note how a call ended. `path` is as the artist spelled it; `ours` says that a Windows path was mapped.
#[inline(never)]
pub(crate) fn note(table: &Table<'_>, path: &[u8], ours: bool, used: Use, ending: Ending) {
    if table.records.is_empty() {
        return;
    }
    let kind: &[u8] = match (used, ending) {
        (Use::Look | Use::Open, Err(ENOENT)) => b"missing ",
        (Use::Open | Use::Create, Ok(())) => b"opened ",
        (Use::Make, Ok(())) => b"made ",
        _ => return,
    };
    let missing = ending.is_err();
    let wanted = ours
        || table.watches(path)
        // What was missing in a watched folder and then found in the program's own is no longer missing.
        || (!missing && N_MISSING.load(Ordering::Relaxed) > 0 && MISSING_NAMES.holds(name_of(path)));
    if !wanted {
        return;
    }
    if missing && MISSING_NAMES.add(name_of(path)) {
        N_MISSING.fetch_add(1, Ordering::Relaxed);
    }
    if RECORDS.add(hash(path, hash(kind, SEED))) {
        line(table, kind, path);
    }
}

/// Say that the library is in force in this program.
pub(crate) fn loaded(table: &Table<'_>) {
    let mut digits = [0; 10];
    let mut start = digits.len();
    let mut left = kernel::process();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if !table.records.is_empty() {
        line(table, b"loaded ", &digits[start..]);
    }
}

/// Never zero, which marks a free place.
fn hash(bytes: &[u8], start: u64) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(start, step) | 1
}

fn name_of(path: &[u8]) -> u64 {
    let name = path.rsplit(|b| *b == b'/' || *b == b'\\').find(|part| !part.is_empty());
    hash(name.unwrap_or_default(), SEED)
}

/// Append one line, in one write, so that lines of several programs do not mix.
fn line(table: &Table<'_>, kind: &[u8], path: &[u8]) {
    const WRITE_APPEND_CREATE_NOFOLLOW: usize =
        0o2101 | if cfg!(target_arch = "aarch64") { 0o100_000 } else { 0o400_000 };
    let mut text = [0; PATH_MAX + 16];
    let mut length = 0;
    let mut put = |bytes: &[u8]| {
        // The last byte is kept for the line feed; a path that needs more is cut.
        if let Some(place) =
            text.get_mut(length..length + bytes.len()).filter(|_| length < PATH_MAX)
        {
            place.copy_from_slice(bytes);
            length += bytes.len();
        }
    };
    put(kind);
    for byte in path {
        if byte.is_ascii_control() {
            let digit = |n: u8| b"0123456789abcdef"[usize::from(n & 15)];
            put(&[b'\\', b'x', digit(byte >> 4), digit(*byte)]);
        } else {
            put(&[*byte]);
        }
    }
    text[length] = b'\n';
    let Some(fd) = kernel::open(table.records, WRITE_APPEND_CREATE_NOFOLLOW, 0o600) else { return };
    if kernel::length_of(fd).is_some_and(|n| n + length < MOST_BYTES) {
        kernel::write(fd, &text[..=length]);
    }
    kernel::close(fd);
}
