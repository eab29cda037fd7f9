//! A site of several machines, as real processes: a head without slots, its hosts, and a site that is none of theirs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::harness::{
    A_JOB, Mesh, SOON, alone, lender, list, names_in, tasks, text, wait_until, write,
};

/// Frames of the job.
const FRAMES: usize = 24;

/// Works for a while, and writes a file whose name no other run of the frame has.
const COMMAND: &str = "\
nonce=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
sleep 0.4
cat INPUT > {frame4}-$nonce.txt";

/// A head without slots, two hosts, and another site, all running and apart.
pub(crate) fn studio() -> Mesh {
    let mut mesh =
        Mesh::apart(vec![alone("oslo", 0), alone("r1", 1), alone("r2", 1), lender("lyon", 2)]);
    mesh[0].json(&["mesh", "create", "demo"]);
    let invited = mesh[0].json(&["invite"]);
    mesh[3].json(&["join", text(&invited["ticket"])]);
    join_hosts(&mut mesh);
    mesh
}

fn join_hosts(mesh: &mut Mesh) {
    let invited = mesh[0].json(&["invite", "--role", "host", "--uses", "2"]);
    for (at, name) in [(1, "render01"), (2, "render02")] {
        let joined = mesh[at].json(&["join", text(&invited["ticket"]), "--name", name]);
        assert_eq!((text(&joined[0]["role"]), text(&joined[0]["name"])), ("host", "oslo"));
    }
    wait_until("both hosts are connected", SOON, || {
        (states(mesh) == ["connected", "connected"]).then_some(())
    });
    wait_until("lyon is connected", SOON, || (mesh[0].known() == ["lyon"]).then_some(()));
}

/// The states of the hosts, by name.
fn states(mesh: &Mesh) -> Vec<String> {
    let hosts = mesh[0].api("/v1/hosts");
    let ready = |host: &&serde_json::Value| host["own"] == false && host["offers"].is_object();
    list(&hosts).iter().filter(ready).map(|host| text(&host["state"]).to_owned()).collect()
}

fn submit(mesh: &Mesh, frames: usize, place: &str) -> (String, std::path::PathBuf) {
    let out = mesh.new_folder("out");
    let input = mesh.folder().join("input.txt");
    write(&input, "what the frames read\n");
    let command = COMMAND.replace("INPUT", input.to_str().unwrap());
    let id = mesh[0].submit(&[
        "bundle:command",
        "--frames",
        &format!("1-{frames}"),
        "--where",
        place,
        "--input",
        input.to_str().unwrap(),
        "--output",
        out.to_str().unwrap(),
        "-p",
        &format!("Command={command}"),
    ]);
    (id, out)
}

fn done(mesh: &Mesh, job: &str) -> u64 {
    mesh[0].api(&format!("/v1/jobs/{job}?brief=true"))["done"].as_u64().unwrap()
}

#[test]
fn a_job_is_spread_over_hosts_and_survives_the_death_of_the_head_with_every_frame_once() {
    let mut mesh = studio();
    let (job, out) = submit(&mesh, FRAMES, "local");
    wait_until("some frames are done", A_JOB, || (done(&mesh, &job) >= 4).then_some(()));
    let slots = mesh[0].api("/v1/slots");
    assert!(!list(&slots["hosts"]).is_empty(), "{slots:#}");
    let before = mesh[0].job(&job);
    let accepted = |job: &serde_json::Value| -> BTreeMap<String, String> {
        let done = tasks(job).into_iter().filter(|task| task["state"] == "done");
        done.map(|t| (text(&t["label"]).to_owned(), text(&t["attempt"]).to_owned())).collect()
    };
    let first = accepted(&before);
    mesh[0].kill();
    // The hosts end what they have meanwhile.
    std::thread::sleep(Duration::from_secs(2));
    mesh[0].start();
    let ended = mesh[0].wait_done(&job);
    let last = accepted(&ended);
    for (frame, attempt) in first {
        assert_eq!(last[&frame], attempt, "{frame} was accepted twice");
    }
    let names = names_in(&out);
    let frames: Vec<_> = names.iter().map(|name| name[..4].parse::<usize>().unwrap()).collect();
    assert!(frames.iter().copied().eq(1..=FRAMES), "every frame once: {names:?}");
    for name in &names {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), "what the frames read\n");
    }
    let by = |name: &str| tasks(&ended).iter().filter(|task| task["site"] == name).count();
    let (one, two) = (by("render01"), by("render02"));
    assert!(one > 0 && two > 0 && one + two == FRAMES, "{one} and {two}");
    // An attempt runs once at most, so no frame was rendered twice.
    let attempts = mesh[0].log().matches("TaskLeased").count();
    assert!((FRAMES / 2..=FRAMES).contains(&attempts), "{attempts} attempts");
}

#[test]
fn a_head_that_is_restored_from_a_backup_goes_on_where_it_was_with_its_hosts() {
    let mut mesh = studio();
    let (job, out) = submit(&mesh, 8, "local");
    wait_until("a frame is done", A_JOB, || (done(&mesh, &job) >= 1).then_some(()));
    let file = mesh.folder().join("oslo.backup");
    let file = file.to_str().unwrap();
    let saved = mesh[0].json(&["backup", file]);
    assert!(saved["records"].as_u64() > Some(5) && saved["chunks"].as_u64() > Some(0), "{saved}");
    let mode = fs::metadata(file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    mesh[0].run(&["backup", file]).refused(2, &["exists already"]);
    mesh[0].kill();
    mesh[0].run(&["restore", file]).refused(2, &["not empty"]);
    let stopped = format!("{file}.stopped");
    mesh[0].json(&["backup", &stopped]);
    fs::remove_dir_all(&mesh[0].home).unwrap();
    mesh[0].json(&["restore", file]);
    mesh[0].start();
    mesh[0].wait_done(&job);
    let names = names_in(&out);
    for frame in 1..=8 {
        let frame = format!("{frame:04}-");
        assert!(names.iter().any(|name| name.starts_with(&frame)), "{frame} is missing: {names:?}");
    }
    wait_until("both hosts are back", SOON, || {
        (states(&mesh) == ["connected", "connected"]).then_some(())
    });
}

#[test]
fn hosts_are_stopped_and_started_and_serve_their_head_only() {
    let mut mesh = studio();
    assert_eq!(mesh[3].known(), ["oslo"], "hosts are no sites");
    let stopped = mesh[0].json(&["hosts", "stop", "render01"]);
    assert_eq!(stopped["mode"], "stopped");
    assert_eq!(states(&mesh), ["stopped", "connected"]);
    mesh[0].kill();
    mesh[0].start();
    wait_until("it is still stopped", SOON, || {
        (states(&mesh) == ["stopped", "connected"]).then_some(())
    });
    let (job, _) = submit(&mesh, 3, "local");
    let ended = mesh[0].wait_done(&job);
    assert!(tasks(&ended).iter().all(|task| task["site"] == "render02"), "{ended:#}");
    mesh[0].json(&["hosts", "start", "render01"]);
    let (job, _) = submit(&mesh, 2, "render01");
    let ended = mesh[0].wait_done(&job);
    assert!(tasks(&ended).iter().all(|task| task["site"] == "render01"), "{ended:#}");

    mesh[1].run(&["submit", "bundle:command"]).refused(2, &["host of oslo", "submit on oslo"]);
    mesh[1].run(&["mesh", "create", "mine"]).refused(2, &["host of oslo"]);
    mesh[1].run(&["invite"]).refused(2, &["oslo"]);
    mesh[1].run(&["invite", "--role", "host"]).refused(2, &["host of oslo"]);
    let ticket = mesh[0].json(&["invite"]);
    mesh[1].run(&["join", text(&ticket["ticket"])]).refused(2, &["host of oslo"]);
    let ticket = mesh[0].json(&["invite", "--role", "host"]);
    let ticket = text(&ticket["ticket"]);
    mesh[3].run(&["join", ticket]).refused(2, &["demo", "belongs to none"]);
    mesh[0].run(&["join", ticket]).refused(2, &["already"]);
    mesh[0].run(&["hosts", "stop", "render09"]).refused(2, &["render09", "meshfarm hosts"]);
    mesh[0].json(&["hosts", "stop", "oslo"]);
    let own = |mesh: &Mesh| {
        let hosts = mesh[0].api("/v1/hosts");
        let own = list(&hosts).iter().find(|host| host["own"] == true).unwrap();
        text(&own["state"]).to_owned()
    };
    assert_eq!(own(&mesh), "stopped");
    let examined = mesh[0].run(&["doctor"]).out;
    assert!(examined.contains("paused by a person") && examined.contains("resume"), "{examined}");
    mesh[0].json(&["hosts", "start", "oslo"]);
    assert_eq!(own(&mesh), "connected");
    assert!(!mesh[0].run(&["doctor"]).out.contains("paused by a person"));
    mesh[0].run(&["hosts", "remove", "oslo"]).refused(2, &["head"]);
    mesh[0].run(&["invite", "--role", "host", "--mesh", "demo"]).refused(2, &["--mesh demo"]);
    mesh[0].json(&["hosts", "remove", "render01"]);
    assert_eq!(states(&mesh), ["connected"]);
}
