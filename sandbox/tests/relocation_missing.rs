//! What programs looked for and did not find is noted, once, as the artist wrote it, and nothing else is.

use std::fs;

use meshfarm_sandbox::{RECORDS_AT, WORK_AT, WindowsRule};

use crate::{
    library::preload,
    room::{self, Room},
};

fn noting_room() -> Room {
    let mut room = Room::new();
    room.spec.preload = Some(preload());
    room.spec.program = "/usr/bin/python3".into();
    room
}

fn with_windows(mut room: Room) -> Room {
    let at = room::SHOW.into();
    room.spec.windows = vec![WindowsRule { source: r"C:\show".into(), at, case_insensitive: true }];
    room
}

/// The notes that a script leaves, without those that say that the library was loaded.
fn notes(room: &Room, script: &str) -> Vec<String> {
    fs::write(room.path("work/script.py"), script).unwrap();
    let (said, exit) = room.run(&["-S", "script.py"]);
    assert!(exit.success(), "{said}");
    let at = RECORDS_AT.strip_prefix(WORK_AT).unwrap().trim_start_matches('/');
    let text = fs::read(room.path("work").join(at)).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let (loaded, rest): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.starts_with("loaded "));
    assert!(
        !loaded.is_empty() && loaded[0]["loaded ".len()..].parse::<u32>().is_ok(),
        "{loaded:?}"
    );
    rest.into_iter().map(str::to_owned).collect()
}

const LOOKS: &str = r"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.fopen.restype = ctypes.c_void_p
def no(f, *a):
    try: f(*a)
    except OSError: pass
show = '/home/artist/show/'
for _ in range(3):
    no(open, show + 'opened-in-vain.png')
no(os.stat, show + 'stat.png'); no(os.lstat, show + 'lstat.png'); no(os.listdir, show + 'folder')
os.access(show + 'access.png', os.R_OK); no(os.readlink, show + 'link')
libc.fopen((show + 'fopen.png').encode(), b'r')
no(os.stat, show + 'control\n\x01\x7fend.png')
no(os.stat, '/home/artist/shows'); no(os.stat, '/session/none'); no(os.stat, 'none'); no(os.stat, show + 'scene.txt/x')
no(os.unlink, show + 'unlinked.png'); no(os.rename, show + 'render/a', show + 'render/b')
libc.fopen((show + 'none/new.png').encode(), b'w')
open(show + 'scene.txt').close(); open('/etc/passwd').close()
open(show + 'render/new.png', 'w').close(); os.mkdir(show + 'render/sub')
";

#[test]
fn looks_in_the_artists_folders_are_noted_once() {
    let found = notes(&noting_room(), LOOKS);
    let missing = [
        "opened-in-vain.png",
        "stat.png",
        "lstat.png",
        "folder",
        "access.png",
        "link",
        "fopen.png",
        r"control\x0a\x01\x7fend.png",
    ];
    let expected = missing.map(|name| format!("missing {}/{name}", room::SHOW)).into_iter();
    let others = ["opened scene.txt", "opened render/new.png", "made render/sub"];
    let others = others.map(|line| line.replacen(' ', &format!(" {}/", room::SHOW), 1));
    assert_eq!(found, expected.chain(others).collect::<Vec<_>>());
}

#[test]
fn windows_paths_are_noted_as_the_artist_wrote_them() {
    let script = r"
import os
def no(f, *a):
    try: f(*a)
    except OSError: pass
no(open, 'C:\\show\\Tex\\Wood.png'); no(open, '/usr/share/povray-3.7/C:\\show\\Tex\\Wood.png')
no(open, '/usr/include/D:\\other\\no rule.png'); no(os.stat, 'C:drive-relative.png'); no(os.stat, 'C:\\show\\nul')
open('c:/SHOW/scene.TXT').close()
";
    let found = notes(&with_windows(noting_room()), script);
    let expected = [
        r"missing C:\show\Tex\Wood.png",
        r"missing D:\other\no rule.png",
        "missing C:drive-relative.png",
        r"missing C:\show\nul",
        "opened c:/SHOW/scene.TXT",
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_was_missing_with_the_artist_and_found_elsewhere_is_noted_as_found() {
    let script = r"
def no(f, *a):
    try: f(*a)
    except OSError: pass
open('/etc/hosts').close()
no(open, '/home/artist/show/inc/hosts')
open('/etc/hosts').close(); open('/etc/passwd').close()
";
    let found = notes(&noting_room(), script);
    assert_eq!(found, ["missing /home/artist/show/inc/hosts", "opened /etc/hosts"]);
}

#[test]
fn povrays_search_of_its_libraries_is_one_note() {
    let mut room = with_windows(noting_room());
    fs::write(
        room.path("in/scene.pov"),
        "#version 3.7;\nglobal_settings { assumed_gamma 1 }\n#include \"colors.inc\"\n\
         #if (file_exists(\"C:\\\\show\\\\none.inc\")) #end\nsphere { 0, 1 }\n",
    )
    .unwrap();
    room.spec.program = "/usr/bin/povray".into();
    let scene = "+I/home/artist/show/scene.pov";
    let (said, exit) =
        room.run(&[scene, "+L/home/artist/show", "+O/session/f.png", "+W8", "+H8", "-D"]);
    assert!(exit.success(), "{said}");
    let notes = fs::read_to_string(room.path("work/.meshfarm-paths")).unwrap();
    let lines: Vec<&str> = notes.lines().filter(|line| !line.starts_with("loaded ")).collect();
    assert_eq!(
        lines,
        ["opened /home/artist/show/scene.pov", r"missing C:\show\none.inc"],
        "{notes}"
    );
}

#[test]
fn notes_end_where_a_mebibyte_ends_and_never_fail_a_program() {
    let script = r"
import os, threading
def look(k):
    for i in range(6000):
        try: os.stat(f'/home/artist/show/{k}-{i}-' + 'x' * 150)
        except OSError as e: assert e.errno == 2, e
threads = [threading.Thread(target=look, args=(k,)) for k in range(4)]
for t in threads: t.start()
for t in threads: t.join()
";
    let room = noting_room();
    let found = notes(&room, script);
    let bytes: usize = found.iter().map(|line| line.len() + 1).sum();
    assert!(bytes > 900_000 && bytes < 1_050_000, "{bytes}");
    assert!(
        found
            .iter()
            .all(|line| line.starts_with("missing /home/artist/show/") && line.ends_with('x'))
    );
    fs::remove_file(room.path("work/.meshfarm-paths")).unwrap();
    fs::create_dir(room.path("work/.meshfarm-paths")).unwrap();
    fs::write(room.path("work/script.py"), script).unwrap();
    let (said, exit) = room.run(&["script.py"]);
    assert!(exit.success(), "{said}");
}
