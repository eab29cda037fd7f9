//! Which functions of libc the library stands in for, against what the machine's own libcs offer.

use std::{collections::BTreeSet, path::Path};

use crate::library::{preload, symbols};

/// Every function of glibc and musl that takes a path, or hands one out, and some that only look as if.
const WITH_PATHS: &str = "
    __connect __fxstatat __fxstatat64 __getcwd_chk __getwd_chk __lxstat __lxstat64 __mktemp __nss_files_fopen __open
    __open64 __open64_2 __open_2 __openat64_2 __openat_2 __readlink_chk __readlinkat_chk __realpath_chk __setmntent
    __statfs __xmknod __xmknodat __xstat __xstat64 __execvpe access acct bind bindtextdomain canonicalize_file_name
    catopen chdir chmod chown chroot clearenv connect creat creat64 dlmopen dlopen eaccess euidaccess execl execle
    execlp execv execve execveat execvp execvpe faccessat fanotify_mark fchmodat fchownat fexecve fopen fopen64
    freopen freopen64 fspick fstatat fstatat64 ftok fts64_open fts_open ftw ftw64 futimesat get_current_dir_name
    getcwd getpeername getsockname getwd getxattr glob glob64 inotify_add_watch lchmod lchown lgetxattr link linkat
    listxattr llistxattr lremovexattr lsetxattr lstat lstat64 lutimes mkdir mkdirat mkdtemp mkfifo mkfifoat mknod
    mknodat mkostemp mkostemp64 mkostemps mkostemps64 mkstemp mkstemp64 mkstemps mkstemps64 mktemp mount
    mount_setattr move_mount mq_open mq_unlink name_to_handle_at nftw nftw64 open open64 open_tree openat openat64
    openat2 opendir pathconf pivot_root popen posix_spawn posix_spawn_file_actions_addchdir
    posix_spawn_file_actions_addchdir_np posix_spawn_file_actions_addopen posix_spawnp putenv quotactl readlink
    readlinkat realpath remove removexattr rename renameat renameat2 revoke rmdir scandir scandir64 scandirat
    scandirat64 sem_open sem_unlink sendmmsg sendmsg sendto setenv setmntent setxattr shm_open shm_unlink stat stat64
    statfs statfs64 statvfs statvfs64 statx swapoff swapon symlink symlinkat syscall system tempnam tmpfile tmpfile64
    tmpnam tmpnam_r truncate truncate64 umount umount2 unlink unlinkat unsetenv uselib utime utimensat utimes wordexp";

/// What is left to libc, and why.
const LEFT: [(&str, &str); 22] = [
    ("__nss_files_fopen", "private to libc: its databases lie in /etc, never with the artist"),
    (
        "execl execle execlp",
        "variadic; a list of arguments in a program's text names a program of the machine",
    ),
    ("fexecve", "takes a descriptor"),
    ("popen system", "start a shell, which loads the library itself and maps what it is told"),
    (
        "dlopen dlmopen",
        "whose search follows the caller; an artist's plug-ins are found at their mounted places",
    ),
    ("clearenv putenv setenv unsetenv", "/etc/ld.so.preload needs no variable to survive"),
    ("getpeername getsockname", "hand out socket addresses, which the sockets' owners gave"),
    ("sendmmsg", "lists of datagrams to sockets named by a path: no renderer sends them"),
    ("mq_open mq_unlink sem_open sem_unlink shm_open shm_unlink", "names, not paths"),
    ("name_to_handle_at", "the jail's kernel refuses it"),
    ("tmpfile tmpfile64 tmpnam tmpnam_r", "take no path and work in /tmp"),
    ("wordexp", "expands shell words, in which a backslash quotes: a Windows path is none"),
    (
        "acct quotactl swapoff swapon uselib",
        "for the administrator; the jail's kernel refuses them",
    ),
    ("chroot pivot_root", "the jail's kernel refuses them"),
    ("mount umount umount2", "the jail's kernel refuses them"),
    ("fspick mount_setattr move_mount open_tree", "the jail's kernel refuses them"),
    ("revoke", "not implemented by Linux"),
    ("fdopendir closefrom", "take descriptors"),
    ("open_by_handle_at", "takes a handle; the jail's kernel refuses it"),
    ("open_memstream open_wmemstream fmemopen", "open memory"),
    ("inotify_init inotify_init1 inotify_rm_watch", "take no path"),
    ("openlog openpty opterr optopt optarg optind", "only look like it"),
];

/// Beginnings of names that new functions with paths would have.
const FAMILIES: [&str; 17] = [
    "open",
    "stat",
    "lstat",
    "access",
    "faccess",
    "readlink",
    "rename",
    "unlink",
    "mkdir",
    "mknod",
    "exec",
    "utimens",
    "fchmodat",
    "fchownat",
    "inotify_",
    "getxattrat",
    "setxattrat",
];

fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}

fn defined(library: &Path) -> BTreeSet<String> {
    symbols(library).into_iter().filter(|s| s.0).map(|s| s.1).collect()
}

#[test]
fn every_function_with_a_path_is_covered_or_left_for_a_reason() {
    let covered = defined(&preload());
    let known = words(WITH_PATHS);
    let left: BTreeSet<&str> = LEFT.iter().flat_map(|(names, _)| words(names)).collect();
    let both: Vec<_> = left.iter().filter(|name| covered.contains(**name)).collect();
    assert!(both.is_empty(), "covered and listed as left: {both:?}");
    let strange: Vec<_> = covered.iter().filter(|name| !known.contains(name.as_str())).collect();
    assert!(strange.is_empty(), "exported, but no function with a path: {strange:?}");
    let forgotten: Vec<_> =
        known.iter().filter(|name| !covered.contains(**name) && !left.contains(**name)).collect();
    assert!(forgotten.is_empty(), "neither covered nor left for a reason: {forgotten:?}");
}

#[test]
fn the_machines_libcs_offer_no_function_with_a_path_that_is_not_known() {
    let known = words(WITH_PATHS);
    let left: BTreeSet<&str> = LEFT.iter().flat_map(|(names, _)| words(names)).collect();
    let libcs = [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/aarch64-linux-gnu/libc.so.6",
        "/lib64/libc.so.6",
        "/usr/lib/x86_64-linux-musl/libc.so",
        "/usr/lib/aarch64-linux-musl/libc.so",
    ];
    let found: Vec<&Path> = libcs.iter().map(Path::new).filter(|path| path.exists()).collect();
    assert!(!found.is_empty(), "no libc at any of {libcs:?}");
    for libc in found {
        let new: Vec<String> = defined(libc)
            .into_iter()
            .filter(|name| FAMILIES.iter().any(|family| name.starts_with(family)))
            .filter(|name| !known.contains(name.as_str()) && !left.contains(name.as_str()))
            .collect();
        assert!(new.is_empty(), "{} has functions nobody decided about: {new:?}", libc.display());
    }
}

#[test]
fn the_library_needs_little_of_its_host() {
    let symbols = symbols(&preload());
    let mut needed: Vec<&str> = symbols.iter().filter(|s| !s.0).map(|s| s.1.as_str()).collect();
    needed.sort_unstable();
    // Every libc has these; an allocator, thread-local data or the unwinder would show here.
    let usual = [
        "__errno_location",
        "bcmp",
        "dlsym",
        "environ",
        "memcmp",
        "memcpy",
        "memmove",
        "memset",
        "strlen",
    ];
    assert!(needed.iter().all(|n| usual.contains(n)), "{needed:?}");
    let done =
        std::process::Command::new("readelf").args(["-dlW"]).arg(preload()).output().unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(!said.contains("(NEEDED)"), "{said}");
    assert!(!said.contains("TLS"), "{said}");
    let stack = said.lines().find(|line| line.contains("GNU_STACK")).unwrap();
    assert!(!stack.contains('E'), "{stack}");
}
