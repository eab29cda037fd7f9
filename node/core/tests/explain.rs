//! Why tasks wait, in words.

use meshfarm_core::{Ask, Explained, ExplainedSite, HostMode, Operation, Tasks};
use meshfarm_protocol::id::{JobId, StepNo, TaskNo};
use meshfarm_protocol::job::Place;
use meshfarm_protocol::profile::{MEMORY, VCPU};

use crate::mesh::{Mesh, asking, cores, frames, having, id, spec, step, with};

fn explain(mesh: &Mesh, job: JobId) -> Explained {
    mesh.site(0).explain(job, None, mesh.now).unwrap()
}

fn site<'a>(explained: &'a Explained, step: usize, name: &str) -> &'a ExplainedSite {
    explained.steps[step].sites.iter().find(|site| site.site == name).unwrap()
}

#[test]
fn every_site_is_compared_with_everything_that_was_asked() {
    let lyon = having(4, &[(VCPU, 4), (MEMORY, 8000)]);
    let mut mesh = Mesh::with_hosts([("oslo", having(2, &[(VCPU, 2)])), ("lyon", lyon)]);
    let job = mesh.submit(
        0,
        with(asking(1, &[(VCPU, 8), (MEMORY, 4000)]), |p| {
            p.place = Place::Remote;
        }),
    );
    let explained = explain(&mesh, job);
    let looks = |name: &str| {
        let looks = site(&explained, 0, name).looks.iter();
        looks.map(|l| format!("{}: {}, {}: {}", l.name, l.asks, l.has, l.fits)).collect::<Vec<_>>()
    };
    let memory = |has, fits| format!("{MEMORY}: at least 4000, {has}: {fits}");
    let vcpu = |has| format!("{VCPU}: at least 8, {has}: false");
    let level = |asks| format!("isolation: {asks} or stronger, S2: true");
    assert_eq!(looks("lyon"), [memory(8000, true), vcpu(4), level("S2")]);
    assert_eq!(looks("oslo"), [memory(0, false), vcpu(2), level("S0")]);
    assert_eq!(site(&explained, 0, "oslo").blocks, ["the job's policy does not allow this site"]);
    assert!(site(&explained, 0, "lyon").blocks.is_empty());
    assert_eq!(explained.steps[0].waiting, 1);
}

#[test]
fn everything_that_blocks_a_site_is_said() {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", 1), ("graz", 1)]);
    mesh.submit(0, frames(2));
    let job = mesh.submit(0, frames(1));
    mesh.advance(2_000);
    let explained = explain(&mesh, job);
    assert_eq!(site(&explained, 0, "oslo").blocks, ["it has no slots"]);
    assert_eq!(site(&explained, 0, "lyon").blocks, ["it has no slot free now"]);
    mesh.pause(1);
    mesh.advance(2_000);
    mesh.cut(0, 1);
    let explained = explain(&mesh, job);
    let blocks = ["it is not connected", "it does not lend now"];
    assert_eq!(site(&explained, 0, "lyon").blocks, blocks);
}

#[test]
fn what_a_step_waits_for_is_said() {
    let mut mesh = Mesh::new([("oslo", 1)]);
    let first = mesh.submit(0, frames(3));
    mesh.advance(1);
    let job = mesh.submit(0, spec(vec![step(3, &[]), step(1, &[0])]));
    let explained = explain(&mesh, job);
    assert_eq!(explained.steps[0].waits, ["one job with waiting tasks comes first"]);
    let waits = [
        "step step of 3 comes first: 0 of its 3 tasks are done",
        "one job with waiting tasks comes first",
    ];
    assert_eq!(explained.steps[1].waits, waits);
    mesh.finish(0, Some("no such camera"));
    let at = Some((StepNo(0), TaskNo(0)));
    let explained = mesh.site(0).explain(first, at, mesh.now).unwrap();
    let task = explained.task.as_ref().unwrap();
    assert_eq!((task.label.as_str(), task.state.as_str()), ("Frame=1", "waiting"));
    let waits = ["failed at oslo", "the last try said: no such camera", "is tried again in 2 s"];
    assert_eq!(task.waits, waits);
    let blocks = [
        "every slot is taken",
        "room is kept for it, expected in 30 s",
        "the task failed there before",
    ];
    assert_eq!(site(&explained, 0, "oslo").blocks, blocks);
    assert!(mesh.site(0).explain(first, Some((StepNo(0), TaskNo(3))), mesh.now).is_none());
    assert!(mesh.site(0).explain(JobId([0; 16]), None, mesh.now).is_none());
}

#[test]
fn a_reservation_is_told_to_whom_it_is_for_and_to_those_behind_it() {
    let mut mesh = Mesh::with_hosts([("oslo", having(8, &[(VCPU, 8)]))]);
    mesh.submit(0, with(cores(1, 4), |p| p.priority = 90));
    let wide = mesh.submit(0, with(cores(1, 8), |p| p.priority = 80));
    let narrow = mesh.submit(0, cores(1, 1));
    let kept = explain(&mesh, wide);
    let words = [
        "what is left of the machine is too little, though 4 slots are free",
        "room is kept for it, expected in 30 s",
    ];
    assert_eq!(site(&kept, 0, "oslo").blocks, words);
    let behind = explain(&mesh, narrow);
    let words = ["room is kept for shot, expected in 30 s, which its tasks would delay"];
    assert_eq!(site(&behind, 0, "oslo").blocks, words);
}

#[test]
fn what_people_have_said_of_hosts_sites_and_tasks_is_told() {
    let mut mesh = Mesh::new([("oslo", 0), ("render01", 1), ("graz", 1)]);
    mesh.become_hosts(0, &[1]);
    let job = mesh.submit(0, with(frames(4), |policy| policy.place = Place::Local));
    let site = |mesh: &Mesh, name: &str| {
        let explained = mesh.site(0).explain(job, None, mesh.now).unwrap();
        explained.steps[0].sites.iter().find(|site| site.site == name).unwrap().clone()
    };
    let host = site(&mesh, "render01");
    assert!(host.own && !host.blocks.iter().any(|why| why.contains("policy")), "{host:?}");
    assert!(site(&mesh, "graz").blocks.iter().any(|why| why.contains("policy")));
    mesh.ask(0, Ask::Host(id(1), HostMode::Stopped));
    assert!(site(&mesh, "render01").blocks.contains(&"it was stopped".to_owned()));
    mesh.operate(0, job, Operation::Hold { tasks: Tasks::All, give_back: true });
    let waits = &mesh.site(0).explain(job, None, mesh.now).unwrap().steps[0].waits;
    assert!(waits.iter().any(|why| why.contains("4 tasks are held")), "{waits:?}");
}
