//! What a machine has is shared out: tasks take what they ask for, and nothing is promised twice.

use meshfarm_core::{Event, Input, JobPhase};
use meshfarm_protocol::job::Place;
use meshfarm_protocol::lease::Declined;
use meshfarm_protocol::profile::{Amount, GPU, MEMORY, VCPU};

use crate::mesh::{Mesh, asking, cores, frames, having, with};

fn declined(mesh: &Mesh, at: usize) -> Vec<Declined> {
    let told = mesh.peers[at].told.iter();
    let reasons = told.filter_map(|event| match event {
        Event::Declined { reason, .. } => Some(*reason),
        _ => None,
    });
    reasons.collect()
}

#[test]
fn a_task_that_asks_for_eight_cores_has_the_machine_to_itself() {
    let mut mesh = Mesh::with_hosts([("oslo", having(8, &[(VCPU, 8)]))]);
    let wide = mesh.submit(0, cores(1, 8));
    let narrow = mesh.submit(0, frames(3));
    assert_eq!((mesh.job(0, wide).running, mesh.job(0, narrow).running), (1, 0));
    assert_eq!(mesh.peers[0].running[0].holds.amounts[VCPU], Amount::whole(8));
    mesh.finish(0, None);
    assert_eq!((mesh.phase(0, wide), mesh.job(0, narrow).running), (JobPhase::Done, 3));
    mesh.finish_all();
    assert_eq!((mesh.leftovers(), mesh.site(0).slots().free), (0, 8));
}

#[test]
fn tasks_that_each_ask_for_most_of_the_memory_run_one_after_the_other() {
    let mut mesh = Mesh::with_hosts([("oslo", having(4, &[(VCPU, 4), (MEMORY, 1000)]))]);
    let job = mesh.submit(0, asking(2, &[(MEMORY, 600)]));
    let small = mesh.submit(0, asking(2, &[(MEMORY, 200)]));
    assert_eq!((mesh.job(0, job).running, mesh.job(0, small).running), (1, 2));
    mesh.finish_all();
    assert_eq!((mesh.phase(0, job), mesh.phase(0, small)), (JobPhase::Done, JobPhase::Done));
}

#[test]
fn each_session_has_a_graphics_card_of_its_own() {
    let mut mesh = Mesh::with_hosts([("oslo", having(8, &[(GPU, 2)]))]);
    let job = mesh.submit(0, asking(5, &[(GPU, 1)]));
    let cards = |mesh: &Mesh| {
        let running = mesh.peers[0].running.iter();
        running.flat_map(|running| running.holds.gpus.clone()).collect::<Vec<_>>()
    };
    assert_eq!(cards(&mesh), [0, 1]);
    let first = mesh.peers[0].running[0].session;
    mesh.end(0, first, None);
    mesh.settle();
    assert_eq!(cards(&mesh), [1, 0]);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn a_lender_grants_as_many_slots_as_its_amounts_allow() {
    let lyon = having(8, &[(VCPU, 8), (MEMORY, 1000)]);
    let mut mesh = Mesh::with_hosts([("oslo", having(0, &[])), ("lyon", lyon)]);
    let job = mesh.submit(0, asking(6, &[(MEMORY, 300)]));
    assert_eq!(mesh.n_running(1), 3);
    assert_eq!(mesh.site(1).slots().leases[0].slots, 3);
    mesh.finish_all();
    assert_eq!((mesh.phase(0, job), mesh.leftovers()), (JobPhase::Done, 0));
}

#[test]
fn a_lender_is_busy_when_it_could_later_and_no_fit_when_it_never_can() {
    let lyon = having(4, &[(VCPU, 4), (MEMORY, 1000)]);
    let mut mesh = Mesh::with_hosts([("oslo", having(0, &[])), ("lyon", lyon)]);
    mesh.submit(1, with(asking(1, &[(MEMORY, 800)]), |p| p.place = Place::Local));
    mesh.advance(2_000);
    let later = mesh.submit(0, asking(1, &[(MEMORY, 500)]));
    assert_eq!((mesh.n_running(1), declined(&mesh, 0)), (1, vec![Declined::Busy]));
    mesh.finish(1, None);
    mesh.advance(10_000);
    assert_eq!(mesh.job(0, later).running, 1);

    // Its profile still says what it had before.
    let mut profile = mesh.peers[1].profile.clone().unwrap();
    profile.sequence = u64::MAX;
    profile.hosts[0].amounts.insert(MEMORY.to_owned(), Amount::whole(9000));
    mesh.give(0, Input::Profile(profile));
    mesh.peers[0].told.clear();
    mesh.submit(0, asking(1, &[(MEMORY, 5000)]));
    assert_eq!(declined(&mesh, 0), [Declined::Misfit]);
}

#[test]
fn a_profile_tells_of_no_slot_that_no_amount_is_left_for() {
    let mut mesh = Mesh::with_hosts([("oslo", having(8, &[(VCPU, 8)])), ("lyon", having(0, &[]))]);
    mesh.submit(0, with(cores(1, 7), |p| p.place = Place::Local));
    mesh.advance(5_000);
    assert_eq!(mesh.peers[0].profile.as_ref().unwrap().free, 1);
    assert_eq!(mesh.site(0).slots().free, 1);
}

#[test]
fn a_lease_that_gave_up_slots_takes_back_as_many_as_there_is_room_for() {
    let lyon = having(2, &[(MEMORY, 1000)]);
    let mut mesh = Mesh::with_hosts([("oslo", having(0, &[])), ("lyon", lyon)]);
    mesh.hold_prepares = true;
    mesh.submit(0, asking(2, &[(MEMORY, 500)]));
    let lease = mesh.site(1).slots().leases[0].lease;
    // Its content is on its way for long, so that others may have its slots.
    mesh.advance(40_000);
    mesh.hold_prepares = false;
    let own = mesh.submit(1, with(asking(1, &[(MEMORY, 700)]), |p| p.place = Place::Local));
    assert_eq!(mesh.job(1, own).running, 1);
    let ready = meshfarm_core::Ready { shared_sessions: false, whole: true };
    mesh.give(1, Input::Prepared { lease, result: Ok(ready) });
    mesh.settle();
    assert_eq!(mesh.n_running(1), 1, "700 and 500 are more than 1000");
    mesh.finish(1, None);
    mesh.advance(10_000);
    assert_eq!(mesh.n_running(1), 2);
}

#[test]
fn what_was_promised_stays_promised_when_the_machine_turns_out_smaller() {
    let mut mesh = Mesh::with_hosts([("oslo", having(4, &[(VCPU, 4)]))]);
    let job = mesh.submit(0, cores(6, 1));
    assert_eq!(mesh.n_running(0), 4);
    mesh.give(0, Input::Host(Box::new(having(2, &[(VCPU, 2)]))));
    mesh.finish(0, None);
    assert_eq!(mesh.n_running(0), 2);
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
}

#[test]
fn licences_are_counted_over_everybody_and_those_that_are_kept_are_for_own_jobs() {
    let (nuke, katana) = ("meshfarm:amount.licence.nuke", "meshfarm:amount.licence.katana");
    let oslo = having(8, &[(VCPU, 8), (nuke, 3), (katana, 1)]);
    let mut mesh = Mesh::with_hosts([("oslo", oslo), ("lyon", having(0, &[]))]);
    mesh.peers[0].kept.insert(katana.to_owned());
    mesh.restart(0);
    mesh.advance(5_000);
    let own =
        mesh.submit(0, with(asking(2, &[(nuke, 1), (katana, 1)]), |p| p.place = Place::Local));
    let theirs = mesh.submit(1, asking(5, &[(nuke, 1)]));
    assert_eq!((mesh.job(0, own).running, mesh.job(1, theirs).running), (1, 2));
    let offered = mesh.peers[0].profile.clone().unwrap().hosts[0].amounts.clone();
    assert_eq!((offered.get(nuke), offered.get(katana)), (Some(&Amount::whole(3)), None));
    let job = mesh.submit(1, asking(1, &[(katana, 1)]));
    let why = mesh.job(1, job).steps[0].why.clone();
    let misfits: Vec<_> = why.iter().flat_map(|w| &w.misfits).map(ToString::to_string).collect();
    assert!(misfits.contains(&format!("{katana}: asks at least 1, has 0")), "{misfits:?}");

    // Whoever asks all the same is told that it never fits.
    let mut lie = mesh.peers[0].profile.clone().unwrap();
    lie.sequence = u64::MAX;
    lie.hosts[0].amounts.insert(katana.to_owned(), Amount::whole(9));
    mesh.peers[1].told.clear();
    mesh.give(1, Input::Profile(lie));
    mesh.advance(4_000);
    assert!(declined(&mesh, 1).contains(&Declined::Misfit));
    mesh.finish(0, None);
    mesh.advance(10_000);
    assert_eq!(mesh.job(0, own).running, 1, "the next one gets them");
}
