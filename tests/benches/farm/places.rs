//! Finding who fits: one requirement against very many profiles, and lenders for a job among a thousand sites.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use meshfarm_core::{Ask, Index, Input, Operation, Tasks};
use meshfarm_protocol::id::{Millis, SiteId};
use meshfarm_protocol::matching::Asked;
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::profile::{
    Amount, AmountNeed, AttributeNeed, GPU, GPU_MEMORY, HostClass, Level, MEMORY, PROFILE_VERSION,
    Profile, Requirement, SCRATCH, VCPU, version_values,
};
use meshfarm_protocol::receipt::Price;
use meshfarm_protocol::seal::SealingKey;

use super::one_site::{OneSite, job};
use super::{cpu, ms};
use crate::table::{Row, Table, percentile};

const PROFILES: u64 = 100_000;

const SITES: u64 = 1000;

const RUNS: usize = 9;

/// A number below `of` that says nothing of the others of this host.
fn draw(n: u64, what: u64, of: u64) -> u64 {
    let mut mixed =
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ what.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
        mixed = (mixed ^ (mixed >> shift)).wrapping_mul(factor);
    }
    (mixed ^ (mixed >> 31)) % of
}

/// A host like those of a render farm, unlike its neighbours.
fn host(n: u64) -> HostClass {
    let of = |what, of| draw(n, what, of);
    let vcpu = 8 << of(0, 5);
    let gpus = of(1, 5) / 3;
    let amounts = [
        (VCPU, vcpu),
        (MEMORY, vcpu * (2048 << of(2, 3))),
        (GPU, gpus),
        (GPU_MEMORY, gpus * 24_576),
        (SCRATCH, of(3, 1000)),
        ("meshfarm:amount.cpu.mhz", 2000 + of(4, 2000)),
        ("meshfarm:amount.swap", of(5, 64)),
    ];
    let one = |value: String| BTreeSet::from([value]);
    let os = version_values(&format!("{}.{}", of(6, 4), of(7, 12)));
    let vendor = if of(8, 2) == 0 { "intel" } else { "amd" };
    let mut attributes = BTreeMap::from([
        ("attr.worker.os.family".to_owned(), one("linux".into())),
        ("attr.worker.cpu.arch".to_owned(), one("x86_64".into())),
        ("meshfarm:attr.cpu.vendor".to_owned(), one(vendor.into())),
        ("meshfarm:attr.cpu.model".to_owned(), one(format!("model_{}", of(9, 200)))),
        ("meshfarm:attr.machine.model".to_owned(), one(format!("machine_{}", of(10, 1000)))),
        ("meshfarm:attr.os.version".to_owned(), os),
    ]);
    for (what, software, share) in [(11, "blender", 2), (12, "povray", 3), (13, "nuke", 7)] {
        if of(what, share) == 0 {
            let parts = [3 + of(what + 10, 2), of(what + 20, 6), of(what + 30, 4)];
            let version = version_values(&parts.map(|part| part.to_string()).join("."));
            attributes.insert(format!("meshfarm:attr.software.{software}"), version);
        }
    }
    let level = if of(14, 4) == 0 { Level::S1 } else { Level::S2 };
    HostClass {
        count: 1,
        description: format!("measured {n}"),
        amounts: amounts.map(|(name, n)| (name.to_owned(), Amount::whole(n))).into(),
        attributes: attributes.into(),
        software: BTreeMap::new(),
        slots: 8,
        speed: 1000,
        level,
    }
}

/// Blender 4.2 on a machine with a large card.
fn requirement() -> Requirement {
    let least = |n| AmountNeed { min: Amount::whole(n), max: None };
    let one = |value: &str| AttributeNeed {
        any_of: BTreeSet::from([value.to_owned()]),
        all_of: BTreeSet::new(),
    };
    Requirement {
        amounts: BTreeMap::from([
            (VCPU.to_owned(), least(16)),
            (MEMORY.to_owned(), least(65_536)),
            (GPU_MEMORY.to_owned(), least(16_384)),
        ]),
        attributes: BTreeMap::from([
            ("attr.worker.os.family".to_owned(), one("linux")),
            ("meshfarm:attr.software.blender".to_owned(), one("v4_2")),
        ]),
    }
}

fn id(n: u64) -> SiteId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(n + 100).to_be_bytes());
    SiteId(bytes)
}

/// One requirement against all profiles, with and without the index; and placing a job among many sites.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let n = table.scale().of(PROFILES).max(100);
    let hosts: Vec<_> = (0..n).map(|n| (id(n), host(n))).collect();
    let (need, floor) = (requirement(), Level::S2);
    let mut linear = Vec::new();
    let mut each = Vec::new();
    for _ in 0..RUNS {
        let began = cpu();
        let asked = Asked::new(Cow::Borrowed(black_box(&need)), floor);
        let found = hosts.iter().filter(|(_, host)| asked.fits(host));
        linear = found.map(|(site, _)| *site).collect();
        each.push(ms(cpu() - began));
    }
    let mut index = Index::default();
    let began = cpu();
    for (site, host) in &hosts {
        index.set(*site, std::slice::from_ref(host));
    }
    let built = ms(cpu() - began);
    let mut indexed = Vec::new();
    for _ in 0..RUNS {
        let began = cpu();
        let mut found = index.fitting(black_box(&need), floor);
        indexed.push(ms(cpu() - began));
        found.sort();
        ensure!(found == linear, "the index finds other sites than a look at each");
    }
    let fitting = format!("{} of {n} fit", linear.len());
    table.add(
        Row::alone("farm.match.cold", percentile(&each, 50), "ms")
            .at_most(10.0)
            .note(fitting.clone()),
    );
    table.add(
        Row::alone("farm.match.indexed", percentile(&indexed, 50), "ms").at_most(1.0).note(fitting),
    );
    table.add(Row::alone("farm.match.build", built, "ms").note("the index of all of them, once"));
    drop(hosts);
    place(table)
}

/// One job of a hundred tasks, at a site that knows a thousand others with slots free.
fn place(table: &mut Table) -> Result<()> {
    let mut site = OneSite::new(0);
    for n in 0..table.scale().of(SITES).max(10) {
        let name = format!("site {n}");
        let (role, meshes) = (Role::Site, BTreeSet::new());
        site.give("up", Input::PeerUp { site: id(n), name: name.clone(), role, meshes });
        let profile = Profile {
            version: PROFILE_VERSION,
            site: id(n),
            name,
            sequence: 1,
            issued: site.now,
            ttl: Millis::seconds(3600),
            hosts: vec![host(n)],
            free: 8,
            lending: true,
            passes_on: false,
            sealing_key: SealingKey([1; 32]),
            addresses: Vec::new(),
            price: Price::default(),
        };
        site.give("profile", Input::Profile(profile));
    }
    let mut each = Vec::new();
    for _ in 0..RUNS {
        let mut spec = job(100, "film");
        // A fifth of them fit.
        let need = &mut spec.steps[0].requirement;
        need.attributes = requirement().attributes;
        need.attributes.values_mut().for_each(|need| {
            need.any_of.extend(["v3".to_owned(), "v4".to_owned()]);
        });
        need.amounts.insert(VCPU.to_owned(), AmountNeed { min: Amount::whole(32), max: None });
        site.slowest.clear();
        let before = site.offers;
        let job = site.submit(spec).context("it was not taken")?;
        ensure!(site.offers > before, "nobody was asked");
        each.push(ms(site.slowest["submit"]));
        let operation = Operation::Cancel { tasks: Tasks::All };
        site.ask("cancel", Ask::Operate { job, operation });
        // The next one is placed among sites that owe no answer.
        site.now = site.now.plus(Millis::seconds(60));
        site.give("tick", Input::Tick);
    }
    let note = "to submit a job and ask a few of a thousand sites";
    table.add(Row::alone("farm.match.place", percentile(&each, 50), "ms").at_most(10.0).note(note));
    Ok(())
}
