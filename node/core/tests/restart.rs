//! Nodes that die and come back, in every phase of a lease.

use meshfarm_core::{Input, JobPhase, Key, Record, Reply, Task, Tasks};
use meshfarm_protocol::id::{StepNo, TaskNo};
use meshfarm_protocol::lease::Want;
use meshfarm_protocol::message::Message;

use crate::mesh::{KEEP_JOBS, Mesh, frames, id, spec, step};

#[test]
fn a_lender_that_restarts_delivers_what_it_had_finished_and_gives_back_the_rest() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    let job = mesh.submit(0, frames(2));
    let first = mesh.peers[1].running[0].clone();
    mesh.cut(0, 1);
    mesh.end(1, first.session, None);
    mesh.kill(1);
    mesh.mend(0, 1);
    mesh.boot(1);
    mesh.advance(10_000);
    assert_eq!(mesh.job(0, job).done, 1);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 3);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_borrower_that_restarts_goes_on_with_the_tasks_that_its_lender_runs() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    let job = mesh.submit(0, frames(4));
    mesh.restart(0);
    assert_eq!(mesh.n_running(1), 2);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 4);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_borrower_that_dies_while_it_asks_asks_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.cut(0, 1);
    let job = mesh.submit(0, frames(1));
    mesh.restart(0);
    assert_eq!(mesh.states(0, job), ["waiting"]);
    mesh.mend(0, 1);
    mesh.advance(2000);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_borrower_that_dies_while_outputs_are_on_their_way_fetches_them_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    mesh.hold_collects = true;
    mesh.finish(1, None);
    mesh.restart(0);
    mesh.hold_collects = false;
    mesh.advance(10_000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 1);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_site_that_restarts_renders_its_own_unfinished_tasks_again_and_no_accepted_one() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, frames(4));
    let first = mesh.peers[0].running[0].clone();
    mesh.end(0, first.session, None);
    mesh.settle();
    mesh.restart(0);
    assert_eq!(mesh.job(0, job).done, 1);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    let started = &mesh.peers[0].started;
    let again = started.iter().filter(|a| **a == first.run[0].attempt);
    assert_eq!(again.count(), 1);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn inputs_that_were_being_assembled_are_assembled_after_a_restart() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, spec(vec![step(1, &[]), step(1, &[0])]));
    mesh.finish(0, None);
    mesh.restart(0);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_task_whose_lease_is_not_on_disk_waits_and_still_knows_where_it_failed() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    mesh.finish(1, Some("no licence"));
    mesh.advance(5000);
    mesh.cut(0, 1);
    mesh.peers[0].disk.retain(|key, _| !matches!(key, Key::Borrowed(_)));
    mesh.restart(0);
    assert_eq!(mesh.states(0, job), ["waiting"]);
    assert_eq!(mesh.job(0, job).steps[0].tasks[0].failures, 1);
}

#[test]
fn a_node_that_died_while_it_ended_a_job_finds_no_open_task_in_it() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, frames(3));
    let at = |task| meshfarm_core::TaskRef { job, step: StepNo(0), task: TaskNo(task) };
    assert!(matches!(mesh.peers[0].disk[&Key::Task(at(0))], Record::Task(_, Task::Leased { .. })));
    if let Some(Record::Job(record)) = mesh.peers[0].disk.get_mut(&Key::Job(job)) {
        record.phase = JobPhase::Canceled;
    }
    mesh.restart(0);
    assert_eq!(mesh.states(0, job), ["canceled"; 3]);
    mesh.advance(10_000);
    assert_eq!((mesh.n_running(0), mesh.leftovers()), (0, 0));
}

#[test]
fn a_job_is_forgotten_so_long_after_it_has_ended_and_not_before() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let (old, open) = (mesh.submit(0, frames(3)), mesh.submit(0, frames(1)));
    let begun = mesh.now;
    for _ in 0..3 {
        mesh.finish(0, None);
        mesh.advance(10);
    }
    assert_eq!(mesh.phase(0, old), JobPhase::Done);
    let attempts: Vec<_> =
        mesh.job(0, old).steps[0].tasks.iter().filter_map(|task| task.attempt).collect();
    mesh.checks = false;
    mesh.advance(KEEP_JOBS.0 - 1000);
    mesh.restart(0);
    assert_eq!(mesh.site(0).jobs().len(), 2);
    mesh.advance(2000);
    assert_eq!(mesh.site(0).jobs().iter().map(|job| job.job).collect::<Vec<_>>(), [open]);
    assert_eq!(mesh.peers[0].purged, [(attempts, begun)]);
    let of_job = |key: &&Key| match key {
        Key::Spec(job) | Key::Job(job) => *job == old,
        Key::Task(at) => at.job == old,
        _ => false,
    };
    assert_eq!(mesh.peers[0].disk.keys().filter(of_job).count(), 0);
}

#[test]
fn canceled_tasks_stay_canceled_over_a_restart_also_when_a_part_is_rendered_after_all() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, frames(6));
    mesh.finish(0, None);
    let tasks = |mesh: &Mesh| {
        let written = mesh.peers[0].disk.keys().filter(|key| matches!(key, Key::Task(_)));
        written.count()
    };
    let before = tasks(&mesh);
    mesh.cancel(0, job);
    assert_eq!(tasks(&mesh), before, "what had no record needs none");
    mesh.restart(0);
    let canceled = ["done", "done", "canceled", "canceled", "canceled", "canceled"];
    assert_eq!(mesh.states(0, job), canceled);

    let these = Tasks::These(StepNo(0), vec![TaskNo(3)]);
    assert_eq!(mesh.retry(0, job, these), Reply::Changed(1));
    mesh.restart(0);
    mesh.advance(60_000);
    let part = ["done", "done", "canceled", "running", "canceled", "canceled"];
    assert_eq!(mesh.states(0, job), part);
    mesh.finish(0, None);
    mesh.restart(0);
    let done = ["done", "done", "canceled", "done", "canceled", "canceled"];
    assert_eq!(
        (mesh.states(0, job), mesh.phase(0, job)),
        (done.map(String::from).into(), JobPhase::Canceled)
    );

    assert_eq!(mesh.retry(0, job, Tasks::Failed), Reply::Changed(3));
    mesh.restart(0);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_borrower_whose_clock_was_set_back_before_a_restart_is_heard_again_after_a_grace() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.advance(100_000);
    mesh.submit(0, frames(1));
    let lease = mesh.peers[1].running[0].lease;
    mesh.cut(0, 1);
    let says = |mesh: &mut Mesh, version| {
        let (attempts, more) = (Vec::new(), true);
        let message = Message::Want(Want { lease, version, attempts, more });
        mesh.give(1, Input::Heard { from: id(0), message });
    };
    // Versions begin at the clock, which says less than before.
    for version in 1..=12 {
        says(&mut mesh, version);
        assert!(mesh.peers[1].stopped.is_empty(), "an old word that comes late changes nothing");
        mesh.advance(5000);
    }
    says(&mut mesh, 13);
    assert_eq!(mesh.peers[1].stopped.len(), 1);
}
