//! The scenarios of this folder pass, and a seed repeats its run to the last event.

use meshfarm_simulator::{Scenario, Verdict, run};

const SCENARIOS: [&str; 6] = [
    include_str!("../scenarios/three_sites.toml"),
    include_str!("../scenarios/cut_line.toml"),
    include_str!("../scenarios/kill_lender.toml"),
    include_str!("../scenarios/kill_borrower.toml"),
    include_str!("../scenarios/everything.toml"),
    include_str!("../scenarios/hundred_sites.toml"),
];

#[test]
fn every_scenario_passes_with_twenty_seeds() {
    for text in &SCENARIOS[..5] {
        let scenario = Scenario::parse(text).unwrap();
        for seed in 1..=20 {
            let report = run(&scenario, seed, None);
            assert_eq!(report.verdict, Verdict::Pass, "{report}");
        }
    }
}

#[test]
fn a_hundred_sites_finish_ten_jobs_without_a_storm() {
    let scenario = Scenario::parse(SCENARIOS[5]).unwrap();
    let report = run(&scenario, 1, None);
    assert_eq!(report.verdict, Verdict::Pass, "{report}");
    assert_eq!(report.accepted, 1000);
    assert!(report.messages < 30 * report.accepted, "{report}");
}

#[test]
fn a_seed_repeats_its_run_and_another_does_not() {
    let scenario = Scenario::parse(SCENARIOS[2]).unwrap();
    let [one, again, other] = [7, 7, 8].map(|seed| run(&scenario, seed, None));
    assert_eq!(one, again);
    assert_ne!(one.audit, other.audit);
}

#[test]
fn a_seed_that_once_found_a_defect_passes() {
    // The lender's slots had shrunk to none when the next task came: it waited for ever.
    let cut = Scenario::parse(SCENARIOS[1]).unwrap();
    assert_eq!(run(&cut, 26, None).verdict, Verdict::Pass);
    // The same, after the borrower's restart.
    let kill = Scenario::parse(SCENARIOS[3]).unwrap();
    assert_eq!(run(&kill, 6, None).verdict, Verdict::Pass);
}

#[test]
fn a_job_that_fails_is_an_expectation_missed_and_not_a_broken_invariant() {
    let text = SCENARIOS[0].replace("frame_ms", "fail_percent = 100\nframe_ms");
    let report = run(&Scenario::parse(&text).unwrap(), 1, None);
    assert!(matches!(report.verdict, Verdict::Missed(_)), "{report}");
    assert_eq!(report.verdict.exit_code(), 1);
}

#[test]
fn a_job_that_cannot_end_breaks_the_promise_that_it_does() {
    let text = SCENARIOS[0].replace("slots = 4", "slots = 0");
    let report = run(&Scenario::parse(&text).unwrap(), 1, None);
    assert_eq!(report.verdict.exit_code(), 2, "{report}");
}

#[test]
fn an_unknown_key_an_unknown_site_and_an_empty_span_are_errors() {
    let wrong = [
        ("slots = 0", "slotz = 0"),
        ("site = \"oslo\"", "site = \"bern\""),
        ("[2000, 8000]", "[8000, 2000]"),
    ];
    for (good, bad) in wrong {
        assert!(Scenario::parse(&SCENARIOS[0].replace(good, bad)).is_err(), "{bad}");
    }
}
