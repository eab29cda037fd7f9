//! The program says by its exit status what it found, and how to see it again.

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

#[test]
fn a_run_that_passes_ends_with_zero_and_repeats_itself() {
    let arguments = ["run", "scenarios/three_sites.toml", "--seed", "3", "--json"];
    let [one, again] = [sim(&arguments), sim(&arguments)];
    assert_eq!(one.status.code(), Some(0));
    assert_eq!(said(&one.stdout), said(&again.stdout));
    assert!(said(&one.stdout).contains("\"verdict\":\"pass\""));
}

#[test]
fn a_replay_shows_every_event_and_ends_as_the_run_did() {
    let replay = sim(&["replay", "scenarios/kill_lender.toml", "--seed", "3"]);
    let run = sim(&["run", "scenarios/kill_lender.toml", "--seed", "3"]);
    assert_eq!(replay.status.code(), Some(0));
    assert!(said(&replay.stdout).ends_with(&said(&run.stdout)));
    assert!(said(&replay.stdout).contains("Fault(0)"));
}

#[test]
fn a_failure_names_the_command_that_repeats_it() {
    let text = include_str!("../scenarios/three_sites.toml");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("hopeless.toml");
    std::fs::write(&path, text.replace("slots = 4", "slots = 0")).expect("it can be written to");
    let path = path.to_string_lossy();
    let sweep = sim(&["sweep", &path, "--seeds", "4..9"]);
    assert_eq!(sweep.status.code(), Some(2));
    let reproduce = format!("reproduce: meshfarm-sim replay {path} --seed 4");
    assert!(said(&sweep.stderr).ends_with(&format!("{reproduce}\n")));
}

#[test]
fn what_the_simulator_cannot_do_ends_with_three() {
    for wrong in [&["run", "no such file"][..], &["run"], &["sweep", "x", "--seeds", "9..1"]] {
        assert_eq!(sim(wrong).status.code(), Some(3), "{wrong:?}");
    }
    assert_eq!(sim(&["--help"]).status.code(), Some(0));
}
