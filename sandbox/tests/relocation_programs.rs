//! Programs of both libcs find Windows paths through every kind of call; static ones do not, and reach no more for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use meshfarm_sandbox::{Access, WindowsRule};

use crate::{
    library::preload,
    room::{self, Room},
};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/relocation_program.c");

/// What every call says that does not say `ok`.
const REFUSED: [(&str, &str); 10] = [
    ("open of nothing", "No such file or directory"),
    ("open to write", ""),
    ("bad address by number", "Bad address"),
    ("no path", "Bad address"),
    ("mknod", "File exists"),
    ("mkstemp without a pattern", "Invalid argument"),
    ("bind to a name that grows too long", "name too long"),
    ("posix_spawn of no program", "Permission denied"),
    ("execv of no program", "Permission denied"),
    ("execvp of no program", "Permission denied"),
];

fn windows_room() -> Room {
    let mut room = Room::new();
    room.spec.preload = Some(preload());
    let rule = |source: &str, at: &str| WindowsRule {
        source: source.into(),
        at: at.into(),
        case_insensitive: true,
    };
    fs::create_dir(room.path("pipes")).unwrap();
    room.spec.mounts.push(room::mount(room.path("pipes"), "/tmp/pipes", Access::Write));
    room.spec.windows = vec![
        rule(r"C:\show", room::SHOW),
        rule(r"C:\show\render", "/home/artist/show/render"),
        rule(r"\\nas\projects", room::SHOW),
        rule(r"P:\", "/tmp/pipes"),
    ];
    room
}

fn compile(room: &Room, compiler: &str, package: &str, flags: &[&str]) -> PathBuf {
    // The source may lie where an ordinary user does not get to.
    let source = room.path("program.c");
    fs::write(&source, include_str!("relocation_program.c")).unwrap();
    let program = room.path("work/program");
    let done = Command::new(compiler).args(flags).arg("-o").arg(&program).arg(&source).output();
    let done = done.unwrap_or_else(|error| {
        panic!("{compiler} ({error}): install the package {package} to run {PROGRAM}")
    });
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

fn refusals(said: &str) -> Vec<String> {
    said.lines().filter(|line| !line.ends_with(" ok")).map(str::to_owned).collect()
}

fn every_call_is_served(compiler: &str, package: &str) {
    let mut room = windows_room();
    room.spec.program = compile(&room, compiler, package, &["-O2", "-w"]);
    let (said, exit) = room.run(&[]);
    assert!(exit.success(), "{said}");
    let refused = refusals(&said);
    for line in &refused {
        let expected = REFUSED.iter().any(|(call, why)| {
            line.strip_prefix(call)
                .is_some_and(|rest| rest.to_lowercase().contains(&why.to_lowercase()))
        });
        assert!(expected, "{line}\n{said}");
    }
    assert_eq!(refused.len(), REFUSED.len(), "{said}");
    assert!(said.lines().count() > 50, "{said}");
    let left: Vec<_> = fs::read_dir(room.path("out")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    for strange in fs::read_dir(room.path("work")).unwrap() {
        let name = strange.unwrap().file_name();
        assert!(!name.to_string_lossy().contains(['\\', ':']), "{name:?}");
    }
}

#[test]
fn glibc_programs_find_windows_paths_through_every_call() {
    every_call_is_served("gcc", "gcc");
}

#[test]
fn fortified_glibc_programs_find_windows_paths_through_every_call() {
    let mut room = windows_room();
    let flags = ["-O2", "-w", "-D_FORTIFY_SOURCE=2", "-D_FILE_OFFSET_BITS=64"];
    room.spec.program = compile(&room, "gcc", "gcc", &flags);
    let (said, exit) = room.run(&[]);
    assert!(exit.success(), "{said}");
    assert_eq!(refusals(&said).len(), REFUSED.len(), "{said}");
}

#[test]
fn musl_programs_find_windows_paths_through_every_call() {
    every_call_is_served("musl-gcc", "musl-tools");
}

/// P8: a call fails with the errno that it has for the path that is meant.
#[test]
fn every_call_fails_alike_for_a_windows_path_and_for_the_path_that_it_stands_for() {
    let mut room = windows_room();
    room.spec.program = "/usr/bin/python3".into();
    fs::write(room.path("work/twins.py"), include_str!("relocation_twins.py")).unwrap();
    let (said, exit) = room.run(&["-S", "twins.py"]);
    assert!(exit.success(), "{said}");
    assert!(said.contains(" twins 0 differ"), "{said}");
}

#[test]
fn static_programs_miss_windows_paths_and_reach_no_more_for_it() {
    let mut room = windows_room();
    room.spec.program = compile(&room, "musl-gcc", "musl-tools", &["-O2", "-w", "-static"]);
    let (said, exit) = room.run(&[]);
    assert!(exit.success(), "{said}");
    for line in ["fopen No such file or directory", "the sign No such file or directory"] {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.contains("system ok"), "its dynamic children are served: {said}");
    assert!(Path::new(&room.path("in/scene.txt")).exists());
}

#[test]
fn the_library_says_that_it_is_in_force_and_nothing_else_does() {
    let room = windows_room();
    let sign = r"\\?\meshfarm\loaded";
    assert_eq!(room.try_act(&["read", sign]), "ok \n");
    let mut room = windows_room();
    room.spec.windows.clear();
    assert_eq!(room.try_act(&["read", sign]), "ok \n");
    assert!(room.try_act(&["env"]).contains("LD_PRELOAD=/run/meshfarm/"));
    room.spec.preload = None;
    assert!(room.try_act(&["read", sign]).starts_with("error 2"));
    assert!(!room.try_act(&["env"]).contains("LD_PRELOAD"));
}
