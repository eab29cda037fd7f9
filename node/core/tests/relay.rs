//! Work of other sites on a site's hosts, and passed on to further sites.

use meshfarm_core::{
    Ask, CollectError, HostMode, Input, JobPhase, Key, PrepareError, Reply, SiteOperation,
};
use meshfarm_protocol::id::{JobId, LeaseId, TenantId};
use meshfarm_protocol::job::{JobSpec, Place};
use meshfarm_protocol::lease::{Declined, Offer};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{HostClass, Level, Requirement};

use crate::mesh::{AtOnce, Mesh, asking, frames, having, host, id, with};

const HEAD: usize = 0;
const R1: usize = 1;
const R2: usize = 2;
const LYON: usize = 3;
const GRAZ: usize = 4;

/// A head without slots and its two hosts, a borrower without slots, and another site that lends.
fn studio() -> Mesh {
    let sites = [("oslo", 0), ("r1", 2), ("r2", 2), ("lyon", 0), ("graz", 4)];
    let mut mesh = Mesh::new(sites);
    mesh.become_hosts(HEAD, &[R1, R2]);
    mesh
}

fn at_oslo(n: u32) -> JobSpec {
    with(frames(n), |policy| policy.place = Place::Site("oslo".into()))
}

fn started(mesh: &Mesh) -> usize {
    mesh.peers.iter().map(|peer| peer.started.len()).sum()
}

/// Nothing is left of any lease, and every slot is free.
fn is_at_rest(mesh: &Mesh) {
    for peer in &mesh.peers {
        let left: Vec<_> = peer
            .disk
            .keys()
            .filter(|key| {
                matches!(key, Key::Borrowed(_) | Key::Lent(_) | Key::Finished(_) | Key::Relay(_))
            })
            .collect();
        assert!(left.is_empty(), "{} keeps {left:?}", peer.name);
    }
    for (at, slots) in [(R1, 2), (R2, 2), (GRAZ, 4)] {
        assert_eq!(mesh.site(at).slots().free, slots, "slots of {}", mesh.peers[at].name);
    }
}

fn ends_well(mesh: &mut Mesh, job: JobId) {
    mesh.finish_all();
    mesh.advance(120_000);
    assert_eq!(mesh.phase(LYON, job), JobPhase::Done, "{:?}", mesh.job(LYON, job).steps[0].why);
    is_at_rest(mesh);
}

#[test]
fn a_head_without_slots_lends_those_of_its_hosts() {
    let mut mesh = studio();
    let oslo = mesh.peers[HEAD].profile.clone().unwrap();
    assert_eq!(
        (oslo.free, oslo.hosts.len(), oslo.hosts[0].count, oslo.hosts[0].slots),
        (4, 1, 2, 2)
    );
    let job = mesh.submit(LYON, at_oslo(10));
    assert_eq!([R1, R2, GRAZ].map(|at| mesh.n_running(at)), [2, 2, 0]);
    let slots = mesh.site(HEAD).slots();
    let mut on: Vec<_> = slots.leases.iter().map(|lease| lease.runs_on.clone().unwrap()).collect();
    on.sort();
    assert_eq!(on, ["r1", "r2"]);
    assert!(slots.leases.iter().all(|l| l.borrower == "lyon" && l.running == 2 && l.slots == 2));
    let hosts = mesh.site(HEAD).hosts(mesh.now);
    assert!(hosts[1..].iter().all(|host| (host.used, host.free, host.running) == (2, 0, 2)));
    mesh.advance(2000);
    assert_eq!(mesh.peers[HEAD].profile.as_ref().unwrap().free, 0);
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 10);
    assert!(mesh.rendered_by(LYON, job).iter().all(|by| by.as_deref() == Some("oslo")));
    assert_eq!(mesh.peers[HEAD].taken.len(), 10);
}

#[test]
fn own_slots_come_first_and_neither_side_hears_of_the_other() {
    let mut mesh = studio();
    mesh.set_slots(HEAD, 1);
    mesh.advance(2000);
    let job = mesh.submit(LYON, at_oslo(12));
    // What is free is told again.
    mesh.advance(16_000);
    assert_eq!([HEAD, R1, R2].map(|at| mesh.n_running(at)), [1, 2, 2]);
    let borrower = |at: usize| mesh.site(at).slots().leases[0].borrower.clone();
    let busy = if mesh.n_running(R1) > 0 { R1 } else { R2 };
    assert_eq!(borrower(busy), "oslo");
    mesh.advance(60_000);
    let names: Vec<_> = mesh.site(LYON).sites(mesh.now).into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["lyon", "oslo", "graz"]);
    ends_well(&mut mesh, job);
}

#[test]
fn a_head_that_is_killed_and_comes_back_goes_on_and_nothing_is_rendered_twice() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(12));
    mesh.finish(R1, None);
    let before = started(&mesh);
    mesh.kill(HEAD);
    // What hosts have goes on while the head is away.
    mesh.finish(R1, None);
    mesh.advance(5000);
    mesh.finish(R2, None);
    mesh.boot(HEAD);
    mesh.advance(2000);
    assert!(before >= 4 && started(&mesh) > before);
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 12);
}

#[test]
fn a_head_whose_hosts_come_back_before_its_borrower_loses_no_result() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(4));
    mesh.cut(HEAD, LYON);
    mesh.kill(HEAD);
    mesh.finish(R1, None);
    mesh.finish(R2, None);
    mesh.boot(HEAD);
    mesh.advance(10_000);
    assert_eq!(mesh.peers[HEAD].taken.len(), 4, "results are taken in before anybody asks");
    mesh.mend(HEAD, LYON);
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 4);
}

#[test]
fn a_head_is_killed_between_any_two_messages_and_every_frame_comes_once() {
    for n in 0..60 {
        let mut mesh = studio();
        let job = mesh.submit(LYON, at_oslo(4));
        for at in [R1, R2] {
            for running in mesh.peers[at].running.clone() {
                mesh.end(at, running.session, None);
            }
        }
        for _ in 0..n {
            let Some((from, to, message)) = mesh.wires.pop_front() else { break };
            mesh.give(to, Input::Heard { from: id(from), message });
        }
        mesh.restart(HEAD);
        ends_well(&mut mesh, job);
        assert_eq!(started(&mesh), 4, "killed after {n} messages");
    }
}

#[test]
fn tasks_of_a_host_that_dies_are_given_back_and_go_elsewhere() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(6));
    mesh.kill(R1);
    mesh.finish(R2, None);
    mesh.advance(125_000);
    assert_eq!(mesh.n_running(R2), 2);
    mesh.boot(R1);
    ends_well(&mut mesh, job);
}

#[test]
fn a_host_that_restarts_gives_back_what_it_ran_and_keeps_what_it_had_finished() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(6));
    mesh.cut(HEAD, R1);
    mesh.finish(R1, None);
    mesh.restart(R1);
    mesh.mend(HEAD, R1);
    mesh.advance(10_000);
    assert!(mesh.job(LYON, job).done >= 2, "{}", mesh.job(LYON, job).done);
    ends_well(&mut mesh, job);
}

#[test]
fn a_borrower_that_is_killed_and_comes_back_gets_everything_once() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(8));
    mesh.finish(R1, None);
    mesh.kill(LYON);
    mesh.finish(R1, None);
    mesh.finish(R2, None);
    mesh.advance(20_000);
    mesh.boot(LYON);
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 8);
}

#[test]
fn a_borrower_that_stays_away_loses_the_slots_of_hosts_and_finds_what_was_finished() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(4));
    mesh.cut(HEAD, LYON);
    mesh.finish(R1, None);
    mesh.advance(70_000);
    for at in [R1, R2] {
        assert_eq!((mesh.n_running(at), mesh.site(at).slots().free), (0, 2));
    }
    assert!(!mesh.peers[HEAD].disk.keys().any(|key| matches!(key, Key::Relay(_))));
    let kept = mesh.peers[HEAD].disk.keys().filter(|key| matches!(key, Key::Finished(_)));
    assert_eq!(kept.count(), 2);
    mesh.mend(HEAD, LYON);
    mesh.advance(2000);
    assert_eq!(mesh.job(LYON, job).done, 2);
    ends_well(&mut mesh, job);
}

#[test]
fn slots_do_not_wait_for_content_that_comes_slowly_and_are_asked_for_when_it_is_here() {
    let mut mesh = studio();
    mesh.at_once = AtOnce::Nothing;
    let job = mesh.submit(LYON, at_oslo(4));
    mesh.advance(30_000);
    assert!(!mesh.fetching.is_empty());
    mesh.at_once = AtOnce::Whole;
    for at in [R1, R2] {
        assert_eq!((mesh.n_running(at), mesh.site(at).slots().free), (0, 2), "slots wait");
    }
    mesh.complete();
    mesh.advance(5000);
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [2, 2]);
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 4);
}

#[test]
fn content_that_does_not_come_gives_the_lease_back() {
    let mut mesh = studio();
    for error in [PrepareError::Unreachable, PrepareError::Full, PrepareError::Bad("no".into())] {
        mesh.prepares.push_back(error);
    }
    let job = mesh.submit(LYON, at_oslo(2));
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 2);
}

#[test]
fn outputs_that_are_bad_fail_the_try_and_those_that_wait_come_later() {
    let mut mesh = studio();
    mesh.collected.push_back(CollectError::Unreachable);
    mesh.collected.push_back(CollectError::Unwritable("full".into()));
    mesh.collected.push_back(CollectError::Bad("forged".into()));
    let job = mesh.submit(LYON, at_oslo(4));
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 5);
    let failures: usize = mesh.job(LYON, job).steps[0].tasks.iter().map(|t| t.failures).sum();
    assert!(failures <= 1, "{failures}");
}

#[test]
fn a_failure_at_a_host_is_told_with_its_reason() {
    let mut mesh = studio();
    let one = with(at_oslo(1), |policy| policy.retries = 0);
    let job = mesh.submit(LYON, one);
    for at in [R1, R2] {
        mesh.finish(at, Some("no such texture"));
    }
    mesh.advance(2000);
    let task = &mesh.job(LYON, job).steps[0].tasks[0];
    assert_eq!(task.state, "failed");
    assert!(task.reason.as_deref().is_some_and(|r| r.contains("no such texture")), "{task:?}");
    mesh.advance(60_000);
    is_at_rest(&mesh);
}

#[test]
fn a_host_that_is_stopped_ends_what_it_runs_for_others_and_one_that_is_removed_gives_it_back() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(12));
    let stopped = mesh.ask(HEAD, Ask::Host(id(R1), HostMode::Stopped));
    assert_eq!((stopped, mesh.n_running(R1)), (Reply::Changed(2), 2));
    mesh.finish(R1, None);
    mesh.advance(10_000);
    assert_eq!((mesh.n_running(R1), mesh.peers[R1].started.len()), (0, 2));
    assert!(mesh.peers[R1].stopped.is_empty(), "what it ran was stopped");
    mesh.ask(HEAD, Ask::Host(id(R1), HostMode::Open));
    mesh.ask(HEAD, Ask::Host(id(R2), HostMode::Removed));
    mesh.advance(10_000);
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [2, 0]);
    ends_well(&mut mesh, job);
}

#[test]
fn a_head_that_is_paused_takes_nothing_new_and_what_runs_goes_on() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(8));
    mesh.pause(HEAD);
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [2, 2]);
    for at in [R1, R2] {
        mesh.finish(at, None);
    }
    mesh.advance(10_000);
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [0, 0]);
    assert_eq!((mesh.job(LYON, job).done, started(&mesh)), (4, 4));
    mesh.resume(HEAD);
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 8);
}

#[test]
fn own_jobs_get_the_slots_of_hosts_as_tasks_of_others_end() {
    let mut mesh = studio();
    let theirs = mesh.submit(LYON, at_oslo(20));
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [2, 2]);
    let ours = mesh.submit(HEAD, with(frames(2), |policy| policy.place = Place::Local));
    mesh.advance(1000);
    assert!(mesh.peers[R1].stopped.is_empty() && mesh.peers[R2].stopped.is_empty());
    for _ in 0..4 {
        mesh.finish(R1, None);
        mesh.finish(R2, None);
        mesh.advance(3000);
    }
    assert_eq!(mesh.phase(HEAD, ours), JobPhase::Done);
    assert!(mesh.job(LYON, theirs).done < 20);
    ends_well(&mut mesh, theirs);
}

#[test]
fn what_other_sites_may_not_have_or_cannot_trust_is_not_theirs_on_hosts_either() {
    let licence = "meshfarm:amount.licence.nuke";
    let weak = HostClass { level: Level::S1, ..having(2, &[(licence, 2)]) };
    let hosts = [("oslo", host(0)), ("r1", having(2, &[(licence, 2)])), ("r2", weak)];
    let [oslo, r1, r2] = hosts;
    let mut mesh = Mesh::with_hosts([oslo, r1, r2, ("lyon", host(0)), ("graz", host(4))]);
    mesh.peers[HEAD].kept.insert(licence.into());
    mesh.restart(HEAD);
    mesh.become_hosts(HEAD, &[R1, R2]);
    let oslo = mesh.peers[HEAD].profile.clone().unwrap();
    assert_eq!((oslo.free, oslo.hosts.len()), (2, 1));
    assert!(oslo.hosts[0].amounts.is_empty());
    let job = mesh.submit(LYON, at_oslo(4));
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [2, 0]);
    ends_well(&mut mesh, job);
    let offer =
        Offer { requirement: asking(1, &[(licence, 1)]).steps[0].requirement.clone(), ..offer() };
    let said = answer(&mut mesh, HEAD, LYON, offer);
    assert!(matches!(said, Some(Message::Decline { reason: Declined::Misfit, .. })), "{said:?}");
}

fn offer() -> Offer {
    Offer {
        lease: LeaseId([8; 16]),
        tenant: TenantId([1; 16]),
        requirement: Requirement::default(),
        isolation: Level::S2,
        slots: 1,
        tasks: 1,
        root: meshfarm_protocol::id::ChunkId([1; 32]),
        bytes: 1,
        priority: 100,
        hops: 0,
    }
}

/// What `at` answers at once when `from` makes an offer.
fn answer(mesh: &mut Mesh, at: usize, from: usize, offer: Offer) -> Option<Message> {
    let (mut out, now) = (Vec::new(), mesh.now);
    let site = mesh.peers[at].site.as_mut().unwrap();
    let message = Message::Offer(offer);
    site.handle(now, Input::Heard { from: id(from), message }, &mut out);
    site.check();
    out.into_iter().find_map(|output| match output {
        meshfarm_core::Output::Send { to, message } if to == id(from) => Some(message),
        _ => None,
    })
}

/// `oslo` has no slots and knows `graz`, which `lyon` cannot reach.
fn chain(pass_on: bool) -> Mesh {
    let mut mesh = Mesh::new([("oslo", 1), ("r1", 0), ("r2", 0), ("lyon", 0), ("graz", 4)]);
    mesh.peers[HEAD].pass_on = pass_on;
    mesh.restart(HEAD);
    mesh.cut(LYON, GRAZ);
    mesh.advance(2000);
    mesh
}

/// A job of somebody else holds the one slot of oslo.
fn busy_oslo(mesh: &mut Mesh) -> JobId {
    mesh.submit(HEAD, with(frames(1), |policy| policy.place = Place::Local))
}

fn hops(n: u32, hops: u8) -> JobSpec {
    with(at_oslo(n), |policy| policy.hops = hops)
}

#[test]
fn work_is_passed_on_to_a_further_site_when_job_and_site_let_it() {
    for (pass_on, n, goes_on) in
        [(true, 1, Some(0)), (true, 9, Some(3)), (true, 0, None), (false, 4, None)]
    {
        let mut mesh = chain(pass_on);
        busy_oslo(&mut mesh);
        let (mut out, now) = (Vec::new(), mesh.now);
        let message = Message::Offer(Offer { hops: n, isolation: Level::S1, ..offer() });
        let site = mesh.peers[HEAD].site.as_mut().unwrap();
        site.handle(now, Input::Heard { from: id(LYON), message }, &mut out);
        site.check();
        let said: Vec<_> = out
            .into_iter()
            .filter_map(|output| match output {
                meshfarm_core::Output::Send { to, message } => Some((to, message)),
                _ => None,
            })
            .collect();
        match (goes_on, &said[..]) {
            (Some(left), [(to, Message::Offer(asked))]) => {
                assert_eq!((*to, asked.hops, asked.priority), (id(GRAZ), left, 50));
                assert_eq!(asked.isolation, Level::S2, "our own floor is stronger");
                assert_ne!(asked.lease, offer().lease);
            }
            (None, [(to, Message::Decline { reason: Declined::Busy, .. })]) => {
                assert_eq!(*to, id(LYON));
            }
            _ => panic!("pass_on {pass_on}, hops {n}: {said:?}"),
        }
    }
}

/// A job of lyon runs at oslo, which may pass it on to graz.
fn passed_on(n: u32, more: u8) -> (Mesh, JobId) {
    let mut mesh = chain(true);
    let job = mesh.submit(LYON, hops(n, more));
    mesh.advance(5000);
    (mesh, job)
}

#[test]
fn frames_that_were_passed_on_come_home_once_each_whoever_dies() {
    for victim in [None, Some(HEAD), Some(GRAZ), Some(LYON)] {
        let (mut mesh, job) = passed_on(8, 1);
        assert_eq!((mesh.n_running(HEAD), mesh.n_running(GRAZ)), (1, 4), "{victim:?}");
        assert_eq!(mesh.site(GRAZ).slots().leases[0].borrower, "oslo");
        mesh.finish(GRAZ, None);
        if let Some(victim) = victim {
            mesh.restart(victim);
        }
        mesh.finish_all();
        mesh.advance(120_000);
        assert_eq!(mesh.phase(LYON, job), JobPhase::Done, "{victim:?}");
        assert_eq!(mesh.leftovers(), 0, "{victim:?}");
        if victim.is_none() || victim == Some(LYON) {
            assert_eq!(started(&mesh), 8, "{victim:?}");
        }
        assert!(mesh.rendered_by(LYON, job).iter().all(|by| by.as_deref() == Some("oslo")));
    }
}

#[test]
fn a_site_that_the_job_names_is_asked_for_others_slots_when_it_has_none_itself() {
    let mut mesh = chain(true);
    mesh.set_slots(HEAD, 0);
    mesh.advance(2000);
    let job = mesh.submit(LYON, hops(6, 1));
    assert_eq!(mesh.n_running(GRAZ), 4);
    mesh.finish_all();
    assert_eq!((mesh.phase(LYON, job), started(&mesh)), (JobPhase::Done, 6));
    mesh.advance(60_000);
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn work_of_one_mesh_does_not_go_on_into_another() {
    let mut mesh = chain(true);
    mesh.elsewhere.insert((HEAD, GRAZ));
    mesh.restart(GRAZ);
    mesh.set_slots(HEAD, 0);
    mesh.advance(2000);
    mesh.submit(LYON, hops(6, 4));
    mesh.advance(10_000);
    assert_eq!(mesh.n_running(GRAZ), 0);
}

#[test]
fn work_that_may_not_be_passed_on_stays() {
    let (mesh, _) = passed_on(8, 0);
    assert_eq!((mesh.n_running(HEAD), mesh.n_running(GRAZ)), (1, 0));
}

#[test]
fn work_goes_neither_back_nor_round() {
    let mut mesh = Mesh::new([("oslo", 0), ("r1", 2), ("lyon", 0), ("graz", 0)]);
    // Everybody believes that everybody has slots.
    let lie = |mesh: &mut Mesh| {
        for at in 0..4 {
            let mut profile = mesh.peers[at].profile.clone().unwrap();
            profile.sequence += 1 << 10;
            profile.free = 4;
            profile.hosts[0].slots = 4;
            for other in (0..4).filter(|other| *other != at) {
                mesh.give(other, Input::Profile(profile.clone()));
            }
        }
    };
    lie(&mut mesh);
    mesh.submit(2, with(frames(4), |p| (p.place, p.hops) = (Place::Remote, 4)));
    for _ in 0..20 {
        mesh.advance(1000);
        lie(&mut mesh);
        assert!(mesh.wires.len() < 100);
        let of_itself = mesh.site(2).slots().leases.into_iter().any(|lease| lease.own);
        assert!(!of_itself);
    }
    mesh.finish_all();
}

#[test]
fn an_offer_is_declined_when_no_machine_answers() {
    let mut mesh = studio();
    mesh.cut(HEAD, R1);
    mesh.cut(HEAD, R2);
    let said = answer(&mut mesh, HEAD, LYON, offer());
    assert!(matches!(said, Some(Message::Decline { .. })), "{said:?}");
    mesh.mend(HEAD, R1);
    // It is asked, and its answer is lost.
    assert!(answer(&mut mesh, HEAD, LYON, offer()).is_none());
    assert!(answer(&mut mesh, HEAD, LYON, offer()).is_none(), "asked twice");
    assert!(
        answer(&mut mesh, HEAD, LYON, Offer { tenant: TenantId([2; 16]), ..offer() }).is_none()
    );
    let said = answer(&mut mesh, HEAD, GRAZ, offer());
    assert!(matches!(said, Some(Message::Decline { reason: Declined::Malformed, .. })), "{said:?}");
    mesh.wires.clear();
    let now = mesh.now.plus(meshfarm_protocol::id::Millis(3001));
    let (mut out, mut declined) = (Vec::new(), 0);
    mesh.peers[HEAD].site.as_mut().unwrap().handle(now, Input::Tick, &mut out);
    for output in out {
        if let meshfarm_core::Output::Send { message: Message::Decline { reason, .. }, .. } = output
        {
            assert_eq!(reason, Declined::Busy);
            declined += 1;
        }
    }
    assert_eq!(declined, 1);
}

#[test]
fn an_owner_who_pauses_a_host_has_what_it_runs_finished_there() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(8));
    mesh.ask(R1, Ask::OperateSite(SiteOperation::Pause { own: false, give_back: None }));
    mesh.finish(R1, None);
    mesh.advance(10_000);
    assert_eq!((mesh.n_running(R1), mesh.peers[R1].started.len()), (0, 2));
    assert!(mesh.peers[R1].stopped.is_empty());
    mesh.ask(R1, Ask::OperateSite(SiteOperation::Resume));
    ends_well(&mut mesh, job);
    assert_eq!(started(&mesh), 8);
}

#[test]
fn logs_go_on_to_the_borrower_and_to_nobody_else() {
    let mut mesh = studio();
    mesh.submit(LYON, at_oslo(2));
    let at = if mesh.n_running(R1) > 0 { R1 } else { R2 };
    let attempt = mesh.peers[at].running[0].run[0].attempt;
    let to = |mesh: &Mesh, from: usize| mesh.site(HEAD).log_goes_to(id(from), attempt);
    assert_eq!(to(&mesh, at), Some(id(LYON)));
    assert_eq!([LYON, GRAZ, R1 + R2 - at].map(|from| to(&mesh, from)), [None; 3]);
    mesh.finish(at, None);
    mesh.advance(20_000);
    // The last lines come after the result.
    assert_eq!(to(&mesh, at), Some(id(LYON)));
}

#[test]
fn a_head_that_is_paused_and_killed_ends_what_its_hosts_run_and_takes_nothing_new() {
    let mut mesh = studio();
    let job = mesh.submit(LYON, at_oslo(12));
    mesh.pause(HEAD);
    mesh.restart(HEAD);
    mesh.advance(6000);
    assert_eq!(started(&mesh), 4);
    for at in [R1, R2] {
        mesh.finish(at, None);
    }
    mesh.advance(10_000);
    assert_eq!((mesh.job(LYON, job).done, started(&mesh)), (4, 4));
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [0, 0]);
    mesh.resume(HEAD);
    ends_well(&mut mesh, job);
}

#[test]
fn slots_that_a_stopped_host_had_reserved_are_found_elsewhere() {
    let mut mesh = studio();
    mesh.at_once = AtOnce::Nothing;
    let job = mesh.submit(LYON, at_oslo(2));
    let reserved = if mesh.site(R1).slots().free == 0 { R1 } else { R2 };
    mesh.ask(HEAD, Ask::Host(id(reserved), HostMode::Stopped));
    assert_eq!(mesh.site(reserved).slots().free, 2);
    mesh.at_once = AtOnce::Whole;
    mesh.complete();
    mesh.advance(4000);
    assert_eq!((mesh.n_running(reserved), mesh.n_running(R1 + R2 - reserved)), (0, 2));
    ends_well(&mut mesh, job);
}
