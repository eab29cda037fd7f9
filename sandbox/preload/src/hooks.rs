//! The libc functions that a program reaches instead of libc's own: map the path, then do what libc would.
//!
//! All arguments are taken as full registers, which is how both supported architectures pass integers and
//! pointers; the kernel takes from each what its own interface defines. `open` and its kin are variadic in C,
//! and passing three fixed arguments is the same for the machine. Hooks that are one system call make it
//! themselves and so are no cancellation points of threads.
#![allow(unsafe_code, reason = "exported C functions work on the caller's pointers")]

use core::ffi::c_void;

use crate::{
    real::{self, AT_FDCWD, Next, nr, set_errno, syscall},
    redirect::{Decision, PATH_MAX, looks_foreign, redirect},
};

const EISDIR: isize = -21;
const ENOSYS: i32 = 38;
const FAILED: usize = usize::MAX;
const SYMLINK_NOFOLLOW: usize = 0x100;
const REMOVEDIR: usize = 0x200;
const EACCESS: usize = 0x200;
const CREATE_TRUNCATE_WRITE: usize = 0o1101;
/// The newer call that takes flags, where the older one takes none.
const FCHMODAT2: usize = 452;

/// The bytes of a path that could be ours; `None` for all that is certainly not.
fn foreign(path: usize) -> Option<&'static [u8]> {
    if path == 0 {
        return None;
    }
    let start = path as *const u8;
    let mut length = 0;
    let mut suspicious = false;
    loop {
        // SAFETY: the caller of the hook passes a string that ends with NUL, and no byte before it was one.
        let byte = unsafe { *start.wrapping_add(length) };
        match byte {
            0 => break,
            b':' | b'\\' => suspicious = true,
            _ => {}
        }
        length += 1;
        if length >= PATH_MAX {
            return None;
        }
    }
    if !suspicious {
        return None;
    }
    // SAFETY: these bytes were read just now; the caller keeps them for the duration of the hook.
    Some(unsafe { core::slice::from_raw_parts(start, length) })
}

/// Call with the path to use; `failed` with errno set when it is refused.
fn mapped(path: usize, failed: usize, call: impl FnOnce(usize) -> usize) -> usize {
    match foreign(path) {
        None => call(path),
        Some(bytes) => look(bytes, path, failed, call),
    }
}

/// Apart from [`mapped`], so that paths that are not ours need no buffer on the stack.
#[inline(never)]
fn look(bytes: &[u8], path: usize, failed: usize, call: impl FnOnce(usize) -> usize) -> usize {
    let Some(table) = real::table().filter(|_| looks_foreign(bytes)) else {
        return call(path);
    };
    let mut out = [0; PATH_MAX];
    match redirect(&table, bytes, &mut out) {
        Decision::Pass => call(path),
        Decision::Redirect(_) => call(out.as_ptr() as usize),
        Decision::Refuse(errno) => {
            set_errno(errno);
            failed
        }
    }
}

/// A result of the kernel as libc hands it out.
fn answer(result: isize) -> usize {
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

/// Whether an `int` argument is 0: the upper half of its register may hold anything.
fn is_zero(argument: usize) -> bool {
    argument & 0xffff_ffff == 0
}

/// Hooks of one path that are one system call.
macro_rules! direct {
    ($($name:ident($($arg:ident),*) on $path:ident = $nr:expr, [$($value:expr),*];)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: usize),*) -> usize {
                mapped($path, FAILED, |$path| ask($nr, &[$($value),*]))
            }
        )*
    };
}

/// Hooks of two paths that are one system call.
macro_rules! direct_two {
    ($($name:ident($($arg:ident),*) on $one:ident, $two:ident = $nr:expr, [$($value:expr),*];)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: usize),*) -> usize {
                mapped($one, FAILED, |$one| mapped($two, FAILED, |$two| ask($nr, &[$($value),*])))
            }
        )*
    };
}

/// Hooks that hand the mapped path to libc's own function, which makes objects of its own kind.
macro_rules! through {
    ($($name:ident($($arg:ident),*) on $path:ident = $next:ident else $failed:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: usize),*) -> usize {
                mapped($path, $failed, |$path| {
                    let function = found(&real::$next);
                    if function.is_null() {
                        set_errno(ENOSYS);
                        return $failed;
                    }
                    type Function = extern "C" fn($(through!(@register $arg)),*) -> usize;
                    // SAFETY: libc's function of this name takes as many registers and returns one.
                    let function: Function = unsafe { core::mem::transmute(function) };
                    function($($arg),*)
                })
            }
        )*
    };
    (@register $arg:ident) => { usize };
}

fn found(next: &Next) -> *mut c_void {
    next.get()
}

direct! {
    open(path, flags, mode) on path = nr::OPENAT, [AT_FDCWD, path, flags, mode];
    open64(path, flags, mode) on path = nr::OPENAT, [AT_FDCWD, path, flags, mode];
    __open(path, flags, mode) on path = nr::OPENAT, [AT_FDCWD, path, flags, mode];
    __open64(path, flags, mode) on path = nr::OPENAT, [AT_FDCWD, path, flags, mode];
    __open_2(path, flags) on path = nr::OPENAT, [AT_FDCWD, path, flags, 0];
    __open64_2(path, flags) on path = nr::OPENAT, [AT_FDCWD, path, flags, 0];
    openat(folder, path, flags, mode) on path = nr::OPENAT, [folder, path, flags, mode];
    openat64(folder, path, flags, mode) on path = nr::OPENAT, [folder, path, flags, mode];
    __openat_2(folder, path, flags) on path = nr::OPENAT, [folder, path, flags, 0];
    __openat64_2(folder, path, flags) on path = nr::OPENAT, [folder, path, flags, 0];
    creat(path, mode) on path = nr::OPENAT, [AT_FDCWD, path, CREATE_TRUNCATE_WRITE, mode];
    creat64(path, mode) on path = nr::OPENAT, [AT_FDCWD, path, CREATE_TRUNCATE_WRITE, mode];

    stat(path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    stat64(path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    lstat(path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    lstat64(path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    fstatat(folder, path, out, flags) on path = nr::NEWFSTATAT, [folder, path, out, flags];
    fstatat64(folder, path, out, flags) on path = nr::NEWFSTATAT, [folder, path, out, flags];
    __xstat(_version, path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    __xstat64(_version, path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    __lxstat(_version, path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    __lxstat64(_version, path, out) on path = nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    __fxstatat(_version, folder, path, out, flags) on path = nr::NEWFSTATAT, [folder, path, out, flags];
    __fxstatat64(_version, folder, path, out, flags) on path = nr::NEWFSTATAT, [folder, path, out, flags];
    statx(folder, path, flags, mask, out) on path = nr::STATX, [folder, path, flags, mask, out];
    access(path, mode) on path = nr::FACCESSAT, [AT_FDCWD, path, mode];
    faccessat(folder, path, mode, flags) on path =
        if is_zero(flags) { nr::FACCESSAT } else { nr::FACCESSAT2 }, [folder, path, mode, flags];
    eaccess(path, mode) on path = nr::FACCESSAT2, [AT_FDCWD, path, mode, EACCESS];
    euidaccess(path, mode) on path = nr::FACCESSAT2, [AT_FDCWD, path, mode, EACCESS];
    statfs(path, out) on path = nr::STATFS, [path, out];
    statfs64(path, out) on path = nr::STATFS, [path, out];

    symlink(target, path) on path = nr::SYMLINKAT, [target, AT_FDCWD, path];
    symlinkat(target, folder, path) on path = nr::SYMLINKAT, [target, folder, path];
    readlink(path, out, length) on path = nr::READLINKAT, [AT_FDCWD, path, out, length];
    readlinkat(folder, path, out, length) on path = nr::READLINKAT, [folder, path, out, length];
    unlink(path) on path = nr::UNLINKAT, [AT_FDCWD, path, 0];
    unlinkat(folder, path, flags) on path = nr::UNLINKAT, [folder, path, flags];
    rmdir(path) on path = nr::UNLINKAT, [AT_FDCWD, path, REMOVEDIR];

    mkdir(path, mode) on path = nr::MKDIRAT, [AT_FDCWD, path, mode];
    mkdirat(folder, path, mode) on path = nr::MKDIRAT, [folder, path, mode];
    chdir(path) on path = nr::CHDIR, [path];
    chmod(path, mode) on path = nr::FCHMODAT, [AT_FDCWD, path, mode];
    fchmodat(folder, path, mode, flags) on path =
        if is_zero(flags) { nr::FCHMODAT } else { FCHMODAT2 }, [folder, path, mode, flags];
    truncate(path, length) on path = nr::TRUNCATE, [path, length];
    truncate64(path, length) on path = nr::TRUNCATE, [path, length];
    utimensat(folder, path, times, flags) on path = nr::UTIMENSAT, [folder, path, times, flags];
    execve(path, args, env) on path = nr::EXECVE, [path, args, env];
}

direct_two! {
    link(from, to) on from, to = nr::LINKAT, [AT_FDCWD, from, AT_FDCWD, to, 0];
    linkat(a, from, b, to, flags) on from, to = nr::LINKAT, [a, from, b, to, flags];
    rename(from, to) on from, to = nr::RENAMEAT2, [AT_FDCWD, from, AT_FDCWD, to, 0];
    renameat(a, from, b, to) on from, to = nr::RENAMEAT2, [a, from, b, to, 0];
    renameat2(a, from, b, to, flags) on from, to = nr::RENAMEAT2, [a, from, b, to, flags];
}

through! {
    fopen(path, mode) on path = FOPEN else 0;
    fopen64(path, mode) on path = FOPEN64 else 0;
    freopen(path, mode, stream) on path = FREOPEN else 0;
    freopen64(path, mode, stream) on path = FREOPEN64 else 0;
    opendir(path) on path = OPENDIR else 0;
    realpath(path, out) on path = REALPATH else 0;
    __realpath_chk(path, out, length) on path = REALPATH_CHK else 0;
    canonicalize_file_name(path) on path = CANONICALIZE else 0;
    scandir(path, out, filter, order) on path = SCANDIR else FAILED;
    scandir64(path, out, filter, order) on path = SCANDIR64 else FAILED;
    statvfs(path, out) on path = STATVFS else FAILED;
    statvfs64(path, out) on path = STATVFS64 else FAILED;
    glob(path, flags, on_error, out) on path = GLOB else 3;
    glob64(path, flags, on_error, out) on path = GLOB64 else 3;
    posix_spawn(pid, path, actions, attributes, args, env) on path = POSIX_SPAWN else 2;
}

/// Bounds checked as glibc's fortified programs expect: ending the program is their contract.
#[unsafe(no_mangle)]
extern "C" fn __readlink_chk(path: usize, out: usize, length: usize, room: usize) -> usize {
    if length > room {
        real::stop();
    }
    readlink(path, out, length)
}

/// As [`__readlink_chk`].
#[unsafe(no_mangle)]
extern "C" fn __readlinkat_chk(
    folder: usize,
    path: usize,
    out: usize,
    length: usize,
    room: usize,
) -> usize {
    if length > room {
        real::stop();
    }
    readlinkat(folder, path, out, length)
}

/// Programs that make system calls through libc, by number: the same mapping for those that take a path.
#[unsafe(export_name = "syscall")]
extern "C" fn by_number(
    nr: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    #[cfg(target_arch = "x86_64")]
    // open, stat, lstat, access, truncate, chdir, mkdir, unlink, readlink: the older forms.
    let path_first =
        [2, 4, 6, 21, nr::TRUNCATE, nr::CHDIR, 83, 87, 89, nr::EXECVE, nr::STATFS].contains(&nr);
    #[cfg(not(target_arch = "x86_64"))]
    let path_first = [nr::TRUNCATE, nr::CHDIR, nr::EXECVE, nr::STATFS].contains(&nr);
    let path_second = [
        nr::OPENAT,
        nr::MKDIRAT,
        nr::NEWFSTATAT,
        nr::UNLINKAT,
        nr::READLINKAT,
        nr::FCHMODAT,
        nr::FACCESSAT,
        nr::UTIMENSAT,
        nr::STATX,
        nr::FACCESSAT2,
    ]
    .contains(&nr);
    if path_first {
        mapped(a, FAILED, |a| ask(nr, &[a, b, c, d, e, f]))
    } else if path_second {
        mapped(b, FAILED, |b| ask(nr, &[a, b, c, d, e, f]))
    } else {
        ask(nr, &[a, b, c, d, e, f])
    }
}

/// Removes a file, or a folder when it is one.
#[unsafe(no_mangle)]
extern "C" fn remove(path: usize) -> usize {
    mapped(path, FAILED, |path| {
        // SAFETY: the path is the caller's or the buffer in `look`.
        let result = unsafe { syscall(nr::UNLINKAT, [AT_FDCWD, path, 0, 0, 0, 0]) };
        if result == EISDIR {
            ask(nr::UNLINKAT, &[AT_FDCWD, path, REMOVEDIR])
        } else {
            answer(result)
        }
    })
}
