//! Without mounts, the library alone finds what the kernel finds with them, for any climbing and any link.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use meshfarm_sandbox::{Access, Relocation};

use crate::{
    library::preload,
    room::{self, Room},
};

const WALK: &str = include_str!("relocation_walk.py");

/// How many random paths are tried.
const N_PATHS: usize = 100_000;

/// A small tree with links of every kind, and a second one that is shown within it.
fn plant(top: &Path, artist: &str) {
    fs::create_dir_all(top.join("in/a/b/c")).unwrap();
    fs::create_dir_all(top.join("in/tex/b")).unwrap();
    fs::create_dir_all(top.join("in/out")).unwrap();
    fs::create_dir_all(top.join("out/a/b")).unwrap();
    for file in
        ["in/a/file", "in/a/b/f", "in/a/b/c/f", "in/tex/f", "in/file", "out/f", "out/a/file"]
    {
        fs::write(top.join(file), file).unwrap();
    }
    for (link, target) in [
        ("in/up", "..".to_owned()),
        ("in/a/up", "../tex".to_owned()),
        ("in/a/b/top", "../..".to_owned()),
        ("in/a/b/c/top", "../../../../show/a".to_owned()),
        ("in/abs", format!("{artist}/show/a/b")),
        ("in/a/abs", format!("{artist}/show/out/a/")),
        ("in/tex/absup", format!("{artist}/show/a/../tex/../out")),
        ("in/loop", "a/loop".to_owned()),
        ("in/a/loop", "../loop".to_owned()),
        ("in/gone", "a/none".to_owned()),
        ("in/tex/gone", "../none/../a".to_owned()),
        ("in/c", "a/file".to_owned()),
        ("out/up", "../a".to_owned()),
        ("out/top", "../../show/tex/absup".to_owned()),
        ("out/a/abs", format!("{artist}/none")),
    ] {
        symlink(target, top.join(link)).unwrap();
    }
}

#[test]
fn a_hundred_thousand_paths_lead_where_mounts_lead() {
    let mut room = Room::new();
    // A folder that is in the jail and on the host, so deep that no climbing leaves it.
    let shared = tempfile::tempdir_in("/tmp").unwrap();
    let artist = shared.path().to_str().unwrap().to_owned() + &"/d".repeat(16);
    fs::create_dir_all(&artist).unwrap();
    let show = format!("{artist}/show");
    plant(&room.path(""), &artist);
    room.spec.mounts = vec![
        room::mount(room.path("in"), &show, Access::Read),
        room::mount(room.path("out"), &format!("{show}/out"), Access::Read),
    ];
    room.spec.program = "/usr/bin/python3".into();
    fs::write(room.path("work/walk.py"), WALK).unwrap();
    let number = N_PATHS.to_string();
    let (mounted, exit) = room.run(&["-S", "walk.py", "7", &number, &show, &show]);
    assert!(exit.success(), "{mounted}");

    let relocation = Relocation {
        pairs: vec![
            (PathBuf::from(&show), room.path("in")),
            (PathBuf::from(format!("{show}/out")), room.path("out")),
        ],
        ..Relocation::default()
    };
    fs::write(room.path("map.bin"), relocation.table().unwrap()).unwrap();
    let done = Command::new("/usr/bin/python3")
        .arg("-S")
        .arg(room.path("work/walk.py"))
        .args(["7", &number, &show, &show])
        .env("LD_PRELOAD", preload())
        .env("MESHFARM_PATHS", room.path("map.bin"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mapped = String::from_utf8_lossy(&done.stdout);
    let mut counts = std::collections::BTreeMap::new();
    for (one, other) in mounted.lines().zip(mapped.lines()) {
        assert_eq!(one, other, "with mounts, and with the library alone");
        *counts.entry(one.rsplit(' ').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(mapped.lines().count(), N_PATHS);
    // The walk is only worth something if it meets everything.
    for place in
        ["a/b/c/f", "tex/f", "out/f", "out/a", "ENOENT", "ENOTDIR", "ELOOP", "EINVAL", "elsewhere"]
    {
        assert!(counts.get(place).is_some_and(|n| *n > 10), "{place}: {counts:?}");
    }
}

const NAMES: &str = r"
import ctypes, os
libc = ctypes.CDLL(None)
libc.get_current_dir_name.restype = libc.getcwd.restype = libc.realpath.restype = ctypes.c_char_p
libc.canonicalize_file_name.restype = ctypes.c_char_p
os.chdir('/nowhere/at/all/show/a')
print(os.getcwd(), libc.get_current_dir_name().decode(), libc.getcwd(None, 0).decode())
room = ctypes.create_string_buffer(4)
print(libc.getcwd(room, 4), os.readlink('/proc/self/cwd'), os.path.realpath('b'))
print(libc.realpath(b'/nowhere/at/all/show/a/../tex/f', None).decode(), libc.canonicalize_file_name(b'b/..').decode())
fd = os.open('/nowhere/at/all/show/file', os.O_RDONLY)
print(os.readlink(f'/proc/self/fd/{fd}'), os.readlink('/nowhere/at/all/show/up'))
os.rename('/nowhere/at/all/show/tex/f', '/nowhere/at/all/show/tex/g'); print(os.listdir('/nowhere/at/all/show/tex'))
";

#[test]
fn programs_are_told_the_artists_names_where_that_is_asked_for() {
    let room = Room::new();
    plant(&room.path(""), "/nowhere/at/all");
    let relocation = Relocation {
        pairs: vec![("/nowhere/at/all/show".into(), room.path("in"))],
        reverse: true,
        watched: vec!["/nowhere".into()],
        records: Some(room.path("notes")),
    };
    fs::write(room.path("map.bin"), relocation.table().unwrap()).unwrap();
    fs::remove_dir(room.path("in/tex/b")).unwrap();
    fs::remove_file(room.path("in/tex/gone")).unwrap();
    fs::remove_file(room.path("in/tex/absup")).unwrap();
    let done = Command::new("/usr/bin/python3")
        .args(["-S", "-c", NAMES])
        .env("LD_PRELOAD", preload())
        .env("MESHFARM_PATHS", room.path("map.bin"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let show = "/nowhere/at/all/show";
    let expected = format!(
        "{show}/a {show}/a {show}/a\nNone {show}/a {show}/a/b\n{show}/tex/f {show}/a\n{show}/file ..\n['g']\n"
    );
    assert_eq!(said, expected, "{}", String::from_utf8_lossy(&done.stderr));
    let notes = fs::read_to_string(room.path("notes")).unwrap();
    assert!(notes.contains(&format!("opened {show}/file\n")), "{notes}");
}
