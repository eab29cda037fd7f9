//! Lending by the owner's leave: a key press stops intake at once, and after a grace what still runs goes home.

use meshfarm_core::opening::{Hours, Opening, Owner, Shut, WeekMinute};
use meshfarm_core::{Input, JobPhase};
use meshfarm_protocol::id::Millis;

use crate::mesh::{Mesh, frames};

const MINUTE: u64 = 60_000;

/// Whose owner wants to be away for ten minutes, and then gives a minute's notice.
fn when_idle() -> Opening {
    let (idle, grace) = (Some(Millis(10 * MINUTE)), Millis(MINUTE));
    Opening { idle, grace, ..Opening::default() }
}

fn away(mesh: &mut Mesh, at: usize, minutes: u64) {
    let idle = Some(Millis(minutes * MINUTE));
    mesh.give(at, Input::Owner(Owner { at: WeekMinute::new(0, 600), idle, load: 0 }));
    mesh.settle();
}

fn mesh_with(opening: Opening) -> Mesh {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2), ("graz", 0)]);
    mesh.peers[1].opening = opening;
    mesh.restart(1);
    mesh.advance(2_000);
    mesh
}

#[test]
fn nothing_is_lent_before_the_owner_was_looked_for() {
    let mut mesh = mesh_with(when_idle());
    mesh.submit(0, frames(2));
    mesh.advance(5_000);
    assert_eq!((mesh.n_running(1), mesh.site(1).slots().shut), (0, Some(Shut::Hours)));
    away(&mut mesh, 1, 11);
    mesh.advance(70_000);
    assert_eq!((mesh.n_running(1), mesh.site(1).slots().shut), (2, None));
}

#[test]
fn a_key_press_stops_intake_and_after_the_grace_the_tasks_go_home() {
    let mut mesh = mesh_with(when_idle());
    away(&mut mesh, 1, 11);
    mesh.advance(5_000);
    let job = mesh.submit(0, frames(4));
    assert_eq!(mesh.n_running(1), 2);
    away(&mut mesh, 1, 0);
    mesh.advance(5_000);
    assert_eq!(mesh.n_running(1), 2, "what runs goes on");
    assert!(!mesh.peers[1].profile.as_ref().unwrap().lending);
    let first = mesh.peers[1].running[0].session;
    mesh.end(1, first, None);
    mesh.settle();
    assert_eq!(mesh.n_running(1), 1, "nothing new starts");
    mesh.advance(MINUTE);
    assert_eq!(mesh.n_running(1), 0);
    assert_eq!(mesh.job(0, job).done, 1);
    // Back to work: the rest is rendered, and nothing has failed.
    away(&mut mesh, 1, 11);
    mesh.advance(70_000);
    while mesh.n_running(1) > 0 {
        mesh.finish(1, None);
        mesh.advance(1_000);
    }
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn an_owner_who_goes_again_within_the_grace_loses_nothing() {
    let mut mesh = mesh_with(when_idle());
    away(&mut mesh, 1, 11);
    mesh.advance(5_000);
    mesh.submit(0, frames(2));
    away(&mut mesh, 1, 0);
    mesh.advance(30_000);
    away(&mut mesh, 1, 10);
    mesh.advance(2 * MINUTE);
    assert_eq!((mesh.n_running(1), mesh.peers[1].stopped.len()), (2, 0));
}

#[test]
fn own_jobs_run_whatever_the_hour() {
    let night = Hours { days: [true; 7], from: 20 * 60, to: 6 * 60 };
    let mut mesh = mesh_with(Opening { hours: vec![night], ..Opening::default() });
    away(&mut mesh, 1, 0);
    let own = mesh.submit(1, frames(2));
    mesh.submit(0, frames(2));
    mesh.advance(5_000);
    assert_eq!((mesh.n_running(1), mesh.site(1).slots().shut), (2, Some(Shut::Hours)));
    mesh.finish(1, None);
    assert_eq!(mesh.phase(1, own), JobPhase::Done);
    assert_eq!(mesh.n_running(1), 0);
    mesh.give(1, Input::Owner(Owner { at: WeekMinute::new(0, 1210), idle: None, load: 0 }));
    mesh.advance(70_000);
    assert_eq!(mesh.n_running(1), 2);
}
