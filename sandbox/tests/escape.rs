//! Each test tries one forbidden act from inside a jail and looks at what came of it outside.
//!
//! All of them run as whoever starts them; started as root, the last test runs them again as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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
    fs::copy(room.spec.program.clone(), room.path("tool/probe")).unwrap();
    fs::set_permissions(room.path("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let lut = "/home/artist/lut.cube";
    room.spec.mounts.push(mount(room.path("lut.cube"), lut, Access::Read));
    room.spec.mounts.push(mount(room.path("in"), "/tmp/deep/show", Access::Read));
    room.spec.software.push(room.path("tool"));
    assert_eq!(room.try_act(&["read", lut]), "ok a lut\n");
    assert_eq!(room.try_act(&["read", "/tmp/deep/show/scene.txt"]), "ok a scene\n");
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
    // An ordinary user has a group here only where a service manager delegates one.
    assert!(report.holds("cgroup") || !is_root());
}

#[test]
fn a_machine_is_judged_by_a_jail_that_was_built_on_it() {
    let report = probe_with(&launcher());
    assert_eq!(report.level, Level::S2, "{report:#?}");
    assert!(report.holds("seccomp"));
    let report = probe_with(Path::new("/bin/false"));
    assert_eq!(report.level, Level::S0);
}

#[test]
fn a_host_file_cannot_be_read() {
    let room = Room::new();
    let beside = room.text("other/secret");
    let secret = fs::canonicalize("/proc/self/exe").unwrap();
    let others = [
        "/etc/shadow",
        "/root/.bashrc",
        "/proc/1/environ",
        "/proc/1/root/etc/passwd",
        "/proc/kcore",
        "/proc/sys/kernel/hostname",
        "/sys/kernel/notes",
        secret.to_str().unwrap(),
    ];
    for path in others.into_iter().chain([beside.as_str(), "/session/../other/secret"]) {
        let said = room.try_act(&["read", path]);
        assert!(said.starts_with("error"), "{path}: {said}");
        assert!(!said.contains(CANARY));
    }
}

#[test]
fn a_link_to_a_host_file_leads_nowhere() {
    let room = Room::new();
    symlink(room.path("other/secret"), room.path("in/link")).unwrap();
    symlink("../other/secret", room.path("work/link")).unwrap();
    for path in ["/home/artist/show/link", "/session/link"] {
        assert!(room.try_act(&["read", path]).starts_with("error 2"), "{path}");
    }
}

#[test]
fn another_tenants_folder_is_not_even_there() {
    let room = Room::new();
    let other = Room::new();
    for path in [room.text("other"), other.text("out"), other.text("work")] {
        assert!(room.try_act(&["list", &path]).starts_with("error"), "{path}");
        assert!(room.try_act(&["write", &format!("{path}/planted"), "x"]).starts_with("error"));
    }
    assert!(!room.path("other/planted").exists());
    assert!(!other.path("out/planted").exists());
}

#[test]
fn inputs_keep_their_content_and_their_mode() {
    let room = Room::new();
    let file = room.path("in/scene.txt");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let path = "/home/artist/show/scene.txt";
    assert!(room.try_act(&["write", path, "spoiled"]).starts_with("error"));
    assert!(room.try_act(&["chmod-read", path]).starts_with("error"));
    assert!(room.try_act(&["write", "/home/artist/show/new", "x"]).starts_with("error"));
    assert!(room.try_act(&["write", "/planted", "x"]).starts_with("error"));
    assert!(room.try_act(&["write", "/usr/planted", "x"]).starts_with("error"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "a scene");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o666);
    assert!(!room.path("in/new").exists());
}

#[test]
fn outputs_cannot_be_executed_and_the_session_folder_can() {
    let room = Room::new();
    let script = "#!/bin/sh\necho ran\n";
    for (host, inside, runs) in [
        ("out/run.sh", "/home/artist/show/render/run.sh", false),
        ("work/run.sh", "/session/run.sh", true),
    ] {
        fs::write(room.path(host), script).unwrap();
        fs::set_permissions(room.path(host), fs::Permissions::from_mode(0o755)).unwrap();
        let said = room.try_act(&["run", inside]);
        assert_eq!(said.contains("ran"), runs, "{inside}: {said}");
    }
}

#[test]
fn host_processes_are_neither_seen_nor_signalled_nor_traced() {
    let room = Room::new();
    let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = victim.id().to_string();
    let seen = room.try_act(&["list", "/proc"]);
    let n_seen = seen.split_whitespace().filter(|w| w.parse::<u32>().is_ok()).count();
    assert!(n_seen <= 2, "{seen}");
    for signal in ["9", "15"] {
        assert!(room.try_act(&["call", "62", &pid, signal]).starts_with("error 3"));
    }
    for request in ["16", "0x4206"] {
        assert!(room.try_act(&["call", "101", request, &pid, "0", "0"]).starts_with("error 1 "));
    }
    assert!(room.try_act(&["call", "310", &pid, "0", "0", "0", "0", "0"]).starts_with("error 1 "));
    assert!(victim.try_wait().unwrap().is_none());
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn the_first_process_of_the_jail_is_out_of_reach() {
    let room = Room::new();
    for path in ["/proc/1/mem", "/proc/1/exe", "/proc/1/environ", "/proc/1/fd"] {
        assert!(room.try_act(&["read", path]).starts_with("error"), "{path}");
    }
    let mut jail = room.start(&["call", "62", "1", "9"]);
    let mut said = String::new();
    jail.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(jail.wait().unwrap().code, Some(0), "{said}");
}

#[test]
fn the_hosts_network_is_out_of_reach() {
    let room = Room::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visits);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(stream.unwrap().write_all(CANARY.as_bytes()));
        }
    });
    assert!(room.try_act(&["tcp", &address]).starts_with("error 97"));
    let to = datagrams.local_addr().unwrap().to_string();
    assert!(room.try_act(&["udp", &to]).starts_with("error 97"));
    // Netlink, packet, vsock and raw sockets are families of their own.
    for family in ["16", "17", "40", "10", "2"] {
        assert!(
            room.try_act(&["call", "41", family, "3", "0"]).starts_with("error 97"),
            "{family}"
        );
    }
    assert_eq!(visits.load(Ordering::SeqCst), 0);
    assert!(datagrams.recv(&mut [0; 8]).is_err());
}

#[test]
fn sockets_of_the_host_by_name_are_out_of_reach() {
    use std::os::linux::net::SocketAddrExt;
    let room = Room::new();
    let path = room.path("other/socket");
    let by_path = UnixListener::bind(&path).unwrap();
    let name = format!("meshfarm-test-{}-{:p}", std::process::id(), &room);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let by_name = UnixListener::bind_addr(&address).unwrap();
    for listener in [&by_path, &by_name] {
        listener.set_nonblocking(true).unwrap();
    }
    assert!(room.try_act(&["unix", path.to_str().unwrap()]).starts_with("error"));
    assert!(room.try_act(&["abstract", &name]).starts_with("error"));
    assert!(by_path.accept().is_err());
    assert!(by_name.accept().is_err());
}

#[test]
fn dangerous_calls_are_refused() {
    let room = Room::new();
    // (name, call and arguments): x86-64 numbers.
    let calls: &[(&str, &[&str])] = &[
        ("mount", &["165", "none", "/tmp", "tmpfs", "0", "0"]),
        ("unshare user", &["272", "0x10000000"]),
        ("unshare mount", &["272", "0x20000"]),
        ("clone user", &["56", "0x10000011", "0", "0", "0", "0"]),
        ("setns", &["308", "0", "0"]),
        ("chroot", &["161", "/tmp"]),
        ("pivot_root", &["155", ".", "."]),
        ("open_tree", &["428", "-100", "/usr", "1"]),
        ("io_uring_setup", &["425", "8", "0"]),
        ("bpf", &["321", "0", "0", "0"]),
        ("userfaultfd", &["323", "0"]),
        ("perf_event_open", &["298", "0", "0", "0", "0", "0"]),
        ("keyctl", &["250", "0", "-4", "0"]),
        ("add_key", &["248", "user", "x", "0", "0", "-4"]),
        ("seccomp", &["317", "1", "0", "0"]),
        ("sethostname", &["170", "mine", "4"]),
        ("setxattr", &["188", "/session", "user.x", "y", "1", "0"]),
        ("chown", &["92", "/session", "0", "0"]),
        ("swapon", &["167", "/session/x", "0"]),
        ("shmget", &["29", "1", "4096", "0x3b6"]),
        ("TIOCSTI", &["16", "0", "0x5412", "x"]),
        ("TIOCSTI in disguise", &["16", "0", "0x100005412", "x"]),
        ("TIOCLINUX", &["16", "0", "0x541c", "x"]),
        ("set dumpable's neighbour", &["157", "59", "0"]),
        ("personality", &["135", "0x40000"]),
        ("real-time scheduling", &["144", "0", "1", "x"]),
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
    assert!(room.try_act(&["handle", "/usr"]).starts_with("error 1 "));
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
fn set_user_id_bits_cannot_be_set() {
    let room = Room::new();
    assert_eq!(room.try_act(&["write", "/home/artist/show/render/mine", "x"]), "ok \n");
    let said = room.try_act(&["call", "90", "/home/artist/show/render/mine", "0x9ed"]);
    assert!(said.starts_with("error 1 "), "{said}");
    let mode = fs::metadata(room.path("out/mine")).unwrap().permissions().mode();
    assert_eq!(mode & 0o6000, 0);
}

#[test]
fn no_descriptor_leaks_into_the_jail() {
    if let Some(folder) = env::var_os("MESHFARM_TEST_LEAK") {
        // The inner half: this process was started with descriptor 7 open on the folder.
        assert!(Path::new("/proc/self/fd/7").exists());
        let room = Room::new();
        let said = room.try_act(&["descriptors"]);
        fs::write(Path::new(&folder).join("said"), said).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "exec 7<'{}'; exec '{}' --exact no_descriptor_leaks_into_the_jail",
        folder.path().display(),
        env::current_exe().unwrap().display()
    );
    let done = Command::new("sh")
        .args(["-c", &script])
        .env("MESHFARM_TEST_LEAK", folder.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    assert_eq!(fs::read_to_string(folder.path().join("said")).unwrap(), "ok \n");
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
fn processes_beyond_the_limit_are_refused() {
    let mut room = Room::new();
    room.spec.limits.processes = 20;
    let said = room.try_act(&["forks", "100"]);
    let n: u32 = said.trim_start_matches("ok ").trim().parse().unwrap();
    assert!((10..20).contains(&n), "{said}");
}

#[test]
fn files_and_private_folders_beyond_the_limit_are_refused() {
    let mut room = Room::new();
    room.spec.limits.file_bytes = 8 << 20;
    room.spec.limits.tmp_bytes = 4 << 20;
    let said = room.try_act(&["file", "/home/artist/show/render/big", "33554432"]);
    assert!(said.starts_with("error 27"), "{said}");
    assert_eq!(fs::metadata(room.path("out/big")).unwrap().len(), 8 << 20);
    for private in ["/tmp/big", "/dev/shm/big", "/home/render/big"] {
        let said = room.try_act(&["file", private, "33554432"]);
        assert!(said.starts_with("error 28"), "{private}: {said}");
    }
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
    ["MESHFARM_TEST_LEAK", "MESHFARM_TEST_MASKED"].iter().any(|v| env::var_os(v).is_some())
}
