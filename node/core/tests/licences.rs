//! Floating licences: a site's, whichever of its machines uses them, and lent where the owner lets them.

use std::collections::BTreeSet;

use meshfarm_core::JobPhase;
use meshfarm_protocol::id::JobId;
use meshfarm_protocol::job::{JobSpec, Place};

use crate::mesh::{Mesh, asking, frames, having, host, with};

const NUKE: &str = "meshfarm:amount.licence.nuke";

const HEAD: usize = 0;
const R1: usize = 1;
const R2: usize = 2;
const LYON: usize = 3;

/// A head with a slot and two licences, two hosts of four slots each, and another site.
fn studio(slots_of_head: u32) -> Mesh {
    let head = having(slots_of_head, &[(NUKE, 2)]);
    let mut mesh =
        Mesh::with_hosts([("oslo", head), ("r1", host(4)), ("r2", host(4)), ("lyon", host(0))]);
    mesh.become_hosts(HEAD, &[R1, R2]);
    mesh
}

fn nuke(n: u32) -> JobSpec {
    with(asking(n, &[(NUKE, 1)]), |policy| policy.place = Place::Local)
}

fn plain(n: u32) -> JobSpec {
    with(frames(n), |policy| policy.place = Place::Local)
}

/// How many tasks of a job run anywhere.
fn running(mesh: &Mesh, job: JobId) -> usize {
    mesh.states(HEAD, job).iter().filter(|state| *state == "running").count()
}

fn all_running(mesh: &Mesh) -> usize {
    [HEAD, R1, R2, LYON].map(|at| mesh.n_running(at)).iter().sum()
}

#[test]
fn no_more_tasks_run_on_all_machines_than_there_are_licences() {
    for slots in [0, 1, 4] {
        let mut mesh = studio(slots);
        let job = mesh.submit(HEAD, nuke(10));
        let other = mesh.submit(HEAD, plain(4));
        mesh.advance(2_000);
        assert_eq!(
            (running(&mesh, job), running(&mesh, other)),
            (2, 4),
            "{slots} slots of the head"
        );
        let mut most = 0;
        for _ in 0..40 {
            for at in [HEAD, R1, R2] {
                mesh.finish(at, None);
                most = most.max(running(&mesh, job));
            }
            mesh.advance(1_000);
            most = most.max(running(&mesh, job));
        }
        assert_eq!(
            (mesh.phase(HEAD, job), mesh.phase(HEAD, other), most),
            (JobPhase::Done, JobPhase::Done, 2)
        );
    }
}

#[test]
fn licences_stay_counted_when_the_head_starts_again() {
    let mut mesh = studio(1);
    let job = mesh.submit(HEAD, nuke(8));
    mesh.advance(2_000);
    mesh.restart(HEAD);
    for _ in 0..30 {
        mesh.advance(1_000);
        assert!(running(&mesh, job) <= 2);
        assert!(all_running(&mesh) <= 2, "{}", all_running(&mesh));
        [R1, R2, HEAD].into_iter().for_each(|at| mesh.finish(at, None));
        assert!(all_running(&mesh) <= 2, "{}", all_running(&mesh));
    }
    assert_eq!(mesh.phase(HEAD, job), JobPhase::Done);
}

#[test]
fn a_site_may_borrow_licences_where_the_owner_lets_it_and_they_are_counted_too() {
    for (kept, foreign) in [(false, 1), (true, 0)] {
        let mut mesh = studio(1);
        if kept {
            mesh.peers[HEAD].kept = BTreeSet::from([NUKE.to_owned()]);
            mesh.restart(HEAD);
            mesh.advance(2_000);
        }
        mesh.submit(LYON, with(asking(3, &[(NUKE, 1)]), |policy| policy.place = Place::Remote));
        mesh.advance(2_000);
        assert_eq!(mesh.n_running(HEAD), foreign);
        let job = mesh.submit(HEAD, nuke(4));
        mesh.advance(2_000);
        assert_eq!(running(&mesh, job), 2 - foreign, "kept: {kept}");
    }
}

#[test]
fn a_more_urgent_job_gets_the_licences_as_tasks_end_and_others_lose_no_slots_for_it() {
    let mut mesh = studio(0);
    let low = mesh.submit(HEAD, with(nuke(20), |policy| policy.priority = 10));
    mesh.advance(1_000);
    assert_eq!(running(&mesh, low), 2);
    let high = mesh.submit(HEAD, with(nuke(4), |policy| policy.priority = 90));
    let other = mesh.submit(HEAD, with(plain(90), |policy| policy.priority = 10));
    for _ in 0..5 {
        mesh.finish(R1, None);
        mesh.finish(R2, None);
        mesh.advance(3_000);
    }
    assert_eq!(mesh.phase(HEAD, high), JobPhase::Done);
    assert!(mesh.job(HEAD, low).done < 10, "{}", mesh.job(HEAD, low).done);
    let high = mesh.submit(HEAD, with(nuke(4), |policy| policy.priority = 90));
    for _ in 0..4 {
        mesh.finish(R1, None);
        mesh.finish(R2, None);
        mesh.advance(3_000);
    }
    assert!(mesh.job(HEAD, high).done > 0);
    assert!(running(&mesh, other) >= 5, "{}", running(&mesh, other));
    mesh.finish_all();
    assert_eq!((mesh.phase(HEAD, low), mesh.phase(HEAD, other)), (JobPhase::Done, JobPhase::Done));
}

#[test]
fn it_is_said_when_tasks_wait_for_licences() {
    let mut mesh = studio(1);
    let job = mesh.submit(HEAD, nuke(6));
    mesh.advance(2_000);
    let explained = mesh.site(HEAD).explain(job, None, mesh.now).unwrap();
    for site in &explained.steps[0].sites {
        if site.site == "lyon" {
            continue;
        }
        let said = site.blocks.iter().any(|block| block.contains("licence"));
        assert!(said && site.looks.iter().all(|look| look.fits), "{site:?}");
    }
    let hosts = mesh.site(HEAD).hosts(mesh.now);
    assert!(hosts.iter().all(|host| host.offers.as_ref().unwrap().amounts.contains_key(NUKE)));
    let left = &mesh.site(HEAD).slots().left;
    assert_eq!(left[NUKE].0, 0);
}

#[test]
fn a_job_that_asks_for_more_licences_than_there_are_never_starts() {
    let mut mesh = studio(1);
    let job = mesh.submit(HEAD, with(asking(1, &[(NUKE, 3)]), |p| p.place = Place::Local));
    mesh.advance(10_000);
    assert_eq!(all_running(&mesh), 0);
    let explained = mesh.site(HEAD).explain(job, None, mesh.now).unwrap();
    let own = &explained.steps[0].sites[0];
    assert!(own.looks.iter().any(|look| look.name == NUKE && !look.fits));
}
