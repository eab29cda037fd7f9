//! The few questions to the operating system that the standard library does not ask.
#![expect(unsafe_code, reason = "system calls that the standard library does not wrap")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that we may still write to the disk of `path`.
///
/// # Errors
/// When there is no such path, or the system does not say.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a NUL and the buffer is as large as the call writes.
    let rc = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, so it has written the whole buffer.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Give the room of `len` bytes of a file back, from `offset` on: they read as zeros from now on, and the file
/// keeps its length.
///
/// # Errors
/// When the file system cannot, or the file is not open for writing.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (offset, len) =
        (i64::try_from(offset).map_err(too_far)?, i64::try_from(len).map_err(too_far)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call takes numbers only, and the descriptor is open as long as the file is borrowed.
    let rc = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keep everybody from opening a new file, which only we have open, until [`let_open`] or until `file` is closed. Who
/// tries waits meanwhile, as long as `/proc/sys/fs/lease-break-time` says: usually 45 seconds.
///
/// # Errors
/// When the file system cannot, or somebody else has it open.
pub fn keep_closed(file: &File) -> io::Result<()> {
    // SAFETY: the call takes numbers only, and the descriptor is open as long as the file is borrowed.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // Nobody is to be sent a signal when the file is wanted: it would end us, and we open the file anyway when we can.
    // SAFETY: as above.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETOWN, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Let everybody open the file again, and whoever waits for that.
///
/// # Errors
/// When it was not kept closed.
pub fn let_open(file: &File) -> io::Result<()> {
    // SAFETY: the call takes numbers only, and the descriptor is open as long as the file is borrowed.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether we are root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether a user of the host exists in our user namespace: in a container without privileges only a few do.
#[must_use]
pub fn has_user(uid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let numbers = line.split_whitespace().map_while(|number| number.parse::<u64>().ok());
        match numbers.collect::<Vec<_>>()[..] {
            [first, _, count] => (first..first.saturating_add(count)).contains(&u64::from(uid)),
            _ => false,
        }
    })
}

/// Memory that this process has resident, in bytes; zero where the system does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opens_a_file_that_is_kept_closed_waits_until_it_is_let_open() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("held");
        let file = File::create_new(&path).unwrap();
        keep_closed(&file).unwrap();
        let (began_tx, began) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                began_tx.send(()).unwrap();
                std::fs::read(&path).unwrap()
            });
            began.recv().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"whole", 0).unwrap();
            let_open(&file).unwrap();
            assert_eq!(reader.join().unwrap(), b"whole");
        });
        keep_closed(&file).unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"whole", "closing it lets others open it");
    }

    #[test]
    fn a_hole_reads_as_zeros_and_takes_no_room() {
        use std::os::unix::fs::MetadataExt;
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[7; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap();
        punch_hole(&file, 4096, 1 << 19).unwrap();
        let after = file.metadata().unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after.blocks() + (1 << 9) <= before.blocks(), "{} blocks", after.blocks());
        let mut bytes = [1; 2];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4095).unwrap();
        assert_eq!(bytes, [7, 0]);
        assert!(punch_hole(&file, 0, 0).is_err());
    }

    #[test]
    fn the_system_answers() {
        assert!(free_bytes(Path::new("/tmp")).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
        assert!(resident_bytes() > 0);
        // SAFETY: the call takes nothing and cannot fail.
        assert!(has_user(unsafe { libc::geteuid() }));
        assert!(!has_user(u32::MAX), "this number never names a user");
    }
}
