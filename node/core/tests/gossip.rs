//! What sites believe of each other: profiles, their age, and when they are told.

use meshfarm_core::{Event, Input};
use meshfarm_protocol::codec::encode;
use meshfarm_protocol::id::{Millis, SiteId};
use meshfarm_protocol::profile::Profile;

use crate::mesh::{Mesh, frames, id};

#[test]
fn an_older_profile_changes_nothing() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 4)]);
    let new = mesh.peers[1].profile.clone().unwrap();
    let mut old = new.clone();
    old.sequence -= 1;
    old.free = 99;
    mesh.give(0, Input::Profile(old));
    assert_eq!(mesh.site(0).sites(mesh.now)[1].profile, Some(new));
}

#[test]
fn a_profile_that_is_repeated_keeps_no_dead_site_alive() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 4)]);
    let profile = mesh.peers[1].profile.clone().unwrap();
    mesh.kill(1);
    for _ in 0..10 {
        mesh.advance(10_000);
        mesh.give(0, Input::Profile(profile.clone()));
    }
    let gone = |event: &Event| matches!(event, Event::SiteLost { .. });
    assert!(mesh.peers[0].told.iter().any(gone));
}

#[test]
fn a_site_is_never_asked_about_itself_by_its_own_profile() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let own = mesh.peers[0].profile.clone().unwrap();
    mesh.give(0, Input::Profile(own));
    assert_eq!(mesh.site(0).sites(mesh.now).len(), 1);
}

#[test]
fn more_sites_than_the_bound_are_not_remembered() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1)]);
    let template = mesh.peers[1].profile.clone().unwrap();
    for n in 0..2100u32 {
        let mut site = [0xff; 32];
        site[..4].copy_from_slice(&n.to_be_bytes());
        let mut profile = template.clone();
        profile.site = SiteId(site);
        mesh.give(0, Input::Profile(profile));
    }
    let sites = mesh.site(0).sites(mesh.now);
    assert_eq!(sites.len(), 1 + 2000);
    assert!(sites.iter().any(|known| known.site == id(1)), "a connected site was forgotten");
}

#[test]
fn a_change_of_free_slots_is_told_within_a_second_or_so_and_nothing_spins() {
    let mut mesh = Mesh::new([("oslo", 8), ("lyon", 0)]);
    mesh.advance(20_000);
    for n in 1..=8 {
        let job = mesh.submit(0, frames(1));
        mesh.advance(1_000);
        let told = mesh.peers[0].profile.as_ref().unwrap().free;
        assert!(told.abs_diff(8 - n) <= 1, "{told} told when {} are free", 8 - n);
        assert_eq!(mesh.job(0, job).running, 1);
    }
}

#[test]
fn a_site_that_stops_lending_says_so() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 4)]);
    mesh.pause(1);
    mesh.advance(1_000);
    mesh.submit(0, frames(2));
    assert_eq!(mesh.n_running(1), 0);
    mesh.resume(1);
    mesh.advance(2_000);
    assert_eq!(mesh.n_running(1), 2);
}

#[test]
fn a_profile_that_claims_to_live_for_ever_expires_all_the_same() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 4)]);
    let mut profile = mesh.peers[1].profile.clone().unwrap();
    mesh.kill(1);
    profile.sequence = u64::MAX;
    profile.ttl = Millis(u64::MAX);
    mesh.give(0, Input::Profile(profile));
    mesh.advance(3600 * 1000);
    assert_eq!(mesh.site(0).sites(mesh.now).len(), 1);
}

/// What a profile weighs beyond its own bytes on its way.
const AROUND: u64 = 600;

/// How many profiles a site tells in an hour that knows so many others, while its slots stay as they are or change all
/// the time; and what so many cost the line of each in kilobits per second.
fn told_in_an_hour(sites: u32, busy: bool) -> (u64, u64) {
    let mut mesh = Mesh::new([("oslo", 8), ("lyon", 0)]);
    mesh.checks = false;
    let ttl = Millis::seconds(1800);
    let template = Profile { ttl, ..mesh.peers[1].profile.clone().unwrap() };
    let mut told = 0;
    let mut last = 0;
    for second in 0..3_600u32 {
        if second % 1500 == 0 {
            for n in 0..sites.saturating_sub(1) {
                let mut site = [0xff; 32];
                site[..4].copy_from_slice(&n.to_be_bytes());
                let sequence = u64::from(second);
                let profile = Profile { site: SiteId(site), sequence, ..template.clone() };
                mesh.give(0, Input::Profile(profile));
            }
        }
        if busy {
            mesh.set_slots(0, if second % 2 == 0 { 0 } else { 8 });
        }
        mesh.advance(1_000);
        let sequence = mesh.peers[0].profile.as_ref().unwrap().sequence;
        told += u64::from(sequence != last);
        last = sequence;
    }
    let weight = encode(mesh.peers[0].profile.as_ref().unwrap()).len() as u64 + AROUND;
    // Each of the others tells as often, and what they say reaches a site four times.
    (told, u64::from(sites) * told * weight * 4 * 8 / 3_600_000)
}

#[test]
fn the_more_sites_there_are_the_less_often_each_speaks_and_gossip_costs_a_line_the_same() {
    let mut costs = Vec::new();
    for sites in [100, 1_000] {
        let ((quiet, rest), (busy, most)) =
            (told_in_an_hour(sites, false), told_in_an_hour(sites, true));
        println!(
            "{sites} sites: {quiet} profiles an hour of each and {rest} kbit/s when quiet, {busy} and {most} kbit/s when busy"
        );
        assert!(quiet < busy && most <= 500, "{quiet} {busy} {most}");
        costs.push(most);
    }
    assert!(costs[1] < 2 * costs[0], "ten times as many sites cost about the same: {costs:?}");
    let (few, _) = told_in_an_hour(2, true);
    assert!(few > 1_700, "two sites tell every change at once: {few}");
}
