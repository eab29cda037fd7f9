//! What people do to jobs and sites while they run: each takes effect at once, survives a restart, and loses nothing.

use meshfarm_core::{Ask, Intake, JobPhase, Operation, Queue, Reply, SiteOperation, Tasks};
use meshfarm_protocol::id::{JobId, Millis, StepNo, TaskNo};
use meshfarm_protocol::job::Place;
use meshfarm_protocol::message::Message;

use crate::mesh::{Mesh, Running, frames, spec, step, tenant, with};

fn these<const N: usize>(tasks: [u32; N]) -> Tasks {
    Tasks::These(StepNo(0), tasks.map(TaskNo).to_vec())
}

fn hold(tasks: Tasks) -> Operation {
    Operation::Hold { tasks, give_back: false }
}

fn back(tasks: Tasks) -> Operation {
    Operation::Hold { tasks, give_back: true }
}

fn kill(tasks: Tasks) -> Operation {
    Operation::Kill { tasks, fail: false }
}

/// The operation is refused with these words, and nothing has changed on the disk.
#[track_caller]
fn refused(mesh: &mut Mesh, job: JobId, operation: Operation, words: &[&str]) {
    let disk = mesh.peers[0].disk.clone();
    match mesh.operate(0, job, operation) {
        Reply::Refused(reason) => {
            assert!(words.iter().all(|word| reason.contains(word)), "{words:?}: {reason}");
        }
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(mesh.peers[0].disk, disk);
}

#[track_caller]
fn done_once(mesh: &mut Mesh, job: JobId) {
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn held_tasks_do_not_start_and_those_that_run_go_on() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, frames(5));
    assert_eq!(mesh.operate(0, job, hold(these([0, 3, 4]))), Reply::Changed(3));
    assert_eq!(mesh.states(0, job), ["running", "running", "waiting", "held", "held"]);
    mesh.finish(0, None);
    mesh.finish(0, None);
    mesh.advance(5_000);
    assert_eq!(mesh.states(0, job), ["done", "done", "done", "held", "held"]);
    assert_eq!((mesh.job(0, job).queue, mesh.job(0, job).held), (Queue::Held, 2));
    assert_eq!(mesh.operate(0, job, Operation::Release { tasks: these([4]) }), Reply::Changed(1));
    assert_eq!(mesh.states(0, job)[3..], ["held", "running"]);
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    done_once(&mut mesh, job);
}

#[test]
fn a_hold_takes_back_what_waits_at_a_lender_and_on_demand_what_runs_there() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    let job = mesh.submit(0, frames(6));
    assert_eq!(mesh.states(0, job)[..4], ["running", "running", "leased", "leased"]);
    assert_eq!(mesh.operate(0, job, hold(Tasks::All)), Reply::Changed(6));
    assert_eq!(mesh.n_running(1), 2);
    assert_eq!(mesh.states(0, job)[..4], ["running", "running", "held", "held"]);
    assert_eq!(mesh.operate(0, job, back(Tasks::All)), Reply::Changed(2));
    mesh.settle();
    assert_eq!((mesh.n_running(1), mesh.job(0, job).leased), (0, 0));
    assert_eq!(mesh.job(0, job).queue, Queue::Held);
    mesh.advance(70_000);
    assert_eq!((mesh.leftovers(), mesh.site(1).slots().free), (0, 2));
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    mesh.settle();
    assert_eq!(mesh.n_running(1), 2, "the lender was blamed for what a person stopped");
    done_once(&mut mesh, job);
}

#[test]
fn holds_priority_and_place_survive_a_restart() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 1)]);
    let job = mesh.submit(0, frames(6));
    mesh.operate(0, job, back(these([0, 1, 2, 5])));
    mesh.operate(0, job, Operation::Priority(90));
    mesh.operate(0, job, Operation::Outsource(Some("lyon".into())));
    let before = mesh.job(0, job);
    mesh.restart(0);
    let after = mesh.job(0, job);
    assert_eq!((after.held, after.priority), (4, 90));
    assert_eq!((&after.place, &before.place), (&Place::Site("lyon".into()), &after.place));
    mesh.finish_all();
    assert_eq!(mesh.states(0, job), ["held", "held", "held", "done", "done", "held"]);
    mesh.operate(0, job, Operation::Release { tasks: Tasks::Step(StepNo(0)) });
    mesh.restart(0);
    done_once(&mut mesh, job);
}

#[test]
fn a_held_task_that_fails_or_is_lost_stays_held() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    mesh.operate(0, job, hold(Tasks::All));
    mesh.finish(1, Some("no licence"));
    mesh.advance(30_000);
    assert_eq!((mesh.states(0, job), mesh.n_running(1)), (vec!["held".to_owned()], 0));
    assert_eq!(mesh.phase(0, job), JobPhase::Active);
    mesh.restart(0);
    mesh.advance(30_000);
    assert_eq!(mesh.states(0, job), ["held"]);
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    done_once(&mut mesh, job);
}

#[test]
fn a_hold_right_after_a_restart_lets_go_on_what_a_lender_runs() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    let job = mesh.submit(0, frames(2));
    mesh.cut(0, 1);
    mesh.restart(0);
    mesh.operate(0, job, hold(Tasks::All));
    mesh.mend(0, 1);
    mesh.advance(1_000);
    assert_eq!((mesh.n_running(1), mesh.job(0, job).running), (2, 2));
    mesh.finish(1, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 2);
}

#[test]
fn what_only_waits_at_a_lender_comes_back_as_soon_as_a_restarted_borrower_hears_of_it() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(4));
    assert_eq!(mesh.states(0, job)[..2], ["running", "leased"]);
    mesh.cut(0, 1);
    mesh.restart(0);
    mesh.operate(0, job, hold(Tasks::All));
    mesh.mend(0, 1);
    mesh.advance(1_000);
    assert_eq!(mesh.states(0, job), ["running", "held", "held", "held"]);
    mesh.finish(1, None);
    mesh.advance(10_000);
    assert_eq!((mesh.n_running(1), mesh.job(0, job).done), (0, 1));
}

#[test]
fn a_site_that_is_shut_off_and_then_gone_can_be_opened_again_by_its_name() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.ask(0, Ask::OperateSite(SiteOperation::Shut("lyon".into())));
    mesh.kill(1);
    mesh.restart(0);
    let reopen = || Ask::OperateSite(SiteOperation::Reopen("lyon".into()));
    assert_eq!(mesh.ask(0, reopen()), Reply::Changed(1));
    assert!(matches!(mesh.ask(0, reopen()), Reply::Refused(_)));
    mesh.boot(1);
    mesh.submit(0, frames(1));
    mesh.advance(5_000);
    assert_eq!(mesh.n_running(1), 1);
}

#[test]
fn a_job_can_be_submitted_on_hold() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, with(spec(vec![step(2, &[]), step(1, &[0])]), |p| p.held = true));
    mesh.restart(0);
    assert_eq!(mesh.states(0, job), ["held", "held", "held"]);
    mesh.operate(0, job, Operation::Release { tasks: Tasks::Step(StepNo(0)) });
    mesh.finish_all();
    assert_eq!(mesh.states(0, job), ["done", "done", "held"]);
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    done_once(&mut mesh, job);
}

#[test]
fn a_held_job_keeps_nobody_else_from_the_slots() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let urgent = mesh.submit(0, with(frames(4), |p| p.priority = 90));
    let other = mesh.submit(0, frames(4));
    mesh.operate(0, urgent, back(Tasks::All));
    for _ in 0..3 {
        mesh.finish(0, None);
    }
    assert_eq!(mesh.job(0, other).done, 3);
    mesh.operate(0, urgent, Operation::Release { tasks: Tasks::All });
    mesh.finish(0, None);
    assert_eq!((mesh.job(0, other).done, mesh.job(0, urgent).running), (4, 1));
}

#[test]
fn the_late_result_of_a_task_that_was_held_counts_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    let running = mesh.peers[1].running[0].clone();
    mesh.cut(0, 1);
    mesh.operate(0, job, back(Tasks::All));
    mesh.end(1, running.session, None);
    mesh.mend(0, 1);
    mesh.advance(10_000);
    // The lease is closed, and with it the right to fetch: the task stays held unless the outputs were faster.
    let state = mesh.states(0, job).remove(0);
    assert!(state == "done" || state == "held", "{state}");
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    done_once(&mut mesh, job);
    let started = mesh.peers[1].started.len();
    assert_eq!(started, if state == "done" { 1 } else { 2 });
}

#[test]
fn canceled_tasks_are_not_missed_when_the_others_are_done() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 1)]);
    let job = mesh.submit(0, frames(6));
    let tasks = these([0, 2, 3]);
    assert_eq!(mesh.operate(0, job, Operation::Cancel { tasks }), Reply::Changed(3));
    assert_eq!(mesh.states(0, job)[2], "canceled");
    mesh.restart(0);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!((mesh.job(0, job).done, mesh.job(0, job).canceled), (3, 3));
    assert_eq!(mesh.retry(0, job, Tasks::Failed), Reply::Changed(3));
    done_once(&mut mesh, job);
    assert_eq!(mesh.job(0, job).done, 6);
}

#[test]
fn canceling_a_step_ends_what_needs_it() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let job = mesh.submit(0, spec(vec![step(2, &[]), step(3, &[0])]));
    let tasks = Tasks::Step(StepNo(0));
    assert_eq!(mesh.operate(0, job, Operation::Cancel { tasks }), Reply::Changed(2));
    assert_eq!((mesh.phase(0, job), mesh.n_running(0)), (JobPhase::Canceled, 0));
    let job = mesh.submit(0, spec(vec![step(2, &[]), step(3, &[0])]));
    let tasks = Tasks::Step(StepNo(1));
    mesh.operate(0, job, Operation::Cancel { tasks });
    done_once(&mut mesh, job);
}

#[test]
fn the_last_task_of_a_job_that_is_canceled_ends_it() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let job = mesh.submit(0, frames(2));
    mesh.finish(0, None);
    mesh.operate(0, job, Operation::Cancel { tasks: these([1]) });
    assert_eq!((mesh.phase(0, job), mesh.leftovers()), (JobPhase::Done, 0));
    let job = mesh.submit(0, frames(2));
    mesh.operate(0, job, Operation::Cancel { tasks: these([0, 1]) });
    assert_eq!((mesh.phase(0, job), mesh.leftovers()), (JobPhase::Canceled, 0));
}

#[test]
fn the_result_of_a_canceled_task_is_acknowledged_and_not_taken() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(2));
    let running = mesh.peers[1].running[0].clone();
    mesh.cut(0, 1);
    mesh.operate(0, job, Operation::Cancel { tasks: these([0]) });
    mesh.end(1, running.session, None);
    mesh.mend(0, 1);
    mesh.finish_all();
    assert_eq!(mesh.states(0, job), ["canceled", "done"]);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    mesh.advance(70_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_retry_takes_what_failed_and_leaves_what_was_taken_out() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let job = mesh.submit(0, with(frames(4), |p| p.retries = 0));
    mesh.operate(0, job, hold(these([3])));
    mesh.finish(0, Some("broken"));
    mesh.operate(0, job, Operation::Cancel { tasks: these([2]) });
    mesh.finish(0, None);
    assert_eq!(mesh.states(0, job), ["failed", "done", "canceled", "held"]);
    assert_eq!(mesh.retry(0, job, Tasks::Failed), Reply::Changed(1));
    assert_eq!(mesh.states(0, job), ["running", "done", "canceled", "held"]);
    assert_eq!(mesh.retry(0, job, these([1])), Reply::Changed(1));
    mesh.finish_all();
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    done_once(&mut mesh, job);
    assert_eq!(mesh.retry(0, job, Tasks::Step(StepNo(0))), Reply::Changed(4));
    done_once(&mut mesh, job);
}

#[test]
fn a_job_that_is_urged_goes_first_at_once() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let first = mesh.submit(0, frames(4));
    let second = mesh.submit(0, frames(4));
    assert_eq!(mesh.operate(0, second, Operation::Priority(51)), Reply::Changed(1));
    mesh.finish(0, None);
    assert_eq!((mesh.job(0, first).done, mesh.job(0, second).running), (1, 1));
    mesh.restart(0);
    mesh.finish(0, None);
    assert_eq!((mesh.job(0, second).done, mesh.job(0, second).running), (1, 1));
    mesh.operate(0, second, Operation::Priority(0));
    mesh.finish(0, None);
    assert_eq!((mesh.job(0, second).done, mesh.job(0, first).running), (2, 1));
}

#[test]
fn an_outsourced_job_leaves_own_slots_and_stays_where_it_runs() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, frames(6));
    mesh.operate(0, job, Operation::Outsource(Some("graz".into())));
    mesh.advance(1000);
    let running = [0, 1, 2].map(|at| mesh.n_running(at));
    assert_eq!(running, [1, 1, 1], "what runs goes on");
    mesh.finish(0, None);
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!([0, 1, 2].map(|at| mesh.n_running(at)), [0, 0, 1]);
    done_once(&mut mesh, job);
    let sites: Vec<_> = mesh.rendered_by(0, job).into_iter().flatten().collect();
    assert_eq!(sites.iter().filter(|site| *site == "graz").count(), 4, "{sites:?}");
}

#[test]
fn a_job_that_is_sent_elsewhere_leaves_the_site_that_had_it() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, with(frames(6), |p| p.place = Place::Site("lyon".into())));
    assert_eq!((mesh.job(0, job).leased, mesh.n_running(1)), (2, 1));
    mesh.operate(0, job, Operation::Outsource(Some("graz".into())));
    mesh.advance(1000);
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (1, 1));
    mesh.finish(1, None);
    mesh.advance(1000);
    assert_eq!(mesh.n_running(1), 0);
    assert_eq!(mesh.job(0, job).queue, Queue::Outsourced);
    mesh.operate(0, job, Operation::Outsource(None));
    mesh.advance(1000);
    assert_eq!(mesh.n_running(1), 1);
    done_once(&mut mesh, job);
}

#[test]
fn a_recalled_job_comes_home_and_nothing_counts_as_failed() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 2)]);
    let job = mesh.submit(0, with(frames(9), |p| p.retries = 0));
    assert_eq!((mesh.n_running(0), mesh.n_running(1), mesh.job(0, job).leased), (1, 2, 5));
    assert_eq!(mesh.operate(0, job, Operation::Recall), Reply::Changed(4));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (1, 0));
    let view = mesh.job(0, job);
    assert_eq!((view.leased, view.queue, view.place), (1, Queue::Active, Place::Local));
    assert!(view.steps[0].tasks.iter().all(|task| task.failures == 0));
    mesh.restart(0);
    done_once(&mut mesh, job);
    assert!(mesh.rendered_by(0, job).iter().flatten().all(|site| site == "oslo"));
}

#[test]
fn a_recall_that_the_lender_does_not_hear_is_heard_later() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 1)]);
    let job = mesh.submit(0, frames(3));
    let lost = mesh.peers[1].running[0].clone();
    mesh.give(
        0,
        meshfarm_core::Input::Asked(
            meshfarm_core::Request(1),
            Ask::Operate { job, operation: Operation::Recall },
        ),
    );
    assert!(mesh.wires.iter().any(|(_, _, message)| matches!(message, Message::Close { .. })));
    mesh.wires.clear();
    assert_eq!(mesh.n_running(1), 1);
    // It finishes what nobody waits for: the result is welcome if the task is still open, once.
    mesh.end(1, lost.session, None);
    mesh.settle();
    done_once(&mut mesh, job);
    let attempts = mesh.peers[0].started.len() + mesh.peers[1].started.len();
    assert!((3..=4).contains(&attempts), "{attempts}");
}

#[test]
fn a_site_that_was_cut_off_during_a_recall_delivers_nothing_twice() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 1)]);
    let job = mesh.submit(0, frames(2));
    let away = mesh.peers[1].running[0].clone();
    mesh.cut(0, 1);
    mesh.operate(0, job, Operation::Recall);
    mesh.finish(0, None);
    assert_eq!(mesh.n_running(0), 1, "the recalled task runs here");
    mesh.end(1, away.session, None);
    mesh.mend(0, 1);
    mesh.advance(5_000);
    done_once(&mut mesh, job);
    assert_eq!(mesh.job(0, job).done, 2);
}

#[test]
fn outputs_that_are_on_their_way_still_come_after_a_recall() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 1)]);
    let job = mesh.submit(0, frames(2));
    mesh.hold_collects = true;
    mesh.finish(1, None);
    mesh.operate(0, job, Operation::Recall);
    assert_eq!(mesh.states(0, job), ["running", "returning"]);
    mesh.hold_collects = false;
    mesh.settle();
    assert_eq!(mesh.states(0, job), ["running", "done"]);
    done_once(&mut mesh, job);
}

#[test]
fn a_killed_task_runs_elsewhere_and_has_not_failed() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, with(frames(1), |p| p.retries = 0));
    let first = 1 + usize::from(mesh.n_running(1) == 0);
    assert_eq!(mesh.operate(0, job, kill(Tasks::All)), Reply::Changed(1));
    mesh.advance(1000);
    assert_eq!((mesh.n_running(first), mesh.n_running(3 - first)), (0, 1));
    assert_eq!(mesh.job(0, job).steps[0].tasks[0].failures, 0);
    mesh.restart(0);
    // Where no other site is left it may run where it ran before.
    mesh.operate(0, job, kill(these([0])));
    mesh.advance(10_000);
    assert_eq!(mesh.n_running(1) + mesh.n_running(2), 1);
    done_once(&mut mesh, job);
}

/// A job whose first two tasks share a session at the only lender.
fn sharing(mesh: &mut Mesh) -> JobId {
    mesh.shared_sessions = true;
    let mut together = step(4, &[]);
    together.environments = true;
    let job = mesh.submit(0, with(spec(vec![together]), |p| p.retries = 0));
    assert_eq!(mesh.peers[1].running[0].run.len(), 2);
    job
}

#[test]
fn a_task_that_is_killed_in_a_shared_session_costs_the_others_of_it_no_try() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = sharing(&mut mesh);
    let run = mesh.peers[1].running[0].run.clone();
    refused(&mut mesh, job, kill(these([1])), &["runs now"]);
    assert_eq!(mesh.operate(0, job, kill(these([0]))), Reply::Changed(1));
    assert_eq!(mesh.peers[1].stopped.len(), 1);
    // The second one is wanted still: the lender starts it again, as the same try.
    assert_eq!(mesh.peers[1].running[0].run[0], run[1]);
    assert!(!mesh.peers[1].running[0].run.contains(&run[0]));
    done_once(&mut mesh, job);
    assert!(mesh.job(0, job).steps[0].tasks.iter().all(|task| task.failures == 0));
}

#[test]
fn a_held_task_is_not_begun_in_a_session_that_it_shares() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = sharing(&mut mesh);
    let Running { run, session, .. } = mesh.peers[1].running[0].clone();
    mesh.operate(0, job, hold(Tasks::All));
    assert_eq!((mesh.states(0, job)[..2].concat(), mesh.n_running(1)), ("runningheld".into(), 1));
    mesh.give(1, meshfarm_core::Input::AttemptStarted { attempt: run[1].attempt });
    mesh.settle();
    assert!(mesh.peers[1].stopped.contains(&session));
    assert_eq!((mesh.n_running(1), mesh.states(0, job)), (0, vec!["held".to_owned(); 4]));
    mesh.operate(0, job, Operation::Release { tasks: Tasks::All });
    done_once(&mut mesh, job);
}

#[test]
fn a_kill_that_counts_uses_up_the_retries() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let job = mesh.submit(0, with(frames(2), |p| p.retries = 1));
    let killed = Operation::Kill { tasks: these([0]), fail: true };
    assert_eq!(mesh.operate(0, job, killed.clone()), Reply::Changed(1));
    mesh.finish(0, None);
    mesh.advance(10_000);
    assert_eq!(mesh.states(0, job), ["running", "done"]);
    mesh.operate(0, job, killed);
    let JobPhase::Failed(reason) = mesh.phase(0, job) else { panic!("it goes on") };
    assert!(reason.ends_with("1 of 2 tasks failed, 1 are done"), "{reason}");
    assert_eq!(mesh.states(0, job), ["failed", "done"]);
    mesh.advance(70_000);
    assert_eq!((mesh.n_running(0), mesh.leftovers()), (0, 0));
}

#[test]
fn the_own_site_kills_too_and_the_task_runs_again_there_when_nobody_else_is() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let job = mesh.submit(0, frames(2));
    let first = mesh.peers[0].running[0].run[0];
    mesh.operate(0, job, kill(these([0])));
    assert_eq!(mesh.n_running(0), 1);
    assert_ne!(mesh.peers[0].running[0].run[0].attempt, first.attempt);
    done_once(&mut mesh, job);
}

#[test]
fn a_kill_that_comes_too_late_keeps_the_result() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    let session = mesh.peers[1].running[0].session;
    mesh.end(1, session, None);
    // The result is on its way when the person kills.
    mesh.give(
        0,
        meshfarm_core::Input::Asked(
            meshfarm_core::Request(1),
            Ask::Operate { job, operation: kill(Tasks::All) },
        ),
    );
    mesh.settle();
    done_once(&mut mesh, job);
    assert_eq!(mesh.job(0, job).done, 1);
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let gone = JobId([7; 16]);
    let job = mesh.submit(0, frames(2));
    let all = || Tasks::All;
    refused(&mut mesh, gone, hold(all()), &["no job 0707"]);
    refused(&mut mesh, gone, Operation::Recall, &["no job 0707"]);
    refused(&mut mesh, job, hold(these([0, 2])), &["task 2", "0 to 1"]);
    refused(
        &mut mesh,
        job,
        Operation::Cancel { tasks: Tasks::Step(StepNo(4)) },
        &["step 4", "0 to 0"],
    );
    refused(&mut mesh, job, Operation::Priority(101), &["101", "100"]);
    let away = |name: &str| Operation::Outsource(Some(name.into()));
    refused(&mut mesh, job, away("rome"), &["rome", "graz, lyon"]);
    refused(&mut mesh, job, away("oslo"), &["this site", "recall"]);
    refused(&mut mesh, job, Operation::Recall, &["no slots"]);
    refused(&mut mesh, job, kill(these([])), &["runs now"]);
    mesh.finish_all();
    for operation in [hold(all()), kill(all()), away("lyon"), Operation::Priority(1)] {
        refused(&mut mesh, job, operation, &["ended already", "retry"]);
    }
}

#[test]
fn a_paused_site_ends_what_runs_and_gives_the_rest_back() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2), ("graz", 1)]);
    let job = mesh.submit(0, with(frames(8), |p| p.place = Place::Site("lyon".into())));
    assert_eq!(mesh.job(0, job).leased, 4);
    mesh.pause(1);
    assert_eq!((mesh.n_running(1), mesh.job(0, job).leased), (2, 2));
    assert_eq!(mesh.site(1).slots().foreign, Intake::Closed { give_back: None });
    mesh.finish(1, None);
    mesh.advance(10_000);
    assert_eq!((mesh.n_running(1), mesh.job(0, job).done), (0, 2));
    mesh.restart(1);
    mesh.advance(70_000);
    assert_eq!((mesh.n_running(1), mesh.site(1).slots().free), (0, 2));
    assert!(!mesh.site(1).slots().lending);
    mesh.resume(1);
    mesh.advance(70_000);
    assert_eq!(mesh.n_running(1), 2);
    done_once(&mut mesh, job);
    assert!(mesh.job(0, job).steps[0].tasks.iter().all(|task| task.failures == 0));
}

#[test]
fn a_pause_that_nobody_hears_of_still_starts_nothing() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(3));
    mesh.cut(0, 1);
    mesh.pause(1);
    mesh.finish(1, None);
    assert_eq!(mesh.n_running(1), 0);
    mesh.mend(0, 1);
    mesh.advance(5_000);
    assert_eq!((mesh.n_running(1), mesh.job(0, job).done), (0, 1));
    mesh.resume(1);
    mesh.advance(70_000);
    done_once(&mut mesh, job);
    assert_eq!(mesh.peers[1].started.len(), 3);
}

#[test]
fn after_its_grace_a_paused_site_returns_what_still_runs() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, with(frames(2), |p| p.place = Place::Site("lyon".into())));
    let give_back = Some(Millis::seconds(60));
    mesh.ask(1, Ask::OperateSite(SiteOperation::Pause { own: false, give_back }));
    mesh.operate(0, job, Operation::Outsource(None));
    mesh.advance(59_000);
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (1, 1));
    mesh.finish(2, None);
    mesh.advance(2_000);
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (0, 1));
    done_once(&mut mesh, job);
}

#[test]
fn own_slots_can_be_paused_too() {
    let mut mesh = Mesh::new([("oslo", 2), ("lyon", 1)]);
    let job = mesh.submit(0, frames(9));
    let pause = |give_back| Ask::OperateSite(SiteOperation::Pause { own: true, give_back });
    mesh.ask(0, pause(None));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (2, 1));
    mesh.finish(0, None);
    mesh.advance(1_000);
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (0, 1));
    mesh.restart(0);
    mesh.advance(5_000);
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (0, 1));
    mesh.resume(0);
    assert_eq!(mesh.n_running(0), 2);
    mesh.ask(0, pause(Some(Millis(0))));
    assert_eq!((mesh.n_running(0), mesh.site(0).slots().free), (0, 2));
    let view = mesh.job(0, job);
    assert!(view.steps[0].why.iter().any(|why| why.reason.as_deref() == Some("is paused")));
    mesh.resume(0);
    mesh.advance(10_000);
    done_once(&mut mesh, job);
}

#[test]
fn a_site_that_a_person_shuts_off_gets_nothing_more_and_keeps_what_it_runs() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, frames(8));
    let shut = |name: &str| Ask::OperateSite(SiteOperation::Shut(name.into()));
    assert_eq!(mesh.ask(0, shut("lyon")), Reply::Changed(1));
    let Reply::Refused(reason) = mesh.ask(0, shut("rome")) else { panic!("not refused") };
    assert!(reason.contains("rome") && reason.contains("graz, lyon"), "{reason}");
    assert!(matches!(mesh.ask(0, shut("oslo")), Reply::Refused(_)));
    let started = mesh.peers[1].started.len();
    assert_eq!(mesh.n_running(1), 1);
    // What it was given before it may end.
    for _ in 0..3 {
        mesh.finish(1, None);
        mesh.advance(1_000);
    }
    mesh.restart(0);
    mesh.advance(10_000);
    assert_eq!(mesh.n_running(1), 0);
    assert!(mesh.peers[1].started.len() <= started + 1);
    let shown = mesh.site(0).sites(mesh.now);
    assert!(shown.iter().any(|site| site.name == "lyon" && site.shut));
    // A task that fails at the only other site does not wait for the one that is shut off.
    mesh.finish(2, Some("no licence"));
    mesh.advance(30_000);
    assert_eq!(mesh.n_running(2), 1);
    let reopen = |name: &str| Ask::OperateSite(SiteOperation::Reopen(name.into()));
    assert!(matches!(mesh.ask(0, reopen("graz")), Reply::Refused(_)));
    mesh.ask(0, reopen("lyon"));
    mesh.advance(5_000);
    assert_eq!(mesh.n_running(1), 1);
    done_once(&mut mesh, job);
}

#[test]
fn queues_say_where_a_job_stands() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 0)]);
    let first = mesh.submit(0, frames(2));
    let second = mesh.submit(0, frames(1));
    assert_eq!(mesh.job(0, first).queue, Queue::Active);
    assert_eq!(mesh.job(0, second).queue, Queue::New);
    mesh.finish_all();
    assert_eq!(mesh.job(0, first).queue, Queue::Done);
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    assert_eq!(mesh.job(0, job).queue, Queue::Outsourced);
    let leases = mesh.site(1).slots().leases;
    assert_eq!((leases[0].borrower.as_str(), leases[0].own), ("oslo", false));
    assert_eq!(leases[0].tenant, tenant(0));
}
