//! Raw system calls: their numbers by architecture, and the few that the library makes for itself.
#![allow(unsafe_code, reason = "a system call is an instruction on the caller's pointers")]

macro_rules! numbers {
    ($($name:ident $x86:literal $arm:literal)*) => {
        /// Numbers of system calls.
        #[cfg(target_arch = "x86_64")]
        pub(crate) mod nr {
            $(pub(crate) const $name: usize = $x86;)*
        }
        /// Numbers of system calls.
        #[cfg(target_arch = "aarch64")]
        pub(crate) mod nr {
            $(pub(crate) const $name: usize = $arm;)*
        }
    };
}

numbers! {
    WRITE 1 64  CLOSE 3 57  MMAP 9 222  MUNMAP 11 215  GETPID 39 172  EXECVE 59 221  TRUNCATE 76 45
    CHDIR 80 49  STATFS 137 43  SETXATTR 188 5  LSETXATTR 189 6  GETXATTR 191 8  LGETXATTR 192 9
    LISTXATTR 194 11  LLISTXATTR 195 12  REMOVEXATTR 197 14  LREMOVEXATTR 198 15  EXIT_GROUP 231 94
    INOTIFY_ADD_WATCH 254 27  OPENAT 257 56  MKDIRAT 258 34  MKNODAT 259 33  FCHOWNAT 260 54
    NEWFSTATAT 262 79  UNLINKAT 263 35  RENAMEAT 264 38  LINKAT 265 37  SYMLINKAT 266 36
    READLINKAT 267 78  FCHMODAT 268 53  FACCESSAT 269 48  UTIMENSAT 280 88  RENAMEAT2 316 276
    EXECVEAT 322 281  STATX 332 291  OPENAT2 437 437  FACCESSAT2 439 439  FCHMODAT2 452 452
}

/// Relative paths start at the current folder.
pub(crate) const AT_FDCWD: usize = -100_isize as usize;
/// Close the descriptor when another program starts.
pub(crate) const O_CLOEXEC: usize = 0o2_000_000;

/// One system call; the result is negative errno on failure.
///
/// # Safety
/// As the call itself: pointers among the arguments must be what that call expects.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the kernel changes only the registers named.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr as isize => result, in("rdi") a[0], in("rsi") a[1],
            in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// One system call; the result is negative errno on failure.
///
/// # Safety
/// As the call itself: pointers among the arguments must be what that call expects.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the kernel changes only the registers named.
    unsafe {
        core::arch::asm!("svc 0", in("x8") nr, inlateout("x0") a[0] as isize => result, in("x1") a[1],
            in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}

/// End the program: nothing sensible is left to do.
pub(crate) fn stop() -> ! {
    loop {
        // SAFETY: takes a number and does not return.
        unsafe { syscall(nr::EXIT_GROUP, [134, 0, 0, 0, 0, 0]) };
    }
}

/// Open a file of our own; the path ends with NUL.
pub(crate) fn open(path: &[u8], flags: usize, mode: usize) -> Option<usize> {
    debug_assert_eq!(path.last(), Some(&0));
    let path = path.as_ptr() as usize;
    // SAFETY: the path ends with NUL and outlives the call.
    let fd = unsafe { syscall(nr::OPENAT, [AT_FDCWD, path, flags | O_CLOEXEC, mode, 0, 0]) };
    usize::try_from(fd).ok()
}

/// Close a descriptor of our own.
pub(crate) fn close(fd: usize) {
    // SAFETY: takes a number, of a descriptor that only this library knows.
    unsafe { syscall(nr::CLOSE, [fd, 0, 0, 0, 0, 0]) };
}

/// Write once; what does not fit is lost.
pub(crate) fn write(fd: usize, bytes: &[u8]) {
    // SAFETY: the kernel reads as many bytes as there are.
    unsafe { syscall(nr::WRITE, [fd, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) };
}

/// This process's number.
pub(crate) fn process() -> u32 {
    // SAFETY: takes nothing.
    let pid = unsafe { syscall(nr::GETPID, [0; 6]) };
    u32::try_from(pid).unwrap_or(0)
}

/// The length of an open file, by statx: its struct is the same everywhere.
pub(crate) fn length_of(fd: usize) -> Option<usize> {
    const EMPTY_PATH: usize = 0x1000;
    const SIZE: usize = 0x200;
    let mut buffer = [0_u64; 32];
    let (empty, out) = (c"".as_ptr() as usize, buffer.as_mut_ptr() as usize);
    // SAFETY: the buffer has the 256 bytes of struct statx.
    let n = unsafe { syscall(nr::STATX, [fd, empty, EMPTY_PATH, SIZE, out, 0]) };
    // stx_size lies at byte 40.
    if n == 0 { usize::try_from(buffer[5]).ok() } else { None }
}

/// Map an open file to read; it stays mapped for good.
pub(crate) fn map(fd: usize, length: usize) -> Option<&'static [u8]> {
    const READ: usize = 1;
    const PRIVATE: usize = 2;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { syscall(nr::MMAP, [0, length, READ, PRIVATE, fd, 0]) };
    if start <= 0 {
        return None;
    }
    // SAFETY: the mapping above has this length, is read-only, and is never unmapped.
    Some(unsafe { core::slice::from_raw_parts(start as *const u8, length) })
}

/// Whether something lies at a path, which ends with NUL; a link counts itself.
pub(crate) fn exists(path: &[u8]) -> bool {
    const SYMLINK_NOFOLLOW: usize = 0x100;
    let mut stat = [0_u64; 32];
    let (path, out) = (path.as_ptr() as usize, stat.as_mut_ptr() as usize);
    // SAFETY: the path ends with NUL, and the buffer is larger than struct stat.
    unsafe { syscall(nr::NEWFSTATAT, [AT_FDCWD, path, out, SYMLINK_NOFOLLOW, 0, 0]) == 0 }
}

/// Read a link at a path that ends with NUL.
pub(crate) fn read_link(path: &[u8], out: &mut [u8]) -> Result<usize, i32> {
    let (path, room, length) = (path.as_ptr() as usize, out.as_mut_ptr() as usize, out.len());
    // SAFETY: the path ends with NUL, and the kernel writes at most the length of the room.
    let n = unsafe { syscall(nr::READLINKAT, [AT_FDCWD, path, room, length, 0, 0]) };
    usize::try_from(n).map_err(|_negative| i32::try_from(-n).unwrap_or(0))
}

/// Whether a path that ends with NUL is a folder that may be entered.
pub(crate) fn enter(path: &[u8]) -> Result<(), i32> {
    const DIRECTORY: usize = if cfg!(target_arch = "aarch64") { 0o40_000 } else { 0o200_000 };
    const PATH: usize = 0o10_000_000;
    let start = path.as_ptr() as usize;
    // SAFETY: the path ends with NUL.
    let fd =
        unsafe { syscall(nr::OPENAT, [AT_FDCWD, start, DIRECTORY | PATH | O_CLOEXEC, 0, 0, 0]) };
    let Ok(fd) = usize::try_from(fd) else { return Err(i32::try_from(-fd).unwrap_or(0)) };
    let mut stat = [0_u64; 32];
    let (above, out) = (c"..".as_ptr() as usize, stat.as_mut_ptr() as usize);
    // SAFETY: the name ends with NUL, and the buffer is larger than struct stat.
    let n = unsafe { syscall(nr::NEWFSTATAT, [fd, above, out, 0, 0, 0]) };
    close(fd);
    if n == 0 { Ok(()) } else { Err(i32::try_from(-n).unwrap_or(0)) }
}

/// Memory for a list that is too long for the stack.
pub(crate) fn room(length: usize) -> Option<&'static mut [u8]> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    let nowhere = usize::MAX;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start =
        unsafe { syscall(nr::MMAP, [0, length, READ_WRITE, PRIVATE_ANONYMOUS, nowhere, 0]) };
    if start <= 0 {
        return None;
    }
    // SAFETY: the mapping above has this length, is nobody else's, and lives until it is given back.
    Some(unsafe { core::slice::from_raw_parts_mut(start as *mut u8, length) })
}

/// Give such memory back.
pub(crate) fn give_back(room: &'static mut [u8]) {
    // SAFETY: the mapping was made by `room`, and its only reference ends here.
    unsafe { syscall(nr::MUNMAP, [room.as_mut_ptr() as usize, room.len(), 0, 0, 0, 0]) };
}
