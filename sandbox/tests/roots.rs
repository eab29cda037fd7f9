//! Empty roots that are kept for further jails: shared by those of one owner and shape, the same for ever, never in the way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, thread};

use meshfarm_sandbox::{KeptRoots, Step, changed_roots, launch};
use room::{Room, finish, launcher, repeat_as_ordinary_user};

#[path = "room/room.rs"]
#[allow(dead_code, reason = "each test program uses its part of the room")]
mod room;

/// A room whose roots are kept.
fn keeping_room() -> Room {
    let mut room = Room::new();
    let folder = room.path("roots");
    fs::create_dir(&folder).unwrap();
    room.spec.roots = Some(KeptRoots { folder, owner: "lyon".to_owned() });
    room
}

/// The places of the kept roots.
fn kept(room: &Room) -> Vec<PathBuf> {
    let entries = fs::read_dir(room.path("roots")).unwrap();
    let mut places: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    places.sort();
    places
}

#[test]
fn jails_of_one_shape_share_a_root_and_others_have_their_own() {
    let mut room = keeping_room();
    assert_eq!(room.try_act(&["read", "/home/artist/show/scene.txt"]), "ok a scene\n");
    let first = kept(&room);
    assert_eq!(first.len(), 1);
    assert_eq!(room.try_act(&["read", "/etc/hostname"]), "ok render\n\n");
    assert_eq!(kept(&room), first);
    // Other places.
    room.spec.mounts[1].at = "/home/artist/other".into();
    room.spec.mounts[0].at = "/home/artist/other/render".into();
    assert_eq!(room.try_act(&["read", "/home/artist/other/scene.txt"]), "ok a scene\n");
    assert!(room.try_act(&["read", "/home/artist/show/scene.txt"]).starts_with("error 2 "));
    assert_eq!(kept(&room).len(), 2);
    // Another owner.
    room.spec.roots.as_mut().unwrap().owner = "oslo".to_owned();
    assert_eq!(room.try_act(&["read", "/home/artist/other/scene.txt"]), "ok a scene\n");
    assert_eq!(kept(&room).len(), 3);
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
    assert_eq!(changed_roots(&room.path("roots")).unwrap(), Vec::<String>::new());
}

#[test]
fn a_job_cannot_change_a_kept_root() {
    let room = keeping_room();
    for path in ["/mine", "/etc/mine", "/etc/passwd", "/home/artist/mine", "/dev/mine", "/run/mine"]
    {
        let said = room.try_act(&["write", path, "mine"]);
        assert!(said.starts_with("error "), "{path}: {said}");
    }
    assert_eq!(changed_roots(&room.path("roots")).unwrap(), Vec::<String>::new());
    fs::write(kept(&room)[0].join("root/etc/hostname"), "spoiled").unwrap();
    assert_eq!(changed_roots(&room.path("roots")).unwrap().len(), 1);
}

#[test]
fn a_root_of_another_shape_in_the_same_place_is_not_taken() {
    let room = keeping_room();
    assert_eq!(room.try_act(&["read", "/home/artist/show/scene.txt"]), "ok a scene\n");
    let place = kept(&room).remove(0);
    fs::write(place.join("shape"), "another shape").unwrap();
    fs::remove_dir_all(place.join("root/home")).unwrap();
    assert_eq!(room.try_act(&["read", "/home/artist/show/scene.txt"]), "ok a scene\n");
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let room = keeping_room();
    fs::set_permissions(room.path("roots"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = launch(&launcher(), &room.spec).unwrap_err();
    assert_eq!(error.step, Step::Skeleton);
    assert!(error.to_string().contains("nobody but its owner"), "{error}");
    assert_eq!(kept(&room), Vec::<PathBuf>::new());
}

#[test]
fn many_jails_that_start_at_once_make_one_root() {
    let room = keeping_room();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                assert_eq!(room.try_act(&["read", "/etc/hostname"]), "ok render\n\n");
            });
        }
    });
    assert_eq!(kept(&room).len(), 1);
    assert_eq!(fs::read_dir(room.path("base")).unwrap().count(), 0);
}

#[test]
fn old_roots_go_unless_a_jail_uses_them() {
    const MOST_KEPT: usize = 64;
    let mut room = keeping_room();
    let mut jail = room.start(&["linger-and-stay", "/session/beat"]);
    let used = kept(&room).remove(0);
    for n in 0..MOST_KEPT + 4 {
        room.spec.roots.as_mut().unwrap().owner = format!("site-{n}");
        assert_eq!(room.try_act(&["read", "/etc/hostname"]), "ok render\n\n");
    }
    let now = kept(&room);
    assert_eq!(now.len(), MOST_KEPT);
    assert!(now.contains(&used));
    assert_eq!(changed_roots(&room.path("roots")).unwrap(), Vec::<String>::new());
    jail.kill().unwrap();
}

#[test]
fn a_launcher_that_is_killed_leaves_a_root_that_serves() {
    let room = keeping_room();
    let mut jail = room.start(&["linger-and-stay", "/session/beat"]);
    let killed = Command::new("kill").args(["-9", &jail.launcher_id().to_string()]).status();
    assert!(killed.unwrap().success());
    drop(jail.wait());
    let before = kept(&room);
    let (said, exit) = finish(room.start(&["read", "/etc/hostname"]));
    assert!(exit.success());
    assert_eq!(said, "ok render\n\n");
    assert_eq!(kept(&room), before);
}

#[test]
fn all_of_it_holds_for_an_ordinary_user() {
    if room::is_root() {
        repeat_as_ordinary_user(&[]);
    }
}
