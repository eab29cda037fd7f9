//! Hooks that are one system call, with the arguments in another order at most.

use super::{
    CHANGE, CHANGE_LINK, CREATE, FAILED, LOOK, LOOK_AT_LINK, MAKE, OPEN, SYMLINK_FOLLOW,
    SYMLINK_NOFOLLOW, Way, answer, ask, changed, looked, mapped, opened,
};
use crate::kernel::{AT_FDCWD, nr, syscall};

const EISDIR: isize = -21;
const REMOVEDIR: usize = 0x200;
const EACCESS: usize = 0x200;
const CREATE_TRUNCATE_WRITE: usize = 0o1101;
const DONT_FOLLOW: usize = 0x0200_0000;

/// Whether an `int` argument is 0: the upper half of its register may hold anything.
fn is_zero(argument: usize) -> bool {
    argument & 0xffff_ffff == 0
}

fn linked(flags: usize) -> Way {
    if flags & SYMLINK_FOLLOW == 0 { CHANGE_LINK } else { CHANGE }
}

/// Hooks of one path.
macro_rules! direct {
    ($($name:ident($($arg:ident),*) on $path:ident as $way:expr => $nr:expr, [$($value:expr),*];)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: usize),*) -> usize {
                mapped($path, $way, FAILED, |$path| ask($nr, &[$($value),*]))
            }
        )*
    };
}

/// Hooks of two paths.
macro_rules! direct_two {
    ($($name:ident($($arg:ident),*) on $one:ident as $from:expr, $two:ident => $nr:expr, [$($value:expr),*];)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: usize),*) -> usize {
                mapped($one, $from, FAILED, |$one| {
                    mapped($two, MAKE, FAILED, |$two| ask($nr, &[$($value),*]))
                })
            }
        )*
    };
}

direct! {
    open(path, flags, mode) on path as opened(flags) => nr::OPENAT, [AT_FDCWD, path, flags, mode];
    open64(path, flags, mode) on path as opened(flags) => nr::OPENAT, [AT_FDCWD, path, flags, mode];
    __open(path, flags, mode) on path as opened(flags) => nr::OPENAT, [AT_FDCWD, path, flags, mode];
    __open64(path, flags, mode) on path as opened(flags) => nr::OPENAT, [AT_FDCWD, path, flags, mode];
    __open_2(path, flags) on path as opened(flags) => nr::OPENAT, [AT_FDCWD, path, flags, 0];
    __open64_2(path, flags) on path as opened(flags) => nr::OPENAT, [AT_FDCWD, path, flags, 0];
    openat(folder, path, flags, mode) on path as opened(flags) => nr::OPENAT, [folder, path, flags, mode];
    openat64(folder, path, flags, mode) on path as opened(flags) => nr::OPENAT, [folder, path, flags, mode];
    __openat_2(folder, path, flags) on path as opened(flags) => nr::OPENAT, [folder, path, flags, 0];
    __openat64_2(folder, path, flags) on path as opened(flags) => nr::OPENAT, [folder, path, flags, 0];
    openat2(folder, path, how, size) on path as OPEN => nr::OPENAT2, [folder, path, how, size];
    creat(path, mode) on path as CREATE => nr::OPENAT, [AT_FDCWD, path, CREATE_TRUNCATE_WRITE, mode];
    creat64(path, mode) on path as CREATE => nr::OPENAT, [AT_FDCWD, path, CREATE_TRUNCATE_WRITE, mode];

    stat(path, out) on path as LOOK => nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    stat64(path, out) on path as LOOK => nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    lstat(path, out) on path as LOOK_AT_LINK => nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    lstat64(path, out) on path as LOOK_AT_LINK => nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    fstatat(folder, path, out, flags) on path as looked(flags) => nr::NEWFSTATAT, [folder, path, out, flags];
    fstatat64(folder, path, out, flags) on path as looked(flags) => nr::NEWFSTATAT, [folder, path, out, flags];
    __xstat(_version, path, out) on path as LOOK => nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    __xstat64(_version, path, out) on path as LOOK => nr::NEWFSTATAT, [AT_FDCWD, path, out, 0];
    __lxstat(_version, path, out) on path as LOOK_AT_LINK =>
        nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    __lxstat64(_version, path, out) on path as LOOK_AT_LINK =>
        nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW];
    __fxstatat(_version, folder, path, out, flags) on path as looked(flags) =>
        nr::NEWFSTATAT, [folder, path, out, flags];
    __fxstatat64(_version, folder, path, out, flags) on path as looked(flags) =>
        nr::NEWFSTATAT, [folder, path, out, flags];
    statx(folder, path, flags, mask, out) on path as looked(flags) => nr::STATX, [folder, path, flags, mask, out];
    access(path, mode) on path as LOOK => nr::FACCESSAT, [AT_FDCWD, path, mode];
    faccessat(folder, path, mode, flags) on path as looked(flags) =>
        if is_zero(flags) { nr::FACCESSAT } else { nr::FACCESSAT2 }, [folder, path, mode, flags];
    eaccess(path, mode) on path as LOOK => nr::FACCESSAT2, [AT_FDCWD, path, mode, EACCESS];
    euidaccess(path, mode) on path as LOOK => nr::FACCESSAT2, [AT_FDCWD, path, mode, EACCESS];
    statfs(path, out) on path as LOOK => nr::STATFS, [path, out];
    statfs64(path, out) on path as LOOK => nr::STATFS, [path, out];
    __statfs(path, out) on path as LOOK => nr::STATFS, [path, out];

    symlink(target, path) on path as MAKE => nr::SYMLINKAT, [target, AT_FDCWD, path];
    symlinkat(target, folder, path) on path as MAKE => nr::SYMLINKAT, [target, folder, path];
    unlink(path) on path as CHANGE_LINK => nr::UNLINKAT, [AT_FDCWD, path, 0];
    unlinkat(folder, path, flags) on path as CHANGE_LINK => nr::UNLINKAT, [folder, path, flags];
    rmdir(path) on path as CHANGE_LINK => nr::UNLINKAT, [AT_FDCWD, path, REMOVEDIR];

    mkdir(path, mode) on path as MAKE => nr::MKDIRAT, [AT_FDCWD, path, mode];
    mkdirat(folder, path, mode) on path as MAKE => nr::MKDIRAT, [folder, path, mode];
    chdir(path) on path as LOOK => nr::CHDIR, [path];
    chmod(path, mode) on path as CHANGE => nr::FCHMODAT, [AT_FDCWD, path, mode];
    chown(path, user, group) on path as CHANGE => nr::FCHOWNAT, [AT_FDCWD, path, user, group, 0];
    lchown(path, user, group) on path as CHANGE_LINK =>
        nr::FCHOWNAT, [AT_FDCWD, path, user, group, SYMLINK_NOFOLLOW];
    fchownat(folder, path, user, group, flags) on path as changed(flags) =>
        nr::FCHOWNAT, [folder, path, user, group, flags];
    truncate(path, length) on path as CHANGE => nr::TRUNCATE, [path, length];
    truncate64(path, length) on path as CHANGE => nr::TRUNCATE, [path, length];
    utimensat(folder, path, times, flags) on path as changed(flags) => nr::UTIMENSAT, [folder, path, times, flags];

    getxattr(path, name, out, size) on path as LOOK => nr::GETXATTR, [path, name, out, size];
    lgetxattr(path, name, out, size) on path as LOOK_AT_LINK => nr::LGETXATTR, [path, name, out, size];
    setxattr(path, name, value, size, flags) on path as CHANGE => nr::SETXATTR, [path, name, value, size, flags];
    lsetxattr(path, name, value, size, flags) on path as CHANGE_LINK =>
        nr::LSETXATTR, [path, name, value, size, flags];
    listxattr(path, out, size) on path as LOOK => nr::LISTXATTR, [path, out, size];
    llistxattr(path, out, size) on path as LOOK_AT_LINK => nr::LLISTXATTR, [path, out, size];
    removexattr(path, name) on path as CHANGE => nr::REMOVEXATTR, [path, name];
    lremovexattr(path, name) on path as CHANGE_LINK => nr::LREMOVEXATTR, [path, name];

    execve(path, args, env) on path as LOOK => nr::EXECVE, [path, args, env];
    execveat(folder, path, args, env, flags) on path as looked(flags) =>
        nr::EXECVEAT, [folder, path, args, env, flags];
    inotify_add_watch(fd, path, mask) on path as if mask & DONT_FOLLOW == 0 { LOOK } else { LOOK_AT_LINK } =>
        nr::INOTIFY_ADD_WATCH, [fd, path, mask];
}

direct_two! {
    link(from, to) on from as CHANGE_LINK, to => nr::LINKAT, [AT_FDCWD, from, AT_FDCWD, to, 0];
    linkat(a, from, b, to, flags) on from as linked(flags), to => nr::LINKAT, [a, from, b, to, flags];
    rename(from, to) on from as CHANGE_LINK, to => nr::RENAMEAT2, [AT_FDCWD, from, AT_FDCWD, to, 0];
    renameat(a, from, b, to) on from as CHANGE_LINK, to => nr::RENAMEAT2, [a, from, b, to, 0];
    renameat2(a, from, b, to, flags) on from as CHANGE_LINK, to => nr::RENAMEAT2, [a, from, b, to, flags];
}

/// Removes a file, or a folder when it is one.
#[unsafe(no_mangle)]
extern "C" fn remove(path: usize) -> usize {
    mapped(path, CHANGE_LINK, FAILED, |path| {
        // SAFETY: the path is the caller's or a buffer of `mapped`.
        let result = unsafe { syscall(nr::UNLINKAT, [AT_FDCWD, path, 0, 0, 0, 0]) };
        if result == EISDIR {
            ask(nr::UNLINKAT, &[AT_FDCWD, path, REMOVEDIR])
        } else {
            answer(result)
        }
    })
}
