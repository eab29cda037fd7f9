//! Which system calls a job may make: one table with who needs each group, turned into BPF.
//!
//! Three filters stack, and the kernel takes the strictest answer, of equally strict ones the last filter's. The first
//! turns foreign socket families away, the second bad arguments. The last one holds only call numbers, so that the kernel
//! answers for most calls from its cache of constant verdicts: what the table does not know is `ENOSYS`, which lets
//! libraries fall back; calls that are known and dangerous are `EPERM`, a further filter among them; labels of files are
//! `EOPNOTSUPP`. It is a search by halves over runs of neighbouring numbers with the same answer: the kernel compiles each
//! filter for each jail anew, so short ones make a jail start sooner, and `openat`, whose arguments count, runs them all.

use std::{collections::BTreeMap, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::Profile;

/// A group of calls and who needs it.
struct Group {
    who: &'static str,
    calls: &'static [c_long],
}

/// The groups that not every profile has.
const SOCKETS: &str =
    "Python's multiprocessing and Blender's look for services: sockets inside the jail";
const NAMELESS: &str = "files in memory without a name, which may be run as programs";
const BLENDER: &str = "Blender's allocator asks for local memory; the policy is its own";

#[rustfmt::skip]
const ALLOWED: &[Group] = &[
    Group { who: "every program: its own memory", calls: &[
        libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_msync,
        libc::SYS_madvise, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_munlockall,
        libc::SYS_membarrier, libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect] },
    Group { who: NAMELESS, calls: &[libc::SYS_memfd_create] },
    Group { who: "every program: reading and writing what is open", calls: &[
        libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
        libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close,
        libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl, libc::SYS_flock, libc::SYS_ioctl,
        libc::SYS_sendfile, libc::SYS_splice, libc::SYS_tee, libc::SYS_copy_file_range, libc::SYS_fadvise64,
        libc::SYS_readahead, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_syncfs,
        libc::SYS_ftruncate, libc::SYS_fallocate] },
    Group { who: "every program: names in the jail, confined by mounts and Landlock", calls: &[
        libc::SYS_openat, libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
        libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_getcwd,
        libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat,
        libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_mknodat, libc::SYS_truncate,
        libc::SYS_fchmod, libc::SYS_fchmodat, 452 /* fchmodat2 */, libc::SYS_umask, libc::SYS_utimensat,
        libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr, libc::SYS_llistxattr,
        libc::SYS_flistxattr] },
    Group { who: "every program: threads and processes", calls: &[
        libc::SYS_clone, libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4,
        libc::SYS_waitid, libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal, libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_get_robust_list,
        libc::SYS_rseq, libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid,
        libc::SYS_setsid, libc::SYS_getsid, libc::SYS_setpgid, libc::SYS_getpgid, libc::SYS_prctl,
        libc::SYS_personality, libc::SYS_restart_syscall] },
    Group { who: "every program: signals", calls: &[
        libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
        libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_sigaltstack, libc::SYS_signalfd4] },
    Group { who: "every program: time", calls: &[
        libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
        libc::SYS_gettimeofday, libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create,
        libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_getoverrun, libc::SYS_timer_delete,
        libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_times] },
    Group { who: "the session runner, Python and Blender: waiting for many things", calls: &[
        libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_pipe2, libc::SYS_inotify_init1,
        libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch] },
    Group { who: "the session runner: a pair of sockets for its own signals", calls: &[
        libc::SYS_socketpair, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
        libc::SYS_shutdown] },
    Group { who: SOCKETS, calls: &[
        libc::SYS_socket, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4,
        libc::SYS_connect, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_sendmmsg, libc::SYS_recvmmsg,
        libc::SYS_setsockopt, libc::SYS_getsockopt] },
    Group { who: "renderers: how many processors, how much memory", calls: &[
        libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
        libc::SYS_sched_setparam, libc::SYS_sched_getscheduler, libc::SYS_sched_setscheduler,
        libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_sched_rr_get_interval,
        libc::SYS_getcpu, libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_ioprio_get, libc::SYS_ioprio_set,
        libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_prlimit64, libc::SYS_getrusage, libc::SYS_sysinfo,
        libc::SYS_uname, libc::SYS_getrandom, libc::SYS_get_mempolicy] },
    Group { who: BLENDER, calls: &[
        libc::SYS_set_mempolicy] },
    Group { who: "shells and Python: who am I; changes are harmless with one mapped user and no capability", calls: &[
        libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getgroups,
        libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid,
        libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_setfsuid, libc::SYS_setfsgid,
        libc::SYS_capget] },
    Group { who: "a job that confines itself further", calls: &[
        libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self] },
];

/// Calls of x86-64 that younger architectures do not have: older forms of calls listed above.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_OLD: &[c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_getdents, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_link,
    libc::SYS_symlink, libc::SYS_mknod, libc::SYS_chmod, libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat,
    libc::SYS_fork, libc::SYS_vfork, libc::SYS_getpgrp, libc::SYS_arch_prctl, libc::SYS_alarm, libc::SYS_pause,
    libc::SYS_time, libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait,
    libc::SYS_eventfd, libc::SYS_signalfd, libc::SYS_pipe, libc::SYS_dup2, libc::SYS_inotify_init,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[c_long] = &[];

/// Known and dangerous: `EPERM`, so that a program sees a refusal and not an old kernel.
#[rustfmt::skip]
const REFUSED: &[Group] = &[
    Group { who: "opens files where no filter sees it", calls: &[
        libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] },
    Group { who: "reads or changes other processes", calls: &[
        libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise,
        libc::SYS_kcmp, libc::SYS_pidfd_getfd] },
    Group { who: "new namespaces, mounts and roots", calls: &[
        libc::SYS_unshare, libc::SYS_setns, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root,
        libc::SYS_chroot, libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig,
        libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_mount_setattr] },
    Group { who: "files by number instead of by name, past Landlock and mounts", calls: &[
        libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at] },
    Group { who: "code and probes in the kernel", calls: &[
        libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_seccomp, libc::SYS_init_module,
        libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_syslog,
        libc::SYS_lookup_dcookie] },
    Group { who: "keyrings are shared by all processes of a user", calls: &[
        libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key] },
    Group { who: "the machine's clock, name, disks and power", calls: &[
        libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_adjtimex,
        libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_reboot,
        libc::SYS_acct, libc::SYS_quotactl, libc::SYS_quotactl_fd, libc::SYS_vhangup, libc::SYS_fanotify_init,
        libc::SYS_fanotify_mark] },
    Group { who: "side channels and memory of others", calls: &[
        libc::SYS_mincore, 451 /* cachestat */, libc::SYS_move_pages, libc::SYS_migrate_pages, libc::SYS_mbind,
        libc::SYS_vmsplice, libc::SYS_remap_file_pages, libc::SYS_memfd_secret, libc::SYS_mlockall] },
    Group { who: "owners of files, which the job has one of", calls: &[
        libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_setgroups, libc::SYS_capset] },
    Group { who: "System V and POSIX message queues: no renderer needs them", calls: &[
        libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_semget, libc::SYS_semop,
        libc::SYS_semctl, libc::SYS_semtimedop, libc::SYS_msgget, libc::SYS_msgsnd, libc::SYS_msgrcv,
        libc::SYS_msgctl, libc::SYS_mq_open, libc::SYS_mq_unlink] },
];

/// Labels of files: `EOPNOTSUPP`, as where a filesystem has none, so that a program that copies files copies on.
const LABELS: &[c_long] = &[
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// Further refused calls that only x86-64 has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const REFUSED_OLD: &[c_long] = &[
    libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib, libc::SYS_ustat, libc::SYS_sysfs,
    libc::SYS_chown, libc::SYS_lchown, libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[c_long] = &[];

/// Arguments that turn an allowed call into a refused one.
enum Bad {
    /// Any of these bits of the argument is set.
    AnyBit(u8, &'static [u64]),
    /// The low 32 bits of the argument are one of these: the kernel ignores the rest as well.
    OneOf(u8, &'static [u64]),
    /// The low 32 bits of the argument are none of these.
    NoneOf(u8, &'static [u64]),
    /// The argument under a mask is one of these.
    Masked(u8, u64, &'static [u64]),
    /// Any of the first bits is set in the first argument, and any of the second ones in the second: the
    /// mode of an opened file counts only where the flags make one, and is anything elsewhere.
    AnyBitWith((u8, &'static [u64]), (u8, &'static [u64])),
}

const NAMESPACE_BITS: &[u64] = &[
    0x80, // time
    0x2_0000,
    0x200_0000,
    0x400_0000,
    0x800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];
const SET_ID_BITS: &[u64] = &[0o4000, 0o2000];
/// `O_CREAT`, and the bit that `O_TMPFILE` has alone.
const MAKING_FLAGS: &[u64] = &[0o100, 0o20_000_000];
const DEVICE_KINDS: &[u64] = &[0o020_000, 0o060_000];
const FILE_KIND: u64 = 0o170_000;

/// TIOCSTI and TIOCLINUX type into terminals, TIOCSETD and TIOCCONS take them over; then come the
/// calls that change flags, freeze or rearrange whole filesystems.
const BAD_IOCTLS: &[u64] = &[
    0x5412,
    0x541c,
    0x5423,
    0x541d,
    0x4008_6602,
    0x4004_6602,
    0xc004_5877,
    0xc004_5878,
    0x401c_5820,
    0x5000_940f,
    0x5000_9401,
    0x5000_940e,
];
/// NAME, PDEATHSIG, DUMPABLE (get), TIMERSLACK, CAPBSET_READ, SECCOMP (get), NO_NEW_PRIVS, THP_DISABLE,
/// CHILD_SUBREAPER, SET_VMA, SECUREBITS (get), KEEPCAPS (get), AMBIENT.
const GOOD_PRCTLS: &[u64] =
    &[1, 2, 3, 7, 15, 16, 21, 23, 27, 29, 30, 36, 37, 38, 39, 41, 42, 47, 0x5356_4d41];

#[rustfmt::skip]
const ARGUMENTS: &[(c_long, Bad)] = &[
    (libc::SYS_clone, Bad::AnyBit(0, NAMESPACE_BITS)),
    (libc::SYS_ioctl, Bad::OneOf(1, BAD_IOCTLS)),
    (libc::SYS_prctl, Bad::NoneOf(0, GOOD_PRCTLS)),
    (libc::SYS_personality, Bad::NoneOf(0, &[0, 0xffff_ffff])),
    (libc::SYS_sched_setscheduler, Bad::NoneOf(1, &[0, 3, 5])),
    (libc::SYS_madvise, Bad::OneOf(2, &[100, 101])),
    (libc::SYS_memfd_create, Bad::AnyBit(1, &[4])),
    (libc::SYS_fchmod, Bad::AnyBit(1, SET_ID_BITS)),
    (libc::SYS_fchmodat, Bad::AnyBit(2, SET_ID_BITS)),
    (452, Bad::AnyBit(2, SET_ID_BITS)),
    (libc::SYS_mknodat, Bad::Masked(2, FILE_KIND, DEVICE_KINDS)),
    (libc::SYS_mknodat, Bad::AnyBit(2, SET_ID_BITS)),
    (libc::SYS_openat, Bad::AnyBitWith((2, MAKING_FLAGS), (3, SET_ID_BITS))),
];
#[cfg(target_arch = "x86_64")]
const ARGUMENTS_OLD: &[(c_long, Bad)] = &[
    (libc::SYS_chmod, Bad::AnyBit(1, SET_ID_BITS)),
    (libc::SYS_mknod, Bad::Masked(1, FILE_KIND, DEVICE_KINDS)),
    (libc::SYS_mknod, Bad::AnyBit(1, SET_ID_BITS)),
    (libc::SYS_open, Bad::AnyBitWith((1, MAKING_FLAGS), (2, SET_ID_BITS))),
    (libc::SYS_creat, Bad::AnyBit(1, SET_ID_BITS)),
];
#[cfg(not(target_arch = "x86_64"))]
const ARGUMENTS_OLD: &[(c_long, Bad)] = &[];

/// What decides about the filters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wants {
    /// What kind of program it is for.
    pub(crate) profile: Profile,
    /// Whether there are services: then sockets of the internet too.
    pub(crate) services: bool,
    /// Whether programs of the job's own making may run.
    pub(crate) job_exec: bool,
}

/// The compiled filters, in the order in which they are installed.
pub(crate) struct Filters {
    programs: [BpfProgram; 3],
    n_allowed: usize,
    n_refused: usize,
}

impl Filters {
    /// Compile the table for this processor and what is wanted.
    pub(crate) fn compile(wants: Wants) -> io::Result<Self> {
        Self::build(wants).map_err(io::Error::other)
    }

    fn build(wants: Wants) -> Result<Self, seccompiler::Error> {
        let granted = |group: &&Group| match wants.profile {
            _ if group.who == NAMELESS => wants.job_exec,
            Profile::Povray => group.who != SOCKETS && group.who != BLENDER,
            Profile::Python => group.who != BLENDER,
            Profile::BlenderCpu | Profile::BlenderGpu | Profile::Command => true,
        };
        let flat = |groups: Vec<&Group>, old: &[c_long]| -> Vec<c_long> {
            groups.iter().flat_map(|g| g.calls).chain(old).copied().collect()
        };
        let allowed = flat(ALLOWED.iter().filter(granted).collect(), ALLOWED_OLD);
        // What another profile would have is known too: EPERM tells more than ENOSYS.
        let others = ALLOWED.iter().filter(|group| !granted(group));
        let refused = flat(others.chain(REFUSED).collect(), REFUSED_OLD);
        let families: &'static [u64] = if wants.services { &[1, 2] } else { &[1] };
        let sockets = rules_of(&Bad::NoneOf(0, families))?;
        let mut bad: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for (nr, arguments) in ARGUMENTS.iter().chain(ARGUMENTS_OLD) {
            bad.entry(*nr).or_default().extend(rules_of(arguments)?);
        }
        let (pass, errno) =
            (SeccompAction::Allow, |e: i32| SeccompAction::Errno(e.cast_unsigned()));
        let sockets = [(libc::SYS_socket, sockets)].into();
        let answers: [(&[c_long], SeccompAction); 3] = [
            (&allowed, pass.clone()),
            (&refused, errno(libc::EPERM)),
            (LABELS, errno(libc::EOPNOTSUPP)),
        ];
        Ok(Self {
            programs: [
                program(sockets, pass.clone(), errno(libc::EAFNOSUPPORT))?,
                program(bad, pass, errno(libc::EPERM))?,
                by_number(&answers, errno(libc::ENOSYS))?,
            ],
            n_allowed: allowed.len(),
            n_refused: refused.len() + LABELS.len(),
        })
    }

    /// Put the filters over this process, for good. No further filter can be added: the last one forbids it.
    pub(crate) fn install(&self) -> io::Result<()> {
        self.programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
    }

    /// How many calls the filters know, and a fingerprint of their code.
    pub(crate) fn evidence(&self) -> String {
        // FNV-1a: it tells two policies apart, nothing more is asked of it.
        let mut print = 0xcbf2_9ce4_8422_2325_u64;
        for word in self.programs.iter().flatten() {
            let bits = u64::from(word.code) << 48
                | u64::from(word.jt) << 40
                | u64::from(word.jf) << 32
                | u64::from(word.k);
            print = (print ^ bits).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{} calls allowed, {} refused, filter {print:016x}", self.n_allowed, self.n_refused)
    }
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, otherwise, on_match, arch)?.try_into()?)
}

/// A filter that only looks at the number of a call. It begins as seccompiler's does: another architecture
/// ends the process, then the number is loaded.
fn by_number(
    answers: &[(&[c_long], SeccompAction)],
    otherwise: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let unknown = u32::from(otherwise.clone());
    let each = answers.iter().flat_map(|(calls, action)| {
        let answer = u32::from(action.clone());
        calls.iter().filter_map(move |nr| Some((u32::try_from(*nr).ok()?, answer)))
    });
    let each: BTreeMap<u32, u32> = each.collect();
    // Where a run of numbers with one answer begins.
    let mut runs = vec![(0, each.get(&0).copied().unwrap_or(unknown))];
    let mut turn = |nr: u32, answer: u32| {
        if runs.last().is_some_and(|(_, last)| *last != answer) {
            runs.push((nr, answer));
        }
    };
    let mut next = 0;
    for (nr, answer) in each {
        if nr > next {
            turn(next, unknown);
        }
        turn(nr, answer);
        next = nr + 1;
    }
    turn(next, unknown);
    // One rule makes the beginning: four instructions up to the loaded number, and what we replace.
    let rule = BTreeMap::from([(libc::SYS_read, Vec::new())]);
    let mut code = program(rule, otherwise, SeccompAction::Allow)?;
    code.truncate(HEAD);
    halve(&runs, &mut code);
    Ok(code)
}

/// Instructions of seccompiler's beginning: load the architecture, compare, kill, load the number.
const HEAD: usize = 4;

/// Search runs by halves. A jump that is too far for a comparison is an instruction of its own.
fn halve(runs: &[(u32, u32)], code: &mut BpfProgram) {
    // Codes of classic BPF: jump always, jump if greater or equal, return.
    let [always, at_least, ret]: [u16; 3] = [0x05, 0x35, 0x06];
    let op = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    if let [(_, answer)] = runs {
        code.push(op(ret, *answer, 0, 0));
        return;
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let mut lower = BpfProgram::new();
    halve(low, &mut lower);
    if let Ok(past) = u8::try_from(lower.len()) {
        code.push(op(at_least, high[0].0, past, 0));
    } else {
        let past = u32::try_from(lower.len()).unwrap_or(u32::MAX);
        code.push(op(at_least, high[0].0, 0, 1));
        code.push(op(always, past, 0, 0));
    }
    code.append(&mut lower);
    halve(high, code);
}

fn rules_of(bad: &Bad) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    use SeccompCmpArgLen::{Dword, Qword};
    let one =
        |arg, len, op, value| SeccompRule::new(vec![SeccompCondition::new(arg, len, op, value)?]);
    let rules: Result<Vec<_>, _> = match bad {
        Bad::AnyBit(arg, bits) => {
            bits.iter().map(|bit| one(*arg, Qword, SeccompCmpOp::MaskedEq(*bit), *bit)).collect()
        }
        Bad::OneOf(arg, values) => {
            values.iter().map(|value| one(*arg, Dword, SeccompCmpOp::Eq, *value)).collect()
        }
        Bad::NoneOf(arg, values) => values
            .iter()
            .map(|value| SeccompCondition::new(*arg, Dword, SeccompCmpOp::Ne, *value))
            .collect::<Result<Vec<_>, _>>()
            .and_then(SeccompRule::new)
            .map(|rule| vec![rule]),
        Bad::Masked(arg, mask, values) => values
            .iter()
            .map(|value| one(*arg, Qword, SeccompCmpOp::MaskedEq(*mask), *value))
            .collect(),
        Bad::AnyBitWith((flags, making), (mode, bits)) => {
            let set =
                |arg, bit| SeccompCondition::new(arg, Dword, SeccompCmpOp::MaskedEq(bit), bit);
            let pairs = making.iter().flat_map(|make| bits.iter().map(move |bit| (*make, *bit)));
            pairs
                .map(|(make, bit)| SeccompRule::new(vec![set(*flags, make)?, set(*mode, bit)?]))
                .collect()
        }
    };
    Ok(rules?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_stands_once_and_has_a_reason() {
        let mut seen = BTreeSet::new();
        for group in ALLOWED.iter().chain(REFUSED) {
            assert!(!group.who.is_empty());
            for nr in group.calls {
                assert!(seen.insert(*nr), "call {nr} stands twice");
            }
        }
        for nr in ALLOWED_OLD.iter().chain(REFUSED_OLD).chain(LABELS) {
            assert!(seen.insert(*nr), "call {nr} stands twice");
        }
        for (nr, _) in ARGUMENTS.iter().chain(ARGUMENTS_OLD) {
            assert!(seen.contains(nr), "call {nr} has a rule but no place in the table");
        }
    }

    /// What the last filter answers for a call.
    fn answer(filters: &Filters, nr: u32) -> u32 {
        let code = &filters.programs[2];
        let mut at = HEAD;
        loop {
            let op = &code[at];
            at += 1;
            match op.code {
                0x06 => return op.k,
                0x05 => at += op.k as usize,
                0x35 => at += usize::from(if nr >= op.k { op.jt } else { op.jf }),
                other => panic!("{other} at {at}"),
            }
        }
    }

    #[test]
    fn every_call_has_the_answer_of_its_place_in_the_table() {
        for profile in [Profile::Povray, Profile::Python, Profile::Command] {
            for job_exec in [false, true] {
                let filters = Filters::compile(Wants { profile, services: false, job_exec });
                let filters = filters.unwrap();
                let granted = |group: &Group| match group.who {
                    NAMELESS => job_exec,
                    SOCKETS => profile != Profile::Povray,
                    BLENDER => profile == Profile::Command,
                    _ => true,
                };
                let errno = |code: i32| u32::from(SeccompAction::Errno(code.cast_unsigned()));
                let held = |calls: &[c_long], nr: u32| calls.contains(&c_long::from(nr));
                for nr in (0..600).chain([0x4000_0000, 0x4000_003b, u32::MAX]) {
                    let group = ALLOWED.iter().find(|group| held(group.calls, nr));
                    let refused = REFUSED.iter().any(|group| held(group.calls, nr));
                    let expected = if held(LABELS, nr) {
                        errno(libc::EOPNOTSUPP)
                    } else if refused || held(REFUSED_OLD, nr) || group.is_some_and(|g| !granted(g))
                    {
                        errno(libc::EPERM)
                    } else if group.is_some() || held(ALLOWED_OLD, nr) {
                        u32::from(SeccompAction::Allow)
                    } else {
                        errno(libc::ENOSYS)
                    };
                    assert_eq!(answer(&filters, nr), expected, "{profile:?} {job_exec} {nr}");
                }
            }
        }
    }

    #[test]
    fn the_table_compiles_and_stays_within_the_kernels_length() {
        let filters =
            Filters::compile(Wants { profile: Profile::Command, services: true, job_exec: true })
                .unwrap();
        for program in &filters.programs {
            assert!(program.len() < 4096);
        }
        // All three are compiled at each start.
        let lengths = filters.programs.each_ref().map(Vec::len);
        assert!(lengths.iter().sum::<usize>() < 800, "{lengths:?}");
        assert!(filters.evidence().contains("filter "));
    }
}
