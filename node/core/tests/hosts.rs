//! A site of several machines: its own jobs run on all of them, and they serve nobody else.

use meshfarm_core::{Ask, HostMode, HostState, HostView, Input, JobPhase, Reply, SiteOperation};
use meshfarm_protocol::id::{JobId, LeaseId, TenantId};
use meshfarm_protocol::job::Place;
use meshfarm_protocol::lease::{Declined, Offer};
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{HostClass, Level, Requirement};

use crate::mesh::{Mesh, frames, host, id, with};

const HEAD: usize = 0;
const R1: usize = 1;
const R2: usize = 2;
const LYON: usize = 3;

/// A head with two hosts, and another site.
fn studio(slots_of_head: u32) -> Mesh {
    let mut mesh = Mesh::new([("oslo", slots_of_head), ("r1", 2), ("r2", 2), ("lyon", 4)]);
    mesh.become_hosts(HEAD, &[R1, R2]);
    mesh
}

fn local(n: u32) -> meshfarm_protocol::job::JobSpec {
    with(frames(n), |policy| policy.place = Place::Local)
}

fn started(mesh: &Mesh) -> usize {
    mesh.peers.iter().map(|peer| peer.started.len()).sum()
}

fn view(mesh: &Mesh, name: &str) -> HostView {
    let hosts = mesh.site(HEAD).hosts(mesh.now);
    hosts.into_iter().find(|host| host.name == name).unwrap()
}

/// How many done tasks of a job each of these has rendered.
fn shares<const N: usize>(mesh: &Mesh, job: JobId, names: [&str; N]) -> [usize; N] {
    let by = mesh.rendered_by(HEAD, job);
    names.map(|name| by.iter().filter(|by| by.as_deref() == Some(name)).count())
}

#[test]
fn a_job_that_may_not_leave_the_site_runs_on_all_its_machines_and_nowhere_else() {
    let mut mesh = studio(1);
    let job = mesh.submit(HEAD, local(20));
    assert_eq!([HEAD, R1, R2, LYON].map(|at| mesh.n_running(at)), [1, 2, 2, 0]);
    mesh.finish_all();
    assert_eq!(mesh.phase(HEAD, job), JobPhase::Done);
    let [oslo, r1, r2, lyon] = shares(&mesh, job, ["oslo", "r1", "r2", "lyon"]);
    assert!(oslo > 0 && r1 > 0 && r2 > 0, "{oslo} {r1} {r2}");
    assert_eq!((oslo + r1 + r2, lyon, started(&mesh), mesh.leftovers()), (20, 0, 20, 0));
}

#[test]
fn a_head_without_slots_renders_on_its_hosts_before_it_asks_others() {
    let mut mesh = studio(0);
    mesh.submit(HEAD, with(frames(4), |policy| policy.place = Place::Auto));
    assert_eq!([HEAD, R1, R2, LYON].map(|at| mesh.n_running(at)), [0, 2, 2, 0]);
    mesh.submit(HEAD, with(frames(3), |policy| policy.place = Place::Remote));
    assert_eq!([R1, R2, LYON].map(|at| mesh.n_running(at)), [2, 2, 3]);
}

#[test]
fn a_weak_host_renders_for_its_head_as_the_head_itself_would() {
    let weak = HostClass { level: Level::S0, ..host(1) };
    let mut mesh = Mesh::with_hosts([("oslo", host(0)), ("r1", weak)]);
    mesh.become_hosts(HEAD, &[R1]);
    let job = mesh.submit(HEAD, local(1));
    assert_eq!(mesh.peers[R1].running[0].isolation, Level::S0);
    mesh.finish_all();
    assert_eq!(mesh.phase(HEAD, job), JobPhase::Done);
}

#[test]
fn a_job_for_a_host_by_name_goes_there_whatever_another_site_calls_itself() {
    let mut mesh = Mesh::new([("oslo", 1), ("r1", 2), ("r2", 2), ("r1", 4)]);
    mesh.become_hosts(HEAD, &[R1, R2]);
    let job = mesh.submit(HEAD, with(frames(6), |p| p.place = Place::Site("r1".into())));
    assert_eq!([HEAD, R1, R2, LYON].map(|at| mesh.n_running(at)), [0, 2, 0, 0]);
    mesh.finish_all();
    assert_eq!((mesh.phase(HEAD, job), mesh.peers[R1].started.len()), (JobPhase::Done, 6));
}

#[test]
fn a_more_urgent_job_gets_the_slots_of_hosts_as_tasks_end() {
    let mut mesh = studio(0);
    let low = mesh.submit(HEAD, with(local(20), |policy| policy.priority = 10));
    mesh.advance(1000);
    let high = mesh.submit(HEAD, with(local(4), |policy| policy.priority = 90));
    for _ in 0..4 {
        mesh.finish(R1, None);
        mesh.finish(R2, None);
        mesh.advance(2000);
    }
    assert_eq!(mesh.phase(HEAD, high), JobPhase::Done);
    assert!(mesh.job(HEAD, low).done < 14, "{}", mesh.job(HEAD, low).done);
    mesh.finish_all();
    assert_eq!(mesh.phase(HEAD, low), JobPhase::Done);
}

#[test]
fn hosts_go_on_while_their_head_is_away_and_nothing_is_rendered_twice() {
    let mut mesh = studio(0);
    let job = mesh.submit(HEAD, local(8));
    mesh.finish(R1, None);
    let before = started(&mesh);
    mesh.kill(HEAD);
    mesh.advance(10_000);
    mesh.finish(R1, None);
    // Far longer than another site would wait.
    mesh.advance(20 * 60_000);
    mesh.finish(R2, None);
    mesh.advance(60_000);
    assert!(mesh.peers[R1].stopped.is_empty() && mesh.peers[R2].stopped.is_empty());
    mesh.boot(HEAD);
    mesh.finish_all();
    assert_eq!(mesh.phase(HEAD, job), JobPhase::Done);
    assert!(before >= 4);
    assert_eq!((started(&mesh), mesh.leftovers()), (8, 0));
}

#[test]
fn what_a_head_says_nothing_of_when_it_is_back_holds_no_slots() {
    let mut mesh = studio(0);
    mesh.submit(HEAD, local(4));
    mesh.kill(HEAD);
    // An older state of the head, from before it had leases and jobs.
    mesh.peers[HEAD].disk.retain(|key, _| matches!(key, meshfarm_core::Key::Host(_)));
    mesh.boot(HEAD);
    mesh.advance(61_000);
    for at in [R1, R2] {
        mesh.finish(at, None);
        assert_eq!(mesh.site(at).slots().free, 2);
    }
}

#[test]
fn tasks_of_a_host_that_does_not_come_back_go_elsewhere_after_a_while() {
    let mut mesh = studio(0);
    let job = mesh.submit(HEAD, local(4));
    mesh.kill(R1);
    assert_eq!(view(&mesh, "r1").state, HostState::Away);
    mesh.finish(R2, None);
    mesh.advance(60_000);
    assert_eq!(mesh.n_running(R2), 0);
    mesh.advance(61_000);
    assert_eq!(mesh.n_running(R2), 2);
    mesh.finish_all();
    assert_eq!(mesh.phase(HEAD, job), JobPhase::Done);
    assert_eq!(shares(&mesh, job, ["r1", "r2"]), [0, 4]);
}

fn offer() -> Message {
    Message::Offer(Offer {
        lease: LeaseId([8; 16]),
        tenant: TenantId([1; 16]),
        requirement: Requirement::default(),
        isolation: Level::S0,
        slots: 1,
        tasks: 1,
        root: meshfarm_protocol::id::ChunkId([1; 32]),
        bytes: 1,
        priority: 100,
        hops: 0,
    })
}

/// What `at` answers when `from` says something, whether or not the two are connected.
fn answer(mesh: &mut Mesh, at: usize, from: usize) -> Option<Message> {
    let (mut out, now) = (Vec::new(), mesh.now);
    let site = mesh.peers[at].site.as_mut().unwrap();
    site.handle(now, Input::Heard { from: id(from), message: offer() }, &mut out);
    site.check();
    out.into_iter().find_map(|output| match output {
        meshfarm_core::Output::Send { to, message } if to == id(from) => Some(message),
        _ => None,
    })
}

#[test]
fn a_host_lends_to_its_head_only_and_borrows_of_nobody() {
    let mut mesh = studio(2);
    for (at, from) in [(R1, LYON), (R1, R2), (HEAD, R1), (HEAD, R2)] {
        let said = answer(&mut mesh, at, from);
        let refused = matches!(said, Some(Message::Decline { reason: Declined::Policy, .. }));
        assert!(refused, "{at} to {from}: {said:?}");
    }
    assert!(matches!(answer(&mut mesh, R1, HEAD), Some(Message::Grant(_))));
    assert!(matches!(answer(&mut mesh, HEAD, LYON), Some(Message::Grant(_))));
    let root = meshfarm_protocol::id::ChunkId([5; 32]);
    let refused = mesh.ask(R1, Ask::Submit { spec: Box::new(local(1)), root, bytes: 1 });
    assert!(matches!(&refused, Reply::Refused(why) if why.contains("host of oslo")), "{refused:?}");
}

#[test]
fn other_sites_see_slots_of_hosts_and_not_whose_they_are() {
    let mut mesh = studio(1);
    mesh.advance(60_000);
    let names = |at: usize| {
        let sites = mesh.site(at).sites(mesh.now);
        sites.into_iter().map(|site| (site.name, site.profile.map(|p| p.free))).collect::<Vec<_>>()
    };
    assert_eq!(names(LYON), [("lyon".into(), Some(4)), ("oslo".into(), Some(5))]);
    assert_eq!(names(HEAD), [("oslo".into(), Some(5)), ("lyon".into(), Some(4))]);
    let offered = mesh.peers[HEAD].profile.clone().unwrap().hosts;
    let kinds: Vec<_> = offered.iter().map(|class| (class.count, class.slots)).collect();
    assert_eq!(kinds, [(1, 1), (2, 2)]);
}

#[test]
fn a_host_that_was_stopped_ends_what_it_runs_and_gets_nothing_until_it_is_started() {
    let mut mesh = studio(0);
    let job = mesh.submit(HEAD, local(12));
    assert_eq!(view(&mesh, "r1").used, 2);
    let queued = mesh.site(HEAD).slots().hosts.iter().map(|lease| lease.queued).sum::<usize>();
    assert!(queued > 0, "tasks wait at the hosts");
    assert_eq!(mesh.ask(HEAD, Ask::Host(id(R1), HostMode::Stopped)), Reply::Changed(2));
    assert_eq!((view(&mesh, "r1").state, mesh.n_running(R1)), (HostState::Pausing, 2));
    mesh.restart(HEAD);
    mesh.finish(R1, None);
    mesh.finish(R2, None);
    mesh.advance(30_000);
    assert_eq!((view(&mesh, "r1").state, mesh.n_running(R1)), (HostState::Stopped, 0));
    assert!(mesh.peers[R1].stopped.is_empty());
    assert_eq!(mesh.peers[R1].started.len(), 2);
    assert_eq!(mesh.ask(HEAD, Ask::Host(id(R1), HostMode::Open)), Reply::Changed(0));
    mesh.advance(1000);
    assert_eq!((view(&mesh, "r1").state, mesh.n_running(R1)), (HostState::Connected, 2));
    mesh.finish_all();
    assert_eq!((mesh.phase(HEAD, job), started(&mesh)), (JobPhase::Done, 12));
}

#[test]
fn a_host_whose_owner_pauses_it_gets_nothing() {
    let mut mesh = studio(0);
    let pause = SiteOperation::Pause { own: false, give_back: None };
    mesh.ask(R1, Ask::OperateSite(pause));
    mesh.advance(2000);
    mesh.submit(HEAD, local(4));
    assert_eq!([R1, R2].map(|at| mesh.n_running(at)), [0, 2]);
    assert_eq!(view(&mesh, "r1").state, HostState::Paused);
}

#[test]
fn a_removed_host_is_worth_nothing_until_it_joins_with_another_ticket() {
    let mut mesh = studio(0);
    let job = mesh.submit(HEAD, local(4));
    mesh.ask(HEAD, Ask::Host(id(R1), HostMode::Removed));
    mesh.settle();
    assert_eq!(mesh.n_running(R1), 0);
    assert_eq!(mesh.site(HEAD).hosts(mesh.now).len(), 2);
    let again = mesh.ask(HEAD, Ask::Host(id(R1), HostMode::Open));
    assert!(matches!(again, Reply::Refused(_)), "{again:?}");
    assert!(matches!(answer(&mut mesh, HEAD, R1), Some(Message::Decline { .. })));
    let refused = mesh.join(HEAD, (id(R1), 77), ("r1", Role::Host)).unwrap_err();
    assert!(refused.contains("removed"), "{refused}");
    mesh.finish_all();
    assert_eq!(shares(&mesh, job, ["r1", "r2"]), [0, 4]);
    mesh.restart(HEAD);
    mesh.advance(60_000);
    let next = mesh.submit(HEAD, local(4));
    mesh.finish_all();
    assert_eq!(shares(&mesh, next, ["r1", "r2"]), [0, 4]);
}

#[test]
fn a_ticket_for_hosts_makes_hosts_only_and_their_names_are_their_own() {
    let mut mesh = studio(1);
    mesh.invite_hosts(HEAD, 2);
    let strange = meshfarm_protocol::id::SiteId([50; 32]);
    for role in [Role::Site, Role::Submitter] {
        let refused = mesh.join(HEAD, (strange, 77), ("r3", role)).unwrap_err();
        assert!(refused.contains("another role"), "{refused}");
    }
    for name in ["r1", "oslo"] {
        let refused = mesh.join(HEAD, (strange, 77), (name, Role::Host)).unwrap_err();
        assert!(refused.contains("taken"), "{refused}");
    }
    assert_eq!(mesh.join(HEAD, (strange, 77), ("r3", Role::Host)), Ok("r3".into()));
    mesh.restart(HEAD);
    assert_eq!(view(&mesh, "r3").state, HostState::Away);
    for (mesh_id, role) in [([7; 32], Role::Host), (id(HEAD).0, Role::Site)] {
        let invite = Ask::Invite {
            mesh: meshfarm_protocol::id::MeshId(mesh_id),
            mesh_name: "consortium".into(),
            secret_hash: [1; 32],
            role,
            uses: 1,
            expires: mesh.now.plus(meshfarm_protocol::id::Millis::seconds(60)),
        };
        let refused = mesh.ask(HEAD, invite);
        assert!(matches!(refused, Reply::Refused(_)), "{refused:?}");
    }
}

#[test]
fn a_borrower_that_becomes_a_host_borrows_no_more() {
    let mut mesh = Mesh::new([("oslo", 2), ("r1", 0)]);
    mesh.submit(R1, with(frames(2), |policy| policy.place = Place::Remote));
    assert_eq!(mesh.n_running(HEAD), 2);
    mesh.invite_hosts(HEAD, 1);
    mesh.join(HEAD, (id(R1), 77), ("r1", Role::Host)).unwrap();
    mesh.settle();
    assert_eq!(mesh.site(HEAD).slots().free, 2);
}

#[test]
fn a_machine_becomes_a_host_while_it_runs() {
    let mut mesh = Mesh::new([("oslo", 0), ("r1", 2)]);
    mesh.ask(R1, Ask::Serve(id(HEAD)));
    mesh.invite_hosts(HEAD, 1);
    mesh.join(HEAD, (id(R1), 77), ("r1", Role::Host)).unwrap();
    mesh.advance(2000);
    let job = mesh.submit(HEAD, local(2));
    mesh.finish_all();
    assert_eq!(mesh.phase(HEAD, job), JobPhase::Done);
    assert_eq!(mesh.site(R1).head(), Some(id(HEAD)));
}

#[test]
fn the_head_itself_is_stopped_and_started_as_a_machine_like_the_others() {
    let mut mesh = studio(1);
    let job = mesh.submit(HEAD, local(12));
    assert_eq!(mesh.n_running(HEAD), 1);
    let stop = |mode| Ask::Host(id(HEAD), mode);
    assert_eq!(mesh.ask(HEAD, stop(HostMode::Stopped)), Reply::Changed(1));
    assert_eq!(view(&mesh, "oslo").state, HostState::Pausing);
    mesh.finish(HEAD, None);
    mesh.advance(2_000);
    assert_eq!((mesh.n_running(HEAD), view(&mesh, "oslo").state), (0, HostState::Stopped));
    mesh.submit(LYON, with(frames(1), |policy| policy.place = Place::Remote));
    mesh.advance(2_000);
    assert_eq!(mesh.n_running(HEAD), 0, "nor for others");
    mesh.restart(HEAD);
    mesh.advance(2_000);
    assert_eq!((mesh.n_running(HEAD), view(&mesh, "oslo").state), (0, HostState::Stopped));
    assert_eq!(mesh.ask(HEAD, stop(HostMode::Open)), Reply::Changed(0));
    assert!(matches!(mesh.ask(HEAD, stop(HostMode::Removed)), Reply::Refused(_)));
    mesh.finish_all();
    assert_eq!(
        (mesh.phase(HEAD, job), view(&mesh, "oslo").state),
        (JobPhase::Done, HostState::Connected)
    );
}
