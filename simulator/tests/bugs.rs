//! The observer is not blind: a driver that does something wrong on purpose is caught, and its failure shrinks.

use std::path::Path;

use meshfarm_simulator::{Bug, Plan, Source, Verdict, run, shrink};

/// A small mesh with all that goes wrong in it: crashes, kill points, cut lines, jobs that stay at home.
const TROUBLED: &str = r#"
schema = 1
name = "troubled"
purpose = "Three sites with work for a few minutes, and something wrong with each of them."
duration = "20m"

[[site]]
name = "home"
slots = 2
[[site]]
name = "lender"
count = 2
slots = 3

[[workload]]
from = "home"
at = "5s"
frames = 24
frame_time = { median = { dist = "uniform", from = "2s", to = "12s" } }
scene = "4MB"
output = "100kB"
unwritable = 0.1
[[workload]]
from = "home"
at = "8s"
frames = 20
frame_time = { median = "6s" }
where = "local"

[[fault]]
do = "crash-at-kill-point"
sites = ["home"]
at = { dist = "uniform", from = "5s", to = "40s" }
for = { dist = "uniform", from = "1s", to = "10s" }
times = 3
[[fault]]
do = "isolate"
sites = ["lender-1"]
at = { dist = "uniform", from = "10s", to = "60s" }
for = { dist = "uniform", from = "5s", to = "40s" }
[[fault]]
do = "crash"
sites = ["home"]
at = { dist = "uniform", from = "20s", to = "60s" }
for = "5s"
"#;

/// Within so many seeds every defect is found.
const SEEDS: u64 = 1000;

fn troubled(seed: u64) -> Plan {
    let source = Source::parse(TROUBLED, Path::new("troubled.toml")).expect("it is right");
    source.plan(Some(seed)).expect("each seed draws a plan")
}

/// The first seed that shows a defect, and how.
fn caught(bug: Bug) -> Option<(u64, String)> {
    (1..=SEEDS).find_map(|seed| match run(&troubled(seed), Some(bug)).verdict {
        Verdict::Broken(broken) => Some((seed, broken.invariant)),
        Verdict::Pass | Verdict::Missed { .. } => None,
    })
}

#[test]
fn every_seeded_bug_is_caught_and_an_honest_driver_is_not() {
    for seed in 1..=10 {
        assert_eq!(run(&troubled(seed), None).verdict, Verdict::Pass, "seed {seed}");
    }
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match caught(bug) {
            Some((seed, invariant)) => println!("{bug:?}: {invariant} with seed {seed}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}

#[test]
fn a_failure_shrinks_to_little_and_fails_in_the_same_way() {
    let plan = troubled(1);
    let small = shrink::smallest(&plan, Some(Bug::KeepContent), 300, &mut |_| {}).unwrap();
    assert!(matches!(&small.outcome.verdict, Verdict::Broken(broken) if broken.invariant == "I12"));
    assert!(small.plan.n_sites() <= 2 && small.plan.n_jobs() == 1 && small.plan.n_frames() <= 2);
    assert_eq!(small.plan.n_faults(), 0);
    assert!(shrink::smallest(&plan, None, 10, &mut |_| {}).is_none());
}
