//! System calls about mounts: filesystems, devices behind them, copies of mounts and where they are attached.
#![allow(
    unsafe_code,
    reason = "system calls that std does not offer; every other file of this crate stays safe"
)]

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{CLONE_NEWNS, EINVAL, c_path, check, errno, owned};

/// Mount attributes as `mount_setattr` takes them.
pub(crate) const ATTR_RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-id bits and file capabilities have no effect on the mount.
pub(crate) const ATTR_NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device files of the mount cannot be opened.
pub(crate) const ATTR_NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Files of the mount cannot be executed or mapped executable.
pub(crate) const ATTR_NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Mount a new filesystem of this kind at a path.
pub(crate) fn mount(kind: &CStr, at: &Path, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let at = c_path(at)?;
    let data = CString::new(data).map_err(|_nul| errno(EINVAL))?;
    let kind = kind.as_ptr();
    // SAFETY: every string ends with NUL and outlives the call.
    let n = unsafe { libc::mount(kind, at.as_ptr(), kind, flags, data.as_ptr().cast()) };
    check(libc::c_long::from(n)).map(drop)
}

/// Flags of [`mount`] for a filesystem that holds only data.
pub(crate) const MOUNT_DATA: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Cut this mount namespace off from every other one.
pub(crate) fn make_mounts_private() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let null = std::ptr::null();
    // SAFETY: a change of propagation reads the target only.
    let n = unsafe { libc::mount(null, c"/".as_ptr(), null, flags, null.cast()) };
    check(libc::c_long::from(n)).map(drop)
}

/// A mount that nobody writes to.
pub(crate) const MOUNT_READ_ONLY: libc::c_ulong = libc::MS_RDONLY;

/// Flags of a mount that holds files which may be programs.
pub(crate) const MOUNT_FILES: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME;

/// Mount the filesystem that lies on a device.
pub(crate) fn mount_from(
    device: &Path,
    kind: &CStr,
    at: &Path,
    flags: libc::c_ulong,
    data: &str,
) -> io::Result<()> {
    let (device, at) = (c_path(device)?, c_path(at)?);
    let data = CString::new(data).map_err(|_nul| errno(EINVAL))?;
    let (from, to, data) = (device.as_ptr(), at.as_ptr(), data.as_ptr());
    // SAFETY: every string ends with NUL and outlives the call.
    check(libc::c_long::from(unsafe { libc::mount(from, to, kind.as_ptr(), flags, data.cast()) }))
        .map(drop)
}

/// Go to a mount namespace of our own.
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: takes a number.
    check(libc::c_long::from(unsafe { libc::unshare(CLONE_NEWNS) })).map(drop)
}

/// A file without a name, on the filesystem of this folder.
pub(crate) fn unnamed_file(folder: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let how = libc::O_TMPFILE;
    std::fs::OpenOptions::new().read(true).write(true).custom_flags(how).mode(0o600).open(folder)
}

/// Make a block device of a file; it goes when its last user is gone. Returns what keeps it until then, and its path.
pub(crate) fn attach_loop(image: BorrowedFd<'_>) -> io::Result<(std::fs::File, PathBuf)> {
    const GET_FREE: libc::c_ulong = 0x4C82;
    const CONFIGURE: libc::c_ulong = 0x4C0A;
    /// `struct loop_config` in 32-bit words; the file's descriptor is the first, the flags the sixteenth.
    const WORDS: usize = 76;
    const FLAGS: usize = 15;
    const AUTOCLEAR: u32 = 4;
    let open = |path: &Path| std::fs::OpenOptions::new().read(true).write(true).open(path);
    let control = open(Path::new("/dev/loop-control"))?;
    loop {
        // SAFETY: takes no argument beyond the request.
        let n = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
        let path = PathBuf::from(format!("/dev/loop{}", check(libc::c_long::from(n))?));
        let device = open(&path)?;
        let mut config = [0_u32; WORDS];
        config[0] = image.as_raw_fd().cast_unsigned();
        config[FLAGS] = AUTOCLEAR;
        // SAFETY: the kernel reads as many bytes as the array has.
        let n = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, config.as_ptr()) };
        match check(libc::c_long::from(n)) {
            // Somebody else took the free one first.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other.map(|_| (device, path)),
        }
    }
}

/// Detach the mount at a path.
pub(crate) fn unmount(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    // SAFETY: the string ends with NUL and outlives the call.
    let n = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    check(libc::c_long::from(n)).map(drop)
}

/// Make the current folder the root and stack the old root upon it.
pub(crate) fn pivot_root_here() -> io::Result<()> {
    let here = c".".as_ptr();
    // SAFETY: both strings are static.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, here, here) }).map(drop)
}

/// A private copy of the mount at a path, attached nowhere. The path's last part may be a link or not.
pub(crate) fn clone_mount(
    path: &Path,
    with_mounts_below: bool,
    may_be_link: bool,
) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if with_mounts_below {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    if !may_be_link {
        flags |= libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
    }
    let at = libc::AT_FDCWD;
    // SAFETY: the string ends with NUL and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) })
}

/// Add attributes (`ATTR_*`) to a mount that a descriptor names.
pub(crate) fn restrict_mount(
    mount: BorrowedFd<'_>,
    attributes: u64,
    with_mounts_below: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if with_mounts_below {
        flags |= libc::AT_RECURSIVE;
    }
    let (fd, size) = (mount.as_raw_fd(), size_of::<libc::mount_attr>());
    let (empty, attr) = (c"".as_ptr(), &raw const attr);
    // SAFETY: the struct is live and its size is passed.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, empty, flags, attr, size) }).map(drop)
}

/// Attach a mount that a descriptor names upon the file or folder that another names.
pub(crate) fn attach_mount(mount: BorrowedFd<'_>, at: BorrowedFd<'_>) -> io::Result<()> {
    let (from, to, empty) = (mount.as_raw_fd(), at.as_raw_fd(), c"".as_ptr());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both strings are static and empty.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) }).map(drop)
}
