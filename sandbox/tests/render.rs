//! Real programs in the jail: paths of the artist, Windows paths through the preload library, renderers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path};

use library::preload;
use meshfarm_sandbox::WindowsRule;
use room::{CANARY, Room, is_root, repeat_as_ordinary_user};

#[path = "room/library.rs"]
#[allow(dead_code, reason = "each test program uses its part of the library's tests")]
mod library;
#[path = "room/room.rs"]
#[allow(dead_code, reason = "each test program uses its part of the room")]
mod room;

fn rule(source: &str, at: &str) -> WindowsRule {
    WindowsRule { source: source.into(), at: at.into(), case_insensitive: true }
}

fn windows_room() -> Room {
    let mut room = Room::new();
    room.spec.preload = Some(preload());
    room.spec.windows = vec![
        rule(r"C:\show", room::SHOW),
        rule(r"C:\show\render", "/home/artist/show/render"),
        rule(r"\\nas\projects", room::SHOW),
    ];
    room
}

const SCENE: &str = r#"
#version 3.7;
global_settings { assumed_gamma 1 }
#include "INCLUDE"
camera { location <0,0,-3> look_at 0 }
sphere { 0, 1 pigment { Paint } finish { ambient 1 diffuse 0 } }
"#;

fn write_scene(room: &Room, include: &str) {
    fs::create_dir(room.path("in/Tex")).unwrap();
    fs::write(room.path("in/Tex/Paint.inc"), "#declare Paint = pigment { rgb <1,0,1> };\n")
        .unwrap();
    fs::write(room.path("in/scene.pov"), SCENE.replace("INCLUDE", include)).unwrap();
}

/// The middle and a corner of a picture, decoded.
fn colours(picture: &Path) -> [[u8; 3]; 2] {
    let picture = image::open(picture).unwrap().to_rgb8();
    let (width, height) = picture.dimensions();
    [picture.get_pixel(width / 2, height / 2).0, picture.get_pixel(0, 0).0]
}

const MAGENTA_ON_BLACK: [[u8; 3]; 2] = [[255, 0, 255], [0, 0, 0]];

#[test]
fn povray_renders_at_the_artists_own_paths() {
    let mut room = Room::new();
    write_scene(&room, "/home/artist/show/Tex/Paint.inc");
    room.spec.program = "/usr/bin/povray".into();
    let scene = "+I/home/artist/show/scene.pov";
    let (said, exit) =
        room.run(&[scene, "+O/home/artist/show/render/frame.png", "+W64", "+H48", "-D", "+WT2"]);
    assert!(exit.success(), "{said}");
    assert_eq!(colours(&room.path("out/frame.png")), MAGENTA_ON_BLACK);
}

#[test]
fn povray_renders_a_scene_with_windows_paths() {
    let mut room = windows_room();
    // Doubled separators and other case, as scenes have them.
    write_scene(&room, r"C:\\Show\\TEX\\paint.INC");
    room.spec.program = "/usr/bin/povray".into();
    let args = [r"+IC:\\show\\scene.pov", r"+OC:\show\render\frame.png", "+W64", "+H48", "-D"];
    let (said, exit) = room.run(&args);
    assert!(exit.success(), "{said}");
    assert_eq!(colours(&room.path("out/frame.png")), MAGENTA_ON_BLACK);
}

#[test]
fn windows_paths_of_drives_and_servers_reach_the_jobs_files_only() {
    let room = windows_room();
    let jail = room.start(&["where"]);
    assert!(jail.report.holds("windows paths"), "{:#?}", jail.report);
    drop(jail);
    for path in [
        r"C:\show\scene.txt",
        r"c:/Show/SCENE.TXT",
        r"\\nas\projects\Scene.txt",
        r"C:\\show\\.\scene.txt",
        "/c/show/scene.txt",
    ] {
        assert_eq!(room.try_act(&["read", path]), "ok a scene\n", "{path}");
    }
    assert_eq!(room.try_act(&["write", r"C:\Show\Render\New.png", "pixels"]), "ok \n");
    assert_eq!(fs::read_to_string(room.path("out/New.png")).unwrap(), "pixels");
    assert_eq!(room.try_act(&["list", r"C:\show"]), "ok render scene.txt\n");
    assert!(room.try_act(&["write", r"C:\show\scene.txt", "spoiled"]).starts_with("error"));
    assert_eq!(fs::read_to_string(room.path("in/scene.txt")).unwrap(), "a scene");
    let beside = format!(r"C:\show\..\..{}", room.text("other/secret").replace('/', r"\"));
    let said = room.try_act(&["read", &beside]);
    assert!(said.starts_with("error") && !said.contains(CANARY), "{said}");
}

#[test]
fn without_the_library_only_the_drive_alias_is_left() {
    let mut room = windows_room();
    room.spec.preload = None;
    assert!(room.try_act(&["read", r"C:\show\scene.txt"]).starts_with("error 2"));
    assert!(room.try_act(&["read", r"\\nas\projects\scene.txt"]).starts_with("error 2"));
    assert_eq!(room.try_act(&["read", "/c/show/scene.txt"]), "ok a scene\n");
}

/// Walks through the functions that Python makes of libc's, with Windows paths only.
const WALK: &str = r#"
import ctypes, glob, os
out = 'C:\\show\\Render\\'
os.mkdir(out + 'New')
with open(out + 'New/a.txt', 'w') as f: f.write('12345')
os.chmod(out + 'New\\a.txt', 0o600)
os.rename(out + 'New\\a.txt', out + 'New\\b.txt')
os.link(out + 'New\\b.txt', out + 'New\\c.txt')
os.symlink('b.txt', out + 'New\\l')
os.truncate(out + 'New\\b.txt', 3)
os.utime(out + 'New\\b.txt', (1, 2))
st = os.stat(out + 'New\\c.txt')
print(st.st_size, int(st.st_mtime), oct(st.st_mode & 0o777), os.readlink(out + 'New\\l'))
print(sorted(os.listdir(out + 'New')), os.access(out + 'New\\l', os.R_OK), os.path.islink(out + 'New\\l'))
libc = ctypes.CDLL(None, use_errno=True)
libc.realpath.restype = ctypes.c_char_p
libc.fopen.restype = ctypes.c_void_p
print(libc.realpath(b'C:\\SHOW\\Scene.TXT', None), libc.fopen(b'c:/show/SCENE.txt', b'r') is not None)
print(libc.syscall(257, -100, b'C:\\show\\scene.txt', 0, 0) > 2, libc.open(b'C:\\show\\none', 0), ctypes.get_errno())
os.chdir(out + 'New'); print(os.getcwd())
for name in ['b.txt', 'c.txt', 'l']: os.unlink(out + 'New\\' + name)
os.rmdir(out + 'New')
"#;

#[test]
fn every_kind_of_call_takes_windows_paths() {
    let mut room = windows_room();
    fs::write(room.path("work/walk.py"), WALK).unwrap();
    room.spec.program = "/usr/bin/python3".into();
    let (said, exit) = room.run(&["walk.py"]);
    assert!(exit.success(), "{said}");
    let expected = "3 2 0o600 b.txt\n['b.txt', 'c.txt', 'l'] True True\n\
        b'/home/artist/show/scene.txt' True\nTrue -1 2\n/home/artist/show/render/New\n";
    assert_eq!(said, expected);
    assert_eq!(fs::read_dir(room.path("out")).unwrap().count(), 0);
}

#[test]
fn shells_and_python_work_with_the_library_loaded() {
    let mut room = windows_room();
    let script = "import os, subprocess, tempfile, threading, multiprocessing as m\n\
        def f(x): return x * x\n\
        print(open(r'C:\\show\\scene.txt').read(), os.path.exists(r'\\\\nas\\projects\\scene.txt'))\n\
        print(os.path.realpath('/c/show'), subprocess.check_output(['sh', '-c', 'echo child']))\n\
        print(m.Pool(2).map(f, [1, 2, 3]), tempfile.TemporaryDirectory().name.startswith('/tmp'))\n";
    fs::write(room.path("work/try.py"), script).unwrap();
    room.spec.program = "/usr/bin/python3".into();
    let (said, exit) = room.run(&["try.py"]);
    assert!(exit.success(), "{said}");
    assert_eq!(said, "a scene True\n/c/show b'child\\n'\n[1, 4, 9] True\n");
}

#[test]
fn started_as_root_all_of_this_holds_for_an_ordinary_user_as_well() {
    if is_root() {
        repeat_as_ordinary_user(&[("MESHFARM_PRELOAD", preload())]);
    }
}
