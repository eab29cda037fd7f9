//! What runs where and when: own slots, steps, retries, places, priorities.

use meshfarm_core::{CollectError, Event, JobPhase, PrepareError, Reply, Tasks};
use meshfarm_protocol::id::{JobId, StepNo, TaskNo};
use meshfarm_protocol::job::{Order, Place};
use meshfarm_protocol::profile::Level;

use crate::mesh::{Mesh, frames, host, spec, step, with};

#[test]
fn a_local_job_runs_on_own_slots_only() {
    let mut mesh = Mesh::new([("oslo", 2), ("lyon", 8)]);
    let job = mesh.submit(0, with(frames(5), |p| p.place = Place::Local));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (2, 0));
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert!(mesh.peers[1].started.is_empty());
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn an_auto_job_spreads_over_two_lenders() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 4), ("graz", 4)]);
    let job = mesh.submit(0, frames(20));
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (4, 4));
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len() + mesh.peers[2].started.len(), 20);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_single_task_leaves_a_site_whose_slots_are_all_taken() {
    let mut mesh = Mesh::new([("oslo", 2), ("lyon", 2)]);
    mesh.submit(0, with(frames(2), |p| p.place = Place::Local));
    mesh.submit(0, frames(1));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (2, 1));
}

#[test]
fn a_step_waits_for_its_predecessors() {
    let mut mesh = Mesh::new([("oslo", 4)]);
    let job = mesh.submit(0, spec(vec![step(2, &[]), step(3, &[0]), step(1, &[1])]));
    assert_eq!(mesh.n_running(0), 2);
    mesh.finish(0, None);
    assert_eq!(mesh.n_running(0), 3);
    mesh.finish(0, None);
    assert_eq!(mesh.n_running(0), 1);
    mesh.finish(0, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_job_ends_when_a_step_far_behind_a_failed_one_can_never_start() {
    let mut mesh = Mesh::new([("oslo", 4)]);
    let steps = vec![step(1, &[]), step(1, &[0]), step(1, &[1])];
    let job = mesh.submit(0, with(spec(steps), |p| p.retries = 0));
    mesh.finish(0, Some("no such camera"));
    assert!(matches!(mesh.phase(0, job), JobPhase::Failed(_)));
    assert_eq!(mesh.states(0, job), ["failed", "canceled", "canceled"]);
}

#[test]
fn a_failed_task_is_tried_elsewhere_and_then_the_job_fails() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, with(frames(1), |p| p.retries = 1));
    let first = 1 + usize::from(mesh.n_running(1) == 0);
    let second = 3 - first;
    mesh.finish(first, Some("out of memory"));
    mesh.advance(10_000);
    assert_eq!((mesh.n_running(first), mesh.n_running(second)), (0, 1));
    mesh.finish(second, Some("out of memory"));
    mesh.advance(10_000);
    let reason = "out of memory: 1 of 1 tasks failed, 0 are done".to_owned();
    assert_eq!(mesh.phase(0, job), JobPhase::Failed(reason));
    assert_eq!(mesh.job(0, job).steps[0].tasks[0].failures, 2);
}

#[test]
fn a_task_returns_to_where_it_failed_only_when_nothing_else_fits() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.submit(0, with(frames(2), |p| p.retries = 9));
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (1, 1));
    mesh.finish(1, Some("no licence"));
    mesh.advance(5_000);
    // Graz is busy with the other task: the failed one waits for it.
    assert_eq!(mesh.n_running(1), 0);
    mesh.kill(2);
    mesh.advance(60_000);
    assert_eq!(mesh.n_running(1), 1);
}

#[test]
fn a_task_does_not_wait_for_a_site_that_refuses_it() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    // Graz says that it lends, and then does not.
    let profile = mesh.peers[2].profile.clone();
    mesh.pause(2);
    mesh.advance(2_000);
    let mut lie = profile.unwrap();
    lie.sequence = u64::MAX;
    mesh.give(0, meshfarm_core::Input::Profile(lie));
    let job = mesh.submit(0, frames(1));
    mesh.finish(1, Some("no licence"));
    mesh.advance(30_000);
    mesh.finish(1, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 2);
}

#[test]
fn a_broken_scene_stops_early() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, with(frames(1000), |p| p.retries = 0));
    for _ in 0..20 {
        mesh.finish(0, Some("cannot open scene"));
    }
    assert!(matches!(mesh.phase(0, job), JobPhase::Failed(_)));
    assert!(mesh.peers[0].started.len() < 20);
    assert_eq!((mesh.n_running(0), mesh.leftovers()), (0, 0));
}

#[test]
fn a_broken_scene_stops_early_at_other_sites_too_and_does_not_discredit_them() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2), ("graz", 2)]);
    let job = mesh.submit(0, frames(100));
    for _ in 0..60 {
        mesh.finish(1, Some("cannot open scene"));
        mesh.finish(2, Some("cannot open scene"));
        mesh.advance(1_000);
    }
    assert!(matches!(mesh.phase(0, job), JobPhase::Failed(_)));
    mesh.submit(0, frames(4));
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (2, 2));
}

#[test]
fn a_lender_that_fails_everything_does_not_swallow_the_job() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let job = mesh.submit(0, frames(30));
    for _ in 0..60 {
        mesh.finish(1, Some("the renderer is missing"));
        mesh.finish(2, None);
        mesh.advance(1_000);
    }
    let swallowed = mesh.peers[1].started.len();
    assert!(swallowed <= 8, "{swallowed}");
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn failures_of_long_ago_do_not_count() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, with(frames(40), |policy| policy.retries = 40));
    let leased = |mesh: &Mesh| {
        let told = mesh.peers[0].told.iter();
        told.filter(|event| matches!(event, Event::TaskLeased { .. })).count()
    };
    mesh.finish(1, None);
    for n in 0..6 {
        mesh.advance(2_000_000);
        assert_eq!(mesh.n_running(1), 1, "after {n} failures");
        let before = leased(&mesh);
        mesh.finish(1, Some("a memory error"));
        mesh.advance(5_000);
        assert!(leased(&mesh) > before, "it gets another one at once");
    }
    // As many in a row, and it is left alone.
    for _ in 0..4 {
        mesh.finish(1, Some("a memory error"));
        mesh.advance(5_000);
    }
    let before = leased(&mesh);
    mesh.finish(1, Some("a memory error"));
    mesh.advance(5_000);
    assert_eq!(leased(&mesh), before);
    assert_eq!(mesh.phase(0, job), JobPhase::Active);
}

#[test]
fn a_failed_job_says_what_most_of_its_tasks_died_of() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let job = mesh.submit(0, with(frames(4), |policy| policy.retries = 0));
    for reason in ["frame 1: no texture", "out of memory", "frame 3: no texture"] {
        mesh.finish(0, Some(reason));
        mesh.advance(10_000);
    }
    mesh.finish(0, None);
    let said = "frame 1: no texture (2 times): 3 of 4 tasks failed, 1 are done";
    assert_eq!(mesh.phase(0, job), JobPhase::Failed(said.to_owned()));
}

#[test]
fn cancel_stops_sessions_at_the_lender() {
    let mut mesh = Mesh::new([("oslo", 1), ("lyon", 2)]);
    let job = mesh.submit(0, frames(9));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (1, 2));
    assert_eq!(mesh.cancel(0, job), Reply::Changed(9));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (0, 0));
    assert_eq!(mesh.phase(0, job), JobPhase::Canceled);
    assert_eq!(mesh.leftovers(), 0);
    assert!(matches!(mesh.cancel(0, job), Reply::Refused(_)));
}

#[test]
fn done_tasks_are_rendered_again_when_asked() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, frames(3));
    mesh.finish_all();
    let tasks = Tasks::These(StepNo(0), vec![TaskNo(1)]);
    assert_eq!(mesh.retry(0, job, tasks), Reply::Changed(1));
    assert_eq!(mesh.states(0, job), ["done", "running", "done"]);
    mesh.finish(0, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[0].started.len(), 4);
}

#[test]
fn a_part_of_a_canceled_job_can_be_rendered_and_the_job_ends_again() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let job = mesh.submit(0, spec(vec![step(3, &[]), step(1, &[0])]));
    mesh.cancel(0, job);
    let tasks = Tasks::These(StepNo(0), vec![TaskNo(1)]);
    mesh.retry(0, job, tasks);
    mesh.finish(0, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Canceled);
    assert_eq!(mesh.states(0, job), ["canceled", "done", "canceled", "canceled"]);
    mesh.retry(0, job, Tasks::Failed);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_remote_job_leaves_own_slots_alone() {
    let mut mesh = Mesh::new([("oslo", 4), ("lyon", 2)]);
    mesh.submit(0, with(frames(9), |p| p.place = Place::Remote));
    assert_eq!((mesh.n_running(0), mesh.n_running(1)), (0, 2));
}

#[test]
fn a_job_for_a_named_site_goes_nowhere_else() {
    let mut mesh = Mesh::new([("oslo", 4), ("lyon", 2), ("graz", 2)]);
    let job = mesh.submit(0, with(frames(9), |p| p.place = Place::Site("graz".into())));
    let running = [0, 1, 2].map(|at| mesh.n_running(at));
    assert_eq!(running, [0, 0, 2]);
    mesh.finish_all();
    let graz = Some("graz".to_owned());
    assert_eq!(mesh.rendered_by(0, job), vec![graz; 9]);
}

#[test]
fn nobody_weaker_than_the_isolation_floor_gets_a_task() {
    let mut weak = host(4);
    weak.level = Level::S1;
    let mut mesh = Mesh::with_hosts([("oslo", host(0)), ("lyon", weak), ("graz", host(1))]);
    mesh.submit(0, frames(9));
    assert_eq!((mesh.n_running(1), mesh.n_running(2)), (0, 1));
}

/// A site without slots whose job asks for `asked`, and a lender that reaches `reaches` and gives no less than `floor`.
fn lent(asked: Level, reaches: Level, floor: Level) -> (Mesh, JobId) {
    let mut strong = host(1);
    strong.level = reaches;
    let mut mesh = Mesh::with_hosts([("oslo", host(0)), ("lyon", strong)]);
    mesh.peers[1].floor = floor;
    mesh.restart(1);
    let job = mesh.submit(0, with(frames(1), |p| p.isolation = asked));
    (mesh, job)
}

#[test]
fn a_machine_that_falls_short_of_its_owners_floor_renders_its_own_jobs_only() {
    for (reaches, floor) in [(Level::S2, Level::S3), (Level::S1, Level::S2)] {
        let (mut mesh, _) = lent(Level::S1, reaches, floor);
        assert_eq!(mesh.n_running(1), 0, "reaches {reaches}, floor {floor}");
        mesh.submit(1, frames(1));
        assert_eq!(mesh.n_running(1), 1, "reaches {reaches}, floor {floor}");
        assert_eq!(mesh.peers[1].running[0].isolation, reaches);
    }
}

#[test]
fn a_job_gets_the_isolation_that_it_asks_for_or_the_lenders_own_floor() {
    use Level::{S1, S2, S3};
    for (asked, reaches, floor, given) in
        [(S2, S3, S2, S2), (S3, S3, S2, S3), (S2, S3, S3, S3), (S1, S3, S2, S2)]
    {
        let (mut mesh, job) = lent(asked, reaches, floor);
        let case = format!("asked {asked}, reaches {reaches}, floor {floor}");
        assert_eq!(mesh.n_running(1), 1, "{case}");
        assert_eq!(mesh.peers[1].running[0].isolation, given, "{case}");
        let shown = |mesh: &Mesh| mesh.job(0, job).steps[0].tasks[0].isolation;
        assert_eq!(shown(&mesh), Some(given), "{case}");
        mesh.restart(0);
        assert_eq!(shown(&mesh), Some(given), "{case}, after a restart");
        mesh.finish_all();
        assert_eq!((mesh.phase(0, job), shown(&mesh)), (JobPhase::Done, Some(given)), "{case}");
    }
}

#[test]
fn a_machine_that_falls_short_of_what_a_job_asks_gets_none_of_it() {
    let (mesh, job) = lent(Level::S3, Level::S2, Level::S3);
    assert_eq!(mesh.n_running(1), 0);
    let why = mesh.job(0, job).steps[0].why.clone();
    let misfits: Vec<_> = why.iter().flat_map(|w| &w.misfits).map(ToString::to_string).collect();
    let wanted = "isolation: asks S3 or stronger, reaches S2";
    assert!(misfits.iter().any(|misfit| misfit == wanted), "{misfits:?}");
}

#[test]
fn the_more_urgent_job_gets_own_slots_as_they_come_free() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    let late = mesh.submit(0, with(frames(6), |p| p.priority = 10));
    let soon = mesh.submit(0, with(frames(3), |p| p.priority = 90));
    assert_eq!((mesh.job(0, late).running, mesh.job(0, soon).running), (2, 0));
    mesh.finish(0, None);
    mesh.finish(0, None);
    mesh.finish(0, None);
    assert_eq!(mesh.phase(0, soon), JobPhase::Done);
    assert!(mesh.job(0, late).done < 6);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, late), JobPhase::Done);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn a_job_takes_own_slots_that_come_free_while_it_runs() {
    let mut mesh = Mesh::new([("oslo", 4)]);
    let first = mesh.submit(0, frames(3));
    let second = mesh.submit(0, frames(8));
    assert_eq!(mesh.job(0, second).running, 1);
    for running in mesh.peers[0].running.clone().into_iter().take(3) {
        mesh.end(0, running.session, None);
    }
    mesh.settle();
    assert_eq!(mesh.phase(0, first), JobPhase::Done);
    assert_eq!(mesh.job(0, second).running, 4);
}

#[test]
fn an_early_look_starts_with_first_last_and_middle() {
    let mut mesh = Mesh::new([("oslo", 3)]);
    mesh.submit(0, with(frames(9), |p| p.order = Order::FirstLastMiddle));
    let running = mesh.peers[0].running.iter();
    let tasks: Vec<_> = running.map(|r| r.run[0].task.0).collect();
    assert_eq!(tasks, [0, 8, 4]);
}

#[test]
fn outputs_that_cannot_be_written_are_tried_again_without_rendering_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    mesh.collected.push_back(CollectError::Unwritable("disk full".into()));
    mesh.finish(1, None);
    assert_eq!(mesh.states(0, job), ["returning"]);
    let reason = mesh.job(0, job).steps[0].tasks[0].reason.clone();
    assert_eq!(reason.as_deref(), Some("disk full"));
    mesh.advance(11_000);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 1);
}

#[test]
fn bad_outputs_blame_their_maker_and_the_task_is_tried_again() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let job = mesh.submit(0, frames(1));
    mesh.collected.push_back(CollectError::Bad("not sealed to us".into()));
    mesh.finish(1, None);
    let blame = |event: &&Event| matches!(event, Event::Blame { .. });
    assert_eq!(mesh.peers[0].told.iter().filter(blame).count(), 1);
    mesh.advance(5_000);
    mesh.finish(1, None);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert_eq!(mesh.peers[1].started.len(), 2);
}

#[test]
fn content_that_cannot_be_prepared_here_does_not_make_the_site_spin() {
    let mut mesh = Mesh::new([("oslo", 2)]);
    mesh.prepares.extend((0..3).map(|_| PrepareError::Full));
    let job = mesh.submit(0, frames(2));
    assert_eq!(mesh.n_running(0), 0);
    mesh.advance(30_000);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

/// A step whose sessions cost something to enter.
fn costly(n: u32) -> meshfarm_protocol::job::StepSpec {
    meshfarm_protocol::job::StepSpec { environments: true, ..step(n, &[]) }
}

/// How many tasks each running session of a site has.
fn sizes(mesh: &Mesh, at: usize) -> Vec<usize> {
    mesh.peers[at].running.iter().map(|running| running.run.len()).collect()
}

#[test]
fn sessions_with_environments_get_their_fair_share_once_a_task_is_known_to_be_short() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 2)]);
    mesh.shared_sessions = true;
    let job = mesh.submit(0, spec(vec![costly(20)]));
    let mut seen = vec![sizes(&mesh, 1)];
    while mesh.phase(0, job) == JobPhase::Active {
        let first = mesh.peers[1].running[0].session;
        mesh.end(1, first, None);
        mesh.settle();
        seen.push(sizes(&mesh, 1));
    }
    // How long a task takes is known when the first are home; then each session gets half of what is left.
    let wanted: [&[usize]; 6] = [&[2, 2], &[2, 2], &[2, 8], &[8, 6], &[6], &[]];
    assert_eq!(seen, wanted);
    assert_eq!((mesh.phase(0, job), mesh.leftovers()), (JobPhase::Done, 0));
}

#[test]
fn sessions_with_environments_are_no_longer_than_half_a_minute_of_known_work() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    mesh.shared_sessions = true;
    let job = mesh.submit(0, spec(vec![costly(200)]));
    let mut most = 0;
    while mesh.phase(0, job) == JobPhase::Active {
        most = most.max(sizes(&mesh, 1)[0]);
        let first = mesh.peers[1].running[0].session;
        mesh.end(1, first, None);
        mesh.settle();
    }
    assert_eq!((mesh.phase(0, job), most), (JobPhase::Done, 30), "tasks take a second here");
}

#[test]
fn chunks_with_a_target_share_sessions_that_run_about_so_long() {
    for (target, wanted) in [(5, 5), (90, 90), (1, 2)] {
        let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
        mesh.shared_sessions = true;
        let chunks = meshfarm_protocol::job::StepSpec {
            session: Some(meshfarm_protocol::id::Millis::seconds(target)),
            ..step(300, &[])
        };
        let job = mesh.submit(0, spec(vec![chunks]));
        let mut most = 0;
        while mesh.phase(0, job) == JobPhase::Active {
            most = most.max(sizes(&mesh, 1)[0]);
            let first = mesh.peers[1].running[0].session;
            mesh.end(1, first, None);
            mesh.settle();
        }
        assert_eq!((mesh.phase(0, job), most), (JobPhase::Done, wanted), "tasks take a second");
    }
}
