//! Work of other sites on the hosts of a head without slots, and passed on to a further site, as real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{
    A_JOB, Mesh, SOON, alone, borrower, lender, list, names_in, tasks, text, wait_until, write,
};

/// Bytes that the hosts read and no command does.
const TEXTURE: usize = 4 << 20;

/// Frames of the job.
const FRAMES: usize = 24;

/// Works for a while, and writes a file whose name no other run of the frame has.
const COMMAND: &str = "\
nonce=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
echo begin {frame4}
sleep 0.4
echo end {frame4}
cat INPUT > {frame4}-$nonce.txt";

const OSLO: usize = 0;
const LYON: usize = 3;
const GRAZ: usize = 4;

/// A head without slots that lends, its two hosts, a borrower without slots, and a further site that lends.
fn studio() -> Mesh {
    let plans =
        [lender("oslo", 0), alone("r1", 1), alone("r2", 1), borrower("lyon"), lender("graz", 2)];
    let mesh = Mesh::apart(plans.into());
    mesh[OSLO].json(&["mesh", "create", "demo"]);
    let invited = mesh[OSLO].json(&["invite", "--uses", "2"]);
    for at in [LYON, GRAZ] {
        mesh[at].json(&["join", text(&invited["ticket"])]);
    }
    mesh
}

fn with_hosts() -> Mesh {
    let mesh = studio();
    let invited = mesh[OSLO].json(&["invite", "--role", "host", "--uses", "2"]);
    for (at, name) in [(1, "render01"), (2, "render02")] {
        mesh[at].json(&["join", text(&invited["ticket"]), "--name", name]);
    }
    wait_until("lyon knows of two slots at oslo", SOON, || {
        (free_at_oslo(&mesh) == 2).then_some(())
    });
    mesh
}

/// How many slots lyon believes to be free at oslo.
fn free_at_oslo(mesh: &Mesh) -> u64 {
    let sites = mesh[LYON].api("/v1/sites");
    let oslo = list(&sites).iter().find(|site| site["name"] == "oslo");
    oslo.and_then(|oslo| oslo["profile"]["free"].as_u64()).unwrap_or(0)
}

fn submit(mesh: &Mesh, frames: usize, more: &[&str]) -> (String, PathBuf) {
    submit_to(mesh, "out", frames, more)
}

fn submit_to(mesh: &Mesh, out: &str, frames: usize, more: &[&str]) -> (String, PathBuf) {
    let out = mesh.new_folder(out);
    let input = mesh.folder().join("input.txt");
    write(&input, "what the frames read\n");
    let input = input.to_str().unwrap();
    let command = format!("Command={}", COMMAND.replace("INPUT", input));
    let frames = format!("1-{frames}");
    let flags = ["bundle:command", "--frames", &frames, "--where", "oslo", "--input", input];
    let more = [&["--output", out.to_str().unwrap(), "-p", &command], more].concat();
    (mesh[LYON].submit(&[&flags[..], &more].concat()), out)
}

fn done(mesh: &Mesh, job: &str) -> u64 {
    mesh[LYON].api(&format!("/v1/jobs/{job}?brief=true"))["done"].as_u64().unwrap()
}

/// Every frame is there once, and says what it read.
fn assert_once(out: &std::path::Path, n: usize) {
    let names = names_in(out);
    let frames: Vec<_> = names.iter().map(|name| name[..4].parse::<usize>().unwrap()).collect();
    assert!(frames.iter().copied().eq(1..=n), "every frame once: {names:?}");
    for name in &names {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), "what the frames read\n");
    }
}

/// The attempts of the frames that are done.
fn accepted(job: &Value) -> BTreeMap<String, String> {
    let done = tasks(job).into_iter().filter(|task| task["state"] == "done");
    done.map(|t| (text(&t["label"]).to_owned(), text(&t["attempt"]).to_owned())).collect()
}

#[test]
fn a_head_without_slots_lends_those_of_its_hosts_and_logs_and_frames_come_home() {
    let mesh = with_hosts();
    let sites = mesh[LYON].api("/v1/sites");
    let names: Vec<_> = list(&sites).iter().map(|site| text(&site["name"])).collect();
    assert!(!names.iter().any(|name| name.starts_with("render")), "{names:?}");
    let texture = mesh.folder().join("texture.bin");
    let mut noise = vec![0; TEXTURE];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    write(&texture, noise);
    let (job, out) = submit(&mesh, 8, &["--input", texture.to_str().unwrap()]);
    wait_until("both hosts render for lyon", A_JOB, || {
        let slots = mesh[OSLO].api("/v1/slots");
        let runs = |lease: &&Value| lease["running"] == 1 && lease["borrower"] == "lyon";
        let leases = list(&slots["leases"]).iter().filter(runs);
        let on: BTreeSet<_> = leases.filter_map(|lease| lease["runs_on"].as_str()).collect();
        (on == BTreeSet::from(["render01", "render02"])).then_some(())
    });
    let shown = mesh[OSLO].run(&["slots"]).out;
    assert!(shown.contains("RUNS ON") && shown.contains("render0"), "{shown}");
    let ended = mesh[LYON].wait_done(&job);
    assert_once(&out, 8);
    assert!(tasks(&ended).iter().all(|task| task["site"] == "oslo"), "{ended:#}");
    let moved = mesh[LYON].api("/v1/transfers");
    let ours = list(&moved["jobs"]).iter().find(|bytes| bytes["job"] == *job).unwrap();
    let sent = ours["sent"].as_u64().unwrap();
    assert!((TEXTURE..TEXTURE * 3 / 2).contains(&usize::try_from(sent).unwrap()), "{ours:#}");
    wait_until("all lines are home", SOON, || {
        let log = mesh[LYON].run(&["logs", &job]).out;
        let whole = (1..=8).all(|n| log.contains(&format!("end {n:04}")));
        whole.then_some(())
    });
    wait_until("nothing is left at oslo", SOON, || {
        let slots = mesh[OSLO].api("/v1/slots");
        list(&slots["leases"]).is_empty().then_some(())
    });
}

#[test]
fn every_frame_comes_once_whoever_is_killed_in_the_middle() {
    let mut mesh = with_hosts();
    let (job, out) = submit(&mesh, FRAMES, &[]);
    let mut first = BTreeMap::new();
    for (n, victim) in [(3, OSLO), (8, 1), (13, LYON), (17, OSLO)] {
        wait_until("some frames are done", A_JOB, || (done(&mesh, &job) >= n).then_some(()));
        first.extend(accepted(&mesh[LYON].job(&job)));
        mesh[victim].kill();
        mesh[victim].start();
    }
    let ended = mesh[LYON].wait_done(&job);
    assert_once(&out, FRAMES);
    let last = accepted(&ended);
    for (frame, attempt) in first {
        assert_eq!(last[&frame], attempt, "{frame} was accepted twice");
    }
}

#[test]
fn work_goes_on_to_a_further_site_only_when_the_job_lets_it() {
    let mut mesh = studio();
    mesh[OSLO].stop();
    let settings = mesh[OSLO].home.join("meshfarm.toml");
    let before = fs::read_to_string(&settings).unwrap();
    let after = before.replace("pass_on = false", "pass_on = true");
    assert_ne!(before, after);
    fs::write(&settings, after).unwrap();
    mesh[OSLO].start();
    wait_until("lyon knows that oslo passes work on", SOON, || {
        let sites = mesh[LYON].api("/v1/sites");
        let oslo = list(&sites).iter().find(|site| site["name"] == "oslo")?;
        (oslo["profile"]["passes_on"] == true).then_some(())
    });
    wait_until("oslo knows graz", SOON, || {
        mesh[OSLO].known().contains(&"graz".into()).then_some(())
    });
    let (stays, nothing) = submit(&mesh, 2, &[]);
    let (job, out) = submit_to(&mesh, "away", 6, &["--hops", "1"]);
    wait_until("graz renders what oslo was given", A_JOB, || {
        let slots = mesh[GRAZ].api("/v1/slots");
        list(&slots["leases"]).iter().any(|lease| lease["borrower"] == "oslo").then_some(())
    });
    let ended = mesh[LYON].wait_done(&job);
    assert_once(&out, 6);
    assert!(tasks(&ended).iter().all(|task| task["site"] == "oslo"), "{ended:#}");
    let waits = mesh[LYON].job(&stays);
    assert!(tasks(&waits).iter().all(|task| task["state"] == "waiting"), "{waits:#}");
    assert!(names_in(&nothing).is_empty());
}
