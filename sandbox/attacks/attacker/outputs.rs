//! Acts that leave something among the outputs which a careless collector would take or follow.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener},
    path::Path,
};

use crate::{
    Act, Target,
    call::{c, fork},
    files::{done, link},
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("leave-a-link-to-a-file", |t| symlink(t.get("secret"), t.at("out", "frame.png")).map(|()| done(0))),
    ("leave-a-relative-link-to-a-file", |t| {
        let secret = t.get("secret").trim_start_matches('/');
        symlink(format!("../../../../../../../../{secret}"), t.at("out", "frame.png")).map(|()| done(0)) }),
    ("leave-a-link-to-a-folder", |t| symlink(t.get("tenant"), t.at("out", "frames")).map(|()| done(0))),
    ("leave-a-link-to-the-host", |t| symlink("/etc/hostname", t.at("out", "frame.png")).map(|()| done(0))),
    ("leave-a-link-to-the-nodes-own-memory", |t| symlink("/proc/self/cmdline", t.at("out", "frame.png")).map(|()| done(0))),
    ("leave-a-link-in-a-deep-folder", |t| {
        fs::create_dir(t.at("out", "a"))?;
        symlink(t.get("secret"), t.at("out", "a/frame.png")).map(|()| done(0)) }),
    ("leave-a-loop-of-links", |t| symlink(".", t.at("out", "again")).and_then(|()| fs::write(t.at("out", "frame.png"), "x")).map(|()| done(0))),
    ("leave-a-second-name-of-an-output", |t| {
        fs::write(t.at("out", "frame.png"), "pixels")?;
        link(&t.at("out", "frame.png"), &t.at("out", "twin.png")).map(done) }),
    ("leave-a-second-name-of-an-input", |t| link(&t.at("in", "scene.txt"), &t.at("out", "frame.png")).map(done)),
    ("leave-a-second-name-of-a-work-file", |t| {
        fs::write(t.at("work", "kept"), "x")?;
        link(&t.at("work", "kept"), &t.at("out", "frame.png")).map(done) }),
    ("leave-a-pipe", |t| call!(libc::SYS_mknodat, libc::AT_FDCWD, &c(&t.at("out", "frame.png")), 0o010_644, 0).map(done)),
    ("leave-a-socket", |t| UnixListener::bind(t.at("out", "frame.png")).map(|_| done(0))),
    ("leave-a-socket-as-a-node", |t| call!(libc::SYS_mknodat, libc::AT_FDCWD, &c(&t.at("out", "frame.png")), 0o140_644, 0).map(done)),
    ("leave-a-device", |t| call!(libc::SYS_mknodat, libc::AT_FDCWD, &c(&t.at("out", "frame.png")), 0o020_666, 0x105).map(done)),
    ("leave-a-name-with-a-line-break", |t| leave(t, b"frame.png\nok frame2.png")),
    ("leave-a-name-with-a-terminal-command", |t| leave(t, b"\x1b]0;owned\x07frame.png")),
    ("leave-a-name-with-a-second-control-set", |t| leave(t, "frame\u{9b}31m.png".as_bytes())),
    ("leave-a-name-that-is-no-text", |t| leave(t, b"frame\xff\xfe.png")),
    ("leave-a-name-that-turns-around", |t| leave(t, "frame\u{202e}gnp.exe".as_bytes())),
    ("leave-a-name-that-isolates-a-direction", |t| leave(t, "frame\u{2066}gnp.exe\u{2069}".as_bytes())),
    ("leave-a-name-with-a-hidden-line-break", |t| leave(t, "frame\u{2028}ok.png".as_bytes())),
    ("leave-a-folder-with-an-unfit-name", |t| {
        fs::create_dir(t.at("out", "a\rb"))?;
        fs::write(t.at("out", "a\rb/frame.png"), "x").map(|()| done(0)) }),
    ("leave-deep-folders", |t| {
        let deep = t.at("out", "a/b/c/d/e/f/g/h/i/j");
        fs::create_dir_all(&deep)?;
        fs::write(format!("{deep}/frame.png"), "x").map(|()| done(0)) }),
    ("leave-deep-folders-with-long-names", |t| {
        call!(libc::SYS_chdir, &c(t.get("out")))?;
        let name = "d".repeat(200);
        for _ in 0..15 {
            fs::create_dir(&name)?;
            call!(libc::SYS_chdir, &c(&name))?;
        }
        fs::write("frame.png", "x").map(|()| done(0)) }),
    ("leave-many-names", |t| (0..300).try_for_each(|n| fs::write(t.at("out", &format!("{n}")), "x")).map(|()| done(0))),
    ("leave-many-empty-folders-and-names", |t| (0..150).try_for_each(|n| {
        fs::create_dir(t.at("out", &format!("{n}")))?;
        fs::write(t.at("out", &format!("{n}/x")), "") }).map(|()| done(0))),
    ("leave-a-hollow-giant", |t| fs::File::create(t.at("out", "frame.png"))?.set_len(14 << 20).map(|()| done(0))),
    ("leave-more-than-is-allowed", |t| (0..12).try_for_each(|n| fs::write(t.at("out", &format!("{n}")), vec![7; 1 << 20])).map(|()| done(0))),
    ("swap-a-folder-and-a-link-while-collected", swap),
];

fn leave(target: &Target, name: &[u8]) -> io::Result<String> {
    fs::write(Path::new(target.get("out")).join(OsStr::from_bytes(name)), "x").map(|()| done(0))
}

/// Leave a process behind that is forever exchanging a folder of outputs for a link to the other tenant's.
fn swap(target: &Target) -> io::Result<String> {
    let (folder, way_out) = (target.at("out", "frames"), target.at("out", "spare"));
    fs::create_dir(&folder)?;
    fs::write(format!("{folder}/secret.txt"), "pixels")?;
    symlink(target.get("tenant"), &way_out)?;
    if fork()?.is_none() {
        drop(call!(libc::SYS_setsid));
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_secs(15) {
            drop(crate::files::rename(&folder, &way_out, 2));
        }
        std::process::exit(0);
    }
    Ok(done(0))
}
