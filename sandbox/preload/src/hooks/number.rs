//! `syscall(3)`: programs that make system calls by number get the same mapping for those that take a path.

use super::{
    CHANGE, CHANGE_LINK, FAILED, LOOK, LOOK_AT_LINK, MAKE, OPEN, Way, answer, ask, changed, looked,
    mapped, opened,
};
use crate::kernel::nr;

/// Which arguments of a call are paths, and what it does with them.
#[derive(Clone, Copy)]
enum Paths {
    None,
    One(usize, Way),
    Two((usize, Way), (usize, Way)),
}

fn paths_of(number: usize, a: &[usize; 6]) -> Paths {
    match number {
        nr::OPENAT => Paths::One(1, opened(a[2])),
        nr::OPENAT2 => Paths::One(1, OPEN),
        nr::NEWFSTATAT | nr::FACCESSAT2 => Paths::One(1, looked(a[3])),
        nr::STATX => Paths::One(1, looked(a[2])),
        nr::FACCESSAT => Paths::One(1, LOOK),
        nr::EXECVEAT => Paths::One(1, looked(a[4])),
        nr::READLINKAT => Paths::One(1, LOOK_AT_LINK),
        nr::MKDIRAT | nr::MKNODAT => Paths::One(1, MAKE),
        nr::UNLINKAT => Paths::One(1, CHANGE_LINK),
        nr::FCHMODAT => Paths::One(1, CHANGE),
        nr::FCHMODAT2 | nr::UTIMENSAT => Paths::One(1, changed(a[3])),
        nr::FCHOWNAT => Paths::One(1, changed(a[4])),
        nr::INOTIFY_ADD_WATCH => Paths::One(1, LOOK),
        nr::SYMLINKAT => Paths::One(2, MAKE),
        nr::RENAMEAT | nr::RENAMEAT2 | nr::LINKAT => Paths::Two((1, CHANGE_LINK), (3, MAKE)),
        nr::CHDIR | nr::EXECVE | nr::STATFS | nr::GETXATTR | nr::LISTXATTR => Paths::One(0, LOOK),
        nr::LGETXATTR | nr::LLISTXATTR => Paths::One(0, LOOK_AT_LINK),
        nr::TRUNCATE | nr::SETXATTR | nr::REMOVEXATTR => Paths::One(0, CHANGE),
        nr::LSETXATTR | nr::LREMOVEXATTR => Paths::One(0, CHANGE_LINK),
        _ => older(number, a),
    }
}

/// The older forms, which only one architecture has.
#[cfg(target_arch = "x86_64")]
fn older(number: usize, a: &[usize; 6]) -> Paths {
    match number {
        // open, creat
        2 => Paths::One(0, opened(a[1])),
        85 => Paths::One(0, super::CREATE),
        // stat, access; lstat, readlink
        4 | 21 => Paths::One(0, LOOK),
        6 | 89 => Paths::One(0, LOOK_AT_LINK),
        // rename, link; symlink
        82 | 86 => Paths::Two((0, CHANGE_LINK), (1, MAKE)),
        88 => Paths::One(1, MAKE),
        // mkdir, mknod; rmdir, unlink, lchown
        83 | 133 => Paths::One(0, MAKE),
        84 | 87 | 94 => Paths::One(0, CHANGE_LINK),
        // chmod, chown, utime, utimes; futimesat
        90 | 92 | 132 | 235 => Paths::One(0, CHANGE),
        261 => Paths::One(1, CHANGE),
        _ => Paths::None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn older(_number: usize, _arguments: &[usize; 6]) -> Paths {
    Paths::None
}

extern "C" fn by_number(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    let all = [a, b, c, d, e, f];
    let with = |place: usize, path: usize| {
        let mut all = all;
        all[place] = path;
        all
    };
    match paths_of(number, &all) {
        Paths::None => ask(number, &all),
        Paths::One(at, way) => mapped(all[at], way, FAILED, |path| ask(number, &with(at, path))),
        Paths::Two((one, from), (two, to)) => mapped(all[one], from, FAILED, |first| {
            mapped(all[two], to, FAILED, |second| {
                let mut both = with(one, first);
                both[two] = second;
                ask(number, &both)
            })
        }),
    }
}

/// Calls that make processes come back twice, perhaps on another stack, so nothing of ours may lie on it.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(export_name = "syscall")]
unsafe extern "C" fn from_libc() {
    core::arch::naked_asm!(
        // clone, fork, vfork, clone3
        "lea eax, [rdi - 56]",
        "cmp eax, 2",
        "jbe 2f",
        "cmp edi, 435",
        "je 2f",
        "jmp {by_number}",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "mov rdi, rax",
        "jmp {answer}",
        by_number = sym by_number,
        answer = sym answer,
    )
}

/// Calls that make processes come back twice, perhaps on another stack, so nothing of ours may lie on it.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(export_name = "syscall")]
unsafe extern "C" fn from_libc() {
    core::arch::naked_asm!(
        // clone, clone3
        "cmp w0, #220",
        "b.eq 2f",
        "cmp w0, #435",
        "b.eq 2f",
        "b {by_number}",
        "2:",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc 0",
        "b {answer}",
        by_number = sym by_number,
        answer = sym answer,
    )
}
