//! Hooks that hand the mapped path to libc's own function, which makes objects of its own kind or does more than one call.

use core::ffi::c_void;

use super::{
    CHANGE, CHANGE_LINK, ENOSYS, FAILED, LOOK, LOOK_AT_LINK, MAKE, OPEN, ask, changed, mapped,
    opened_by_mode,
};
use crate::{
    kernel::{self, AT_FDCWD, nr},
    posix,
    real::{self, Next, REVERSE, set_errno},
    redirect::PATH_MAX,
};

const ERANGE: i32 = 34;
const ENOMEM: i32 = 12;
/// What posix_spawn and its kin return themselves: ENOENT.
const NO_PROGRAM: usize = 2;
const GLOB_NOMATCH: usize = 3;

/// libc's own functions by name.
#[allow(non_upper_case_globals, reason = "named as libc names them")]
pub(super) mod next {
    use crate::real::Next;

    macro_rules! next {
        ($($name:ident)*) => {
            $(pub(in crate::hooks) static $name: Next = {
                const NAME: &str = concat!(stringify!($name), "\0");
                match core::ffi::CStr::from_bytes_with_nul(NAME.as_bytes()) {
                    Ok(name) => Next::new(name),
                    Err(_) => panic!("a name that the macro ended with NUL"),
                }
            };)*

            /// Look all of them up.
            pub(in crate::hooks) fn look_up() {
                $($name.get();)*
            }
        };
    }

    next! {
        fopen fopen64 freopen freopen64 opendir realpath __realpath_chk canonicalize_file_name scandir scandir64
        scandirat scandirat64 ftw ftw64 nftw nftw64 fts_open fts64_open statvfs statvfs64 glob glob64 pathconf
        lchmod fchmodat utime utimes lutimes futimesat mknod mknodat __xmknod __xmknodat mkfifo mkfifoat
        execv execvp execvpe __execvpe posix_spawn posix_spawnp posix_spawn_file_actions_addopen
        posix_spawn_file_actions_addchdir_np posix_spawn_file_actions_addchdir ftok tempnam
        fanotify_mark setmntent __setmntent bindtextdomain catopen
        getcwd __getcwd_chk getwd __getwd_chk get_current_dir_name realloc
        mkstemp mkstemp64 mkostemp mkostemp64 mkstemps mkstemps64 mkostemps mkostemps64 mkdtemp mktemp __mktemp
        bind connect __connect sendto sendmsg
    }
}

/// Look up everything that these hooks hand on.
pub(super) fn look_up() {
    next::look_up();
}

/// Call libc's function of a name with these registers, or fail as if it were not there.
macro_rules! call_next {
    ($name:ident($($arg:expr),*) else $failed:expr) => {
        $crate::hooks::through::with_next(&$crate::hooks::through::next::$name, $failed, |function| {
            type Function = extern "C" fn($(call_next!(@register $arg)),*) -> usize;
            // SAFETY: libc's function of this name takes as many registers and returns one.
            let function: Function = unsafe { core::mem::transmute(function) };
            function($($arg),*)
        })
    };
    (@register $arg:expr) => { usize };
}
pub(super) use call_next;

pub(super) fn with_next(next: &Next, failed: usize, call: impl Fn(*mut c_void) -> usize) -> usize {
    let function = next.get();
    if function.is_null() {
        set_errno(ENOSYS);
        return failed;
    }
    call(function)
}

macro_rules! through {
    ($($name:ident($($arg:ident),*) on $path:ident as $way:expr, else $failed:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: usize),*) -> usize {
                mapped($path, $way, $failed, |$path| call_next!($name($($arg),*) else $failed))
            }
        )*
    };
}

through! {
    fopen(path, mode) on path as opened_by_mode(mode), else 0;
    fopen64(path, mode) on path as opened_by_mode(mode), else 0;
    freopen(path, mode, stream) on path as opened_by_mode(mode), else 0;
    freopen64(path, mode, stream) on path as opened_by_mode(mode), else 0;
    opendir(path) on path as OPEN, else 0;
    scandir(path, out, filter, order) on path as OPEN, else FAILED;
    scandir64(path, out, filter, order) on path as OPEN, else FAILED;
    scandirat(folder, path, out, filter, order) on path as OPEN, else FAILED;
    scandirat64(folder, path, out, filter, order) on path as OPEN, else FAILED;
    ftw(path, visit, depth) on path as LOOK, else FAILED;
    ftw64(path, visit, depth) on path as LOOK, else FAILED;
    nftw(path, visit, depth, flags) on path as LOOK, else FAILED;
    nftw64(path, visit, depth, flags) on path as LOOK, else FAILED;
    statvfs(path, out) on path as LOOK, else FAILED;
    statvfs64(path, out) on path as LOOK, else FAILED;
    glob(path, flags, on_error, out) on path as CHANGE, else GLOB_NOMATCH;
    glob64(path, flags, on_error, out) on path as CHANGE, else GLOB_NOMATCH;
    pathconf(path, name) on path as LOOK, else FAILED;

    lchmod(path, mode) on path as CHANGE_LINK, else FAILED;
    fchmodat(folder, path, mode, flags) on path as changed(flags), else FAILED;
    utime(path, times) on path as CHANGE, else FAILED;
    utimes(path, times) on path as CHANGE, else FAILED;
    lutimes(path, times) on path as CHANGE_LINK, else FAILED;
    futimesat(folder, path, times) on path as CHANGE, else FAILED;
    mknod(path, mode, device) on path as MAKE, else FAILED;
    mknodat(folder, path, mode, device) on path as MAKE, else FAILED;
    __xmknod(version, path, mode, device) on path as MAKE, else FAILED;
    __xmknodat(version, folder, path, mode, device) on path as MAKE, else FAILED;
    mkfifo(path, mode) on path as MAKE, else FAILED;
    mkfifoat(folder, path, mode) on path as MAKE, else FAILED;

    execv(path, args) on path as LOOK, else FAILED;
    execvp(path, args) on path as LOOK, else FAILED;
    execvpe(path, args, env) on path as LOOK, else FAILED;
    __execvpe(path, args, env) on path as LOOK, else FAILED;
    posix_spawn(pid, path, actions, attributes, args, env) on path as CHANGE, else NO_PROGRAM;
    posix_spawnp(pid, path, actions, attributes, args, env) on path as CHANGE, else NO_PROGRAM;
    posix_spawn_file_actions_addopen(actions, fd, path, flags, mode) on path as CHANGE, else NO_PROGRAM;
    posix_spawn_file_actions_addchdir_np(actions, path) on path as CHANGE, else NO_PROGRAM;
    posix_spawn_file_actions_addchdir(actions, path) on path as CHANGE, else NO_PROGRAM;

    ftok(path, project) on path as LOOK, else FAILED;
    tempnam(path, prefix) on path as CHANGE, else 0;
    fanotify_mark(fd, flags, mask, folder, path) on path as CHANGE, else FAILED;
    setmntent(path, mode) on path as opened_by_mode(mode), else 0;
    __setmntent(path, mode) on path as opened_by_mode(mode), else 0;
    bindtextdomain(domain, path) on path as CHANGE, else 0;
    catopen(path, flags) on path as CHANGE, else FAILED;
}

/// A list of paths, of which each is mapped: libc keeps copies, so ours may go afterwards.
fn mapped_list(paths: usize, call: &dyn Fn(usize) -> usize) -> usize {
    if paths == 0 || real::table().is_none() {
        return call(paths);
    }
    let list = paths as *const usize;
    let mut n = 0;
    // SAFETY: the caller's list ends with a null pointer, and none was met so far.
    while unsafe { *list.wrapping_add(n) } != 0 {
        n += 1;
    }
    let length = (n + 1) * size_of::<usize>() + n * PATH_MAX;
    let Some(room) = kernel::room(length) else {
        set_errno(ENOMEM);
        return 0;
    };
    let (pointers, texts) = room.split_at_mut((n + 1) * size_of::<usize>());
    for (i, text) in texts.chunks_exact_mut(PATH_MAX).enumerate() {
        // SAFETY: the list has so many entries before its null pointer.
        let path = unsafe { *list.wrapping_add(i) };
        let place = text.as_mut_ptr() as usize;
        let chosen = mapped(path, LOOK, 0, |path| {
            copy_text(path, place);
            place
        });
        // A path that is refused is left as it is: nothing lies there, and libc says so for this one alone.
        let chosen = if chosen == 0 { path } else { chosen };
        pointers[i * size_of::<usize>()..][..size_of::<usize>()]
            .copy_from_slice(&chosen.to_ne_bytes());
    }
    let result = call(pointers.as_ptr() as usize);
    kernel::give_back(room);
    result
}

/// Copy a string of less than `PATH_MAX` bytes, with its NUL; a longer one is cut.
fn copy_text(from: usize, to: usize) {
    let (from, to) = (from as *const u8, to as *mut u8);
    for i in 0..PATH_MAX {
        // SAFETY: the string's NUL was not met so far.
        let byte = unsafe { *from.wrapping_add(i) };
        let byte = if i == PATH_MAX - 1 { 0 } else { byte };
        // SAFETY: every caller passes a place of PATH_MAX bytes.
        unsafe { *to.wrapping_add(i) = byte };
        if byte == 0 {
            break;
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn fts_open(paths: usize, options: usize, order: usize) -> usize {
    mapped_list(paths, &|paths| call_next!(fts_open(paths, options, order) else 0))
}

#[unsafe(no_mangle)]
extern "C" fn fts64_open(paths: usize, options: usize, order: usize) -> usize {
    mapped_list(paths, &|paths| call_next!(fts64_open(paths, options, order) else 0))
}

fn reversing() -> bool {
    real::interest() & REVERSE != 0
}

/// Turn a host path that libc wrote into the artist's. `room` is what the buffer holds; `None` means that
/// libc allocated it. The result is what the function returns.
fn reversed(text: usize, room: Option<usize>) -> usize {
    let Some(table) = real::table().filter(|_| text != 0 && reversing()) else { return text };
    let mut out = [0; PATH_MAX];
    // SAFETY: libc just wrote a string that ends with NUL there.
    let path = unsafe { core::ffi::CStr::from_ptr(text as *const core::ffi::c_char) }.to_bytes();
    let Some(length) = posix::reverse(table, path, &mut out) else { return text };
    let place = match room {
        Some(room) if length >= room => {
            set_errno(ERANGE);
            return 0;
        }
        Some(_) => text,
        None => call_next!(realloc(text, length + 1) else 0),
    };
    if place != 0 {
        copy_text(out.as_ptr() as usize, place);
    }
    place
}

/// The room of a caller's buffer; none when libc is to allocate it.
fn room_of(buffer: usize, size: usize) -> Option<usize> {
    (buffer != 0).then_some(size)
}

#[unsafe(no_mangle)]
extern "C" fn getcwd(buffer: usize, size: usize) -> usize {
    reversed(call_next!(getcwd(buffer, size) else 0), room_of(buffer, size))
}

#[unsafe(no_mangle)]
extern "C" fn __getcwd_chk(buffer: usize, size: usize, room: usize) -> usize {
    reversed(call_next!(__getcwd_chk(buffer, size, room) else 0), room_of(buffer, size))
}

#[unsafe(no_mangle)]
extern "C" fn getwd(buffer: usize) -> usize {
    reversed(call_next!(getwd(buffer) else 0), Some(PATH_MAX))
}

#[unsafe(no_mangle)]
extern "C" fn __getwd_chk(buffer: usize, room: usize) -> usize {
    reversed(call_next!(__getwd_chk(buffer, room) else 0), Some(room.min(PATH_MAX)))
}

#[unsafe(no_mangle)]
extern "C" fn get_current_dir_name() -> usize {
    reversed(call_next!(get_current_dir_name() else 0), None)
}

#[unsafe(no_mangle)]
extern "C" fn realpath(path: usize, out: usize) -> usize {
    let found = mapped(path, LOOK, 0, |path| call_next!(realpath(path, out) else 0));
    reversed(found, room_of(out, PATH_MAX))
}

#[unsafe(no_mangle)]
extern "C" fn __realpath_chk(path: usize, out: usize, room: usize) -> usize {
    let found = mapped(path, LOOK, 0, |path| call_next!(__realpath_chk(path, out, room) else 0));
    reversed(found, room_of(out, PATH_MAX))
}

#[unsafe(no_mangle)]
extern "C" fn canonicalize_file_name(path: usize) -> usize {
    let found = mapped(path, LOOK, 0, |path| call_next!(canonicalize_file_name(path) else 0));
    reversed(found, None)
}

/// Reads a link, and turns what it says into the artist's path where that is asked for.
#[unsafe(no_mangle)]
extern "C" fn readlinkat(folder: usize, path: usize, out: usize, length: usize) -> usize {
    mapped(path, LOOK_AT_LINK, FAILED, |path| {
        if reversing() {
            read_reversed(folder, path, out, length)
        } else {
            ask(nr::READLINKAT, &[folder, path, out, length])
        }
    })
}

fn read_reversed(folder: usize, path: usize, out: usize, length: usize) -> usize {
    let mut found = [0_u8; PATH_MAX];
    let n = ask(nr::READLINKAT, &[folder, path, found.as_mut_ptr() as usize, found.len()]);
    let Some(table) = real::table().filter(|_| n != FAILED) else { return n };
    let mut artists = [0; PATH_MAX];
    let text = match posix::reverse(table, &found[..n], &mut artists) {
        Some(length) => &artists[..length],
        None => &found[..n],
    };
    let n = text.len().min(length);
    // SAFETY: the caller's buffer has room for `length` bytes.
    unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), out as *mut u8, n) };
    n
}

#[unsafe(no_mangle)]
extern "C" fn readlink(path: usize, out: usize, length: usize) -> usize {
    readlinkat(AT_FDCWD, path, out, length)
}

/// Bounds checked as glibc's fortified programs expect: ending the program is their contract.
#[unsafe(no_mangle)]
extern "C" fn __readlink_chk(path: usize, out: usize, length: usize, room: usize) -> usize {
    __readlinkat_chk(AT_FDCWD, path, out, length, room)
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
        kernel::stop();
    }
    readlinkat(folder, path, out, length)
}
