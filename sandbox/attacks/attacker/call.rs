//! System calls by number: through libc, and in the static program by the processor's own instruction.

use std::{
    ffi::{CStr, CString},
    io,
};

use libc::{c_int, c_long};

/// One argument of a call. Buffers live as long as the call.
#[derive(Debug)]
pub(crate) enum Arg<'a> {
    Number(usize),
    Text(&'a CStr),
    In(&'a [u8]),
    Out(&'a mut [u8]),
}

/// A call with up to six arguments: numbers, strings (`&CStr`), and buffers (`&[u8]`, `&mut [u8]`).
macro_rules! call {
    ($number:expr $(, $arg:expr)* $(,)?) => {
        $crate::call::call($number, [$($crate::call::Arg::from($arg)),*])
    };
}

/// Make the call; a negative answer is an error.
pub(crate) fn call<const N: usize>(number: c_long, args: [Arg<'_>; N]) -> io::Result<usize> {
    let mut words = [0_usize; 6];
    for (word, arg) in words.iter_mut().zip(args) {
        *word = match arg {
            Arg::Number(n) => n,
            Arg::Text(text) => text.as_ptr() as usize,
            Arg::In(bytes) => bytes.as_ptr() as usize,
            Arg::Out(bytes) => bytes.as_mut_ptr() as usize,
        };
    }
    let answer = enter(number, words);
    if (-4095..0).contains(&answer) {
        return Err(io::Error::from_raw_os_error(c_int::try_from(-answer).unwrap_or(0)));
    }
    Ok(answer.cast_unsigned())
}

#[cfg(all(target_arch = "x86_64", target_feature = "crt-static"))]
fn enter(number: c_long, a: [usize; 6]) -> isize {
    let mut answer = number as isize;
    // SAFETY: pointers among the arguments are to buffers that outlive the call, and the acts of this
    // program pass buffers of the size that the call writes. The kernel changes rcx and r11 besides.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") answer,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
        );
    }
    answer
}

#[cfg(not(all(target_arch = "x86_64", target_feature = "crt-static")))]
fn enter(number: c_long, a: [usize; 6]) -> isize {
    // SAFETY: pointers among the arguments are to buffers that outlive the call, and the acts of this
    // program pass buffers of the size that the call writes.
    let answer = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if answer < 0 {
        let error = io::Error::last_os_error();
        return -(error.raw_os_error().unwrap_or(libc::EIO) as isize);
    }
    isize::try_from(answer).unwrap_or(-1)
}

impl From<usize> for Arg<'_> {
    fn from(n: usize) -> Self {
        Self::Number(n)
    }
}

impl From<i32> for Arg<'_> {
    fn from(n: i32) -> Self {
        Self::Number((n as isize).cast_unsigned())
    }
}

impl From<libc::c_ulong> for Arg<'_> {
    fn from(n: libc::c_ulong) -> Self {
        Self::Number(usize::try_from(n).unwrap_or(usize::MAX))
    }
}

impl From<u32> for Arg<'_> {
    fn from(n: u32) -> Self {
        Self::Number(n as usize)
    }
}

impl<'a> From<&'a CStr> for Arg<'a> {
    fn from(text: &'a CStr) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a CString> for Arg<'a> {
    fn from(text: &'a CString) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::In(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Arg<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::In(bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Arg<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Out(bytes)
    }
}

impl<'a> From<&'a mut Vec<u8>> for Arg<'a> {
    fn from(bytes: &'a mut Vec<u8>) -> Self {
        Self::Out(bytes)
    }
}

/// A string as system calls take it.
pub(crate) fn c(text: &str) -> CString {
    CString::new(text.as_bytes()).unwrap_or_default()
}

/// A descriptor out of a call's answer.
pub(crate) fn fd(answer: usize) -> c_int {
    c_int::try_from(answer).unwrap_or(-1)
}

/// The bytes of a structure of 64-bit words.
pub(crate) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// The bytes of a structure of 32-bit words.
pub(crate) fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// Open a path; the mode of a new file is 0644.
pub(crate) fn open(path: &str, flags: i32) -> io::Result<c_int> {
    let path = c(path);
    call!(libc::SYS_openat, libc::AT_FDCWD, &path, flags | libc::O_CLOEXEC, 0o644).map(fd)
}

/// What can be read from a descriptor, up to 4 KiB.
pub(crate) fn content(file: c_int) -> io::Result<String> {
    let mut bytes = vec![0; 4096];
    let n = call!(libc::SYS_read, file, &mut bytes, 4096_usize)?;
    Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
}

/// The beginning of a file.
pub(crate) fn read(path: &str) -> io::Result<String> {
    content(open(path, libc::O_RDONLY)?)
}

/// Write to a descriptor.
pub(crate) fn write(file: c_int, text: &str) -> io::Result<usize> {
    call!(libc::SYS_write, file, text.as_bytes(), text.len())
}

/// Fork; `None` in the child. Only this thread goes on there.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this program has one thread whenever an act forks, so no lock is held in the child.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Fork a process that stays until its parent goes.
pub(crate) fn fork_idle() -> io::Result<i32> {
    if let Some(pid) = fork()? {
        return Ok(pid);
    }
    drop(call!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, 9));
    // If the parent went before the line above, the limit of time ends this one.
    std::thread::sleep(std::time::Duration::from_secs(20));
    std::process::exit(0)
}

/// The numbers of all processes that the process list shows, without this one.
pub(crate) fn others() -> Vec<u32> {
    let Ok(list) = std::fs::read_dir("/proc") else { return Vec::new() };
    list.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect()
}

/// Run a closure in a forked process and leave that standing; for acts that change their own process.
pub(crate) fn in_a_child(act: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    let (mut rx, mut tx) = io::pipe()?;
    if fork()?.is_none() {
        drop(rx);
        drop(call!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, 9));
        let said = act().unwrap_or_else(|e| format!("refused: {e}"));
        drop(io::Write::write_all(&mut tx, said.as_bytes()));
        drop(tx);
        std::thread::sleep(std::time::Duration::from_secs(20));
        std::process::exit(0);
    }
    drop(tx);
    let mut said = String::new();
    io::Read::read_to_string(&mut rx, &mut said)?;
    Ok(said)
}
