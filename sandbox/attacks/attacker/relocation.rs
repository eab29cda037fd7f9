//! Acts that try to leave the job's folders by the mapping of the artist's paths.

use std::{fs, io, os::unix::fs::symlink};

use crate::{
    Act, Target,
    call::{c, open, read, write},
    files::done,
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("climb-out-of-the-drives-folder", |t| read(&format!("{}/../../../../../../../..{}", t.get("alias"), t.get("secret")))),
    ("climb-out-of-a-windows-path", |t| windows(t, r"C:\show\..\..\..\..\..\..\..\..")),
    ("climb-out-of-a-windows-path-with-slashes", |t| windows(t, "C:/show/../../../../../../../..")),
    ("climb-out-of-a-windows-path-halfway", |t| windows(t, r"C:\show\render\..\..\..\..\..\..\..\..\..")),
    ("climb-out-of-a-servers-path", |t| windows(t, r"\\nas\projects\..\..\..\..\..\..\..\..")),
    ("climb-out-of-a-long-windows-path", |t| windows(t, r"\\?\C:\show\..\..\..\..\..\..\..\..")),
    ("climb-out-of-a-device-path", |t| windows(t, r"\\.\C:\show\..\..\..\..\..\..\..\..")),
    ("climb-out-of-the-root-of-a-drive", |t| windows(t, r"C:\..\..\..\..\..\..\..\..")),
    ("put-a-link-in-the-place-of-a-rules-folder", |t| {
        symlink("/", t.at("out", "tex"))?;
        fs::read_to_string(format!(r"C:\show\render\tex{}", t.get("secret").replace('/', r"\")))
            .or_else(|_| read(&t.at("out", &format!("tex{}", t.get("secret"))))) }),
    ("write-an-input-by-a-windows-path", |t| {
        let spoil = |path: &str| fs::OpenOptions::new().write(true).open(path).and_then(|mut f| io::Write::write_all(&mut f, b"spoiled"));
        spoil(r"C:\show\scene.txt").or_else(|_| spoil(&t.at("alias", "scene.txt"))).map(|()| done(0)) }),
    ("write-an-input-through-the-drives-folder", |t| write(open(&t.at("alias", "scene.txt"), libc::O_WRONLY)?, "spoiled").map(done)),
    ("change-the-mode-of-an-input-through-the-drives-folder", |t| {
        call!(libc::SYS_fchmodat, libc::AT_FDCWD, &c(&t.at("alias", "scene.txt")), 0o777).map(done) }),
    ("be-rid-of-the-library", |t| {
        // A child that was started with nothing, and calls past every library.
        let done = std::process::Command::new("/usr/bin/env").args(["-i", "/bin/cat", t.get("secret")]).output()?;
        Ok(String::from_utf8_lossy(&done.stdout).into_owned() + &read(t.get("secret")).unwrap_or_default()) }),
    ("rewrite-the-table-of-paths", |_| {
        write(open("/run/meshfarm/map.bin", libc::O_WRONLY)?, "spoiled").map(crate::got) }),
    ("name-another-library", |_| {
        write(open("/etc/ld.so.preload", libc::O_WRONLY)?, "/session/mine.so").map(crate::got) }),
];

/// As the library would map the path, and as a mapper would that only glues the rest to the rule's folder.
fn windows(target: &Target, climb: &str) -> io::Result<String> {
    let secret = target.get("secret");
    let glued = format!("{}/../../../../../../../..{secret}", target.get("in"));
    fs::read_to_string(format!("{climb}{}", secret.replace('/', r"\")))
        .or_else(|_| fs::read_to_string(format!("{}{secret}", climb.replace('\\', "/"))))
        .or_else(|_| read(&glued))
}
