//! A site that may borrow only: its certificate counts, whatever it is set to and whatever it says.

use meshfarm_core::{Ask, Input, JobPhase, Reply};
use meshfarm_protocol::id::{ChunkId, LeaseId, TenantId};
use meshfarm_protocol::job::Place;
use meshfarm_protocol::lease::{Declined, Offer};
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{Level, Requirement};

use crate::mesh::{Mesh, frames, id, with};

const OSLO: usize = 0;
const ADA: usize = 1;

fn mesh() -> Mesh {
    let mut mesh = Mesh::new([("oslo", 2), ("ada", 4)]);
    mesh.peers[ADA].role = Role::Submitter;
    mesh.restart(ADA);
    mesh.advance(2_000);
    mesh
}

fn remote(n: u32) -> meshfarm_protocol::job::JobSpec {
    with(frames(n), |policy| policy.place = Place::Remote)
}

#[test]
fn it_borrows_and_renders_its_own_and_offers_nothing() {
    let mut mesh = mesh();
    let profile = mesh.peers[ADA].profile.clone().unwrap();
    assert_eq!((profile.lending, profile.free, profile.hosts.len()), (false, 0, 0));
    let roles = |at: usize| {
        let sites = mesh.site(at).sites(mesh.now);
        sites.into_iter().map(|site| (site.name, site.role)).collect::<Vec<_>>()
    };
    let (oslo, ada) = (("oslo".to_owned(), Role::Site), ("ada".to_owned(), Role::Submitter));
    assert_eq!((roles(OSLO), roles(ADA)), (vec![oslo.clone(), ada.clone()], vec![ada, oslo]));
    let away = mesh.submit(ADA, remote(2));
    let own = mesh.submit(ADA, with(frames(2), |policy| policy.place = Place::Local));
    mesh.finish_all();
    assert_eq!((mesh.phase(ADA, away), mesh.phase(ADA, own)), (JobPhase::Done, JobPhase::Done));
}

#[test]
fn nobody_offers_it_anything_whatever_it_says_and_it_takes_nothing() {
    let mut mesh = mesh();
    let mut lie = mesh.peers[OSLO].profile.clone().unwrap();
    (lie.site, lie.sequence) = (id(ADA), u64::MAX);
    lie.name = "ada".into();
    mesh.give(OSLO, Input::Profile(lie));
    let job = mesh.submit(OSLO, remote(2));
    mesh.advance(5_000);
    assert_eq!(mesh.n_running(ADA), 0);
    let explained = mesh.site(OSLO).explain(job, None, mesh.now).unwrap();
    let ada = explained.steps[0].sites.iter().find(|site| site.site == "ada").unwrap();
    assert!(ada.blocks.iter().any(|block| block.contains("submit only")), "{ada:?}");
    let offer = Offer {
        lease: LeaseId([7; 16]),
        tenant: TenantId([9; 16]),
        requirement: Requirement::default(),
        isolation: Level::S0,
        slots: 1,
        tasks: 1,
        root: ChunkId([5; 32]),
        bytes: 1,
        priority: 50,
        hops: 0,
    };
    mesh.give(ADA, Input::Heard { from: id(OSLO), message: Message::Offer(offer) });
    let said = mesh.wires.pop_back().unwrap();
    let policy =
        |message: &Message| matches!(message, Message::Decline { reason: Declined::Policy, .. });
    assert!(said.0 == ADA && policy(&said.2), "{said:?}");
}

#[test]
fn a_site_that_becomes_one_gives_back_what_it_has_not_begun_with() {
    let mut mesh = Mesh::new([("oslo", 0), ("ada", 1)]);
    let job = mesh.submit(OSLO, frames(3));
    assert_eq!(mesh.n_running(ADA), 1);
    assert_eq!(mesh.ask(ADA, Ask::Submitter(true)), Reply::Changed(1));
    mesh.finish(ADA, None);
    mesh.advance(10_000);
    assert_eq!((mesh.job(OSLO, job).done, mesh.n_running(ADA)), (1, 0));
    mesh.ask(ADA, Ask::Submitter(false));
    mesh.finish_all();
    assert_eq!(mesh.phase(OSLO, job), JobPhase::Done);
}
