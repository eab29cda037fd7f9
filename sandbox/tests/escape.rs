//! The life of a jail: what a program finds, its streams, its report, its end, and why none stands.
//!
//! What it must not reach is attacked in `sandbox/attacks`.
//! All of them run as whoever starts them; started as root, the last test runs them again as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    env, fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use meshfarm_sandbox::{Access, Level, Step, launch, probe_with};
use room::{CANARY, Room, finish, is_root, launcher, mount, repeat_as_ordinary_user};

#[path = "room/room.rs"]
mod room;

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Host processes whose command line names this text.
fn processes_naming(text: &str) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

fn is_still(path: &Path) -> bool {
    let before = fs::read(path).unwrap();
    // Twenty times the rhythm in which the writer writes.
    thread::sleep(Duration::from_millis(100));
    before == fs::read(path).unwrap()
}

#[test]
fn a_program_finds_its_files_at_the_artists_paths_and_writes_where_it_may() {
    let room = Room::new();
    assert_eq!(room.try_act(&["read", "/home/artist/show/scene.txt"]), "ok a scene\n");
    assert_eq!(room.try_act(&["write", "/home/artist/show/render/f.png", "pixels"]), "ok \n");
    assert_eq!(fs::read_to_string(room.path("out/f.png")).unwrap(), "pixels");
    assert_eq!(room.try_act(&["where"]), "ok /session\n");
    assert_eq!(room.try_act(&["write", "note", "mine"]), "ok \n");
    assert_eq!(fs::read_to_string(room.path("work/note")).unwrap(), "mine");
    for private in ["/tmp/a", "/dev/shm/a", "/home/render/a"] {
        assert_eq!(room.try_act(&["write", private, "x"]), "ok \n", "{private}");
    }
}

#[test]
fn single_files_software_and_places_below_tmp_can_be_shown() {
    let mut room = Room::new();
    fs::write(room.path("lut.cube"), "a lut").unwrap();
    fs::create_dir(room.path("tool")).unwrap();
    room::copy_program(&room.spec.program, room.path("tool/probe"));
    fs::set_permissions(room.path("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let lut = "/home/artist/lut.cube";
    room.spec.mounts.push(mount(room.path("lut.cube"), lut, Access::Read));
    room.spec.mounts.push(mount(room.path("in"), "/tmp/deep/show", Access::Read));
    room.spec.software.push(room.path("tool"));
    assert_eq!(room.try_act(&["read", lut]), "ok a lut\n");
    room.spec.mounts.push(mount(room.path("lut.cube"), "/tmp/deep/one.cube", Access::Read));
    assert_eq!(room.try_act(&["read", "/tmp/deep/show/scene.txt"]), "ok a scene\n");
    assert_eq!(room.try_act(&["read", "/tmp/deep/one.cube"]), "ok a lut\n");
    let said = room.try_act(&["run", &room.text("tool/probe"), "where"]);
    assert!(said.contains("ok /session"), "{said}");
    assert!(room.try_act(&["write", &room.text("tool/new"), "x"]).starts_with("error"));
}

#[test]
fn streams_exit_codes_and_signals_come_through() {
    let room = Room::new();
    let mut jail = room.start(&["echo"]);
    jail.stdin.take().unwrap().write_all(b"hello").unwrap();
    assert_eq!(finish(jail).0, "ok hello\n");
    assert_eq!(room.run(&["exit", "42"]).1.code, Some(42));
    let mut jail = room.start(&["sleep"]);
    let exit = jail.kill().unwrap();
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
}

#[test]
fn the_environment_is_built_from_nothing() {
    let mut room = Room::new();
    room.spec.env.insert("FRAME".into(), "7".into());
    let said = room.try_act(&["env"]);
    assert!(said.contains("HOME=/home/render") && said.contains("FRAME=7"), "{said}");
    assert!(!said.contains("CARGO"), "{said}");
}

#[test]
fn the_report_says_what_the_kernel_has_in_force() {
    let room = Room::new();
    let jail = room.start(&["where"]);
    let report = jail.report.clone();
    finish(jail);
    assert_eq!(report.level, Level::S2);
    // One repetition of this program runs where the kernel gives root no process list in a user namespace.
    let masked = env::var_os("MESHFARM_TEST_MASKED").is_some();
    assert_eq!(report.holds("user namespace"), !masked);
    for name in [
        "mnt namespace",
        "pid namespace",
        "net namespace",
        "ipc namespace",
        "uts namespace",
        "landlock",
        "seccomp",
        "no capabilities",
        "no new privileges",
    ] {
        assert!(report.holds(name), "{name}: {report:#?}");
    }
    // What nothing asks for costs nothing.
    assert!(!report.holds("cgroup") && !report.holds("quota"));
}

#[test]
fn a_machine_is_judged_by_a_jail_that_was_built_on_it() {
    let report = probe_with(&launcher());
    assert!(report.level >= Level::S2, "{report:#?}");
    assert_eq!(report.level == Level::S3, report.holds("cgroup") && report.holds("quota"));
    assert!(report.holds("seccomp"));
    let report = probe_with(Path::new("/bin/false"));
    assert_eq!(report.level, Level::S0);
}

#[test]
fn programs_in_the_session_folder_run() {
    let room = Room::new();
    fs::write(room.path("work/run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(room.path("work/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let said = room.try_act(&["run", "/session/run.sh"]);
    assert!(said.contains("ran"), "{said}");
}

#[test]
fn calls_that_no_attack_can_show_to_do_harm_are_refused() {
    let room = Room::new();
    // (name, call and arguments): x86-64 numbers. A jail has no terminal to type into.
    let calls: &[(&str, &[&str])] = &[
        ("TIOCSTI", &["16", "0", "0x5412", "x"]),
        ("TIOCSTI in disguise", &["16", "0", "0x100005412", "x"]),
        ("TIOCLINUX", &["16", "0", "0x541c", "x"]),
        ("set dumpable's neighbour", &["157", "59", "0"]),
        ("swapon", &["167", "/session/x", "0"]),
    ];
    for (name, words) in calls {
        let act: Vec<&str> = std::iter::once("call").chain(words.iter().copied()).collect();
        let said = room.try_act(&act);
        assert!(said.starts_with("error 1 "), "{name}: {said}");
    }
    for unknown in ["435", "437", "600", "0x40000002"] {
        let said = room.try_act(&["call", unknown, "0", "0", "0", "0"]);
        assert!(said.starts_with("error 38"), "{unknown}: {said}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_32_bit_interface_ends_the_program() {
    let (said, exit) = Room::new().run(&["call-32"]);
    assert_eq!((exit.signal, said.as_str()), (Some(31), ""));
}

#[test]
fn many_jails_at_once_keep_apart_and_leave_nothing() {
    thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let room = Room::new();
                for round in 0..5 {
                    let text = format!("{n}-{round}");
                    let file = "/home/artist/show/render/mine";
                    assert_eq!(room.try_act(&["write", file, &text]), "ok \n");
                    assert_eq!(fs::read_to_string(room.path("out/mine")).unwrap(), text);
                    assert_eq!(room.try_act(&["list", "/tmp"]), "ok \n");
                    assert_eq!(room.try_act(&["write", "/tmp/mine", &text]), "ok \n");
                }
                assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
            });
        }
    });
}

#[test]
fn memory_beyond_the_limit_is_refused() {
    let mut room = Room::new();
    room.spec.limits.memory_bytes = 256 << 20;
    let (said, exit) = room.run(&["memory", "1073741824"]);
    assert_eq!(said, "ok refused\n");
    assert!(exit.usage.peak_memory_bytes < 256 << 20);
    let (said, exit) = room.run(&["memory", "134217728"]);
    assert_eq!(said, "ok 134217728\n");
    assert!(exit.usage.peak_memory_bytes >= 128 << 20);
}

#[test]
fn processor_time_is_measured_and_limited() {
    let mut room = Room::new();
    room.spec.limits.cpu_seconds = 1;
    let (_, exit) = room.run(&["spin"]);
    assert!(exit.signal == Some(9) || exit.signal == Some(24), "{exit:?}");
    let used = exit.usage.user_ms + exit.usage.system_ms;
    // The kernel limits by counted ticks and reports measured time: on a busy machine they differ.
    assert!((500..5000).contains(&used), "{exit:?}");
}

#[test]
fn nothing_is_left_when_a_jail_is_killed() {
    let room = Room::new();
    let mark = format!("/session/beat-{}-{:p}", std::process::id(), &room);
    let beat = room.path("work").join(mark.rsplit('/').next().unwrap());
    let mut jail = room.start(&["linger-and-stay", &mark]);
    wait_until("the daemon beats", || fs::read(&beat).is_ok_and(|t| t.len() > 1));
    jail.kill().unwrap();
    assert!(processes_naming(&mark).is_empty());
    assert!(is_still(&beat));
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&room.text("")));
}

#[test]
fn nothing_is_left_when_the_program_ends() {
    let room = Room::new();
    let mark = format!("/session/beat-{}-{:p}", std::process::id(), &room);
    let beat = room.path("work").join(mark.rsplit('/').next().unwrap());
    let mut jail = room.start(&["linger", &mark]);
    assert_eq!(jail.wait().unwrap().code, Some(0));
    assert!(processes_naming(&mark).is_empty());
    assert!(is_still(&beat));
}

#[test]
fn a_dropped_jail_is_dead() {
    let room = Room::new();
    let mark = format!("/session/beat-{}-{:p}", std::process::id(), &room);
    let jail = room.start(&["linger-and-stay", &mark]);
    drop(jail);
    assert!(processes_naming(&mark).is_empty());
}

#[test]
fn everything_dies_with_the_launcher() {
    let room = Room::new();
    let mark = format!("/session/beat-{}-{:p}", std::process::id(), &room);
    let beat = room.path("work").join(mark.rsplit('/').next().unwrap());
    let mut jail = room.start(&["linger-and-stay", &mark]);
    wait_until("the daemon beats", || fs::read(&beat).is_ok_and(|t| t.len() > 1));
    let kill = Command::new("kill").args(["-9", &jail.launcher_id().to_string()]).status().unwrap();
    assert!(kill.success());
    wait_until("all processes are gone", || processes_naming(&mark).is_empty());
    assert_eq!(jail.wait().unwrap_err().step, Step::Launcher);
    assert!(is_still(&beat));
}

#[test]
fn everything_dies_with_the_node() {
    if let Some(mark) = env::var_os("MESHFARM_TEST_NODE") {
        // The inner half: a node that will be killed at once when its jail runs.
        let room = Room::new();
        let _jail = room.start(&["linger-and-stay", mark.to_str().unwrap()]);
        println!("started");
        loop {
            thread::sleep(Duration::from_secs(60));
        }
    }
    let mark = format!("/session/node-{}", std::process::id());
    let mut node = Command::new(env::current_exe().unwrap())
        .args(["--exact", "everything_dies_with_the_node", "--nocapture"])
        .env("MESHFARM_TEST_NODE", &mark)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the jail runs", || processes_naming(&mark).len() >= 2);
    node.kill().unwrap();
    node.wait().unwrap();
    wait_until("all processes are gone", || processes_naming(&mark).is_empty());
}

#[test]
fn a_jail_that_cannot_be_built_is_an_error_that_names_the_step() {
    let mut room = Room::new();
    if !is_root() {
        room.spec.floor = Level::S3;
        let error = launch(&launcher(), &room.spec).unwrap_err();
        assert!(matches!(error.step, Step::Cgroup | Step::Volume), "{error}");
        room.spec.floor = Level::S2;
    }
    room.spec.mounts.push(mount("/nowhere/at/all".into(), "/mnt/x", Access::Read));
    let error = launch(&launcher(), &room.spec).unwrap_err();
    assert!(error.to_string().contains("/mnt/x: no such file or directory"), "{error}");
    room.spec.mounts.pop();
    room.spec.program = room.path("in/scene.txt");
    let error = launch(&launcher(), &room.spec).unwrap_err();
    assert_eq!(error.step, Step::Exec);
    assert!(error.to_string().contains("permission denied"), "{error}");
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
}

#[test]
fn a_link_that_an_earlier_job_left_is_not_shown_as_a_folder() {
    let mut room = Room::new();
    symlink(room.path("other"), room.path("out/left")).unwrap();
    let host = room.path("out/left");
    room.spec.mounts.push(mount(host, "/mnt/left", Access::Write));
    let error = launch(&launcher(), &room.spec).unwrap_err();
    assert!(error.to_string().contains("is a link"), "{error}");
    assert_eq!(fs::read_to_string(room.path("other/secret")).unwrap(), CANARY);
}

#[test]
fn a_hostile_link_in_the_inputs_moves_no_mount() {
    let room = Room::new();
    fs::remove_dir(room.path("in/render")).unwrap();
    symlink("../../../usr", room.path("in/render")).unwrap();
    let error = launch(&launcher(), &room.spec).unwrap_err();
    assert_eq!(error.step, Step::Mount, "{error}");
}

#[test]
fn started_as_root_all_of_this_holds_for_an_ordinary_user_as_well() {
    if is_root() && !is_repetition() {
        repeat_as_ordinary_user(&[]);
    }
}

#[test]
fn started_as_root_all_of_this_holds_without_user_namespaces_as_well() {
    let may_mount =
        || Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success());
    if !is_root() || is_repetition() || !may_mount() {
        return;
    }
    let limit = || fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap();
    let before = limit();
    // As in a container that hides a part of its process list.
    let script = "mount --make-rprivate / && mount -t tmpfs none /proc/irq && exec \"$0\"";
    let done = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(env::current_exe().unwrap())
        .env("MESHFARM_TEST_MASKED", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("test result: ok"), "{said}");
    // Without a user namespace of its own a jail that wrote its limits would write the host's.
    assert_eq!(limit(), before);
}

fn is_repetition() -> bool {
    env::var_os("MESHFARM_TEST_MASKED").is_some()
}
