//! What the whole of a job may use: its memory, its disk, its time, its devices and its only network.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};

use meshfarm_sandbox::{
    CollectLimits, Level, ProcessList, Profile, Service, Stopped, collect, launch,
};
use room::{Room, finish, is_root, launcher, repeat_as_ordinary_user};

#[path = "room/room.rs"]
#[allow(dead_code, reason = "each test program uses its part of the room")]
mod room;

const OUT: &str = "/home/artist/show/render";

/// A room whose job is a shell script.
fn shell(room: &mut Room, script: &str) -> Vec<String> {
    room.spec.program = "/bin/sh".into();
    vec!["-c".to_owned(), script.to_owned()]
}

fn run(room: &mut Room, script: &str) -> (String, meshfarm_sandbox::Exit) {
    let args = shell(room, script);
    room.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn groups() -> Vec<String> {
    let done = Command::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "5", "-name", "meshfarm-jail-*"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_memory_of_all_processes_together_is_limited() {
    let mut room = Room::new();
    room.spec.limits.memory_bytes = 200 << 20;
    // Each is far below the limit and waits for the others; together they exceed it.
    let one = "python3 -c 'import time; x = bytearray(90 << 20); time.sleep(60)'";
    let script = format!("{one} & {one} & {one} & wait");
    let (said, exit) = run(&mut room, &script);
    assert_eq!(exit.stopped, Some(Stopped::Memory), "{said} {exit:?}");
    // What lies in a file without a name is mapped nowhere.
    let script = "python3 -c 'import os, time; f = os.memfd_create(\"m\")
for n in range(400): os.write(f, bytes(1 << 20))
time.sleep(60)'";
    let (said, exit) = run(&mut room, script);
    assert_eq!(exit.stopped, Some(Stopped::Memory), "{said} {exit:?}");
}

#[test]
fn a_job_that_fills_the_disk_with_many_files_is_ended() {
    let mut room = Room::new();
    room.spec.limits.disk_bytes = 20 << 20;
    let script = format!("i=0; while :; do head -c 1000000 /dev/zero > {OUT}/$i; i=$((i+1)); done");
    let (_, exit) = run(&mut room, &script);
    assert_eq!(exit.stopped, Some(Stopped::DiskBytes), "{exit:?}");
    let mut room = Room::new();
    room.spec.limits.disk_files = 500;
    let script = "i=0; while :; do : > /session/$i; i=$((i+1)); done";
    let (_, exit) = run(&mut room, script);
    assert_eq!(exit.stopped, Some(Stopped::DiskFiles), "{exit:?}");
}

#[test]
fn a_job_that_runs_too_long_is_ended_and_its_time_is_counted() {
    let mut room = Room::new();
    room.spec.limits.wall_seconds = Some(1);
    let (_, exit) = room.run(&["spin"]);
    assert_eq!((exit.stopped, exit.signal), (Some(Stopped::Time), Some(9)));
    // On a busy machine it got little of its second.
    assert!(exit.usage.user_ms + exit.usage.system_ms > 20, "{exit:?}");
}

#[test]
fn time_spent_by_processes_that_nobody_waits_for_is_counted() {
    if !is_root() {
        return;
    }
    let mut room = Room::new();
    room.spec.limits.processors = Some(500);
    let script = "(timeout 1 sh -c 'while :; do :; done' &) ; sleep 1.2; kill -9 -1";
    let (_, exit) = run(&mut room, script);
    // Half a processor for a second.
    let used = exit.usage.user_ms + exit.usage.system_ms;
    assert!((20..900).contains(&used), "{exit:?}");
}

#[test]
fn at_level_s3_a_job_has_a_disk_of_its_own_and_nothing_of_it_stays() {
    if !is_root() {
        return;
    }
    let mut room = Room::new();
    room.spec.floor = Level::S3;
    room.spec.limits.disk_bytes = 16 << 20;
    fs::write(room.path("work/job.txt"), "from before").unwrap();
    let script = format!(
        "cat /session/job.txt; echo pixels > {OUT}/frame.txt; : > /session/note
         head -c 100000000 /dev/zero > {OUT}/big; echo $?
         i=0; while true > {OUT}/$i; do i=$((i+1)); done; echo full > {OUT}/frame.txt; exit 7"
    );
    let args = shell(&mut room, &script);
    room.spec.limits.disk_files = 300;
    let mut jail = room.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(jail.report.level, Level::S3, "{:#?}", jail.report);
    let mut said = String::new();
    jail.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("from before1\n"), "{said}");
    assert_eq!(jail.wait().unwrap().code, Some(7));
    let mut found = Vec::new();
    let out = jail.written(Path::new(OUT)).unwrap();
    let done = collect(&out, CollectLimits::default(), |path, _, length| {
        found.push((path.to_owned(), length));
        Ok(())
    });
    let done = done.unwrap();
    assert!((100..320).contains(&done.files), "{}", done.files);
    // What the filesystem needs for itself depends on the files that there may be.
    assert!(done.bytes < 17 << 20, "{}", done.bytes);
    assert!(found.iter().any(|(path, _)| path == Path::new("frame.txt")));
    // The host's folders were only copied from.
    assert_eq!(fs::read_dir(room.path("out")).unwrap().count(), 0);
    assert!(!room.path("work/note").exists());
    drop((out, jail));
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("/dev/loop"));
}

#[test]
fn groups_and_disks_are_gone_with_the_jail_even_when_its_launcher_was_killed() {
    if !is_root() {
        return;
    }
    let mut room = Room::new();
    room.spec.floor = Level::S3;
    let mut jail = room.start(&["sleep"]);
    let mine = format!("meshfarm-jail-{}", jail.launcher_id());
    assert!(groups().iter().any(|g| g.ends_with(&mine)));
    let kill = Command::new("kill").args(["-9", &jail.launcher_id().to_string()]).status().unwrap();
    assert!(kill.success() && jail.wait().is_err());
    drop(jail);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    // The next jail sweeps.
    while groups().iter().any(|g| g.ends_with(&mine)) {
        assert!(std::time::Instant::now() < deadline);
        assert!(Room::new().run(&["where"]).1.success());
    }
    let mut jail = room.start(&["sleep"]);
    let mine = format!("meshfarm-jail-{}", jail.launcher_id());
    jail.kill().unwrap();
    assert!(!groups().iter().any(|g| g.ends_with(&mine)));
}

#[test]
fn a_listed_service_is_reached_by_its_name_and_nothing_else_is() {
    let mut room = Room::new();
    let (licence, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (port, closed) = (licence.local_addr().unwrap().port(), other.local_addr().unwrap().port());
    room.spec.services =
        vec![Service { host: "lic.studio.example".into(), port, address: [127, 0, 0, 1].into() }];
    let served = thread::spawn(move || {
        let (mut stream, _) = licence.accept().unwrap();
        let mut asked = [0; 4];
        stream.read_exact(&mut asked).unwrap();
        stream.write_all(b"granted").unwrap();
        asked
    });
    let script = format!(
        "import socket\n\
         s = socket.create_connection(('lic.studio.example', {port}), 5); s.sendall(b'seat')\n\
         print(s.recv(7))\n\
         for host, port in [('127.0.0.1', {closed}), ('lic.studio.example', {closed}), ('192.0.2.1', {port})]:\n\
         \x20   try: socket.create_connection((host, port), 2); print('open')\n\
         \x20   except OSError as e: print('closed')\n"
    );
    fs::write(room.path("work/ask.py"), script).unwrap();
    room.spec.program = "/usr/bin/python3".into();
    let jail = room.start(&["ask.py"]);
    assert!(jail.report.holds("services"));
    let (said, exit) = finish(jail);
    assert_eq!(said, "b'granted'\nclosed\nclosed\nclosed\n");
    assert_eq!(&served.join().unwrap(), b"seat");
    assert_eq!(exit.usage.service_bytes, 11);
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err());
}

#[test]
fn a_service_that_is_listed_by_address_is_reached_by_it() {
    let mut room = Room::new();
    let licence = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = licence.local_addr().unwrap().port();
    // Where the launcher connects to differs from the name only in this test, which has no other machine.
    let service =
        |host: &str| Service { host: host.to_owned(), port, address: [127, 0, 0, 1].into() };
    room.spec.services = vec![service("192.0.2.7"), service("10.0.0.7")];
    let served = thread::spawn(move || {
        for _ in 0..2 {
            licence.accept().unwrap().0.write_all(b"granted").unwrap();
        }
    });
    let script = format!(
        "import socket\n\
         for host in ['192.0.2.7', '10.0.0.7']: print(socket.create_connection((host, {port}), 5).recv(7))\n\
         for host in ['192.0.2.8', '10.0.0.8', '127.0.0.1']:\n\
         \x20   try: socket.create_connection((host, {port}), 2); print('open')\n\
         \x20   except OSError as e: print('closed')\n"
    );
    fs::write(room.path("work/ask.py"), script).unwrap();
    room.spec.program = "/usr/bin/python3".into();
    let (said, exit) = room.run(&["ask.py"]);
    assert_eq!(said, "b'granted'\nb'granted'\nclosed\nclosed\nclosed\n");
    assert!(exit.success());
    served.join().unwrap();
}

#[test]
fn the_full_process_list_shows_the_jobs_processes_and_covers_what_tells() {
    let mut room = Room::new();
    room.spec.process_list = ProcessList::Compat;
    let script = "cat /proc/meminfo | head -1 | cut -c1-8; cat /proc/kallsyms /proc/kcore /proc/keys /proc/cmdline | wc -c
        ls /proc | grep -c '^[0-9]'; (echo mine > /proc/sys/kernel/hostname) 2>/dev/null; hostname 2>/dev/null || cat /proc/sys/kernel/hostname";
    let mut jail = {
        let args = shell(&mut room, script);
        match launch(&launcher(), &{
            let mut spec = room.spec.clone();
            spec.args = args;
            spec
        }) {
            Ok(jail) => jail,
            // Where a container hides parts of its process list, no fresh one is to be had.
            Err(error) => panic!("{error}"),
        }
    };
    assert!(jail.report.holds("process list"));
    let mut said = String::new();
    jail.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("MemTotal\n0\n"), "{said}");
    assert!(said.ends_with("render\n"), "{said}");
}

#[test]
fn a_granted_device_is_there_with_its_controls_and_no_other_is() {
    // A device of the null driver under a card's name: what matters here is which files are shown.
    let (card, other) = (Path::new("/dev/nvidia97"), Path::new("/dev/nvidia98"));
    let made = [card, other].iter().all(|path| {
        Command::new("mknod").arg(path).args(["c", "1", "3"]).status().unwrap().success()
    });
    if !made {
        assert!(!is_root());
        return;
    }
    // As AMD's and Intel's are: for a group alone, which the job's user is in for this.
    for path in [card, other] {
        let set = |program: &str, to: &str| Command::new(program).arg(to).arg(path).status();
        assert!(set("chgrp", "4242").unwrap().success() && set("chmod", "660").unwrap().success());
    }
    let mut room = Room::new();
    room.spec.give_cards(vec![card.into()]);
    room.spec.profile = Profile::BlenderGpu;
    let script = "echo x > /dev/nvidia97 && echo written; ls -d /dev/nvidia97 /dev/nvidia98; ls /sys /sys/devices; \
        echo $CUDA_VISIBLE_DEVICES";
    let (said, exit) = run(&mut room, script);
    for path in [card, other] {
        fs::remove_file(path).unwrap();
    }
    assert!(
        exit.success()
            && said.starts_with(
                "written\n/dev/nvidia97\n/sys:\ndevices\n\n/sys/devices:\nsystem\n0\n"
            ),
        "{said}"
    );
    assert!(said.contains("'/dev/nvidia98': No such file"), "{said}");
    let error = launch(&launcher(), &room.spec).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("/dev/nvidia97") && error.contains("gone"), "{error}");
    room.spec.devices = vec!["/dev/sda".into()];
    let error = launch(&launcher(), &room.spec).unwrap_err();
    assert!(error.to_string().contains("no graphics card"), "{error}");
}

#[test]
fn a_narrow_profile_has_no_sockets() {
    let mut room = Room::new();
    room.spec.profile = Profile::Povray;
    assert!(room.try_act(&["call", "41", "1", "1", "0"]).starts_with("error 1 "));
    room.spec.profile = Profile::Python;
    assert!(room.try_act(&["call", "41", "1", "1", "0"]).starts_with("ok"));
}

#[test]
fn started_as_root_all_of_this_holds_for_an_ordinary_user_as_well() {
    if is_root() {
        repeat_as_ordinary_user(&[]);
    }
}
