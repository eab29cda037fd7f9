//! Every raw system call of this crate, errno checked; the only unsafe code outside the preload library.
#![allow(
    unsafe_code,
    reason = "system calls that std does not offer; every other file of this crate stays safe"
)]

// By its path, because the fuzz targets take this file in from elsewhere.
#[path = "sys/mounts.rs"]
mod mounts;

use std::{
    ffi::{CStr, CString},
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

pub(crate) use mounts::*;

pub(crate) use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS, EINVAL, ENOENT, EPERM, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE,
    RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_RTPRIO,
    RLIMIT_SIGPENDING, SIGKILL,
};

/// How a path may be resolved: see openat2(2).
pub(crate) const RESOLVE_CONFINED: u64 = libc::RESOLVE_BENEATH
    | libc::RESOLVE_NO_SYMLINKS
    | libc::RESOLVE_NO_MAGICLINKS
    | libc::RESOLVE_NO_XDEV;
/// For looking at a name: one part only, so a link is seen and not followed.
pub(crate) const RESOLVE_NAME: u64 =
    libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
/// As [`RESOLVE_CONFINED`], but mount points may be crossed.
pub(crate) const RESOLVE_PLAIN: u64 =
    libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old process, with the number and a descriptor of the new one.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// What a process and its waited-for descendants used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) user_ms: u64,
    pub(crate) system_ms: u64,
    pub(crate) peak_bytes: u64,
}

/// The C form of a path; an inner NUL is `EINVAL`.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_nul| errno(EINVAL))
}

/// An error with this errno.
pub(crate) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(check(result)?).map_err(|_range| errno(libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Fork into new namespaces (`CLONE_NEW*`, may be 0). Only for single-threaded programs.
pub(crate) fn fork_into(namespaces: i32) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(namespaces | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: a null stack means fork semantics: the child goes on with a copy of everything; the
    // program is single-threaded, so that no lock is held by a thread that the copy lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match check(pid)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent {
            pid: i32::try_from(pid).map_err(|_range| errno(libc::ESRCH))?,
            pidfd: owned(libc::c_long::from(pidfd))?,
        }),
    }
}

/// Wait for a child (`-1`: any); `None` when it has no child left. The status is the raw wait status.
pub(crate) fn wait(pid: i32) -> io::Result<Option<(i32, i32, Used)>> {
    // SAFETY: an all-zero rusage is a valid value of that plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    loop {
        // SAFETY: both pointers are to live locals that the kernel fills.
        let got = unsafe { libc::wait4(pid, &raw mut status, libc::__WALL, &raw mut usage) };
        match check(libc::c_long::from(got)) {
            Ok(_) => return Ok(Some((got, status, used(&usage)))),
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

fn used(usage: &libc::rusage) -> Used {
    let ms = |t: libc::timeval| {
        u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + u64::try_from(t.tv_usec).unwrap_or(0) / 1000
    };
    Used {
        user_ms: ms(usage.ru_utime),
        system_ms: ms(usage.ru_stime),
        peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }
}

/// A raw wait status as (exit code, signal): exactly one is set.
pub(crate) fn split_status(status: i32) -> (Option<i32>, Option<i32>) {
    if libc::WIFEXITED(status) {
        (Some(libc::WEXITSTATUS(status)), None)
    } else {
        (None, Some(libc::WTERMSIG(status)))
    }
}

/// Send a signal to exactly the process behind the descriptor.
pub(crate) fn signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let fd = process.as_raw_fd();
    // SAFETY: takes numbers and a null siginfo only.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, 0, 0) }).map(drop)
}

/// Wait until one of two descriptors is readable or hung up; tells which are.
pub(crate) fn wait_readable(fds: [BorrowedFd<'_>; 2], timeout_ms: i32) -> io::Result<[bool; 2]> {
    let mut polled =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: the array has the length that is passed and outlives the call.
        let n = unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout_ms) };
        match check(libc::c_long::from(n)) {
            Ok(_) => return Ok(polled.map(|p| p.revents != 0)),
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Collect a child that has ended, without waiting: its number and raw status. `ECHILD` when there is no child.
pub(crate) fn wait_now() -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the pointer is to a live local that the kernel fills.
    let got = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    check(libc::c_long::from(got)).map(|pid| (pid > 0).then_some((got, status)))
}

/// Whether the other end of a pipe is closed, after waiting for that for a while. What was written stays unread.
pub(crate) fn wait_hung_up(pipe: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<bool> {
    let mut polled = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one live struct, as is stated.
    let n = unsafe { libc::poll(&raw mut polled, 1, timeout_ms) };
    match check(libc::c_long::from(n)) {
        Err(e) if e.raw_os_error() == Some(libc::EINTR) => Ok(false),
        other => other.map(|_| polled.revents != 0),
    }
}

/// Kill a child that was not waited for; a number that is gone already changes nothing.
pub(crate) fn kill(pid: i32) {
    // SAFETY: takes numbers.
    unsafe { libc::kill(pid, SIGKILL) };
}

/// Inherit the orphans among the descendants.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

/// Do nothing for some milliseconds.
pub(crate) fn pause_ms(ms: u64) {
    std::thread::sleep(std::time::Duration::from_millis(ms));
}

/// Send bytes and one descriptor over a Unix stream socket; returns how many bytes went out.
pub(crate) fn send_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: BorrowedFd<'_>,
) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = ControlBuffer::default();
    let mut message = control.message(&mut part);
    // SAFETY: the message's control buffer is large enough for one header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the header lies within the control buffer, which is aligned for it.
    let header = unsafe { &mut *header };
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = libc::SCM_RIGHTS;
    header.cmsg_len = CONTROL_LEN;
    // SAFETY: the header was initialised above.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the data area of the buffer holds one descriptor.
    unsafe { data.cast::<RawFd>().write_unaligned(fd.as_raw_fd()) };
    message.msg_controllen = CONTROL_SPACE;
    // SAFETY: every pointer in the message is to a live local or argument.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_negative| io::Error::last_os_error())
}

/// Receive bytes and perhaps one descriptor from a Unix stream socket.
pub(crate) fn receive_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = ControlBuffer::default();
    let mut message = control.message(&mut part);
    let raw = socket.as_raw_fd();
    // SAFETY: every pointer in the message is to a live local or argument of the stated length.
    let n = unsafe { libc::recvmsg(raw, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let n = usize::try_from(n).map_err(|_negative| io::Error::last_os_error())?;
    // SAFETY: the kernel has set the control length of this message.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Ok((n, None));
    }
    // SAFETY: not null, so it lies within the control buffer.
    let header = unsafe { &*header };
    if header.cmsg_type != libc::SCM_RIGHTS || header.cmsg_len < CONTROL_LEN {
        return Ok((n, None));
    }
    // SAFETY: the header is one that the kernel has filled in.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: its length says that one descriptor lies there.
    let fd = unsafe { data.cast::<RawFd>().read_unaligned() };
    Ok((n, Some(owned(libc::c_long::from(fd))?)))
}

/// Room for the control header of one descriptor, with the alignment of a `cmsghdr`.
#[derive(Default)]
struct ControlBuffer([u64; 4]);

const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<RawFd>();
const CONTROL_SPACE: usize = size_of::<libc::cmsghdr>() + size_of::<u64>();

impl ControlBuffer {
    fn message(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: an all-zero msghdr is a valid value of that plain struct.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = part;
        message.msg_iovlen = 1;
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_SPACE;
        message
    }
}

/// The effective user of this process.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: cannot fail and takes nothing.
    unsafe { libc::geteuid() }
}

/// The effective group of this process.
pub(crate) fn effective_gid() -> u32 {
    // SAFETY: cannot fail and takes nothing.
    unsafe { libc::getegid() }
}

/// Become this user and group for good (real, effective, saved).
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Leave every supplementary group but these.
pub(crate) fn leave_groups(but: &[u32]) -> io::Result<()> {
    let (n, list) = (but.len(), but.as_ptr());
    // SAFETY: the list is live and its length is passed; one of length 0 is never read.
    check(unsafe { libc::syscall(libc::SYS_setgroups, n, list) }).map(drop)
}

/// Give a file that an `O_PATH` descriptor names to a user.
pub(crate) fn give_to(file: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: the path is a static empty string.
    let n = unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
    check(libc::c_long::from(n)).map(drop)
}

fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: only options that take numbers are used in this file.
    let n = unsafe {
        libc::prctl(option, argument, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong)
    };
    check(libc::c_long::from(n))?;
    Ok(n)
}

/// Die when the parent dies. Any later change of user clears this.
pub(crate) fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, 9).map(drop)
}

/// Whether others of the same user may read this process (ptrace, /proc/PID/mem).
pub(crate) fn be_readable(readable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, readable.into()).map(drop)
}

/// No exec may grant privileges from here on.
pub(crate) fn no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Whether no exec may grant privileges.
pub(crate) fn has_no_new_privs() -> bool {
    prctl(libc::PR_GET_NO_NEW_PRIVS, 0).is_ok_and(|n| n == 1)
}

/// Make it impossible to gain a capability again. Those held stay until [`empty_capabilities`].
pub(crate) fn lock_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        if let Err(e) = prctl(libc::PR_CAPBSET_DROP, capability) {
            // The first number that the kernel does not know ends the list.
            if e.raw_os_error() == Some(EINVAL) && capability > 30 {
                break;
            }
            return Err(e);
        }
    }
    // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock.
    prctl(libc::PR_SET_SECUREBITS, 0b1100_1111)?;
    // PR_CAP_AMBIENT with PR_CAP_AMBIENT_CLEAR_ALL.
    prctl(47, 4).map(drop)
}

/// Empty every capability set of this process.
pub(crate) fn empty_capabilities() -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let nothing = [0_u32; 6];
    // SAFETY: version 3 of the interface reads an 8-byte header and 24 bytes of sets.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) }).map(drop)
}

/// Lead a new session, without a controlling terminal.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    check(libc::c_long::from(unsafe { libc::setsid() })).map(drop)
}

/// Mask for the mode of new files.
pub(crate) fn umask(mask: u32) {
    // SAFETY: cannot fail and takes a number.
    unsafe { libc::umask(mask) };
}

/// Set every signal to its default action and unblock all.
pub(crate) fn reset_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL is no pointer to code; numbers that cannot be set are refused.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let none = 0_u64;
    let how = libc::SIG_SETMASK;
    // SAFETY: the kernel reads the 8 bytes of the mask and writes nothing.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, 0, 8) };
}

/// Set both the soft and the hard limit of a resource (`libc::RLIMIT_*`).
pub(crate) fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let value = libc::rlimit64 { rlim_cur: most, rlim_max: most };
    // SAFETY: the pointer is to a live local that the kernel reads.
    let n = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const value, 0) };
    check(n).map(drop)
}

/// The number of a resource; see getrlimit(2).
pub(crate) type Resource = libc::__rlimit_resource_t;

/// Mark every descriptor from this number on as closed by the next exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: takes numbers.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flag) }).map(drop)
}

/// Make descriptor `to` (0, 1 or 2) another name of `from`.
pub(crate) fn put_at(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: only the standard streams are replaced, which nobody owns.
    check(libc::c_long::from(unsafe { libc::dup2(from.as_raw_fd(), to) })).map(drop)
}

/// Replace this program. Returns only when that is refused.
pub(crate) fn exec(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Open a path below a folder under openat2's rules (`RESOLVE_*`).
pub(crate) fn open_below(
    folder: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero open_how is a valid value of that plain struct.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = resolve;
    let (fd, size) = (folder.as_raw_fd(), size_of::<libc::open_how>());
    loop {
        // SAFETY: the string ends with NUL, the struct is live and its size is passed.
        let n =
            unsafe { libc::syscall(libc::SYS_openat2, fd, path.as_ptr(), &raw const how, size) };
        match owned(n) {
            // The kernel asks to try again when a rename raced with the walk.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
}

/// Open a path as a mere name ([`NAME`] or [`LOOK`]).
pub(crate) fn open_name(path: &Path, how: i32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = how | libc::O_CLOEXEC;
    // SAFETY: the string ends with NUL and outlives the call.
    owned(libc::c_long::from(unsafe { libc::open(path.as_ptr(), flags) }))
}

/// The names in a folder, without `.` and `..`, in the filesystem's order.
pub(crate) fn list(
    folder: BorrowedFd<'_>,
) -> io::Result<impl Iterator<Item = io::Result<std::ffi::OsString>>> {
    // Through the process list the very folder behind the descriptor is listed, not a path of that name.
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    Ok(std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.file_name())))
}

/// Go to the folder that a descriptor names.
pub(crate) fn enter(folder: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a number.
    check(libc::c_long::from(unsafe { libc::fchdir(folder.as_raw_fd()) })).map(drop)
}

/// The name of this machine inside its uts namespace.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live string.
    check(libc::c_long::from(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }))
        .map(drop)
}

/// Bring up the loopback interface of the current network namespace.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    let flags = libc::__c_anonymous_ifr_ifru { ifru_flags: 1 };
    set_interface("lo", libc::SIOCSIFFLAGS, flags)
}

/// Let the loopback interface of the current network namespace have this address too; `n` tells it from further ones.
pub(crate) fn add_to_loopback(n: usize, address: Ipv4Addr) -> io::Result<()> {
    let name = format!("lo:{n}");
    set_interface(&name, libc::SIOCSIFADDR, interface_address(address))?;
    set_interface(&name, libc::SIOCSIFNETMASK, interface_address(Ipv4Addr::BROADCAST))
}

fn interface_address(address: Ipv4Addr) -> libc::__c_anonymous_ifr_ifru {
    let sa_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    let mut ifru_addr = libc::sockaddr { sa_family, sa_data: [0; 14] };
    // As in `sockaddr_in`: first the port.
    for (to, from) in ifru_addr.sa_data[2..].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::__c_anonymous_ifr_ifru { ifru_addr }
}

fn set_interface(
    name: &str,
    what: libc::Ioctl,
    value: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers.
    let socket = owned(libc::c_long::from(unsafe { libc::socket(libc::AF_INET, kind, 0) }))?;
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let fd = socket.as_raw_fd();
    // SAFETY: the request is live and of the type that these calls read.
    check(libc::c_long::from(unsafe { libc::ioctl(fd, what, &raw const request) })).map(drop)
}

/// The Landlock interface version of the running kernel; 0 where there is none.
pub(crate) fn landlock_version() -> u32 {
    // SAFETY: with the version flag nothing is read.
    let n = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    u32::try_from(n).unwrap_or(0)
}

/// Units of processor time in `/proc`, per second.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: takes a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).clamp(1, 1000)
}

/// Flags for a mere name.
pub(crate) const NAME: i32 = libc::O_PATH;
/// Flags for a first, harmless look at a name: nothing is opened and no link followed.
pub(crate) const LOOK: i32 = libc::O_PATH | libc::O_NOFOLLOW;
/// Flags for a folder that is to be listed.
pub(crate) const FOLDER: i32 = libc::O_RDONLY | libc::O_DIRECTORY;
/// Flags for reading a file that might be anything: never blocks, never becomes a terminal.
pub(crate) const READ: i32 = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// End this process at once, without running anything more.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: does not return and touches nothing of this process.
    unsafe { libc::_exit(code) }
}
