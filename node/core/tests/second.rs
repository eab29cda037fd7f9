//! Second tries of tasks that run much longer than others: whoever is done first counts, once.

use meshfarm_core::{CollectError, JobPhase, Operation, Tasks};
use meshfarm_protocol::id::{Millis, StepNo, TaskNo};
use meshfarm_protocol::profile::Level;

use crate::mesh::{Mesh, frames, with};

/// Oslo's job of six tasks, five of which are done; the last runs at one of two lenders, which is returned with the
/// other one.
fn last_one() -> (Mesh, meshfarm_protocol::id::JobId, (usize, usize)) {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, frames(6));
    mesh.advance(1000);
    while mesh.job(0, job).done < 4 {
        mesh.finish(1, None);
        mesh.finish(2, None);
        mesh.advance(1000);
    }
    let slow = 1 + usize::from(mesh.n_running(1) == 0);
    let fast = 3 - slow;
    mesh.finish(fast, None);
    mesh.advance(5_000);
    assert_eq!((mesh.job(0, job).done, mesh.n_running(slow), mesh.n_running(fast)), (5, 1, 0));
    (mesh, job, (slow, fast))
}

#[test]
fn a_task_that_runs_long_is_begun_elsewhere_and_the_first_result_counts() {
    for second_first in [true, false] {
        let (mut mesh, job, (slow, fast)) = last_one();
        mesh.advance(20_000);
        assert_eq!(mesh.n_running(fast), 0, "not slow yet");
        mesh.advance(30_000);
        assert_eq!((mesh.n_running(slow), mesh.n_running(fast)), (1, 1));
        mesh.finish(if second_first { fast } else { slow }, None);
        mesh.advance(10_000);
        assert_eq!(mesh.phase(0, job), JobPhase::Done);
        assert_eq!(
            (mesh.n_running(slow), mesh.n_running(fast)),
            (0, 0),
            "the other one is stopped"
        );
        let job = mesh.job(0, job);
        let levels: Vec<_> = job.steps[0].tasks.iter().map(|task| task.isolation).collect();
        assert_eq!((job.failed, levels), (0, vec![Some(Level::S2); 6]));
        mesh.advance(70_000);
        assert_eq!(mesh.leftovers(), 0);
    }
}

#[test]
fn a_first_try_that_fails_leaves_the_task_to_the_second() {
    let (mut mesh, job, (slow, fast)) = last_one();
    mesh.advance(60_000);
    assert_eq!(mesh.n_running(fast), 1);
    mesh.finish(slow, Some("out of memory"));
    mesh.advance(1000);
    assert_eq!((mesh.n_running(slow), mesh.n_running(fast)), (0, 1));
    mesh.restart(0);
    mesh.advance(1000);
    mesh.finish(fast, None);
    mesh.advance(10_000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_first_try_whose_outputs_are_refused_leaves_the_task_to_the_second() {
    let (mut mesh, job, (slow, fast)) = last_one();
    mesh.advance(60_000);
    let started = mesh.peers[fast].started.len();
    mesh.collected.push_back(CollectError::Bad("forged".into()));
    mesh.finish(slow, None);
    mesh.advance(5_000);
    assert_eq!((mesh.n_running(fast), mesh.phase(0, job)), (1, JobPhase::Active));
    mesh.finish(fast, None);
    mesh.advance(5_000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[fast].started.len(), started, "nothing is begun a third time");
}

#[test]
fn a_second_try_that_fails_changes_nothing() {
    let (mut mesh, job, (slow, fast)) = last_one();
    mesh.advance(60_000);
    mesh.finish(fast, Some("out of memory"));
    mesh.advance(1000);
    assert_eq!((mesh.phase(0, job), mesh.n_running(slow)), (JobPhase::Active, 1));
    mesh.finish(slow, None);
    mesh.advance(5_000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_task_that_is_killed_loses_both_tries_and_runs_again() {
    let (mut mesh, job, (slow, fast)) = last_one();
    mesh.advance(60_000);
    let stopped = mesh.peers[slow].stopped.len() + mesh.peers[fast].stopped.len();
    let last = mesh.states(0, job).iter().position(|state| state != "done").unwrap();
    let tasks = Tasks::These(StepNo(0), vec![TaskNo(u32::try_from(last).unwrap())]);
    mesh.operate(0, job, Operation::Kill { tasks, fail: false });
    mesh.advance(2_000);
    let stopped = mesh.peers[slow].stopped.len() + mesh.peers[fast].stopped.len() - stopped;
    assert_eq!(stopped, 2);
    mesh.advance(20_000);
    assert_eq!(mesh.n_running(slow) + mesh.n_running(fast), 1);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_borrower_that_restarts_forgets_second_tries_and_goes_on() {
    let (mut mesh, job, (slow, fast)) = last_one();
    mesh.advance(60_000);
    mesh.restart(0);
    mesh.advance(2_000);
    assert_eq!(mesh.n_running(slow), 1);
    mesh.finish(slow, None);
    mesh.advance(10_000);
    assert_eq!((mesh.phase(0, job), mesh.n_running(fast)), (JobPhase::Done, 0));
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn nobody_begins_a_second_time_where_all_take_long() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    (mesh.peers[1].wall, mesh.peers[2].wall) = (Millis(600_000), Millis(600_000));
    let job = mesh.submit(0, with(frames(5), |policy| policy.batch = Some(1)));
    mesh.advance(1000);
    while mesh.job(0, job).done < 4 {
        mesh.finish(1, None);
        mesh.finish(2, None);
        mesh.advance(1000);
    }
    mesh.advance(600_000);
    assert_eq!(mesh.n_running(1) + mesh.n_running(2), 1);
}
