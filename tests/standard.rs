//! The standard's own command line: conformance files alone and through a mesh, and what stands around them.

use std::path::Path;
use std::process::Command;

use crate::harness::{
    Mesh, Ran, Running, SOON, alone, finish, folder, list, programs, signal, tasks, text,
    wait_until, write,
};

#[test]
fn conformance_files_pass_alone_and_through_a_mesh_of_three_sites() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut script = Command::new(here.join("conformance.sh"));
    script.env("MESHFARM_BIN", programs()).arg("--no-build").arg(here.join("conformance"));
    let ran = finish(&mut script);
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    for kind in ["job_templates", "env_templates", "jobs (alone)", "jobs (mesh)"] {
        assert!(ran.out.contains(&format!("{kind}: ")), "{ran:?}");
    }
}

const TEMPLATE: &str = "\
specificationVersion: jobtemplate-2023-09
name: Alone
parameterDefinitions:
  - {name: Out, type: PATH, dataFlow: OUT, default: out}
  - {name: Command, type: STRING, default: 'true'}
jobEnvironments:
  - name: Around
    script:
      actions: {onEnter: {command: echo, args: [entered]}, onExit: {command: echo, args: [left]}}
steps:
  - name: Only
    script: {actions: {onRun: {command: sh, args: ['-c', '{{Param.Command}}']}}}
";

fn openjd(folder: &Path) -> Command {
    let mut command = Command::new(programs().join("meshfarm"));
    command.current_dir(folder).env("MESHFARM_HOME", folder.join("home")).arg("openjd");
    command
}

fn run(folder: &Path, script: &str, flags: &[&str]) -> Ran {
    let script = format!("Command={script}");
    finish(openjd(folder).args(["run", "t.yaml", "-p", &script]).args(flags))
}

#[test]
fn a_template_runs_in_a_jail_that_shows_what_it_names_and_nothing_else() {
    let place = folder();
    let studio = place.path().join("studio");
    write(&studio.join("t.yaml"), TEMPLATE);
    let secret = place.path().join("secret");
    write(&secret, "canary-51");
    let out = studio.join("out");
    let ran = run(&studio, &format!("echo frame > {}/f1", out.display()), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("Session ended successfully"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(out.join("f1")).unwrap(), "frame\n");

    let look = format!("cat {}", secret.display());
    let ran = run(&studio, &look, &[]);
    assert!(ran.code == 1 && !ran.out.contains("canary"), "{ran:?}");
    let ran = run(&studio, &look, &["--no-sandbox"]);
    assert!(ran.code == 0 && ran.out.contains("canary"), "{ran:?}");
    assert!(ran.err.contains("without a jail"), "{ran:?}");

    let ran = run(&studio, "exit 42", &["--output", "json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("exited with code: 42") && ran.out.contains("\"status\": \"error\""));
    assert!(ran.out.contains("left"), "environments are left after a failure: {ran:?}");

    let ran = run(&studio, "echo kept > kept", &["--preserve", "--output", "json"]);
    let line = ran.out.lines().find(|line| line.contains("\"preserved\"")).unwrap();
    let kept = Path::new(line.split('"').nth(3).unwrap());
    let found = std::fs::read_dir(kept).unwrap().flatten().any(|e| e.path().join("kept").exists());
    assert!(found, "{ran:?}");
    std::fs::remove_dir_all(kept.parent().unwrap()).unwrap();
}

#[test]
fn bad_input_of_the_standards_command_line_ends_with_exit_code_1_and_says_what() {
    let place = folder();
    let studio = place.path();
    write(&studio.join("t.yaml"), TEMPLATE);
    write(&studio.join("wrong.yaml"), TEMPLATE.replace("steps:", "stops:"));
    let ran = finish(openjd(studio).args(["check", "t.yaml"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("passes validation checks"), "{ran:?}");
    let wrong: [(&[&str], &str); 7] = [
        (&["check", "wrong.yaml"], "stops"),
        (&["check", "none.yaml"], "none.yaml"),
        (&["run", "t.yaml", "-p", "Commnd=1"], "Commnd"),
        (&["run", "t.yaml", "-p", "file://none.json"], "none.json"),
        (&["run", "t.yaml", "--step", "Onyl"], "Only"),
        (&["run", "t.yaml", "-tp", "Frame=1"], "no task parameters"),
        (&["run", "t.yaml", "--path-mapping-rules", "[]"], "--path-mapping-rules"),
    ];
    for (args, word) in wrong {
        finish(openjd(studio).args(args)).refused(1, &[word]);
    }
    finish(openjd(studio).args(["run", "t.yaml", "--mesh"])).refused(3, &["no node is running"]);
}

#[test]
fn a_session_that_is_interrupted_leaves_its_environments_and_fails() {
    let place = folder();
    write(&place.path().join("t.yaml"), TEMPLATE);
    let said = place.path().join("said");
    let mut command = openjd(place.path());
    command.args(["run", "t.yaml", "-p", "Command=echo begun; sleep 600"]);
    command.stdout(std::fs::File::create(&said).unwrap());
    let mut running = Running::start(&mut command);
    let text = || std::fs::read_to_string(&said).unwrap_or_default();
    wait_until("the task has begun", SOON, || text().contains("begun").then_some(()));
    signal(running.id(), libc::SIGINT);
    let code = wait_until("the session is over", SOON, || running.has_ended());
    assert_eq!(code, 1, "{}", text());
    assert!(text().contains("left") && text().contains("interrupted"), "{}", text());
}

const COSTLY: &str = "\
specificationVersion: jobtemplate-2023-09
name: Costly
parameterDefinitions: [{name: Out, type: PATH, dataFlow: OUT, default: out}]
steps:
  - name: Render
    stepEnvironments:
      - {name: Renderer, script: {actions: {onEnter: {command: sh, args: ['-c', 'echo opened; sleep 0.2']}}}}
    parameterSpace: {taskParameterDefinitions: [{name: F, type: INT, range: 1-12}]}
    script: {actions: {onRun: {command: sh, args: ['-c', 'test {{Task.Param.F}} != 1 && echo x > {{Param.Out}}/{{Task.Param.F}}']}}}
";

#[test]
fn tasks_share_sessions_with_environments_and_one_that_fails_fails_no_other() {
    let mesh = Mesh::of(vec![alone("oslo", 1)]);
    let studio = mesh.new_folder("studio");
    write(&studio.join("t.yaml"), COSTLY);
    let template = studio.join("t.yaml");
    let id = mesh[0].submit(&[template.to_str().unwrap(), "--retries", "0"]);
    let ended = mesh[0].wait_ended(&id);
    let failed: Vec<_> = tasks(&ended).into_iter().filter(|task| task["state"] != "done").collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(text(&failed[0]["label"]), "F=1");
    assert_eq!(list(&ended["steps"][0]["tasks"]).len(), 12);
    assert_eq!(crate::harness::names_in(&studio.join("out")).len(), 11);
    let log = mesh[0].run(&["logs", &id]).out;
    let entered = log.lines().filter(|line| line.ends_with("opened")).count();
    assert!(entered <= 8, "the renderer was opened {entered} times for 12 frames:\n{log}");
}
