//! Jobs that other sites render: scenes, bundles with steps, live logs, cancel and retry, and tasks that
//! nobody can run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::harness::{A_JOB, Mesh, SOON, borrower, finish, lender, list, names_in, tasks, text};
use crate::harness::{wait_until, write};
use crate::render::{assert_frames, write_scene};

fn three_sites() -> Mesh {
    Mesh::of(vec![borrower("oslo"), lender("lyon", 1), lender("kyoto", 1)])
}

/// Who had the tasks of a job.
fn sites_of(job: &Value) -> BTreeSet<&str> {
    tasks(job).iter().filter_map(|task| task["site"].as_str()).collect()
}

/// Submits a command with one task for each frame.
fn submit_command(mesh: &Mesh, command: &str, frames: &str, more: &[&str]) -> (String, PathBuf) {
    let out = mesh.new_folder("out");
    let command = format!("Command={command}");
    let flags = ["bundle:command", "--frames", frames, "-p", &command, "--output"];
    let job = mesh[0].submit(&[&flags[..], &[out.to_str().unwrap()], more].concat());
    (job, out)
}

#[test]
fn a_site_without_slots_gets_its_frames_from_two_others_that_share_no_disk_with_it() {
    let mesh = three_sites();
    let scene = write_scene(&mesh.new_folder("shot"));
    let out = mesh.new_folder("frames");
    let (source, folder) = (scene.to_str().unwrap(), out.to_str().unwrap());

    let job =
        mesh[0].submit(&[source, "--frames", "1-8", "--resolution", "160x120", "--output", folder]);
    let done = mesh[0].wait_done(&job);

    assert_frames(&scene, 8, &out);
    assert_eq!(sites_of(&done), BTreeSet::from(["lyon", "kyoto"]));
    for site in list(&mesh[0].json(&["sites"])) {
        let profile = &site["profile"];
        assert_eq!(profile["name"], site["name"]);
        assert!(text(&profile["hosts"][0]["software"]["povray"]).starts_with("3."), "{site:#}");
        assert_eq!(profile["lending"], site["name"] != "oslo");
    }
    let moved = mesh[0].api("/v1/transfers");
    let ours = list(&moved["jobs"]).iter().find(|bytes| bytes["job"] == *job).unwrap();
    assert!(ours["sent"].as_u64() > Some(500) && ours["received"].as_u64() > Some(500), "{ours}");
}

/// Now, in milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[test]
fn what_a_task_writes_is_readable_at_home_within_a_second_while_the_task_runs() {
    let mesh = three_sites();
    let command = "for i in 1 2 3 4 5 6 7 8; do echo tick $i at $(date +%s%3N); sleep 0.7; done";
    let (job, _) = submit_command(&mesh, command, "1", &[]);
    let attempt = wait_until("the task was leased", SOON, || {
        let job = mesh[0].api(&format!("/v1/jobs/{job}"));
        tasks(&job)[0]["attempt"].as_str().map(str::to_owned)
    });

    let file = mesh[0].home.join("logs/here").join(format!("{attempt}.log"));
    let mut late = Vec::new();
    wait_until("eight ticks are home", A_JOB, || {
        let log = fs::read_to_string(&file).unwrap_or_default();
        // What the lender says of itself comes before.
        let ticks = log.split_inclusive('\n').filter(|line| line.starts_with("tick"));
        for line in ticks.filter(|line| line.ends_with('\n')).skip(late.len()) {
            let written = line.trim().rsplit(' ').next().and_then(|at| at.parse::<u64>().ok());
            late.push(now_ms().saturating_sub(written.expect("every line ends with a time")));
        }
        (late.len() == 8).then_some(())
    });

    // One line may meet a busy moment of the machine.
    late.sort_unstable();
    assert!(late[6] < 1000, "lines came home after so many milliseconds: {late:?}");
    mesh[0].wait_done(&job);
    let log = mesh[0].run(&["logs", &job]).out;
    assert_eq!(log.lines().count(), 9, "{log}");
    assert!(log.starts_with("Frame=1 | meshfarm: isolation S2: "), "{log}");
    assert!(log.contains("\nFrame=1 | tick 1 at "), "{log}");
}

/// A bundle whose second step reads what the first one has written, with an environment around both.
const BUNDLE: &str = r#"
specificationVersion: jobtemplate-2023-09
name: Cut and join
parameterDefinitions:
  - {name: Words, type: PATH, objectType: FILE, dataFlow: IN, default: words.txt}
  - {name: Parts, type: PATH, objectType: DIRECTORY, dataFlow: OUT}
  - {name: Whole, type: PATH, objectType: DIRECTORY, dataFlow: OUT}
  - {name: Extra, type: STRING, default: ""}
jobEnvironments:
  - name: Tools
    variables: {GREETING: hello}
    script:
      actions:
        onEnter: {command: sh, args: ["-c", "echo tools are set up"]}
        onExit: {command: sh, args: ["-c", "echo tools are put away"]}
steps:
  - name: Cut
    parameterSpace:
      taskParameterDefinitions:
        - {name: Line, type: INT, range: "1-4"}
    script:
      embeddedFiles:
        - name: Cut
          filename: cut.sh
          type: TEXT
          data: |
            sleep 0.3
            { echo "$GREETING"; sed -n "$1p" "$2"; cat "$4"; } > "$3/part$1.txt"
      actions:
        onRun:
          command: sh
          args: ["{{Task.File.Cut}}", "{{Task.Param.Line}}", "{{Param.Words}}", "{{Param.Parts}}", "{{Param.Extra}}"]
  - name: Join
    dependencies: [{dependsOn: Cut}]
    script:
      actions:
        onRun:
          command: sh
          args: ["-c", "cat \"$1\"/part*.txt > \"$2/whole.txt\"", join, "{{Param.Parts}}", "{{Param.Whole}}"]
"#;

/// Writes [`BUNDLE`] as a folder. It refers to a file outside of itself by its assets.
fn write_bundle(mesh: &Mesh) -> PathBuf {
    let bundle = mesh.folder().join("bundle");
    let extra = mesh.folder().join("texture/grain.txt");
    write(&extra, "grain\n");
    write(&bundle.join("template.yaml"), BUNDLE);
    write(&bundle.join("words.txt"), "one\ntwo\nthree\nfour\n");
    let values = format!("parameterValues:\n  - {{name: Extra, value: {}}}\n", extra.display());
    write(&bundle.join("parameter_values.yaml"), values);
    let assets = format!(
        "assetReferences:\n  inputs:\n    filenames: [{}]\n    directories: []\n  outputs:\n    directories: []\n",
        extra.display()
    );
    write(&bundle.join("asset_references.yaml"), assets);
    bundle
}

fn submit_bundle(mesh: &Mesh, source: &Path, name: &str, more: &[&str]) -> (Value, PathBuf) {
    let parts = mesh.new_folder(&format!("{name}-parts"));
    let whole = mesh.new_folder(&format!("{name}-whole"));
    let (parts, whole_flag) =
        (format!("Parts={}", parts.display()), format!("Whole={}", whole.display()));
    let flags = [source.to_str().unwrap(), "-p", &parts, "-p", &whole_flag];
    let job = mesh[0].submit(&[&flags[..], more].concat());
    (mesh[0].wait_done(&job), whole)
}

#[test]
fn a_bundle_runs_step_after_step_across_sites_as_a_folder_a_tar_and_a_template() {
    let mesh = three_sites();
    let bundle = write_bundle(&mesh);
    let tar = mesh.new_folder("packed").join("bundle.tar");
    let packed = finish(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&bundle).arg("."));
    assert_eq!(packed.code, 0, "{packed:?}");
    let words = "hello\none\ngrain\nhello\ntwo\ngrain\nhello\nthree\ngrain\nhello\nfour\ngrain\n";

    let (job, whole) = submit_bundle(&mesh, &bundle, "folder", &[]);
    assert_eq!(fs::read_to_string(whole.join("whole.txt")).unwrap(), words);
    assert_eq!(names_in(&mesh.folder().join("folder-parts")).len(), 4);
    assert_eq!(tasks(&job).len(), 5);
    let last_cut = list(&job["steps"][0]["tasks"]).iter().map(|task| task["at"].as_u64()).max();
    assert!(job["steps"][1]["tasks"][0]["at"].as_u64() > last_cut.unwrap());
    let id = text(&job["job"]);
    wait_until("the environment's log is home", SOON, || {
        let log = mesh[0].run(&["logs", id]).out;
        (log.contains("tools are set up") && log.contains("tools are put away")).then_some(())
    });

    let (_, whole) = submit_bundle(&mesh, &tar, "tar", &[]);
    assert_eq!(fs::read_to_string(whole.join("whole.txt")).unwrap(), words);

    let template = mesh.folder().join("alone/cut.yaml");
    fs::create_dir_all(template.parent().unwrap()).unwrap();
    fs::copy(bundle.join("template.yaml"), &template).unwrap();
    fs::copy(bundle.join("words.txt"), template.with_file_name("words.txt")).unwrap();
    let extra = mesh.folder().join("texture/grain.txt");
    let extra_flag = format!("Extra={}", extra.display());
    let more = ["-p", &extra_flag, "--input", extra.to_str().unwrap()];
    let (_, whole) = submit_bundle(&mesh, &template, "template", &more);
    assert_eq!(fs::read_to_string(whole.join("whole.txt")).unwrap(), words);
}

/// How many processes of this machine have `word` in their command line, jails included.
pub(crate) fn processes_with(word: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(word)).count()
}

#[test]
fn canceling_a_job_ends_its_renderers_on_the_other_sites() {
    let mesh = three_sites();
    // Nobody else sleeps for exactly so long.
    let sleep = format!("sleep 600.{}", std::process::id());
    let (job, out) = submit_command(&mesh, &format!("exec {sleep}"), "1-6", &[]);
    let sleeps = sleep.replace(' ', "\0");
    wait_until("both lenders run a task", SOON, || (processes_with(&sleeps) == 2).then_some(()));

    assert_eq!(mesh[0].json(&["cancel", &job])["canceled"], *job);

    assert_eq!(mesh[0].job(&job)["phase"], "canceled");
    wait_until("the renderers are gone", SOON, || (processes_with(&sleeps) == 0).then_some(()));
    for site in &mesh[1..] {
        wait_until("the slot is free", SOON, || (site.api("/v1/slots")["free"] == 1).then_some(()));
    }
    assert_eq!(names_in(&out).len(), 0);
    assert_eq!(mesh[0].run(&["watch", &job]).code, 1);
    mesh[0].run(&["cancel", &job]).refused(2, &["ended"]);
}

#[test]
fn a_task_that_fails_everywhere_says_why_and_a_retry_renders_only_what_was_asked_for() {
    let mesh = three_sites();
    let command = "echo about to fail {frame} >&2
[ {frame} != 2 ] || exit 7
od -An -N8 -tx8 /dev/urandom > {frame4}.txt";
    let (job, out) = submit_command(&mesh, command, "1-3", &["--retries", "1"]);
    let ended = mesh[0].wait_ended(&job);

    let said = text(&ended["phase"]["failed"]);
    assert!(said.contains("1 of 3 tasks failed"), "{said}");
    let failed = tasks(&ended)[1];
    assert_eq!((&failed["state"], &failed["failures"]), (&"failed".into(), &2.into()), "{failed}");
    assert!(text(&failed["reason"]).contains('7'), "{failed}");
    wait_until("the log of the failed task is home", SOON, || {
        let log = mesh[0].run(&["logs", &job, "Frame=2"]).out;
        log.contains("about to fail 2").then_some(())
    });
    let first = fs::read_to_string(out.join("0001.txt")).unwrap();

    assert_eq!(mesh[0].json(&["retry", &job])["tasks"], 1);
    let again = mesh[0].wait_ended(&job);
    assert_ne!(tasks(&again)[1]["attempt"], failed["attempt"]);
    assert_eq!(tasks(&again)[0]["attempt"], tasks(&ended)[0]["attempt"]);
    assert_eq!(fs::read_to_string(out.join("0001.txt")).unwrap(), first);

    assert_eq!(mesh[0].json(&["retry", &job, "--tasks", "0"])["tasks"], 1);
    wait_until("the first frame is rendered again", A_JOB, || {
        let now = fs::read_to_string(out.join("0001.txt")).unwrap_or_default();
        (!now.is_empty() && now != first).then_some(())
    });
    assert_eq!(names_in(&out), ["0001.txt", "0003.txt"]);
}

#[test]
fn a_job_that_no_site_can_run_waits_and_says_what_each_site_lacks() {
    let mesh = three_sites();
    let template = mesh.folder().join("houdini.yaml");
    let text_of = "
specificationVersion: jobtemplate-2023-09
name: Smoke
steps:
  - name: Simulate
    hostRequirements:
      attributes: [{name: 'meshfarm:attr.software.houdini', anyOf: [v20]}]
    script: {actions: {onRun: {command: hython}}}
";
    write(&template, text_of);
    let job = mesh[0].submit(&[template.to_str().unwrap()]);
    thread::sleep(Duration::from_millis(500));

    let waiting = mesh[0].job(&job);
    assert_eq!(waiting["phase"], "active");
    assert_eq!(tasks(&waiting)[0]["state"], "waiting");
    for site in ["lyon", "kyoto"] {
        let why = list(&waiting["steps"][0]["why"]).iter().find(|why| why["site"] == site);
        let misfits = why.unwrap_or_else(|| panic!("{waiting:#}"))["misfits"].to_string();
        assert!(misfits.contains("meshfarm:attr.software.houdini"), "{misfits}");
        assert!(misfits.contains("v20"), "{misfits}");
    }
    let shown = mesh[0].run(&["job", &job]).out;
    assert!(shown.contains("houdini") && shown.contains("lyon"), "{shown}");
}

#[test]
fn a_site_lends_at_its_hours_only_and_says_when_they_are_not() {
    let mut mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
    let in_three_days =
        finish(Command::new("date").args(["-d", "3 days", "+%a"]).env("LC_ALL", "C"));
    let day = in_three_days.out.trim().to_lowercase();
    mesh[1].stop();
    let config = mesh[1].home.join("meshfarm.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let closed = settings.replace("[lending]", &format!("[lending]\nhours = [\"{day}\"]"));
    assert_ne!(closed, settings);
    write(&config, closed);
    mesh[1].start();
    assert_eq!(mesh[1].json(&["slots"])["shut"], "hours");
    assert!(mesh[1].run(&["slots"]).out.contains("outside of its lending hours"));
    let out = mesh.new_folder("out");
    let flags = ["bundle:command", "--frames", "1", "-p", "Command=echo here > done", "--output"];
    let job = mesh[0].submit(&[&flags[..], &[out.to_str().unwrap()]].concat());
    wait_until("the closed site is seen", SOON, || {
        let sites = mesh[0].json(&["sites"]);
        let lyon = list(&sites).iter().find(|site| site["name"] == "lyon")?;
        (lyon["connected"] == true && lyon["profile"]["lending"] == false).then_some(())
    });
    assert_eq!(mesh[0].job(&job)["phase"], "active");
    mesh[1].stop();
    write(&config, settings);
    mesh[1].start();
    mesh[0].wait_done(&job);
}
