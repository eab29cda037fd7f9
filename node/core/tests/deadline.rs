//! Deadlines: what is said of them, who comes first for them, and where tasks go that must be in time.

use meshfarm_core::{DeadlineState, Event, JobPhase};
use meshfarm_protocol::id::{JobId, Millis};
use meshfarm_protocol::job::JobSpec;
use meshfarm_protocol::profile::HostClass;

use crate::mesh::{Mesh, frames, host, with};

const MINUTE: u64 = 60_000;

/// How long each task runs.
const TASK: u64 = 10 * MINUTE;

fn due(mesh: &Mesh, n: u32, minutes: u64) -> JobSpec {
    let deadline = Some(mesh.now.plus(Millis(minutes * MINUTE)));
    with(frames(n), |policy| policy.deadline = deadline)
}

fn project(mut spec: JobSpec, name: &str) -> JobSpec {
    name.clone_into(&mut spec.project);
    spec
}

/// One site whose tasks take ten minutes.
fn alone(slots: u32) -> Mesh {
    let mut mesh = Mesh::new([("oslo", slots)]);
    mesh.peers[0].wall = Millis(TASK);
    mesh
}

/// Every task that runs takes its time.
fn round(mesh: &mut Mesh) {
    mesh.advance(TASK);
    for at in 0..mesh.peers.len() {
        mesh.finish(at, None);
    }
}

fn state(mesh: &Mesh, job: JobId) -> DeadlineState {
    mesh.job(0, job).deadline.unwrap().state
}

/// How often people were told that a deadline is in danger, and that it was missed.
fn told(mesh: &Mesh) -> (usize, usize) {
    let told = &mesh.peers[0].told;
    let risk = told.iter().filter(|event| matches!(event, Event::DeadlineAtRisk { .. }));
    let missed = told.iter().filter(|event| matches!(event, Event::DeadlineMissed { .. }));
    (risk.count(), missed.count())
}

#[test]
fn a_job_that_is_in_time_is_said_to_be_and_nobody_is_warned() {
    let mut mesh = alone(2);
    let spec = due(&mesh, 6, 120);
    let job = mesh.submit(0, spec);
    assert_eq!(state(&mesh, job), DeadlineState::Open, "nobody knows how long a task takes");
    round(&mut mesh);
    mesh.advance(6_000);
    let view = mesh.job(0, job).deadline.unwrap();
    assert_eq!(view.state, DeadlineState::InTime);
    let left = view.expected.unwrap().since(mesh.now).0;
    assert!((2 * TASK - MINUTE..=2 * TASK).contains(&left), "two rounds are left: {left}");
    assert_eq!(mesh.site(0).explain(job, None, mesh.now).unwrap().deadline, Some(view));
    round(&mut mesh);
    round(&mut mesh);
    assert_eq!((mesh.phase(0, job), state(&mesh, job)), (JobPhase::Done, DeadlineState::Met));
    assert_eq!(told(&mesh), (0, 0));
}

#[test]
fn a_deadline_that_cannot_be_met_is_told_once_and_the_job_goes_on() {
    let mut mesh = alone(1);
    let spec = due(&mesh, 10, 30);
    let job = mesh.submit(0, spec);
    round(&mut mesh);
    mesh.advance(6_000);
    let view = mesh.job(0, job).deadline.unwrap();
    assert_eq!(view.state, DeadlineState::WillMiss);
    let late = view.expected.unwrap().since(view.at).0;
    assert!(late.abs_diff(70 * MINUTE) < MINUTE, "{late}");
    assert_eq!(told(&mesh), (1, 0));
    mesh.restart(0);
    round(&mut mesh);
    assert_eq!(told(&mesh), (1, 0), "it is told once, also after a restart");
    round(&mut mesh);
    mesh.advance(6_000);
    assert_eq!((told(&mesh), state(&mesh, job)), ((1, 1), DeadlineState::Missed));
    mesh.restart(0);
    for _ in 0..9 {
        round(&mut mesh);
    }
    assert_eq!((mesh.phase(0, job), state(&mesh, job)), (JobPhase::Done, DeadlineState::Missed));
    assert_eq!(told(&mesh), (1, 1));
}

#[test]
fn a_job_of_which_nothing_is_known_is_in_danger_when_half_its_time_is_gone() {
    let mut mesh = alone(0);
    let spec = due(&mesh, 1, 60);
    let job = mesh.submit(0, spec);
    mesh.advance(29 * MINUTE);
    assert_eq!((told(&mesh), state(&mesh, job)), ((0, 0), DeadlineState::Open));
    mesh.advance(2 * MINUTE);
    assert_eq!((told(&mesh), state(&mesh, job)), ((1, 0), DeadlineState::AtRisk));
    mesh.cancel(0, job);
    mesh.advance(60 * MINUTE);
    assert_eq!((told(&mesh), state(&mesh, job)), ((1, 0), DeadlineState::Open));
}

/// A long job and one of four tasks that shall be done after so many minutes share a slot: how many of the latter's
/// are done when an hour is over.
fn shared_slot(minutes: Option<u64>) -> usize {
    let mut mesh = alone(1);
    mesh.submit(0, project(frames(40), "series"));
    round(&mut mesh);
    let spec = match minutes {
        Some(minutes) => due(&mesh, 4, minutes),
        None => frames(4),
    };
    let job = mesh.submit(0, project(spec, "film"));
    for _ in 0..6 {
        round(&mut mesh);
    }
    let done = mesh.job(0, job).done;
    if minutes.is_some() && done == 4 {
        assert_eq!(state(&mesh, job), DeadlineState::Met);
    }
    done
}

#[test]
fn a_job_in_danger_comes_before_others_of_its_priority_and_a_lost_one_does_not() {
    assert!(shared_slot(None) < 4, "the projects take turns");
    assert_eq!(shared_slot(Some(60)), 4, "it comes first, and is in time");
    assert!(shared_slot(Some(25)) < 4, "it cannot make it, and starves nobody");
}

#[test]
fn a_deadline_changes_nothing_for_jobs_of_a_higher_priority() {
    let mut mesh = alone(1);
    let high = mesh.submit(0, with(frames(4), |policy| policy.priority = 90));
    round(&mut mesh);
    let spec = due(&mesh, 2, 30);
    let low = mesh.submit(0, spec);
    for _ in 0..3 {
        round(&mut mesh);
    }
    assert_eq!((mesh.phase(0, high), mesh.job(0, low).done), (JobPhase::Done, 0));
}

#[test]
fn the_nearest_of_several_deadlines_comes_first() {
    let mut mesh = alone(1);
    let specs = [due(&mesh, 6, 120), due(&mesh, 2, 60)];
    let [far, near] = specs.map(|spec| mesh.submit(0, spec));
    // The one that came first has the slot, until half the time of the other is gone.
    for _ in 0..8 {
        round(&mut mesh);
    }
    let done = [far, near].map(|job| state(&mesh, job));
    assert_eq!(done, [DeadlineState::Met; 2]);
}

/// A job whose tasks take ten minutes at graz and a hundred at lyon, of which one is done: how many run at lyon next.
fn at_the_slow_one(minutes: Option<u64>) -> usize {
    let slow = HostClass { speed: 100, ..host(2) };
    let mut mesh = Mesh::with_hosts([("oslo", host(0)), ("lyon", slow), ("graz", host(1))]);
    (mesh.peers[1].wall, mesh.peers[2].wall) = (Millis(10 * TASK), Millis(TASK));
    mesh.pause(1);
    mesh.advance(2_000);
    let spec = match minutes {
        Some(minutes) => due(&mesh, 4, minutes),
        None => frames(4),
    };
    mesh.submit(0, with(spec, |policy| policy.batch = Some(1)));
    mesh.advance(TASK);
    mesh.finish(2, None);
    mesh.advance(6_000);
    mesh.resume(1);
    mesh.advance(10_000);
    mesh.n_running(1)
}

#[test]
fn near_its_deadline_a_job_leaves_machines_alone_that_would_be_too_late() {
    assert!(at_the_slow_one(None) > 0, "whoever is free helps");
    assert_eq!(at_the_slow_one(Some(44)), 0);
}
