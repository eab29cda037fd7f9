//! What lies below the hooks: raw system calls, the table's bytes, and the libc functions that hand out objects.
#![allow(
    unsafe_code,
    reason = "raw system calls and symbols; the decisions are safe code in redirect.rs"
)]

use core::{
    ffi::{c_char, c_int, c_void},
    ptr,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

use crate::redirect::Table;

/// Numbers of the calls that the hooks make, by architecture.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
pub(crate) mod nr {
    pub(crate) const MMAP: usize = 9;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const TRUNCATE: usize = 76;
    pub(crate) const CHDIR: usize = 80;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const STATFS: usize = 137;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const MKDIRAT: usize = 258;
    pub(crate) const NEWFSTATAT: usize = 262;
    pub(crate) const UNLINKAT: usize = 263;
    pub(crate) const LINKAT: usize = 265;
    pub(crate) const SYMLINKAT: usize = 266;
    pub(crate) const READLINKAT: usize = 267;
    pub(crate) const FCHMODAT: usize = 268;
    pub(crate) const FACCESSAT: usize = 269;
    pub(crate) const UTIMENSAT: usize = 280;
    pub(crate) const RENAMEAT2: usize = 316;
    pub(crate) const STATX: usize = 332;
    pub(crate) const FACCESSAT2: usize = 439;
}
#[cfg(target_arch = "aarch64")]
#[rustfmt::skip]
pub(crate) mod nr {
    pub(crate) const MMAP: usize = 222;
    pub(crate) const CLOSE: usize = 57;
    pub(crate) const TRUNCATE: usize = 45;
    pub(crate) const CHDIR: usize = 49;
    pub(crate) const EXECVE: usize = 221;
    pub(crate) const STATFS: usize = 43;
    pub(crate) const EXIT_GROUP: usize = 94;
    pub(crate) const OPENAT: usize = 56;
    pub(crate) const MKDIRAT: usize = 34;
    pub(crate) const NEWFSTATAT: usize = 79;
    pub(crate) const UNLINKAT: usize = 35;
    pub(crate) const LINKAT: usize = 37;
    pub(crate) const SYMLINKAT: usize = 36;
    pub(crate) const READLINKAT: usize = 78;
    pub(crate) const FCHMODAT: usize = 53;
    pub(crate) const FACCESSAT: usize = 48;
    pub(crate) const UTIMENSAT: usize = 88;
    pub(crate) const RENAMEAT2: usize = 276;
    pub(crate) const STATX: usize = 291;
    pub(crate) const FACCESSAT2: usize = 439;
}

/// Relative paths start at the current folder.
pub(crate) const AT_FDCWD: usize = -100_isize as usize;

/// Where the launcher puts the table.
const TABLE_AT: &[u8] = b"/run/meshfarm/map.bin\0";
/// `dlsym`'s pseudo handles: the next object after the caller's, and all objects.
const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;
const RTLD_DEFAULT: *mut c_void = ptr::null_mut();

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

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

/// Set errno.
pub(crate) fn set_errno(code: c_int) {
    // SAFETY: libc's own way to this thread's errno; takes nothing.
    let place = unsafe { __errno_location() };
    // SAFETY: the pointer is to this thread's errno and lives as long as the thread.
    unsafe { *place = code };
}

static TABLE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static TABLE_LENGTH: AtomicUsize = AtomicUsize::new(0);

/// The table, once the library has started; hooks that run earlier see none and change nothing.
pub(crate) fn table() -> Option<Table<'static>> {
    let start = TABLE.load(Ordering::Acquire);
    if start.is_null() {
        return None;
    }
    // SAFETY: the mapping below is of this length, read-only, private and never unmapped.
    let bytes = unsafe { core::slice::from_raw_parts(start, TABLE_LENGTH.load(Ordering::Relaxed)) };
    Table::new(bytes)
}

/// A libc function that is looked up when the library starts, or at its first use if that is earlier.
#[derive(Debug)]
pub(crate) struct Next {
    found: AtomicPtr<c_void>,
    name: &'static core::ffi::CStr,
}

impl Next {
    const fn new(name: &'static core::ffi::CStr) -> Self {
        Self { found: AtomicPtr::new(ptr::null_mut()), name }
    }

    /// The function's address; null when this libc has none.
    pub(crate) fn get(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: the name ends with NUL; dlsym is libc's own.
        let found = unsafe { dlsym(RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

macro_rules! next {
    ($($static:ident $name:literal)*) => {
        $(pub(crate) static $static: Next = Next::new($name);)*
        fn look_up() {
            $($static.get();)*
        }
    };
}

next! {
    FOPEN c"fopen" FOPEN64 c"fopen64" FREOPEN c"freopen" FREOPEN64 c"freopen64" OPENDIR c"opendir"
    REALPATH c"realpath" REALPATH_CHK c"__realpath_chk" CANONICALIZE c"canonicalize_file_name"
    SCANDIR c"scandir" SCANDIR64 c"scandir64" STATVFS c"statvfs" STATVFS64 c"statvfs64"
    GLOB c"glob" GLOB64 c"glob64" POSIX_SPAWN c"posix_spawn"
}

/// glibc keeps an old `realpath` without memory of its own; asking by name alone may find that one.
fn look_up_realpath() {
    // SAFETY: the name ends with NUL; dlsym is libc's own.
    let dlvsym = unsafe { dlsym(RTLD_DEFAULT, c"dlvsym".as_ptr()) };
    if dlvsym.is_null() {
        return;
    }
    type Versioned = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;
    // SAFETY: the symbol of that name has this type in every libc that has it.
    let dlvsym: Versioned = unsafe { core::mem::transmute(dlvsym) };
    // SAFETY: both names end with NUL.
    let found = unsafe { dlvsym(RTLD_NEXT, c"realpath".as_ptr(), c"GLIBC_2.3".as_ptr()) };
    if !found.is_null() {
        REALPATH.found.store(found, Ordering::Relaxed);
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    look_up();
    look_up_realpath();
    load_table();
}

fn load_table() {
    const READ_ONLY_CLOEXEC: usize = 0o2_000_000;
    let path = TABLE_AT.as_ptr() as usize;
    // SAFETY: the path ends with NUL.
    let fd = unsafe { syscall(nr::OPENAT, [AT_FDCWD, path, READ_ONLY_CLOEXEC, 0, 0, 0]) };
    let Ok(fd) = usize::try_from(fd) else { return };
    if let Some(length) = length_of(fd) {
        // PROT_READ, MAP_PRIVATE.
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { syscall(nr::MMAP, [0, length, 1, 2, fd, 0]) };
        if start > 0 {
            TABLE_LENGTH.store(length, Ordering::Relaxed);
            TABLE.store(start as *mut u8, Ordering::Release);
        }
    }
    // SAFETY: closes the descriptor that was opened above.
    unsafe { syscall(nr::CLOSE, [fd, 0, 0, 0, 0, 0]) };
}

/// The length of an open file, by statx: its struct is the same everywhere.
fn length_of(fd: usize) -> Option<usize> {
    const EMPTY_PATH: usize = 0x1000;
    const SIZE: usize = 0x200;
    let mut buffer = [0_u64; 32];
    let (empty, out) = (c"".as_ptr() as usize, buffer.as_mut_ptr() as usize);
    // SAFETY: the buffer has the 256 bytes of struct statx.
    let n = unsafe { syscall(nr::STATX, [fd, empty, EMPTY_PATH, SIZE, out, 0]) };
    // stx_size lies at byte 40.
    if n == 0 { usize::try_from(buffer[5]).ok().filter(|n| *n > 0) } else { None }
}
