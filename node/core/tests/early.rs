//! Tasks that start before all of their content is there, and lenders that are waited for in vain.

use meshfarm_core::{Ask, Event, Input, JobPhase, Request, SiteOperation};
use meshfarm_protocol::lease::Phase;
use meshfarm_protocol::message::Message;

use crate::mesh::{AtOnce, Mesh, frames};

fn failures(mesh: &Mesh, at: usize) -> usize {
    let told = mesh.peers[at].told.iter();
    told.filter(|e| matches!(e, Event::TaskFailed { .. } | Event::LeaseLost { .. })).count()
}

#[test]
fn tasks_start_as_soon_as_enough_is_there_and_go_on_when_the_rest_has_come() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.at_once = AtOnce::Enough;
    let job = mesh.submit(0, frames(4));
    assert_eq!(mesh.n_running(1), 2);
    mesh.finish(1, None);
    assert_eq!(mesh.n_running(1), 2, "the next ones start although the rest is still coming");
    mesh.complete();
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!((mesh.peers[1].started.len(), failures(&mesh, 0)), (4, 0));
}

#[test]
fn a_task_that_read_too_early_runs_again_when_everything_is_there_and_has_not_failed() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.at_once = AtOnce::Enough;
    let job = mesh.submit(0, frames(2));
    for running in mesh.peers[1].running.clone() {
        mesh.spoil(1, running.session);
    }
    assert_eq!(mesh.n_running(1), 0, "nothing starts before everything is there");
    mesh.advance(1000);
    assert_eq!(mesh.n_running(1), 0);
    mesh.complete();
    assert_eq!(mesh.n_running(1), 2);
    let (first, second) = mesh.peers[1].started.split_at_mut(2);
    first.sort_unstable();
    second.sort_unstable();
    assert_eq!(first, second, "the same attempts run again");
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!((mesh.phase(0, job), failures(&mesh, 0)), (JobPhase::Done, 0));
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_session_whose_end_is_heard_after_the_content_is_whole_runs_again_at_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.at_once = AtOnce::Enough;
    let job = mesh.submit(0, frames(1));
    let session = mesh.peers[1].running[0].session;
    mesh.complete();
    mesh.spoil(1, session);
    assert_eq!(mesh.n_running(1), 1);
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!((mesh.phase(0, job), failures(&mesh, 0)), (JobPhase::Done, 0));
}

#[test]
fn a_spoiled_task_that_nobody_wants_any_more_does_not_run_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.at_once = AtOnce::Enough;
    let job = mesh.submit(0, frames(1));
    let running = mesh.peers[1].running.pop().unwrap();
    mesh.cancel(0, job);
    mesh.peers[1].running.push(running.clone());
    mesh.spoil(1, running.session);
    mesh.complete();
    mesh.advance(1000);
    assert_eq!((mesh.n_running(1), mesh.peers[1].started.len()), (0, 1));
    mesh.advance(70_000);
    assert_eq!((mesh.leftovers(), mesh.site(1).slots().free), (0, 1));
}

#[test]
fn a_content_whose_rest_never_comes_gives_the_tasks_back() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 0)]);
    mesh.at_once = AtOnce::Enough;
    let job = mesh.submit(0, frames(1));
    let (at, lease) = mesh.coming.remove(0);
    mesh.at_once = AtOnce::Whole;
    let result = Err(meshfarm_core::PrepareError::Unreachable);
    mesh.give(at, Input::Prepared { lease, result });
    mesh.settle();
    assert_eq!(mesh.states(0, job), ["waiting"]);
    mesh.advance(60_000);
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn tasks_leave_a_lender_that_the_content_takes_long_to_reach_for_one_that_is_ready() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.at_once = AtOnce::Nothing;
    let job = mesh.submit(0, frames(2));
    assert_eq!(mesh.coming.len(), 2);
    let (fast, lease) = mesh.coming[0];
    let slow = 3 - fast;
    let ready = meshfarm_core::Ready { shared_sessions: false, whole: true };
    mesh.give(fast, Input::Prepared { lease, result: Ok(ready) });
    mesh.coming.remove(0);
    mesh.settle();
    assert_eq!((mesh.n_running(fast), mesh.n_running(slow)), (1, 0));

    mesh.advance(11_000);
    mesh.finish(fast, None);
    mesh.advance(100);
    assert_eq!(mesh.n_running(fast), 1, "it gets what the slow one cannot start");
    mesh.finish(fast, None);
    mesh.advance(1000);
    assert_eq!((mesh.phase(0, job), failures(&mesh, 0)), (JobPhase::Done, 0));
    assert_eq!(mesh.peers[slow].started.len(), 0);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_slow_lender_still_gets_tasks_when_it_is_ready_at_last() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.at_once = AtOnce::Nothing;
    let job = mesh.submit(0, frames(2));
    mesh.advance(120_000);
    assert_eq!(mesh.coming.len(), 1, "the same content is not asked for twice");
    mesh.complete();
    assert_eq!(mesh.n_running(1), 1);
    mesh.at_once = AtOnce::Whole;
    mesh.finish_all();
    assert_eq!((mesh.phase(0, job), failures(&mesh, 0)), (JobPhase::Done, 0));
}

#[test]
fn a_single_task_whose_content_is_slow_everywhere_is_rendered_by_whoever_is_ready_first() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.at_once = AtOnce::Nothing;
    let job = mesh.submit(0, frames(1));
    // Both have begun to fetch once; nobody begins again.
    mesh.advance(65_000);
    assert_eq!(mesh.coming.len(), 2, "{:?}", mesh.coming);
    let first = mesh.coming.remove(0);
    let rest = std::mem::replace(&mut mesh.coming, vec![first]);
    mesh.complete();
    mesh.coming = rest;
    mesh.advance(12_000);
    let at = first.0;
    assert_eq!(mesh.n_running(at), 1);
    mesh.finish(at, None);
    mesh.advance(1000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn slots_that_wait_long_for_content_are_lent_to_others_meanwhile() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 0)]);
    mesh.at_once = AtOnce::Nothing;
    let slow = mesh.submit(0, frames(1));
    mesh.at_once = AtOnce::Whole;
    let quick = mesh.submit(2, frames(1));
    mesh.advance(5_000);
    assert_eq!(mesh.n_running(1), 0, "for a while the slot is kept");
    mesh.advance(40_000);
    assert_eq!(mesh.n_running(1), 1);
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!(mesh.phase(2, quick), JobPhase::Done);

    mesh.complete();
    mesh.advance(1000);
    assert_eq!(mesh.n_running(1), 1, "the slow one takes the slot that is free again");
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!(mesh.phase(0, slow), JobPhase::Done);
    mesh.advance(70_000);
    assert_eq!((mesh.leftovers(), mesh.site(1).slots().free), (0, 1));
}

#[test]
fn a_lease_that_is_preparing_keeps_no_other_waiting() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2), ("graz", 0)]);
    mesh.at_once = AtOnce::Nothing;
    mesh.submit(0, frames(1));
    mesh.at_once = AtOnce::Whole;
    let job = mesh.submit(2, frames(3));
    for _ in 0..3 {
        assert_eq!(mesh.n_running(1), 1);
        mesh.finish(1, None);
        mesh.advance(1000);
    }
    assert_eq!(mesh.phase(2, job), JobPhase::Done);
}

#[test]
fn a_lender_that_starts_to_fetch_again_is_heard() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.at_once = AtOnce::Enough;
    mesh.submit(0, frames(1));
    let session = mesh.peers[1].running[0].session;
    mesh.give(1, Input::Asked(Request(1), Ask::OperateSite(SiteOperation::Resume)));
    mesh.peers[1].running.clear();
    mesh.give(1, Input::SessionSpoiled { session });
    let said = mesh.wires.iter().find_map(|(_, _, message)| match message {
        Message::Status(status) => Some((status.phase, status.running.len())),
        _ => None,
    });
    assert_eq!(said, Some((Phase::Preparing, 0)));
}
