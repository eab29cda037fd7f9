//! The program says by its exit status what it found, and how to see it again; its folders are whole or not there.

use std::path::Path;
use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshfarm-sim"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let command = command.args(arguments).env_remove("MESHFARM_SIM_SEED");
    command.output().expect("the program was built beside this test")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_run_keeps_everything_about_itself_and_is_repeated_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let path = run.to_string_lossy();
    let made =
        sim(&["run", "scenarios/kill_points.toml", "--seed", "3", "--twice", "--out", &path]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made.stderr));
    let page = text(&run.join("report.html"));
    assert!(page.contains("<svg") && page.contains("kill points") && page.ends_with("</html>"));
    for far in ["http://", "https://", "src=", "@import"] {
        assert!(!page.contains(far), "the page needs {far}");
    }
    let head = "job_id,workload_name,profile,submission_time,requested_number_of_resources";
    assert!(text(&run.join("jobs.csv")).starts_with(head));
    assert!(text(&run.join("schedule.csv")).lines().count() == 2);
    let trace: serde_json::Value = serde_json::from_str(&text(&run.join("trace.json"))).unwrap();
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 40));
    for line in text(&run.join("events.jsonl")).lines() {
        let seen: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(seen["ms"].is_u64() && seen["seen"].is_string(), "{line}");
    }
    assert_eq!(sim(&["replay", &path, "--quiet"]).status.code(), Some(0));
    let explained = sim(&["explain", &path, "--frame", "0/1"]);
    assert!(said(&explained.stdout).contains("accepted"), "{}", said(&explained.stderr));
    let compared = sim(&["compare", &path, &path]);
    assert!(said(&compared.stdout).contains("makespan"));
    let again = sim(&["run", "scenarios/kill_points.toml", "--out", &path]);
    assert_eq!(again.status.code(), Some(3), "a folder that is there is not written over");
}

#[test]
fn a_failure_names_the_command_that_repeats_it_and_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("failures");
    let bug = ["--seeded-bug", "keep-content"];
    let arguments = ["sweep", "scenarios/two_studios.toml", "--seeds", "4..9", "--out"];
    let sweep = sim(&[&arguments[..], &[&*out.to_string_lossy()], &bug].concat());
    assert_eq!(sweep.status.code(), Some(2));
    let words = "reproduce: meshfarm-sim replay scenarios/two_studios.toml --seed 4 --seeded-bug keep-content\n";
    assert!(said(&sweep.stderr).ends_with(words), "{}", said(&sweep.stderr));
    let kept = out.join("two_studios-4");
    let kept = kept.to_string_lossy();
    assert_eq!(sim(&[&["replay", &*kept, "--quiet"], &bug[..]].concat()).status.code(), Some(2));
    let small = folder.path().join("small.toml");
    let small = small.to_string_lossy();
    let shrunk = sim(&[&["shrink", &*kept, "--to", &*small, "--tries", "60"], &bug[..]].concat());
    assert_eq!(shrunk.status.code(), Some(2), "{}", said(&shrunk.stderr));
    assert_eq!(sim(&[&["run", &*small], &bug[..]].concat()).status.code(), Some(2));
    assert_eq!(sim(&["run", &small]).status.code(), Some(0), "an honest driver passes it");
}

#[test]
fn an_expectation_that_is_missed_ends_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hurry.toml");
    let hurry = include_str!("../scenarios/two_studios.toml").replace("\"40m\"", "\"1m\"");
    std::fs::write(&path, hurry).unwrap();
    let run = sim(&["run", &path.to_string_lossy(), "--json"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(said(&run.stdout).contains("\"is\":\"missed\""));
    assert!(said(&run.stderr).contains("reproduce: meshfarm-sim replay"));
}

#[test]
fn what_the_simulator_cannot_do_ends_with_three() {
    let huge = ["sweep", "scenarios", "--seeds", "1..1000000000"];
    for wrong in [&["run", "no such file"][..], &["run"], &["sweep", "x", "--seeds", "9..1"], &huge]
    {
        assert_eq!(sim(wrong).status.code(), Some(3), "{wrong:?}");
    }
    assert_eq!(sim(&["--help"]).status.code(), Some(0));
    let list = sim(&["list", "scenarios"]);
    assert!(said(&list.stdout).contains("two_studios.toml"));
    let check = sim(&["check", "scenarios", "scenarios/large"]);
    assert_eq!(check.status.code(), Some(0), "{}", said(&check.stderr));
}
