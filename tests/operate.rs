//! What people do to jobs and sites while they run: hold, urge, kill, cancel in part, send away, call home, pause.

use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Mesh, SOON, Site, alone, lender, list, names_in, tasks, text, wait_until};
use crate::outsource::processes_with;

/// A job of the plain command, and the folder of its outputs.
#[track_caller]
fn submit(
    mesh: &Mesh,
    name: &str,
    command: &str,
    frames: &str,
    flags: &[&str],
) -> (String, PathBuf) {
    let out = mesh.new_folder(name);
    let command = format!("Command={command}");
    let fixed = ["bundle:command", "--frames", frames, "-p", &command, "-o", out.to_str().unwrap()];
    (mesh[0].submit(&[&fixed[..], flags].concat()), out)
}

fn states(site: &Site, job: &str) -> Vec<String> {
    let job = site.job(job);
    tasks(&job).iter().map(|task| text(&task["state"]).to_owned()).collect()
}

fn wait_running(site: &Site, job: &str, task: usize) -> Value {
    wait_until("the task runs", SOON, || {
        let job = site.job(job);
        (tasks(&job)[task]["state"] == "running").then(|| tasks(&job)[task].clone())
    })
}

fn ids(jobs: &Value) -> Vec<&str> {
    list(jobs).iter().map(|job| text(&job["job"])).collect()
}

/// A command that nobody else runs, as it stands in a list of processes.
fn sleep(what: u32) -> (String, String) {
    let sleep = format!("sleep 6{what}0.{}", std::process::id());
    (format!("exec {sleep}"), sleep.replace(' ', "\0"))
}

#[test]
fn a_job_is_held_urged_released_killed_and_canceled_in_part_and_ends_right() {
    let mut mesh = Mesh::apart(vec![alone("oslo", 1)]);
    let (sleeper, sleeps) = sleep(1);
    let command = format!("[ {{frame}} != 1 ] || {sleeper}\necho {{frame}} > {{frame4}}.txt");
    let (job, out) = submit(&mesh, "out", &command, "1-5", &["--hold"]);
    assert_eq!(states(&mesh[0], &job), ["held"; 5]);
    assert_eq!(ids(&mesh[0].json(&["jobs", "--queue", "held"])), [&job]);
    assert_eq!(mesh[0].json(&["release", &job, "--tasks", "0"])["tasks"], 1);
    let first = wait_running(&mesh[0], &job, 0);
    assert_eq!(ids(&mesh[0].json(&["jobs", "--queue", "active"])), [&job]);

    let (other, _) = submit(&mesh, "other", "echo {frame} > {frame4}.txt", "1-2", &[]);
    assert_eq!(ids(&mesh[0].json(&["jobs", "--queue", "new"])), [&other]);
    assert_eq!(mesh[0].json(&["priority", &other, "80"])["priority"], 80);
    assert_eq!(mesh[0].json(&["hold", &other])["tasks"], 2);

    assert_eq!(mesh[0].json(&["kill", &job, "--tasks", "0"])["tasks"], 1);
    let second = wait_until("another try runs", SOON, || {
        let task = wait_running(&mesh[0], &job, 0);
        (task["attempt"] != first["attempt"]).then_some(task)
    });
    assert_eq!(second["failures"], 0);
    wait_until("one try runs", SOON, || (processes_with(&sleeps) == 1).then_some(()));
    mesh[0].run(&["kill", &job, "--tasks", "2"]).refused(2, &["runs now"]);

    mesh[0].stop();
    mesh[0].start();
    wait_running(&mesh[0], &job, 0);
    assert_eq!(states(&mesh[0], &job)[1..], ["held"; 4], "a hold survives a restart");
    assert_eq!(states(&mesh[0], &other), ["held"; 2]);
    assert_eq!(mesh[0].job(&other)["priority"], 80);

    assert_eq!(mesh[0].json(&["release", &job])["tasks"], 4);
    assert_eq!(mesh[0].json(&["release", &other])["tasks"], 2);
    assert_eq!(mesh[0].json(&["cancel", &job, "--tasks", "0,3-4"])["tasks"], 3);
    let (job_end, other_end) = (mesh[0].wait_done(&job), mesh[0].wait_done(&other));
    assert_eq!(processes_with(&sleeps), 0);
    assert_eq!(states(&mesh[0], &job), ["canceled", "done", "done", "canceled", "canceled"]);
    assert_eq!(names_in(&out), ["0002.txt", "0003.txt"]);
    let at = |job: &Value| tasks(job).iter().filter_map(|t| t["at"].as_u64()).collect::<Vec<_>>();
    let (later, sooner) = (at(&job_end), at(&other_end));
    assert!(sooner.iter().max() <= later.iter().min(), "the urgent job went first");
    assert_eq!(mesh[0].run(&["watch", &job]).code, 0);
    mesh[0].run(&["hold", &job]).refused(2, &["ended already"]);
}

#[test]
fn a_job_is_sent_away_returned_by_a_paused_site_and_called_home() {
    let mesh = Mesh::of(vec![alone("oslo", 1), lender("lyon", 1)]);
    let (oslo, lyon) = (&mesh[0], &mesh[1]);
    let (sleeper, sleeps) = sleep(2);
    let (job, _) = submit(&mesh, "out", &sleeper, "1-4", &[]);
    wait_running(oslo, &job, 0);
    oslo.run(&["outsource", &job, "--to", "rome"]).refused(2, &["rome", "lyon"]);
    assert_eq!(oslo.json(&["outsource", &job, "--to", "lyon"])["to"], "lyon");
    wait_until("both sites render", SOON, || (processes_with(&sleeps) == 2).then_some(()));
    assert_eq!(ids(&oslo.json(&["jobs", "--queue", "outsourced"])), [&job]);
    let shown = lyon.run(&["jobs", "--queue", "active"]).out;
    assert!(shown.contains("Batches of other sites") && shown.contains("oslo"), "{shown}");

    lyon.json(&["pause", "--after", "return"]);
    wait_until("lyon has stopped", SOON, || (processes_with(&sleeps) == 1).then_some(()));
    let shown = lyon.run(&["slots"]).out;
    assert!(shown.contains("paused") && shown.contains("meshfarm resume"), "{shown}");
    wait_until("what lyon had waits again", SOON, || (oslo.job(&job)["leased"] == 1).then_some(()));
    lyon.json(&["resume"]);
    assert_eq!(lyon.api("/v1/slots")["lending"], true);

    oslo.json(&["recall", &job]);
    let home = oslo.job(&job);
    assert_eq!((&home["where"], &home["leased"]), (&"local".into(), &1.into()), "{home:#}");
    assert!(tasks(&home).iter().all(|task| task["failures"] == 0));
    assert_eq!(lyon.api("/v1/slots")["free"], 1);
    assert_eq!(oslo.json(&["cancel", &job])["tasks"], 4);
    wait_until("every try has ended", SOON, || (processes_with(&sleeps) == 0).then_some(()));
}

#[test]
fn a_task_that_says_nothing_for_too_long_is_stopped_and_one_that_speaks_is_not() {
    let mesh = Mesh::apart(vec![alone("oslo", 2)]);
    let (sleeper, sleeps) = sleep(3);
    let command = format!(
        "[ {{frame}} = 1 ] || {{ echo began; {sleeper}; }}
for i in 1 2 3 4 5 6; do echo line $i; sleep 0.7; done
echo done > {{frame4}}.txt"
    );
    let (job, out) = submit(&mesh, "out", &command, "1-2", &["--silence", "2s", "--retries", "0"]);
    let ended = mesh[0].wait_ended(&job);
    assert_eq!(states(&mesh[0], &job), ["done", "failed"]);
    let reason = text(&tasks(&ended)[1]["reason"]).to_owned();
    assert!(reason.contains("its log said nothing for its limit of 2 s"), "{reason}");
    assert_eq!((names_in(&out), processes_with(&sleeps)), (vec!["0001.txt".to_owned()], 0));
}
