//! In which order jobs get a site's own slots: fair share, and wide tasks that do not starve behind narrow ones.

use meshfarm_core::{Event, JobPhase};
use meshfarm_protocol::id::JobId;
use meshfarm_protocol::job::{JobSpec, Place};
use meshfarm_protocol::lease::Declined;
use meshfarm_protocol::profile::{Amount, VCPU};

use crate::mesh::{Mesh, Running, cores, frames, having, with};

fn eight_cores() -> Mesh {
    Mesh::with_hosts([("oslo", having(8, &[(VCPU, 8)]))])
}

fn running(mesh: &Mesh, job: JobId) -> usize {
    let jobs = mesh.site(0).jobs();
    jobs.iter().find(|view| view.job == job).map_or(0, |view| view.running)
}

/// End the session that has run longest.
fn end_first(mesh: &mut Mesh, at: usize) {
    let session = mesh.peers[at].running[0].session;
    mesh.end(at, session, None);
    mesh.settle();
}

/// End every session that has one core.
fn end_narrow(mesh: &mut Mesh) {
    let one = |running: &Running| running.holds.amounts[VCPU] == Amount::whole(1);
    let sessions: Vec<_> =
        mesh.peers[0].running.iter().filter(|r| one(r)).map(|r| r.session).collect();
    for session in sessions {
        mesh.end(0, session, None);
    }
    mesh.settle();
}

#[test]
fn a_wide_task_does_not_starve_behind_narrow_ones() {
    let mut mesh = eight_cores();
    let before = mesh.submit(0, cores(8, 1));
    let wide = mesh.submit(0, cores(1, 8));
    let stream = mesh.submit(0, cores(100, 1));
    for left in (0..8).rev() {
        assert_eq!((running(&mesh, wide), running(&mesh, stream)), (0, 0));
        mesh.advance(1_000);
        end_first(&mut mesh, 0);
        assert_eq!(running(&mesh, before), left);
    }
    assert_eq!((running(&mesh, wide), running(&mesh, stream)), (1, 0));
    mesh.finish_all();
    for job in [before, wide, stream] {
        assert_eq!(mesh.phase(0, job), JobPhase::Done);
    }
    assert_eq!((mesh.leftovers(), mesh.site(0).slots().free), (0, 8));
}

#[test]
fn narrow_tasks_that_run_already_are_not_followed_by_others() {
    let mut mesh = eight_cores();
    // The stream came first and holds the machine; the wide one is more urgent.
    let stream = mesh.submit(0, cores(100, 1));
    let wide = mesh.submit(0, with(cores(1, 8), |p| p.priority = 60));
    assert_eq!(running(&mesh, stream), 8);
    for left in (1..8).rev() {
        mesh.advance(1_000);
        end_first(&mut mesh, 0);
        assert_eq!((running(&mesh, wide), running(&mesh, stream)), (0, left));
    }
    mesh.advance(1_000);
    end_first(&mut mesh, 0);
    assert_eq!((running(&mesh, wide), running(&mesh, stream)), (1, 0));
}

/// Without a reservation, which a site gives its own tasks only, a wide task waits for as long as narrow ones come.
#[test]
fn a_wide_task_of_another_site_waits_until_it_happens_to_fit() {
    let hosts = [("oslo", having(8, &[(VCPU, 8)])), ("lyon", having(0, &[]))];
    let mut mesh = Mesh::with_hosts(hosts);
    let stream = mesh.submit(0, with(cores(60, 1), |p| p.place = Place::Local));
    let wide = mesh.submit(1, cores(1, 8));
    while mesh.job(0, stream).done < 52 {
        mesh.advance(1_000);
        end_first(&mut mesh, 0);
        assert_eq!(mesh.job(1, wide).running, 0);
    }
    mesh.finish_all();
    assert_eq!(mesh.phase(1, wide), JobPhase::Done);
}

/// A task of four cores of unknown length runs, and a wide one is first in line; `job` comes behind it, and its tasks
/// were seen to run for a second.
fn behind_a_wide_one(wide: u64, job: JobSpec) -> (Mesh, JobId, JobId) {
    let mut mesh = eight_cores();
    let job = mesh.submit(0, job);
    mesh.finish(0, None);
    mesh.advance(0);
    let n = mesh.n_running(0);
    let long = mesh.submit(0, with(cores(1, 4), |p| p.priority = 90));
    let wide = mesh.submit(0, with(cores(1, wide), |p| p.priority = 80));
    for _ in 0..n {
        mesh.advance(100);
        end_first(&mut mesh, 0);
    }
    assert_eq!(running(&mesh, long), 1);
    (mesh, wide, job)
}

#[test]
fn short_tasks_run_before_a_wide_one_as_long_as_they_do_not_delay_it() {
    let (mut mesh, wide, short) = behind_a_wide_one(8, cores(1000, 1));
    assert_eq!((running(&mesh, wide), running(&mesh, short)), (0, 4));
    // They were seen to take a second, and the long one is expected to take thirty.
    for _ in 0..20 {
        mesh.advance(1_000);
        end_narrow(&mut mesh);
        assert_eq!((running(&mesh, wide), running(&mesh, short)), (0, 4));
    }
    mesh.advance(9_500);
    end_narrow(&mut mesh);
    assert_eq!(running(&mesh, short), 0, "one more would delay the wide one");
    // The long one takes far longer than expected: the wide one waits for it, and for nobody else.
    mesh.advance(600_000);
    assert_eq!(mesh.n_running(0), 1);
    end_first(&mut mesh, 0);
    assert_eq!((running(&mesh, wide), running(&mesh, short)), (1, 0));
    mesh.finish_all();
    assert_eq!(mesh.phase(0, wide), JobPhase::Done);
}

#[test]
fn what_a_wide_task_does_not_need_is_used_meanwhile() {
    let mut mesh = eight_cores();
    let long = mesh.submit(0, with(cores(1, 4), |p| p.priority = 90));
    let wide = mesh.submit(0, with(cores(1, 6), |p| p.priority = 80));
    let narrow = mesh.submit(0, cores(50, 1));
    // Nothing is known of how long they run. Two cores are not kept.
    assert_eq!([long, wide, narrow].map(|job| running(&mesh, job)), [1, 0, 2]);
    end_first(&mut mesh, 0);
    assert_eq!([wide, narrow].map(|job| running(&mesh, job)), [1, 2]);
}

#[test]
fn other_sites_get_nothing_that_is_kept_and_give_back_what_the_first_in_line_needs() {
    let hosts = [("oslo", having(8, &[(VCPU, 8)])), ("lyon", having(0, &[]))];
    let mut mesh = Mesh::with_hosts(hosts);
    let theirs = mesh.submit(1, cores(100, 1));
    assert_eq!(mesh.job(1, theirs).running, 8);
    let wide = mesh.submit(0, with(cores(1, 8), |p| p.place = Place::Local));
    mesh.peers[1].told.clear();
    for _ in 0..8 {
        mesh.advance(1_000);
        end_first(&mut mesh, 0);
    }
    assert_eq!((mesh.job(0, wide).running, mesh.job(1, theirs).running), (1, 0));
    mesh.submit(1, cores(1, 1));
    mesh.advance(4_000);
    assert_eq!(mesh.n_running(0), 1);
    mesh.finish_all();
    assert_eq!((mesh.phase(0, wide), mesh.leftovers()), (JobPhase::Done, 0));
    assert_eq!(mesh.phase(1, theirs), JobPhase::Done);

    // With a reservation and some slots free, another site's task is declined and our short one is not.
    let long = mesh.submit(0, with(cores(1, 4), |p| p.place = Place::Local));
    let wide = mesh.submit(0, with(cores(1, 8), |p| p.place = Place::Local));
    assert_eq!([long, wide].map(|job| running(&mesh, job)), [1, 0]);
    mesh.peers[1].told.clear();
    mesh.submit(1, cores(1, 1));
    let busy = |e: &Event| matches!(e, Event::Declined { reason: Declined::Busy, .. });
    let told = mesh.peers[1].told.iter().any(busy);
    let known = mesh.peers[0].profile.as_ref().unwrap().free == 0;
    assert!((told || known) && mesh.n_running(0) == 1);
}

fn of_project(mut job: JobSpec, project: &str) -> JobSpec {
    job.project = project.to_owned();
    job
}

#[test]
fn projects_of_the_same_urgency_share_the_slots_whoever_came_first() {
    let mut mesh = eight_cores();
    let film = mesh.submit(0, of_project(frames(300), "film"));
    assert_eq!(running(&mesh, film), 8);
    let advert = mesh.submit(0, of_project(frames(300), "advert"));
    let mut shares = [0, 0];
    for _ in 0..400 {
        mesh.advance(500);
        end_first(&mut mesh, 0);
        shares[0] += running(&mesh, film);
        shares[1] += running(&mesh, advert);
    }
    let [film, advert] = shares;
    assert!(film.abs_diff(advert) < (film + advert) / 10, "{film} to {advert}");
}

#[test]
fn who_has_used_less_comes_first_also_after_a_restart() {
    let mut mesh = eight_cores();
    mesh.submit(0, of_project(frames(24), "film"));
    for _ in 0..3 {
        mesh.advance(120_000);
        mesh.finish(0, None);
    }
    mesh.restart(0);
    // The older one waits: its project has had its turn.
    mesh.set_slots(0, 0);
    let film = mesh.submit(0, of_project(frames(100), "film"));
    let advert = mesh.submit(0, of_project(frames(100), "advert"));
    assert_eq!(mesh.n_running(0), 0);
    mesh.set_slots(0, 8);
    assert_eq!((running(&mesh, film), running(&mesh, advert)), (0, 8));
}

#[test]
fn priority_comes_before_fairness_and_age_after_it() {
    let mut mesh = eight_cores();
    mesh.set_slots(0, 0);
    let urgent = |job: JobSpec| with(job, |p| p.priority = 90);
    let first = mesh.submit(0, of_project(frames(8), "film"));
    mesh.advance(1);
    let second = mesh.submit(0, of_project(frames(8), "film"));
    let third = mesh.submit(0, urgent(of_project(frames(8), "film")));
    mesh.set_slots(0, 8);
    assert_eq!([first, second, third].map(|job| running(&mesh, job)), [0, 0, 8]);
    mesh.finish(0, None);
    assert_eq!([first, second, third].map(|job| running(&mesh, job)), [8, 0, 0]);
}
