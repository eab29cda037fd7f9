//! Acts on what the job may look at but not change or run: its inputs, its program, devices.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use crate::{
    Act, Target,
    call::{c, content, open, read, words, write},
    files::{done, link, rename},
    got,
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("write-an-input", |t| write(open(&t.at("in", "scene.txt"), libc::O_WRONLY)?, "spoiled").map(done)),
    ("truncate-an-input", |t| call!(libc::SYS_truncate, &c(&t.at("in", "scene.txt")), 0).map(done)),
    ("make-a-file-beside-an-input", |t| open(&t.at("in", "planted"), libc::O_WRONLY | libc::O_CREAT).map(|_| done(0))),
    ("remove-an-input", |t| call!(libc::SYS_unlinkat, libc::AT_FDCWD, &c(&t.at("in", "scene.txt")), 0).map(done)),
    ("rename-an-input", |t| rename(&t.at("in", "scene.txt"), &t.at("in", "gone.txt"), 0)),
    ("change-the-mode-of-an-input", |t| call!(libc::SYS_fchmodat, libc::AT_FDCWD, &c(&t.at("in", "scene.txt")), 0o777).map(done)),
    ("change-the-mode-of-an-open-input", |t| {
        let file = open(&t.at("in", "scene.txt"), libc::O_RDONLY)?;
        call!(libc::SYS_fchmod, file, 0o777).map(done) }),
    ("change-the-times-of-an-input", |t| call!(libc::SYS_utimensat, libc::AT_FDCWD, &c(&t.at("in", "scene.txt")), 0, 0).map(done)),
    ("label-an-input", |t| call!(libc::SYS_setxattr, &c(&t.at("in", "scene.txt")), c"user.mine", b"x".as_slice(), 1, 0).map(done)),
    ("write-an-input-by-reopening-it", |t| {
        let file = open(&t.at("in", "scene.txt"), libc::O_RDONLY)?;
        write(open(&format!("/proc/self/fd/{file}"), libc::O_RDWR)?, "spoiled").map(done) }),
    ("write-an-input-through-a-second-name", |t| {
        link(&t.at("in", "scene.txt"), &t.at("out", "twin"))?;
        write(open(&t.at("out", "twin"), libc::O_WRONLY)?, "spoiled").map(done) }),
    ("write-an-input-through-a-link-in-the-outputs", |t| {
        symlink(t.at("in", "scene.txt"), t.at("out", "twin"))?;
        write(open(&t.at("out", "twin"), libc::O_WRONLY)?, "spoiled").map(done) }),
    ("map-an-input-for-writing", |t| {
        let file = open(&t.at("in", "scene.txt"), libc::O_RDWR)?;
        let at = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file, 0)?;
        // SAFETY: the mapping above is writable and at least a page long.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write(b'!') };
        Ok(done(0)) }),
    ("make-the-inputs-writable-again", |t| {
        let clear = words(&[0, 1, 0, 0]);
        call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNS).ok();
        call!(libc::SYS_mount_setattr, libc::AT_FDCWD, &c(t.get("in")), 0, &clear, 32_usize)?;
        write(open(&t.at("in", "scene.txt"), libc::O_WRONLY)?, "spoiled").map(done) }),
    ("change-the-program-that-runs", |t| call!(libc::SYS_fchmodat, libc::AT_FDCWD, &c(t.get("program")), 0o777).map(done)),
    ("run-a-program-from-the-outputs", |t| run_script(t, "out")),
    ("run-a-program-from-the-private-folder", |t| run_script(t, "tmp")),
    ("run-a-program-from-the-inputs", |t| run(&t.at("in", "tool"), &[])),
    ("run-a-program-from-the-outputs-by-the-loader", |t| by_loader(t, "out")),
    ("run-a-program-from-the-private-folder-by-the-loader", |t| by_loader(t, "tmp")),
    ("become-another-user-by-a-set-user-id-program", |t| {
        let before = fs::read_to_string("/proc/self/status")?;
        let text = run(&t.at("in", "set-user-id"), &["-u"])?;
        let line = |s: &str| s.lines().find_map(|l| l.strip_prefix("Uid:")).map(str::to_owned);
        let mine = line(&before).and_then(|l| l.split_whitespace().next().map(str::to_owned)).unwrap_or_default();
        if text.trim() == mine || text.trim().parse::<u32>().is_err() { Ok(text) } else { Ok(got(format!("user {text} instead of {mine}"))) } }),
    ("make-a-set-user-id-file-by-a-change-of-mode", |t| {
        fs::write(t.at("out", "set-id"), "x")?;
        call!(libc::SYS_fchmodat, libc::AT_FDCWD, &c(&t.at("out", "set-id")), 0o4755).map(done) }),
    ("make-a-set-user-id-file-by-an-open-file", |t| {
        let file = open(&t.at("out", "set-id"), libc::O_WRONLY | libc::O_CREAT)?;
        call!(libc::SYS_fchmod, file, 0o4755).map(done) }),
    ("make-a-set-user-id-file-by-the-newest-call", |t| {
        fs::write(t.at("out", "set-id"), "x")?;
        call!(452, libc::AT_FDCWD, &c(&t.at("out", "set-id")), 0o4755, 0).map(done) }),
    ("make-a-set-user-id-file-at-once", |t| {
        call!(libc::SYS_openat, libc::AT_FDCWD, &c(&t.at("out", "set-id")), libc::O_CREAT | libc::O_WRONLY, 0o4755).map(done) }),
    ("make-a-set-user-id-file-with-creat", |t| make_with_creat(&t.at("out", "set-id"))),
    ("make-a-set-user-id-file-as-a-node", |t| {
        call!(libc::SYS_mknodat, libc::AT_FDCWD, &c(&t.at("out", "set-id")), 0o104_755, 0).map(done) }),
    ("make-a-set-group-id-folder", |t| {
        fs::create_dir(t.at("out", "set-id"))?;
        call!(libc::SYS_fchmodat, libc::AT_FDCWD, &c(&t.at("out", "set-id")), 0o2755).map(done) }),
    ("give-a-file-capabilities", |t| {
        let path = c(&t.at("work", "capable"));
        fs::write(t.at("work", "capable"), "x")?;
        let value = [&[1_u8, 0, 0, 2], [0xff_u8; 4].as_slice(), &[0; 12]].concat();
        call!(libc::SYS_setxattr, &path, c"security.capability", &value, value.len(), 0)?;
        Ok(got("a file with capabilities")) }),
    ("make-a-disk-device", |t| {
        let path = t.at("work", "disk");
        let parts: Vec<u32> = t.get("disk").split(':').filter_map(|n| n.parse().ok()).collect();
        let [major, minor] = parts[..] else { return Err(io::ErrorKind::InvalidInput.into()) };
        let number = usize::try_from(libc::makedev(major, minor)).map_err(io::Error::other)?;
        call!(libc::SYS_mknodat, libc::AT_FDCWD, &c(&path), 0o060_600, number)?;
        let n = call!(libc::SYS_read, open(&path, libc::O_RDONLY)?, &mut vec![0; 512], 512_usize)?;
        Ok(got(format!("{n} bytes of the disk"))) }),
    ("make-a-memory-device", |t| {
        call!(libc::SYS_mknodat, libc::AT_FDCWD, &c(&t.at("work", "memory")), 0o020_600, 0x105)?;
        Ok(done(0)) }),
    ("open-a-device-among-the-inputs", |t| {
        let file = open(&t.at("in", "device"), libc::O_RDONLY)?;
        content(file).map(|text| got(format!("{} bytes of a device", text.len()))) }),
    ("open-a-terminal-or-console", |_| ["/dev/console", "/dev/tty0", "/dev/ptmx", "/dev/pts/ptmx", "/dev/kmsg"]
        .into_iter().find(|path| open(path, libc::O_RDWR | libc::O_NOCTTY).is_ok())
        .map_or_else(|| Ok("none".to_owned()), |path| Ok(got(path)))),
    ("read-the-hosts-password-file", |_| read("/etc/shadow").map(|t| got(format!("{} bytes", t.len())))),
    ("read-the-hosts-devices-and-settings", |_| ["/sys/kernel/notes", "/sys/class/net", "/proc/kcore", "/root", "/proc/sys/kernel/osrelease", "/proc/cmdline", "/proc/kallsyms"]
        .into_iter().find(|path| fs::metadata(path).is_ok())
        .map_or_else(|| Ok("none".to_owned()), |path| Ok(got(path)))),
    ("change-the-flags-of-a-file", |t| {
        let file = open(&t.at("work", "flagged"), libc::O_RDWR | libc::O_CREAT)?;
        let mut flags = words(&[0]);
        call!(libc::SYS_ioctl, file, 0x8008_6601_usize, &mut flags)?;
        flags[0] ^= 0x40;
        call!(libc::SYS_ioctl, file, 0x4008_6602_usize, &flags)?;
        Ok(got("a file that no backup sees")) }),
];

fn run_script(target: &Target, folder: &str) -> io::Result<String> {
    let path = target.at(folder, "script");
    fs::write(&path, "#!/bin/sh\necho got: it ran\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    run(&path, &[])
}

/// Copies `echo` and asks the loader to start the copy: reading alone must not be enough to run.
fn by_loader(target: &Target, folder: &str) -> io::Result<String> {
    let path = target.at(folder, "program");
    fs::copy("/bin/echo", &path)?;
    run("/lib64/ld-linux-x86-64.so.2", &[path.as_str(), "got: it ran"])
}

fn run(program: &str, args: &[&str]) -> io::Result<String> {
    let done = Command::new(program).args(args).output()?;
    Ok(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

#[cfg(target_arch = "x86_64")]
fn make_with_creat(path: &str) -> io::Result<String> {
    call!(libc::SYS_creat, &c(path), 0o4755).map(done)
}

#[cfg(not(target_arch = "x86_64"))]
fn make_with_creat(path: &str) -> io::Result<String> {
    call!(libc::SYS_openat, libc::AT_FDCWD, &c(path), libc::O_CREAT, 0o4755).map(done)
}
