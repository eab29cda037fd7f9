//! Leases between sites: silence, loss, repetition, and who owes what to whom.

use meshfarm_core::{Event, Input, JobPhase};
use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, Millis, TaskNo, TenantId};
use meshfarm_protocol::lease::{
    Assignment, Declined, Done, LENDER_GRACE, Offer, Outcome, RESERVATION, Usage, Want,
};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{Level, Requirement};

use crate::mesh::{Mesh, frames, id};

fn offer(n: u8, slots: u32) -> Offer {
    Offer {
        lease: LeaseId([n; 16]),
        tenant: TenantId([1; 16]),
        requirement: Requirement::default(),
        isolation: Level::S0,
        slots,
        tasks: slots,
        root: ChunkId([1; 32]),
        bytes: 1,
        priority: 50,
        hops: 0,
    }
}

fn hear(mesh: &mut Mesh, at: usize, from: usize, message: Message) {
    let from = id(from);
    mesh.give(at, Input::Heard { from, message });
}

fn lost(mesh: &Mesh, at: usize) -> usize {
    let told = mesh.peers[at].told.iter();
    told.filter(|event| matches!(event, Event::LeaseLost { .. })).count()
}

#[test]
fn tasks_of_a_silent_lender_move_and_its_late_result_counts_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 0)]);
    let job = mesh.submit(0, frames(1));
    assert_eq!(mesh.n_running(1), 1);
    mesh.cut(0, 1);
    mesh.advance(LENDER_GRACE.0 + 1000);
    assert_eq!((mesh.states(0, job), lost(&mesh, 0)), (vec!["waiting".to_owned()], 1));
    mesh.finish(1, None);
    mesh.mend(0, 1);
    mesh.advance(10_000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 1);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_slot_that_is_done_with_is_asked_for_again_at_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.advance(5_000);
    for n in 0..8 {
        mesh.submit(0, frames(1));
        mesh.advance(100);
        assert_eq!(mesh.n_running(1), 1, "job {n}");
        mesh.finish(1, None);
        mesh.advance(100);
    }
}

#[test]
fn a_late_result_stops_the_second_try() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, frames(1));
    let first = 1 + usize::from(mesh.n_running(1) == 0);
    let second = 3 - first;
    mesh.cut(0, first);
    mesh.advance(LENDER_GRACE.0 + 1000);
    assert_eq!((mesh.n_running(first), mesh.n_running(second)), (1, 1));
    mesh.finish(first, None);
    mesh.mend(0, first);
    mesh.advance(1000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!((mesh.n_running(first), mesh.n_running(second)), (0, 0));
    assert_eq!(mesh.peers[second].stopped.len(), 1);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn the_result_of_an_unknown_attempt_is_acknowledged_and_changes_nothing() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    let (lease, attempt) = (LeaseId([7; 16]), AttemptId([7; 16]));
    let done =
        Done { lease, attempt, outcome: Outcome::Done, outputs: None, usage: Usage::default() };
    hear(&mut mesh, 0, 1, Message::Done(Box::new(done)));
    let answer = (0, 1, Message::Accepted { lease, attempt, counts: false });
    assert_eq!(mesh.wires.pop_front(), Some(answer));
    assert_eq!(mesh.states(0, job), ["running"]);
}

#[test]
fn a_result_that_arrives_twice_is_placed_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    let running = mesh.peers[1].running[0].clone();
    mesh.hold_collects = true;
    mesh.end(1, running.session, None);
    let (_, _, done) = mesh.wires[0].clone();
    mesh.settle();
    hear(&mut mesh, 0, 1, done.clone());
    assert_eq!(mesh.peers[0].collects.len(), 1);
    mesh.hold_collects = false;
    mesh.settle();
    hear(&mut mesh, 0, 1, done);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert!(mesh.peers[0].collects.is_empty());
}

#[test]
fn a_reservation_that_nobody_commits_expires() {
    let mut mesh = Mesh::new([("oslo", 2), ("lyon", 0)]);
    hear(&mut mesh, 0, 1, Message::Offer(offer(1, 2)));
    assert_eq!(mesh.site(0).slots().free, 0);
    mesh.wires.clear();
    mesh.advance(RESERVATION.0);
    assert_eq!(mesh.site(0).slots().free, 2);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_site_that_does_not_lend_declines() {
    let mut mesh = Mesh::new([("oslo", 2), ("lyon", 0)]);
    mesh.pause(0);
    hear(&mut mesh, 0, 1, Message::Offer(offer(1, 2)));
    let Some((0, 1, Message::Decline { reason, .. })) = mesh.wires.pop_front() else {
        panic!("no answer")
    };
    assert_eq!((reason, mesh.site(0).slots().free), (Declined::Policy, 2));
}

#[test]
fn slots_are_never_promised_twice_to_several_borrowers() {
    let mut mesh = Mesh::new([("oslo", 3), ("lyon", 0), ("graz", 0)]);
    for n in 0..20 {
        hear(&mut mesh, 0, 1 + usize::from(n % 2), Message::Offer(offer(n, 2)));
    }
    let grants = mesh.wires.iter().filter_map(|(_, _, message)| match message {
        Message::Grant(grant) => Some(grant.slots),
        _ => None,
    });
    assert_eq!(grants.sum::<u32>(), 3);
}

#[test]
fn close_frees_slots_and_stops_what_runs() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.submit(0, frames(4));
    let lease = mesh.peers[1].running[0].lease;
    hear(&mut mesh, 1, 0, Message::Close { lease });
    assert_eq!((mesh.n_running(1), mesh.site(1).slots().free), (0, 2));
    assert_eq!(mesh.peers[1].released, [lease]);
}

#[test]
fn nobody_but_its_borrower_can_touch_a_lease() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2), ("graz", 0)]);
    let job = mesh.submit(0, frames(2));
    let lease = mesh.peers[1].running[0].lease;
    hear(&mut mesh, 1, 2, Message::Close { lease });
    let (attempts, more) = (Vec::new(), false);
    let version = u64::MAX;
    let want = Want { lease, version, attempts, more };
    hear(&mut mesh, 1, 2, Message::Want(want));
    mesh.settle();
    assert_eq!(mesh.n_running(1), 2);
    assert_eq!(mesh.states(0, job), ["running", "running"]);
    assert!(!mesh.site(1).may_read(id(2), lease));
}

#[test]
fn a_wish_that_names_an_attempt_twice_starts_it_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.submit(0, frames(1));
    let lease = mesh.peers[1].running[0].lease;
    let (attempt, task) = (AttemptId([8; 16]), TaskNo(0));
    let want = Want {
        lease,
        version: u64::MAX,
        attempts: vec![Assignment { attempt, task }; 3],
        more: true,
    };
    hear(&mut mesh, 1, 0, Message::Want(want));
    let starts = mesh.peers[1].started.iter().filter(|a| **a == attempt);
    assert_eq!(starts.count(), 1);
}

#[test]
fn an_old_wish_that_arrives_late_starts_nothing_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(3));
    let running = mesh.peers[1].running[0].clone();
    mesh.end(1, running.session, None);
    mesh.settle();
    let wanted = running.run.iter().chain(&mesh.peers[1].running[0].run);
    let want = Want {
        lease: running.lease,
        version: mesh.now.0 + 1_000_000,
        attempts: wanted.copied().collect(),
        more: true,
    };
    hear(&mut mesh, 1, 0, Message::Want(want));
    assert!(mesh.n_running(1) <= 1);
    let started = &mesh.peers[1].started;
    assert_eq!(started.iter().filter(|a| **a == running.run[0].attempt).count(), 1);
    assert_eq!(mesh.job(0, job).done, 1);
}

#[test]
fn a_lease_that_has_shrunk_to_nothing_runs_what_follows() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.submit(0, frames(2));
    let lease = mesh.peers[1].running[0].lease;
    let attempts = |n: u8| vec![Assignment { attempt: AttemptId([n; 16]), task: TaskNo(0) }];
    for (n, attempts, more) in [(0, Vec::new(), false), (1, attempts(9), false)] {
        let version = mesh.now.0 + 1_000_000 + n;
        let want = Want { lease, version, attempts, more };
        hear(&mut mesh, 1, 0, Message::Want(want));
    }
    assert_eq!(mesh.peers[1].started.last(), Some(&AttemptId([9; 16])));
}

#[test]
fn a_machine_that_slept_does_not_lose_its_own_sessions() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, frames(2));
    mesh.now = mesh.now.plus(Millis::seconds(3600));
    mesh.give(0, Input::Tick);
    assert_eq!((mesh.n_running(0), lost(&mesh, 0)), (2, 0));
    mesh.finish(0, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[0].started.len(), 2);
}

#[test]
fn a_stopping_session_is_not_asked_to_stop_again_and_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.submit(0, frames(2));
    let running = mesh.peers[1].running.clone();
    mesh.cut(0, 1);
    mesh.advance(LENDER_GRACE.0);
    mesh.end(1, running[0].session, None);
    mesh.mend(0, 1);
    mesh.advance(1000);
    let stops = mesh.peers[1].stopped.iter();
    assert!(stops.filter(|session| **session == running[1].session).count() <= 1);
}
