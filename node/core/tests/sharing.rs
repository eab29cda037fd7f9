//! Lenders of one job as sources for each other, and sites that send wrong chunks.

use meshfarm_core::{Event, Input, Key};
use meshfarm_protocol::id::{ChunkId, LeaseId, SiteId};

use crate::mesh::{Mesh, frames, id};

fn sources(mesh: &Mesh, at: usize) -> Vec<SiteId> {
    let mut sources: Vec<_> = mesh.peers[at].shared.iter().map(|(_, source)| *source).collect();
    sources.sort();
    sources
}

#[test]
fn lenders_that_still_fetch_are_told_of_each_other_once() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1), ("kyoto", 1)]);
    mesh.hold_prepares = true;
    mesh.submit(0, frames(6));
    mesh.advance(12_000);
    assert_eq!(sources(&mesh, 1), [id(2), id(3)]);
    assert_eq!(sources(&mesh, 2), [id(1), id(3)]);
    assert_eq!(sources(&mesh, 3), [id(1), id(2)]);
}

#[test]
fn a_lender_whose_content_is_in_place_is_told_of_nobody() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.submit(0, frames(2));
    mesh.advance(6000);
    let told = mesh.peers.iter().map(|peer| peer.shared.len()).sum::<usize>();
    assert!(told <= 1, "{told}: only whoever came second may have been fetching still");
}

#[test]
fn a_pass_is_good_for_the_content_of_its_lease_only() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.hold_prepares = true;
    mesh.submit(0, frames(2));
    mesh.advance(1000);
    let (lease, _) = mesh.peers[1].shared[0];
    let body = |borrower, lease, root| meshfarm_protocol::message::PassBody {
        borrower,
        lease,
        to: id(2),
        root,
        expires: mesh.now,
    };
    let root = ChunkId([5; 32]);
    assert!(mesh.site(1).may_share(&body(id(0), lease, root)));
    assert!(!mesh.site(1).may_share(&body(id(2), lease, root)));
    assert!(!mesh.site(1).may_share(&body(id(0), lease, ChunkId([6; 32]))));
    assert!(!mesh.site(1).may_share(&body(id(0), LeaseId([9; 16]), root)));
}

#[test]
fn a_site_that_sends_wrong_chunks_is_named_remembered_and_no_longer_recommended() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    let wrong = |n: u8| Input::WrongChunk {
        site: id(1),
        lease: LeaseId([n; 16]),
        chunk: ChunkId([n; 32]),
        came: ChunkId([0; 32]),
    };
    mesh.give(0, wrong(1));
    mesh.give(0, wrong(2));
    let blamed = |event: &&Event| matches!(event, Event::Blame { site, .. } if *site == id(1));
    assert_eq!(mesh.peers[0].told.iter().filter(blamed).count(), 2);
    let evidence = mesh.peers[0].disk[&Key::Evidence(id(1))].clone();
    let meshfarm_core::Record::Evidence(evidence) = evidence else { panic!("{evidence:?}") };
    assert_eq!((evidence.n, evidence.lease), (2, LeaseId([2; 16])));
    mesh.restart(0);
    mesh.give(0, wrong(3));
    let meshfarm_core::Record::Evidence(evidence) = mesh.peers[0].disk[&Key::Evidence(id(1))]
    else {
        panic!("it is gone")
    };
    assert_eq!(evidence.n, 3, "a restart does not forgive");
    mesh.hold_prepares = true;
    mesh.advance(600_000);
    mesh.submit(0, frames(2));
    mesh.advance(2000);
    assert!(sources(&mesh, 2).is_empty(), "graz is not sent to lyon");
}
