//! A farm's decisions, as real processes: deadlines, licences of a site, renderers that come and go, sites that only
//! submit.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{
    A_JOB, Mesh, SOON, Site, alone, lender, list, names_in, tasks, text, wait_until, write,
};
use crate::hosts::studio;

/// A job of the plain command whose frames each take so many seconds.
fn submit(mesh: &Mesh, at: usize, (frames, seconds): (&str, u32), flags: &[&str]) -> String {
    let out = mesh.new_folder("out");
    let command = format!("Command=sleep {seconds}; echo {{frame}} > {{frame4}}.txt");
    let fixed = ["bundle:command", "--frames", frames, "-p", &command, "-o", out.to_str().unwrap()];
    mesh[at].submit(&[&fixed[..], flags].concat())
}

fn deadline(site: &Site, job: &str) -> String {
    text(&site.api(&format!("/v1/jobs/{job}?brief=true"))["deadline"]["state"]).to_owned()
}

#[test]
fn a_deadline_is_foretold_missed_and_met_and_each_is_told_once() {
    let mut mesh = Mesh::apart(vec![alone("oslo", 1)]);
    let job = submit(&mesh, 0, ("1-8", 2), &["--deadline", "9s"]);
    wait_until("it is known that the deadline will be missed", SOON, || {
        (deadline(&mesh[0], &job) == "will-miss").then_some(())
    });
    let shown = mesh[0].run(&["job", &job]).out;
    assert!(shown.contains("will miss by"), "{shown}");
    let explained = mesh[0].run(&["explain", &job]).out;
    assert!(explained.contains("deadline in") && explained.contains("will miss by"), "{explained}");
    let listed = mesh[0].run(&["jobs"]).out;
    assert!(listed.contains("DEADLINE") && listed.contains("will miss"), "{listed}");
    mesh[0].kill();
    mesh[0].start();
    wait_until("it was missed", SOON, || (deadline(&mesh[0], &job) == "missed").then_some(()));
    let ended = mesh[0].wait_done(&job);
    assert_eq!(ended["deadline"]["state"], "missed");
    let log = mesh[0].log();
    assert_eq!(log.matches("DeadlineAtRisk").count(), 1);
    assert_eq!(log.matches("DeadlineMissed").count(), 1);

    let job = submit(&mesh, 0, ("1-2", 0), &["--deadline", "1h"]);
    let ended = mesh[0].wait_done(&job);
    assert_eq!(ended["deadline"]["state"], "met");
    assert!(mesh[0].run(&["job", &job]).out.contains("deadline met"));
    assert_eq!(mesh[0].log().matches("DeadlineAtRisk").count(), 1);

    let out = mesh.new_folder("out");
    let job = ["submit", "bundle:command", "-p", "Command=true", "-o", out.to_str().unwrap()];
    let wrong = |flag: &str| mesh[0].run(&[&job[..], &["--deadline", flag]].concat());
    wrong("2020-01-01 10:00").refused(2, &["deadline", "over already"]);
    wrong("tomorrow").refused(2, &["--deadline", "2026-11-30 18:00"]);
}

/// Takes a while, and writes when it began and ended.
const LICENSED: &str = r#"
specificationVersion: jobtemplate-2023-09
name: licensed
parameterDefinitions:
- name: Out
  type: PATH
  objectType: DIRECTORY
  dataFlow: OUT
steps:
- name: Comp
  hostRequirements:
    amounts:
    - name: meshfarm:amount.licence.nuke
      min: 1
  parameterSpace:
    taskParameterDefinitions:
    - name: Frame
      type: INT
      range: 1-8
  script:
    actions:
      onRun:
        command: bash
        args: ["{{Task.File.Run}}"]
    embeddedFiles:
    - name: Run
      type: TEXT
      data: |
        begin=$(date +%s%N)
        sleep 0.7
        echo "$begin $(date +%s%N)" > "{{Param.Out}}/{{Task.Param.Frame}}"
"#;

/// The most of these spans that were open at one moment.
fn most_at_once(out: &Path) -> usize {
    let spans: Vec<Vec<u64>> = names_in(out)
        .iter()
        .map(|name| fs::read_to_string(out.join(name)).unwrap())
        .map(|line| line.split_whitespace().map(|n| n.parse().unwrap()).collect())
        .collect();
    let open = |at: u64| spans.iter().filter(|span| span[0] <= at && at < span[1]).count();
    spans.iter().map(|span| open(span[0])).max().unwrap()
}

#[test]
fn one_licence_of_a_site_is_used_by_one_task_at_a_time_on_all_its_machines() {
    let mut mesh = studio();
    mesh[0].stop();
    let settings = mesh[0].home.join("meshfarm.toml");
    let text_of = fs::read_to_string(&settings).unwrap();
    write(&settings, format!("{text_of}\n[[licence]]\nname = \"nuke\"\ncount = 1\n"));
    mesh[0].start();
    let template = mesh.folder().join("licensed.yaml");
    write(&template, LICENSED);
    let out = mesh.new_folder("licensed");
    let folder = format!("Out={}", out.display());
    let job = mesh[0].submit(&[template.to_str().unwrap(), "-p", &folder, "--where", "local"]);
    let other = submit(&mesh, 0, ("1-2", 1), &["--where", "local"]);
    wait_until("it is said why tasks wait", SOON, || {
        let explained = mesh[0].json(&["explain", &job]);
        explained.to_string().contains("every licence that it needs is in use").then_some(())
    });
    let ended = mesh[0].wait_done(&job);
    mesh[0].wait_done(&other);
    assert_eq!((names_in(&out).len(), most_at_once(&out)), (8, 1));
    let on = |name: &str| tasks(&ended).iter().filter(|task| task["site"] == name).count();
    assert_eq!(on("render01") + on("render02"), 8, "{ended:#}");
}

fn own_software(site: &Site) -> Value {
    site.json(&["profile"])["hosts"][0]["software"].clone()
}

#[test]
fn a_renderer_that_is_installed_or_removed_while_the_node_runs_is_seen() {
    let mut mesh = Mesh::apart(vec![alone("oslo", 1)]);
    mesh[0].stop();
    let programs = mesh.new_folder("programs");
    let bundle = mesh[0].home.join("bundles/sketch");
    fs::create_dir_all(&bundle).unwrap();
    let about = "title = 'Sketch'\nsoftware = 'sketch'\n[probe]\ncommand = ['sketch', '--version']\nafter = 'Sketch '\n";
    write(&bundle.join("bundle.toml"), about);
    let path = format!("PATH={}:{}", programs.display(), std::env::var("PATH").unwrap());
    mesh[0].within = vec!["/usr/bin/env".into(), path];
    mesh[0].start();
    assert!(own_software(&mesh[0])["sketch"].is_null());
    let sketch = programs.join("sketch");
    write(&sketch, "#!/bin/sh\necho Sketch 2.5.1\n");
    fs::set_permissions(&sketch, fs::Permissions::from_mode(0o755)).unwrap();
    wait_until("it is seen", SOON, || (own_software(&mesh[0])["sketch"] == "2.5.1").then_some(()));
    let profile = mesh[0].json(&["profile"]);
    let values = &profile["hosts"][0]["attributes"]["meshfarm:attr.software.sketch"];
    assert!(list(values).iter().any(|value| value == "v2_5"), "{values}");
    fs::remove_file(&sketch).unwrap();
    wait_until("it is gone", SOON, || own_software(&mesh[0])["sketch"].is_null().then_some(()));
}

#[test]
fn a_submitter_sends_its_work_away_and_gets_none_whatever_it_is_set_to() {
    let mesh = Mesh::apart(vec![lender("oslo", 1), lender("ada", 2)]);
    mesh[0].json(&["mesh", "create", "demo"]);
    let invited = mesh[0].json(&["invite", "--role", "submitter"]);
    let joined = mesh[1].json(&["join", text(&invited["ticket"])]);
    assert!(joined.to_string().contains("\"submitter\""), "{joined}");
    mesh.wait_known();
    let role = |at: usize, name: &str| {
        let sites = mesh[at].api("/v1/sites");
        let site = list(&sites).iter().find(|site| site["name"] == name).unwrap().clone();
        (text(&site["role"]).to_owned(), site["profile"]["lending"].clone())
    };
    let submitter = ("submitter".to_owned(), Value::Bool(false));
    assert_eq!((role(0, "ada"), role(1, "ada")), (submitter.clone(), submitter));
    assert_eq!(role(1, "oslo").0, "site");
    assert!(mesh[0].run(&["sites"]).out.contains("submitter"));
    let away = submit(&mesh, 1, ("1-2", 0), &["--where", "remote"]);
    let ended = mesh[1].wait_done(&away);
    assert!(tasks(&ended).iter().all(|task| task["site"] == "oslo"), "{ended:#}");
    let none = submit(&mesh, 0, ("1", 0), &["--where", "remote"]);
    let explained = mesh[0].json(&["explain", &none]).to_string();
    assert!(explained.contains("submit only"), "{explained}");
    mesh[0].json(&["cancel", &none]);
    // Its own slots are for its own jobs.
    let own = submit(&mesh, 1, ("1", 0), &["--where", "local"]);
    wait_until("its own job is done", A_JOB, || {
        (mesh[1].api(&format!("/v1/jobs/{own}?brief=true"))["phase"] == "done").then_some(())
    });
}
