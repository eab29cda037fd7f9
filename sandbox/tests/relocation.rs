//! The preload library as programs meet it: what it covers, whom it serves, what it changes and what it must not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "relocation_coverage.rs"]
mod coverage;
#[path = "relocation_everyday.rs"]
mod everyday;
#[path = "room/library.rs"]
mod library;
#[path = "relocation_missing.rs"]
mod missing;
#[path = "relocation_mounts.rs"]
mod mounts;
#[path = "relocation_programs.rs"]
mod programs;
#[path = "room/room.rs"]
#[allow(dead_code, reason = "each test program uses its part of the room")]
mod room;

use room::{is_root, repeat_as_ordinary_user};

#[test]
fn started_as_root_all_of_this_holds_for_an_ordinary_user_as_well() {
    if is_root() {
        repeat_as_ordinary_user(&[("MESHFARM_PRELOAD", library::preload())]);
    }
}
