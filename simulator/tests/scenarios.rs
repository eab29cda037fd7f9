//! The scenarios of this folder pass, a seed repeats its run to the last event, and what once failed passes.

use std::path::{Path, PathBuf};

use meshfarm_simulator::{Plan, Source, Verdict, run};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn scenario(name: &str) -> Source {
    Source::read(&folder("scenarios").join(name)).expect("it is right")
}

fn files(name: &str) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder(name)).expect("it can be listed");
    let mut files: Vec<_> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "toml"));
    files.sort();
    files
}

/// Scenarios that take longer than a test should: `nightly.sh` runs them.
const LONG: [&str; 3] = ["skewed_load.toml", "overnight_artists.toml", "the_real_trace.toml"];

fn passes(plan: &Plan) {
    let outcome = run(plan, None);
    assert_eq!(outcome.verdict, Verdict::Pass, "{outcome}");
}

#[test]
fn every_scenario_passes_with_its_first_seeds() {
    let all = files("scenarios");
    assert!(all.len() >= 20, "only {} scenarios", all.len());
    for path in all {
        let source = Source::read(&path).unwrap();
        let long = LONG.iter().any(|name| path.ends_with(name));
        if !long {
            (1..=2).for_each(|seed| passes(&source.plan(Some(seed)).unwrap()));
        }
        // The long ones are at least right.
        source.plan(Some(1)).unwrap();
    }
    for path in files("scenarios/large") {
        Source::read(&path).unwrap().plan(Some(1)).unwrap();
    }
}

#[test]
fn the_wildest_scenarios_pass_with_thirty_seeds() {
    for name in ["everything.toml", "kill_points.toml", "paused_nodes.toml"] {
        let source = scenario(name);
        (1..=30).for_each(|seed| passes(&source.plan(Some(seed)).unwrap()));
    }
}

#[test]
fn what_once_failed_passes() {
    for path in files("regressions") {
        passes(&Source::read(&path).unwrap().plan(None).unwrap());
    }
}

#[test]
fn a_seed_repeats_its_run_and_another_does_not() {
    let source = scenario("everything.toml");
    let [one, again, other] = [7, 7, 8].map(|seed| run(&source.plan(Some(seed)).unwrap(), None));
    assert_eq!(one, again);
    assert_ne!(one.audit, other.audit);
}

#[test]
fn a_plan_that_was_written_and_read_runs_as_before() {
    for name in ["everything.toml", "overnight_artists.toml", "licence_drought.toml"] {
        let plan = scenario(name).plan(Some(5)).unwrap();
        let text = toml::to_string(&plan).unwrap();
        let read = Source::parse(&text, Path::new("x.toml")).unwrap().plan(None).unwrap();
        assert_eq!(plan, read, "{name}");
    }
}

#[test]
fn wrong_scenarios_are_refused_with_what_would_be_right() {
    let text = std::fs::read_to_string(folder("scenarios").join("two_studios.toml")).unwrap();
    let wrong = [
        ("slots = 8", "slotz = 8", "Did you mean `slots`?"),
        ("from = \"oslo\"", "from = \"bern\"", "there is no site and no group bern"),
        ("\"60s\"", "\"60 parsecs\"", "a span such as"),
        ("schema = 1", "schema = 9", "schema 9 is not known"),
        ("\"rendered_elsewhere\"", "\"rendered_by_magic\"", "there is no state"),
        ("frames = 160", "frames = 160\nneeds = { nuke = 1 }", "cannot run anywhere"),
        ("at = \"5s\"", "at = \"5s\"\narrive = { rate = 1, per = \"1h\" }", "not both"),
        ("frames = 160", "frames = 99999999", "more than"),
    ];
    for (good, bad, says) in wrong {
        let said = Source::parse(&text.replacen(good, bad, 1), Path::new("x.toml"))
            .and_then(|source| source.plan(Some(1)))
            .unwrap_err()
            .to_string();
        assert!(said.contains(says), "{bad}: {said}");
    }
}
