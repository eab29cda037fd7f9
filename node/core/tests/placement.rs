//! Which site gets a task: the one where it will be done first, by what working with it has taught.

use meshfarm_core::{Ask, Input, JobPhase, Reply, Request};
use meshfarm_protocol::id::{ChunkId, JobId, Millis};

use crate::mesh::{AtOnce, Mesh, frames};

/// Some seconds of a fast line.
const BYTES: u64 = 50_000_000;

/// A job with content of its own that no site has yet.
fn submit(mesh: &mut Mesh, tasks: u32, root: u8) -> JobId {
    let (spec, root) = (Box::new(frames(tasks)), ChunkId([root; 32]));
    match mesh.ask(0, Ask::Submit { spec, root, bytes: BYTES }) {
        Reply::Submitted(job) => job,
        other => panic!("not submitted: {other:?}"),
    }
}

#[test]
fn a_site_behind_a_slow_link_gets_no_new_scene_while_a_fast_one_is_free() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.at_once = AtOnce::Nothing;
    mesh.checks = true;
    let job = submit(&mut mesh, 2, 20);
    mesh.advance(100);
    let slow = mesh.coming.iter().position(|(at, _)| *at == 1).unwrap();
    let slow = mesh.coming.remove(slow);
    mesh.complete();
    mesh.finish(2, None);
    mesh.coming.push(slow);
    mesh.advance(8_000);
    mesh.complete();
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    mesh.at_once = AtOnce::Whole;
    for n in 0..12 {
        let job = submit(&mut mesh, 1, 30 + n);
        assert_eq!((mesh.n_running(1), mesh.n_running(2)), (0, 1), "job {n}");
        mesh.finish(2, None);
        mesh.advance(1000);
        assert_eq!(mesh.phase(0, job), JobPhase::Done);
    }
    // It still gets what the fast one has no room for.
    submit(&mut mesh, 2, 60);
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (1, 1));
}

#[test]
fn a_site_whose_slots_are_slower_than_it_says_gets_a_task_after_those_that_are_not() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.peers[1].wall = Millis(9000);
    for n in 0..4 {
        let job = submit(&mut mesh, 2, 20 + n);
        mesh.finish(2, None);
        mesh.finish(1, None);
        mesh.advance(1000);
        assert_eq!(mesh.phase(0, job), JobPhase::Done);
    }
    for n in 0..12 {
        let job = submit(&mut mesh, 1, 40 + n);
        assert_eq!((mesh.n_running(1), mesh.n_running(2)), (0, 1), "job {n}");
        mesh.finish(2, None);
        mesh.advance(1000);
        assert_eq!(mesh.phase(0, job), JobPhase::Done);
    }
}

#[test]
fn nothing_is_put_behind_what_runs_while_another_lender_may_have_a_slot_for_it() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 4), ("graz", 4), ("bern", 4)]);
    submit(&mut mesh, 12, 20);
    mesh.settle();
    let running: Vec<_> = (1..4).map(|at| mesh.n_running(at)).collect();
    assert_eq!(running, [4, 4, 4]);
}

#[test]
fn inputs_that_come_together_are_answered_in_their_order_and_fill_all_slots() {
    let mut mesh = Mesh::new([("oslo", 4)]);
    let submit = |n: u64| {
        let (spec, root) = (Box::new(frames(2)), ChunkId([5; 32]));
        Input::Asked(Request(n), Ask::Submit { spec, root, bytes: 0 })
    };
    mesh.give_all(0, (1..4).map(submit).collect());
    assert_eq!(mesh.n_running(0), 4);
    let replies = std::mem::take(&mut mesh.peers[0].replies);
    let listed: Vec<_> = mesh.site(0).jobs().into_iter().map(|view| view.job).collect();
    assert_eq!(replies.len(), 3);
    let known = |reply: &Reply| matches!(reply, Reply::Submitted(job) if listed.contains(job));
    assert!(replies.iter().all(known), "{replies:?}");
    while mesh.n_running(0) > 0 {
        mesh.finish(0, None);
    }
    assert!(mesh.site(0).jobs().iter().all(|view| view.phase == JobPhase::Done));
}
