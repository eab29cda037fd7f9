//! What happens in every hook: read the path once, decide, do what libc would, note how it ended.
//!
//! All arguments are taken as full registers, which is how both supported architectures pass integers and
//! pointers; the kernel and libc take from each what their own interfaces define. `open` and its kin are variadic
//! in C, and passing three fixed arguments is the same for the machine. Hooks that are one system call make
//! it themselves and so are no cancellation points of threads.
#![allow(unsafe_code, reason = "exported C functions work on the caller's pointers")]

mod direct;
mod number;
mod sockets;
mod templates;
mod through;

use core::ffi::{CStr, c_char};

use crate::{
    kernel::{self, syscall},
    posix::{self, Host},
    real::{self, POSIX, RECORD, errno, set_errno},
    record::{self, Ending, Use},
    redirect::{Decision, ENAMETOOLONG, PATH_MAX, Verdict, redirect},
    rules::Table,
};

const ENOSYS: i32 = 38;
/// What libc returns for failure, where it returns a number.
const FAILED: usize = usize::MAX;
/// No program has memory below this address: such a path is the kernel's to refuse.
const NOBODYS: usize = 4096;
/// Results of Windows paths up to here need only a small part of the stack.
const SHORT: usize = 768;

const O_CREAT: usize = 0o100;
const O_EXCL: usize = 0o200;
const O_NOFOLLOW: usize = if cfg!(target_arch = "aarch64") { 0o100_000 } else { 0o400_000 };
const SYMLINK_NOFOLLOW: usize = 0x100;
const SYMLINK_FOLLOW: usize = 0x400;

/// What a call does with its path.
#[derive(Debug, Clone, Copy)]
struct Way {
    used: Use,
    /// Whether a link at the end of the path is followed.
    follow: bool,
}

const LOOK: Way = Way { used: Use::Look, follow: true };
const LOOK_AT_LINK: Way = Way { used: Use::Look, follow: false };
const OPEN: Way = Way { used: Use::Open, follow: true };
const CREATE: Way = Way { used: Use::Create, follow: true };
const MAKE: Way = Way { used: Use::Make, follow: false };
const CHANGE: Way = Way { used: Use::Change, follow: true };
const CHANGE_LINK: Way = Way { used: Use::Change, follow: false };

/// The way of open(2) with these flags.
fn opened(flags: usize) -> Way {
    let exclusive = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    let used = if flags & O_CREAT == 0 { Use::Open } else { Use::Create };
    Way { used, follow: flags & O_NOFOLLOW == 0 && !exclusive }
}

/// The way of fopen(3) with this mode.
fn opened_by_mode(mode: usize) -> Way {
    // SAFETY: the caller passes a string, whose first byte is there even if it is its NUL.
    let first = if mode == 0 { 0 } else { unsafe { *(mode as *const u8) } };
    if first == b'r' { OPEN } else { CREATE }
}

/// A look that follows a link at the end unless the flags say otherwise.
fn looked(flags: usize) -> Way {
    if flags & SYMLINK_NOFOLLOW == 0 { LOOK } else { LOOK_AT_LINK }
}

/// A change that follows a link at the end unless the flags say otherwise.
fn changed(flags: usize) -> Way {
    if flags & SYMLINK_NOFOLLOW == 0 { CHANGE } else { CHANGE_LINK }
}

/// Look up everything that hooks hand on to libc, while nothing is at stake.
pub(crate) fn look_up() {
    through::look_up();
}

/// Call with the path to use; `failed` with errno set when it is refused.
#[inline]
fn mapped(path: usize, way: Way, failed: usize, call: impl Fn(usize) -> usize) -> usize {
    let Some(table) = real::table().filter(|_| path >= NOBODYS) else {
        return call(path);
    };
    with_path(&Asked { table, path, way, failed }, &call)
}

/// One call of a hook.
struct Asked<'a> {
    table: &'a Table<'static>,
    path: usize,
    way: Way,
    failed: usize,
}

fn with_path(asked: &Asked<'_>, call: &dyn Fn(usize) -> usize) -> usize {
    // What is too long for the kernel is the kernel's to refuse.
    let Some((bytes, foreign)) = read(asked.path) else {
        return call(asked.path);
    };
    let interest = real::interest();
    let absolute = bytes.first() == Some(&b'/');
    if foreign {
        return windows::<SHORT>(asked, bytes, call).unwrap_or_else(|_too_long| {
            windows::<PATH_MAX>(asked, bytes, call).unwrap_or_else(|errno| refuse(asked, errno))
        });
    }
    if absolute && interest & POSIX != 0 {
        return of_this_system(asked, bytes, call);
    }
    let result = call(asked.path);
    if absolute && interest & RECORD != 0 {
        asked.note(bytes, false, asked.ending(result));
    }
    result
}

/// The bytes of a path, and whether it could be a Windows path; `None` when it is longer than the kernel takes.
fn read(path: usize) -> Option<(&'static [u8], bool)> {
    // SAFETY: the caller of the hook passes a string that ends with NUL, and keeps it for the hook's duration.
    let bytes = unsafe { CStr::from_ptr(path as *const c_char) }.to_bytes();
    if bytes.len() >= PATH_MAX {
        return None;
    }
    let foreign = bytes.contains(&b':') || bytes.contains(&b'\\');
    Some((bytes, foreign))
}

impl Asked<'_> {
    fn ending(&self, result: usize) -> Ending {
        // An int in a register says nothing about the upper half.
        let failed = match self.failed {
            FAILED => result & 0xffff_ffff == 0xffff_ffff,
            other => other == 0 && result == 0,
        };
        if failed { Err(errno()) } else { Ok(()) }
    }

    fn note(&self, bytes: &[u8], ours: bool, ending: Ending) {
        record::note(self.table, bytes, ours, self.way.used, ending);
    }
}

fn refuse(asked: &Asked<'_>, errno: i32) -> usize {
    set_errno(errno);
    asked.failed
}

/// Windows paths: `Err` when the room is too short for the result.
#[inline(never)]
fn windows<const ROOM: usize>(
    asked: &Asked<'_>,
    bytes: &[u8],
    call: &dyn Fn(usize) -> usize,
) -> Result<usize, i32> {
    let mut out = [0; ROOM];
    let Verdict { decision, spelled_at } = redirect(asked.table, bytes, &mut out);
    let literal = decision != Decision::Pass
        && spelled_at.is_some_and(|start| start > 0 && lies_there(bytes, start));
    if literal || (decision == Decision::Pass && spelled_at.is_none()) {
        let ours = bytes.first() == Some(&b'/') && real::interest() & POSIX != 0;
        return Ok(if ours { of_this_system(asked, bytes, call) } else { call(asked.path) });
    }
    let result = match decision {
        Decision::Pass => call(asked.path),
        Decision::Redirect(_) => call(out.as_ptr() as usize),
        Decision::Refuse(ENAMETOOLONG) => return Err(ENAMETOOLONG),
        Decision::Refuse(errno) => refuse(asked, errno),
    };
    if let Some(start) = spelled_at {
        asked.note(&bytes[start..], true, asked.ending(result));
    }
    Ok(result)
}

/// Whether a path with a Windows path in its midst is meant as it stands: its strange part is a file's name.
#[inline(never)]
fn lies_there(bytes: &[u8], start: usize) -> bool {
    let mut path = [0; PATH_MAX];
    let length = bytes[start..].iter().position(|b| *b == b'/');
    let end = length.map_or(bytes.len(), |length| start + length);
    path[..end].copy_from_slice(&bytes[..end]);
    kernel::exists(&path)
}

/// Asks the kernel.
struct Kernel;

impl Host for Kernel {
    fn link(&self, path: &[u8], out: &mut [u8]) -> Result<usize, i32> {
        kernel::read_link(path, out)
    }

    fn enter(&self, path: &[u8]) -> Result<(), i32> {
        kernel::enter(path)
    }
}

/// Paths of this system on a host without mounts.
#[inline(never)]
fn of_this_system(asked: &Asked<'_>, bytes: &[u8], call: &dyn Fn(usize) -> usize) -> usize {
    let mut out = [0; PATH_MAX];
    let result = match posix::resolve(asked.table, bytes, asked.way.follow, &Kernel, &mut out) {
        Decision::Pass => call(asked.path),
        Decision::Redirect(_) => call(out.as_ptr() as usize),
        Decision::Refuse(errno) => refuse(asked, errno),
    };
    asked.note(bytes, false, asked.ending(result));
    result
}

/// A result of the kernel as libc hands it out.
extern "C" fn answer(result: isize) -> usize {
    if (-4095..0).contains(&result) {
        set_errno(i32::try_from(-result).unwrap_or(ENOSYS));
        FAILED
    } else {
        result as usize
    }
}

fn ask(nr: usize, arguments: &[usize]) -> usize {
    let mut all = [0; 6];
    for (place, argument) in all.iter_mut().zip(arguments) {
        *place = *argument;
    }
    // SAFETY: the hook's caller vouches for the pointers as it would to libc's own function.
    answer(unsafe { syscall(nr, all) })
}
