//! Acts on the other tenant's files, by every way that leads to a name.

use std::{fs, io, os::unix::fs::symlink};

use crate::{
    Act, Target,
    call::{c, content, fd, open, others, read, words, write},
    got,
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("read-a-file-by-its-path", |t| read(t.get("secret"))),
    ("read-a-file-with-the-standard-library", |t| fs::read_to_string(t.get("secret"))),
    ("read-a-file-through-dot-dot", |t| read(&format!("{}/../../../../../../../..{}", t.get("work"), t.get("secret")))),
    ("read-a-file-through-a-link-in-the-work-folder", |t| through_link(t, "work")),
    ("read-a-file-through-a-link-in-the-outputs", |t| through_link(t, "out")),
    ("read-a-file-through-a-link-in-the-private-folder", |t| through_link(t, "tmp")),
    ("read-a-file-through-a-link-in-the-inputs", |t| read(&t.at("in", "link"))),
    ("read-a-file-through-its-own-root", |t| {
        read(&format!("/proc/self/root{0}", t.get("secret")))
            .or_else(|_| read(&format!("/proc/thread-self/root{0}", t.get("secret")))) }),
    ("read-a-file-through-the-root-of-another-process", |t| through_others(|pid| format!("/proc/{pid}/root{}", t.get("secret")))),
    ("read-a-file-through-the-working-folder-of-another-process", |_| through_others(|pid| format!("/proc/{pid}/cwd/secret.txt"))),
    ("read-a-file-through-an-open-file-of-another-process", through_open_files),
    ("read-a-file-through-a-leaked-folder", |_| (3..64)
        .find_map(|dir| call!(libc::SYS_openat, dir, c"secret.txt", libc::O_RDONLY, 0).ok())
        .map_or_else(nothing, |file| content(fd(file)))),
    ("climb-out-through-a-leaked-folder", |t| (3..64)
        .find_map(|dir| { call!(libc::SYS_fchdir, dir).ok()?; read(&format!("../../../../../..{}", t.get("secret"))).ok() })
        .map_or_else(nothing, Ok)),
    ("read-a-leaked-file", |_| {
        let mut bytes = vec![0; 200];
        (3..64).find(|file| call!(libc::SYS_pread64, *file, &mut bytes, 200_usize, 0).is_ok_and(|n| n > 0));
        Ok(String::from_utf8_lossy(&bytes).into_owned()) }),
    ("write-to-a-leaked-file", |_| {
        let n = (3..64).filter(|file| call!(libc::SYS_pwrite64, *file, b"spoiled".as_slice(), 7_usize, 0).is_ok()).count();
        Ok(format!("{n} written")) }),
    ("find-any-inherited-descriptor", |_| (3..4096)
        .find(|file| call!(libc::SYS_fcntl, *file, libc::F_GETFD).is_ok())
        .map_or_else(nothing, |file| Ok(got(format!("descriptor {file}"))))),
    ("read-a-file-with-openat2", |t| {
        let how = words(&[0, 0, 0]);
        let file = call!(libc::SYS_openat2, libc::AT_FDCWD, &c(t.get("secret")), &how, 24_usize)?;
        content(fd(file)) }),
    ("read-a-file-by-its-handle", |t| by_handle(t, t.get("handle"))),
    ("read-the-host-by-the-handle-of-its-root", |t| by_handle(t, "1:0200000000000000")),
    ("see-when-a-file-was-changed", |t| {
        let mut stat = vec![0; 256];
        call!(libc::SYS_statx, libc::AT_FDCWD, &c(t.get("secret")), 0, 0x7ff, &mut stat)?;
        Ok(format!("changed at {}", u64::from_ne_bytes(stat[112..120].try_into().map_err(io::Error::other)?))) }),
    ("see-a-file-by-its-mere-name", |t| {
        let name = open(t.get("secret"), libc::O_PATH)?;
        let mut stat = vec![0; 256];
        call!(libc::SYS_statx, name, c"", libc::AT_EMPTY_PATH, 0x7ff, &mut stat)?;
        Ok(format!("changed at {}", u64::from_ne_bytes(stat[112..120].try_into().map_err(io::Error::other)?))) }),
    ("find-out-whether-a-file-is-there", |t| {
        call!(libc::SYS_faccessat, libc::AT_FDCWD, &c(t.get("secret")), 0)?;
        Ok(got("it is there")) }),
    ("list-a-folder", |t| names(t.get("tenant"))),
    ("list-the-folder-above", |t| names(&t.at("work", ".."))
        .map(|seen| if seen.contains("another-tenant") { got(seen) } else { seen })),
    ("read-the-label-of-a-file", |t| {
        let mut value = vec![0; 200];
        let n = call!(libc::SYS_getxattr, &c(t.get("secret")), c"user.label", &mut value, 200_usize)?;
        Ok(String::from_utf8_lossy(&value[..n]).into_owned()) }),
    ("read-where-a-link-leads", |t| {
        let mut value = vec![0; 200];
        let n = call!(libc::SYS_readlinkat, libc::AT_FDCWD, &c(&t.at("tenant", "link")), &mut value, 200_usize)?;
        Ok(String::from_utf8_lossy(&value[..n]).into_owned()) }),
    ("watch-a-folder", |t| {
        let watch = call!(libc::SYS_inotify_init1, 0)?;
        call!(libc::SYS_inotify_add_watch, watch, &c(t.get("tenant")), 0xfff)?;
        Ok(got("a watch")) }),
    ("enter-a-folder", |t| {
        call!(libc::SYS_chdir, &c(t.get("tenant")))?;
        read("secret.txt") }),
    ("append-to-a-file", |t| write(open(t.get("secret"), libc::O_WRONLY | libc::O_APPEND)?, "spoiled").map(done)),
    ("truncate-a-file", |t| call!(libc::SYS_truncate, &c(t.get("secret")), 0).map(done)),
    ("change-the-mode-of-a-file", |t| call!(libc::SYS_fchmodat, libc::AT_FDCWD, &c(t.get("secret")), 0o777).map(done)),
    ("change-the-owner-of-a-file", |t| {
        let me = call!(libc::SYS_getuid)?;
        call!(libc::SYS_fchownat, libc::AT_FDCWD, &c(t.get("secret")), me, me, 0).map(done) }),
    ("change-the-times-of-a-file", |t| call!(libc::SYS_utimensat, libc::AT_FDCWD, &c(t.get("secret")), 0, 0).map(done)),
    ("label-a-file", |t| call!(libc::SYS_setxattr, &c(t.get("secret")), c"user.mine", b"x".as_slice(), 1, 0).map(done)),
    ("remove-the-label-of-a-file", |t| call!(libc::SYS_removexattr, &c(t.get("secret")), c"user.label").map(done)),
    ("rename-a-file", |t| rename(&t.at("tenant", "spare.txt"), &t.at("tenant", "gone.txt"), 0)),
    ("take-a-file-away", |t| rename(&t.at("tenant", "spare.txt"), &t.at("work", "taken"), 0)),
    ("put-a-file-in-the-place-of-another", |t| {
        fs::write(t.at("work", "mine"), "mine")?;
        rename(&t.at("work", "mine"), &t.at("tenant", "spare.txt"), 0) }),
    ("exchange-a-file", |t| {
        fs::write(t.at("work", "mine"), "mine")?;
        rename(&t.at("work", "mine"), &t.at("tenant", "spare.txt"), 2) }),
    ("give-a-file-a-second-name", |t| {
        link(t.get("secret"), &t.at("work", "twin"))?;
        read(&t.at("work", "twin")) }),
    ("remove-a-file", |t| call!(libc::SYS_unlinkat, libc::AT_FDCWD, &c(&t.at("tenant", "spare.txt")), 0).map(done)),
    ("make-a-file-in-a-folder", |t| open(&t.at("tenant", "planted"), libc::O_WRONLY | libc::O_CREAT).map(|_| done(0))),
    ("make-a-folder-in-a-folder", |t| call!(libc::SYS_mkdirat, libc::AT_FDCWD, &c(&t.at("tenant", "planted")), 0o755).map(done)),
    ("make-a-link-in-a-folder", |t| symlink("/", t.at("tenant", "planted")).map(|()| done(0))),
    ("remove-a-folder", |t| call!(libc::SYS_unlinkat, libc::AT_FDCWD, &c(&t.at("tenant", "empty")), libc::AT_REMOVEDIR).map(done)),
    ("link-a-nameless-file-into-a-folder", |t| {
        let file = call!(libc::SYS_openat, libc::AT_FDCWD, &c(t.get("tenant")), libc::O_TMPFILE | libc::O_WRONLY, 0o644)?;
        let to = c(&t.at("tenant", "planted"));
        call!(libc::SYS_linkat, libc::AT_FDCWD, &c(&format!("/proc/self/fd/{file}")), libc::AT_FDCWD, &to, 0x400).map(done) }),
    ("lock-a-file", |t| {
        let file = open(t.get("secret"), libc::O_RDONLY)?;
        call!(libc::SYS_flock, file, libc::LOCK_EX | libc::LOCK_NB)?;
        Ok(got("the lock")) }),
];

pub(crate) fn done(_: usize) -> String {
    "did it".to_owned()
}

fn nothing() -> io::Result<String> {
    Ok("nothing".to_owned())
}

fn through_link(target: &Target, folder: &str) -> io::Result<String> {
    let link = target.at(folder, "way-out");
    symlink(target.get("secret"), &link)?;
    read(&link)
}

fn through_others(path: impl Fn(u32) -> String) -> io::Result<String> {
    others().into_iter().find_map(|pid| read(&path(pid)).ok()).map_or_else(nothing, Ok)
}

fn through_open_files(target: &Target) -> io::Result<String> {
    for pid in others() {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.filter_map(Result::ok) {
            // Only this one: reading a pipe of another would wait for ever.
            if fs::read_link(file.path()).is_ok_and(|to| to.to_str() == Some(target.get("secret")))
            {
                return fs::read_to_string(file.path());
            }
        }
    }
    nothing()
}

pub(crate) fn names(folder: &str) -> io::Result<String> {
    let names = fs::read_dir(folder)?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    Ok(names.collect::<Vec<_>>().join(" "))
}

pub(crate) fn rename(from: &str, to: &str, flags: i32) -> io::Result<String> {
    let (from, to) = (c(from), c(to));
    call!(libc::SYS_renameat2, libc::AT_FDCWD, &from, libc::AT_FDCWD, &to, flags).map(done)
}

pub(crate) fn link(from: &str, to: &str) -> io::Result<usize> {
    call!(libc::SYS_linkat, libc::AT_FDCWD, &c(from), libc::AT_FDCWD, &c(to), 0)
}

/// Open a file by number through every mount that is at hand, as containers were once left through.
fn by_handle(target: &Target, handle: &str) -> io::Result<String> {
    let (kind, number) = handle.split_once(':').ok_or(io::ErrorKind::InvalidInput)?;
    let byte = |at: usize| u8::from_str_radix(number.get(at..at + 2)?, 16).ok();
    let number: Vec<u8> = (0..number.len() / 2).filter_map(|n| byte(2 * n)).collect();
    let mut bytes = u32::try_from(number.len()).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.parse::<i32>().unwrap_or(0).to_ne_bytes());
    bytes.extend_from_slice(&number);
    for folder in [target.get("work"), target.get("out"), target.get("in"), "/", "/usr"] {
        let Ok(mount) = open(folder, libc::O_RDONLY | libc::O_DIRECTORY) else { continue };
        let Ok(file) = call!(libc::SYS_open_by_handle_at, mount, &bytes, libc::O_RDONLY) else {
            continue;
        };
        let inside = format!("/proc/self/fd/{file}{}", target.get("secret"));
        return content(fd(file)).or_else(|_| fs::read_to_string(inside));
    }
    Err(io::Error::last_os_error())
}
