//! Where a machine gives no namespaces, a site's own jobs run at level S1, say so, and find the artist's paths all the same.
//!
//! These tests run themselves again in a user namespace that forbids further ones: a machine that refuses them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use meshfarm_sandbox::{Level, Step, WindowsRule, launch};
use room::{CANARY, Room, SHOW, finish, launcher};

#[path = "room/library.rs"]
#[allow(dead_code, reason = "each test program uses its part of the library")]
mod library;
#[path = "room/room.rs"]
#[allow(dead_code, reason = "each test program uses its part of the room")]
mod room;

/// Set in the process for which there are no further namespaces.
const CONFINED: &str = "MESHFARM_TEST_CONFINED";

/// Run the test of this name where no namespace can be made, as an ordinary user; true in that process itself.
fn confined(test: &str) -> bool {
    if env::var_os(CONFINED).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, name: &str| room::copy_program(from, folder.path().join(name));
    let programs = [
        ("MESHFARM_SANDBOX", copy(&launcher(), "meshfarm-sandbox")),
        ("MESHFARM_SANDBOX_PROBE", copy(&room::prober(), "meshfarm-sandbox-probe")),
        ("MESHFARM_PRELOAD", copy(&library::preload(), "libmeshfarm_preload.so")),
    ];
    let me = copy(&env::current_exe().unwrap(), "tests");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let limit = "for kind in user mnt pid net ipc uts cgroup; do \
        echo 0 > /proc/sys/user/max_${kind}_namespaces; done; \
        exec setpriv --inh-caps=-all --bounding-set=-all --ambient-caps=-all \"$0\" \"$@\"";
    // First an ordinary user's, so that root of it is no root here, then one without rights in it.
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["unshare", "--user", "--map-user=65534", "--map-group=65534", "--keep-caps"])
        .args(["sh", "-c", limit])
        .arg(me)
        .args(["--exact", test, "--nocapture"])
        .env(CONFINED, "1")
        .env_remove("TMPDIR")
        .current_dir("/");
    for (variable, path) in &programs {
        command.env(variable, path);
    }
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let complaints = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}\n{complaints}");
    false
}

fn weak_room() -> Room {
    let mut room = Room::new();
    room.spec.floor = Level::S0;
    room.spec.preload = Some(library::preload());
    room
}

#[test]
fn a_policy_that_asks_for_more_is_refused() {
    if !confined("a_policy_that_asks_for_more_is_refused") {
        return;
    }
    let room = Room::new();
    let error = launch(&launcher(), &room.spec).unwrap_err();
    let refused = [Step::Namespaces, Step::UserMap, Step::Mount];
    assert!(refused.contains(&error.step), "{error}");
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
}

#[test]
fn at_s1_a_job_finds_its_paths_and_the_kernel_keeps_it_from_others() {
    if !confined("at_s1_a_job_finds_its_paths_and_the_kernel_keeps_it_from_others") {
        return;
    }
    let mut room = weak_room();
    let source = r"C:\show".to_owned();
    room.spec.windows = vec![WindowsRule { source, at: SHOW.into(), case_insensitive: true }];
    let jail = room.start(&["read", &format!("{SHOW}/scene.txt")]);
    assert_eq!(jail.report.level, Level::S1, "{:#?}", jail.report);
    for (name, holds) in [("landlock", true), ("seccomp", true), ("net namespace", false)] {
        assert_eq!(jail.report.holds(name), holds, "{name}");
    }
    assert_eq!(finish(jail).0, "ok a scene\n");
    assert_eq!(room.try_act(&["read", r"C:\SHOW\Scene.TXT"]), "ok a scene\n");
    assert_eq!(room.try_act(&["write", &format!("{SHOW}/render/f.png"), "pixels"]), "ok \n");
    assert_eq!(fs::read_to_string(room.path("out/f.png")).unwrap(), "pixels");
    assert_eq!(room.try_act(&["where"]), "ok /session\n");
    assert_eq!(room.try_act(&["write", "/tmp/mine", "x"]), "ok \n");
    assert!(!Path::new("/tmp/mine").exists());
    let secret = room.text("other/secret");
    for path in [secret.as_str(), "/etc/../root/.bashrc", &format!("{SHOW}/../../../../{secret}")] {
        let said = room.try_act(&["read", path]);
        assert!(said.starts_with("error") && !said.contains(CANARY), "{path}: {said}");
    }
    assert!(room.try_act(&["write", &room.text("in/scene.txt"), "spoiled"]).starts_with("error"));
    assert_eq!(fs::read_to_string(room.path("in/scene.txt")).unwrap(), "a scene");
    assert!(room.try_act(&["call", "41", "2", "1", "0"]).starts_with("error 97"));
}

#[test]
fn at_s1_what_a_job_leaves_behind_is_ended() {
    if !confined("at_s1_what_a_job_leaves_behind_is_ended") {
        return;
    }
    let room = weak_room();
    let beat = room.path("work/beat");
    let (said, exit) = room.run(&["linger", "/session/beat"]);
    assert!(exit.success(), "{said}");
    still(&beat);
    let mut jail = room.start(&["linger-and-stay", "/session/beat"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read(&beat).is_ok_and(|text| text.len() < 2) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    jail.kill().unwrap();
    still(&beat);
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
}

fn still(beat: &PathBuf) {
    let before = fs::read(beat).unwrap();
    // Twenty times the rhythm in which the writer writes.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(before, fs::read(beat).unwrap());
}

#[test]
fn at_s1_povray_renders_at_the_artists_paths() {
    if !confined("at_s1_povray_renders_at_the_artists_paths") {
        return;
    }
    let mut room = weak_room();
    room.spec.program = "/usr/bin/povray".into();
    let scene = "sphere { <0,0,3>, 1 pigment { rgb x } finish { ambient 1 } }\n";
    fs::write(room.path("in/scene.inc"), scene).unwrap();
    let main = format!("#include \"{SHOW}/scene.inc\"\ncamera {{ look_at z }}\n");
    fs::write(room.path("in/scene.pov"), main).unwrap();
    let (input, output) = (format!("+I{SHOW}/scene.pov"), format!("+O{SHOW}/render/f.png"));
    let (said, exit) = room.run(&[&input, &output, "+W32", "+H24", "-D"]);
    assert!(exit.success(), "{said}");
    let picture = image::open(room.path("out/f.png")).unwrap().to_rgb8();
    assert_eq!(picture.get_pixel(16, 12).0, [255, 0, 0]);
}
