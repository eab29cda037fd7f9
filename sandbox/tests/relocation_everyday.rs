//! Everyday programs do the same with the library as without it: same words, same results, same files left.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use meshfarm_sandbox::{Relocation, WindowsRule};

use crate::{
    library::preload,
    room::{self, Room},
};

/// Where the artist has the folder of the script, in the run on a host without mounts.
const SHOWN: &str = "/nowhere/show/work";
const SCRIPT: &str = include_str!("relocation_everyday.sh");

/// Every file beneath a folder: name, mode, links, size or target, content.
fn tree(top: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![top.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            let mut line =
                format!("{} {:o}", path.strip_prefix(top).unwrap().display(), found.mode());
            if found.is_dir() {
                folders.push(path);
            } else if found.is_symlink() {
                line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            } else if found.is_file() {
                let content = fs::read(&path).unwrap();
                let start = String::from_utf8_lossy(&content[..content.len().min(80)]).into_owned();
                line += &format!(" {} {} {start:?}", found.nlink(), content.len());
            }
            all.push(line);
        }
    }
    all.sort();
    all
}

fn compare(one: &[impl AsRef<str>], other: &[impl AsRef<str>]) {
    for (i, (one, other)) in one.iter().zip(other).enumerate() {
        assert_eq!(one.as_ref(), other.as_ref(), "line {i}");
    }
    assert_eq!(one.len(), other.len());
}

/// Run the script in the jail; what it said.
fn inside(room: &mut Room, library: bool) -> Vec<String> {
    let work = room.path(if library { "work" } else { "plain" });
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("script"), SCRIPT).unwrap();
    room.spec.work = work;
    room.spec.preload = library.then(preload);
    let (said, exit) = room.run(&["script"]);
    assert!(exit.success(), "{said}");
    said.lines().map(str::to_owned).collect()
}

/// Run the script on the host, in a folder of that name; what it said.
fn outside(room: &Room, name: &str, library: bool) -> Vec<String> {
    let folder = room.path(name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("script"), SCRIPT).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.arg("script").current_dir(&folder).env_clear().envs(room.spec.environment());
    if library {
        let relocation = Relocation {
            pairs: vec![("/nowhere/show".into(), room.path("in")), (SHOWN.into(), folder.clone())],
            // Told a name that only the library knows, rsync would walk to it from the root, part by part.
            reverse: false,
            watched: vec![SHOWN.into()],
            records: Some(room.path("notes")),
        };
        fs::write(room.path("map.bin"), relocation.table().unwrap()).unwrap();
        shell.env("LD_PRELOAD", preload()).env("MESHFARM_PATHS", room.path("map.bin"));
    }
    let done = shell.output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn everyday_programs_do_the_same_with_the_library_as_without_inside_and_outside() {
    for program in ["/usr/bin/rsync", "/usr/bin/python3"] {
        assert!(Path::new(program).exists(), "install the package of {program} to run this test");
    }
    let mut room = Room::new();
    let rule = |source: &str| WindowsRule {
        source: source.into(),
        at: room::SHOW.into(),
        case_insensitive: true,
    };
    room.spec.windows = vec![rule(r"S:\show"), rule(r"\\nas\show")];
    room.spec.program = "/bin/sh".into();
    let served = inside(&mut room, true);
    let plain = inside(&mut room, false);
    compare(&served, &plain);
    compare(&tree(&room.path("work/tree")), &tree(&room.path("plain/tree")));
    assert!(served.len() > 300, "{served:?}");

    let plain = outside(&room, "outside", false);
    let mapped = outside(&room, "mapped", true);
    compare(&mapped, &plain);
    compare(&tree(&room.path("mapped/tree")), &tree(&room.path("outside/tree")));
    compare(&served, &plain);
}
