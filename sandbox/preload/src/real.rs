//! What lies below the hooks of libc's own: its functions, this thread's errno, and the table when the library starts.
#![allow(unsafe_code, reason = "symbols of libc; the decisions are safe code in redirect.rs")]

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::atomic::{AtomicPtr, AtomicU8, Ordering},
};

use crate::{format::REVERSE as REVERSE_FLAG, hooks, kernel, record, rules::Table};

/// Where the launcher puts the table.
const TABLE_AT: &[u8] = b"/run/meshfarm/map.bin\0";
/// The variable that names the table on a host without namespaces, where the path above is not ours.
const TABLE_VARIABLE: &[u8] = b"MESHFARM_PATHS=";
/// `dlsym`'s pseudo handles: the next object after the caller's, and all objects.
const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;
const RTLD_DEFAULT: *mut c_void = ptr::null_mut();

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
    static environ: *const *const c_char;
}

fn errno_place() -> *mut c_int {
    // SAFETY: libc's own way to this thread's errno; takes nothing.
    unsafe { __errno_location() }
}

/// Set errno.
pub(crate) fn set_errno(code: c_int) {
    // SAFETY: the pointer is to this thread's errno and lives as long as the thread.
    unsafe { *errno_place() = code };
}

/// This thread's errno.
pub(crate) fn errno() -> c_int {
    // SAFETY: the pointer is to this thread's errno and lives as long as the thread.
    unsafe { *errno_place() }
}

/// There are Windows paths to map.
pub(crate) const WINDOWS: u8 = 1;
/// There are paths of this system to map.
pub(crate) const POSIX: u8 = 2;
/// Paths that the system hands out are to be mapped back.
pub(crate) const REVERSE: u8 = 4;
/// What is missing and what is found is to be noted.
pub(crate) const RECORD: u8 = 8;

struct Loaded(UnsafeCell<Option<Table<'static>>>);

// SAFETY: written once, before INTEREST is set with release order, and only read after it is seen set.
unsafe impl Sync for Loaded {}

static TABLE: Loaded = Loaded(UnsafeCell::new(None));
static INTEREST: AtomicU8 = AtomicU8::new(0);

/// What is to be done at all. Hooks that run before the library has started see nothing to do.
pub(crate) fn interest() -> u8 {
    INTEREST.load(Ordering::Acquire)
}

/// The table, once the library has started.
pub(crate) fn table() -> Option<&'static Table<'static>> {
    if interest() == 0 {
        return None;
    }
    // SAFETY: a set INTEREST says that the one write is done.
    unsafe { (*TABLE.0.get()).as_ref() }
}

/// A libc function that is looked up when the library starts, or at its first use if that is earlier.
#[derive(Debug)]
pub(crate) struct Next {
    found: AtomicPtr<c_void>,
    name: &'static CStr,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { found: AtomicPtr::new(ptr::null_mut()), name }
    }

    /// The function's address; null when this libc has none.
    pub(crate) fn get(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        let versioned = VERSIONS.iter().find(|(name, _)| *name == self.name);
        let found =
            versioned.map_or(ptr::null_mut(), |(name, version)| with_version(name, version));
        let found = if found.is_null() { find(RTLD_NEXT, self.name) } else { found };
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// What glibc keeps in several versions: asking by name alone may find the oldest, which does something else.
const VERSIONS: [(&CStr, &CStr); 7] = [
    (c"realpath", c"GLIBC_2.3"),
    (c"nftw", c"GLIBC_2.3.3"),
    (c"nftw64", c"GLIBC_2.3.3"),
    (c"glob", c"GLIBC_2.27"),
    (c"glob64", c"GLIBC_2.27"),
    (c"posix_spawn", c"GLIBC_2.15"),
    (c"posix_spawnp", c"GLIBC_2.15"),
];

fn find(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the name ends with NUL; dlsym is libc's own.
    unsafe { dlsym(handle, name.as_ptr()) }
}

fn with_version(name: &CStr, version: &CStr) -> *mut c_void {
    // Not every libc has versions.
    let dlvsym = find(RTLD_DEFAULT, c"dlvsym");
    if dlvsym.is_null() {
        return dlvsym;
    }
    type Versioned = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;
    // SAFETY: the symbol of that name has this type in every libc that has it.
    let dlvsym: Versioned = unsafe { core::mem::transmute(dlvsym) };
    // SAFETY: both names end with NUL.
    unsafe { dlvsym(RTLD_NEXT, name.as_ptr(), version.as_ptr()) }
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    hooks::look_up();
    let Some(table) = load(TABLE_AT).or_else(|| load(named_table()?)) else { return };
    let posix = table.rules().any(|rule| rule.posix);
    let reverse = table.flags & REVERSE_FLAG != 0;
    let record = !table.records.is_empty();
    let interest = [(posix, POSIX), (reverse, REVERSE), (record, RECORD)];
    let interest = interest.iter().filter(|(set, _)| *set).fold(WINDOWS, |all, (_, one)| all | one);
    // SAFETY: INTEREST is not set yet, so nobody reads; the loader runs this once, in one thread.
    unsafe { *TABLE.0.get() = Some(table) };
    INTEREST.store(interest, Ordering::Release);
    record::loaded(&table);
}

/// The path in the environment, with its NUL.
fn named_table() -> Option<&'static [u8]> {
    // SAFETY: libc's own list, read before the program can change it.
    let mut entry = unsafe { environ };
    if entry.is_null() {
        return None;
    }
    loop {
        // SAFETY: the list ends with a null pointer, and none was met so far.
        let text = unsafe { *entry };
        if text.is_null() {
            return None;
        }
        // SAFETY: every entry of the environment ends with NUL.
        let text = unsafe { CStr::from_ptr(text) }.to_bytes_with_nul();
        if let Some(path) = text.strip_prefix(TABLE_VARIABLE) {
            return Some(path);
        }
        entry = entry.wrapping_add(1);
    }
}

fn load(path: &[u8]) -> Option<Table<'static>> {
    let fd = kernel::open(path, 0, 0)?;
    let length = kernel::length_of(fd).filter(|n| *n > 0);
    let bytes = length.and_then(|length| kernel::map(fd, length));
    kernel::close(fd);
    Table::new(bytes?)
}
