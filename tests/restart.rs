//! `kill -9` of every kind of site at many moments: the job completes, every frame comes home exactly
//! once, and nothing that was accepted is rendered again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::harness::{A_JOB, Mesh, SOON, borrower, finish, lender, list, names_in, tasks, text};
use crate::harness::{wait_until, write};
use crate::outsource::processes_with;
use crate::render::{assert_frames, write_scene};

/// Tasks of a job.
const TASKS: u32 = 8;

/// Bytes of a job's input: enough for its transfer to be hit.
const INPUT: usize = 24 << 20;

/// Reads the whole input, works for a while, and writes a file whose name and content no other run has.
const COMMAND: &str = "\
nonce=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
echo run {frame} $nonce
sum=$(sha256sum < INPUT | cut -c1-16)
sleep 0.{frame}
echo {frame} $sum $nonce > {frame4}-$nonce.txt";

/// When somebody is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// When so many hundredths of the input were sent.
    Sent(u64),
    /// When so many tasks are done.
    Done(u64),
}

/// Everything that a seed decides.
#[derive(Debug)]
struct Draw {
    moment: Moment,
    /// Waited after the moment, and again before the restart.
    late: Duration,
    pause: Duration,
    /// Which lender.
    lender: usize,
    /// First bytes of the input.
    salt: u64,
}

impl Draw {
    fn of(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut below = |n: u64| rng.next_u64() % n;
        let moment = match seed % 2 {
            0 => Moment::Sent(below(100)),
            _ => Moment::Done(below(u64::from(TASKS))),
        };
        let late = Duration::from_millis(below(100));
        let pause = Duration::from_millis(below(300));
        let lender = usize::try_from(below(2)).expect("it is small");
        Self { moment, late, pause, lender, salt: seed }
    }
}

/// A job whose tasks can be told apart by run.
#[derive(Debug)]
struct Counted {
    id: String,
    out: PathBuf,
    sum: String,
}

impl Counted {
    fn submit(mesh: &Mesh, draw: &Draw) -> Self {
        let out = mesh.new_folder(&format!("out{}", draw.salt));
        let input = mesh.folder().join(format!("input{}.bin", draw.salt));
        let mut bytes = vec![0; INPUT];
        ChaCha8Rng::seed_from_u64(draw.salt).fill_bytes(&mut bytes);
        write(&input, &bytes);
        let sum = finish(Command::new("sha256sum").arg(&input)).out[..16].to_owned();
        let command = COMMAND.replace("INPUT", input.to_str().unwrap());
        let id = mesh[0].submit(&[
            "bundle:command",
            "--frames",
            &format!("1-{TASKS}"),
            "--input",
            input.to_str().unwrap(),
            "--output",
            out.to_str().unwrap(),
            "-p",
            &format!("Command={command}"),
        ]);
        Self { id, out, sum }
    }

    /// Waits for the moment; false when the job was over before.
    fn wait(&self, borrower: &crate::harness::Site, moment: Moment) -> bool {
        let path = format!("/v1/jobs/{}?brief=true", self.id);
        wait_until(&format!("{moment:?}"), A_JOB, || {
            let job = borrower.api(&path);
            if job["phase"] != "active" {
                return Some(false);
            }
            let reached = match moment {
                Moment::Done(n) => job["done"].as_u64() >= Some(n),
                Moment::Sent(percent) => {
                    sent(borrower, &self.id) >= percent * u64::try_from(INPUT).unwrap() / 100
                }
            };
            reached.then_some(true)
        })
    }

    /// What was accepted: try and time by label of the task.
    fn accepted(&self, borrower: &crate::harness::Site) -> BTreeMap<String, (Value, Value)> {
        let job = borrower.api(&format!("/v1/jobs/{}?brief=false", self.id));
        let done = tasks(&job).into_iter().filter(|task| task["state"] == "done");
        let fact = |task: &Value| (task["attempt"].clone(), task["at"].clone());
        done.map(|task| (text(&task["label"]).to_owned(), fact(task))).collect()
    }

    /// The files of the output folder by the frame's number; each frame has at most one.
    fn files(&self) -> BTreeMap<u32, (String, String)> {
        let mut files = BTreeMap::new();
        for name in names_in(&self.out) {
            let Ok(frame) = name[..4].parse::<u32>() else {
                continue;
            };
            let content = fs::read_to_string(self.out.join(&name)).expect("it is there");
            let other = files.insert(frame, (name.clone(), content));
            assert!(other.is_none(), "frame {frame} came home twice: {:?}", names_in(&self.out));
        }
        files
    }

    /// Every frame is there once and whole, from the very run whose log was kept.
    fn check(&self, mesh: &Mesh) {
        let files = self.files();
        assert_eq!(names_in(&self.out).len(), files.len(), "{:?}", names_in(&self.out));
        assert!(files.keys().copied().eq(1..=TASKS), "{files:?}");
        let said = |frame: u32| {
            let log = mesh[0].run(&["logs", &self.id, &format!("Frame={frame}")]).out;
            // What the lender says of itself is not the task's.
            let own = log.lines().filter(|line| !line.starts_with("meshfarm: "));
            own.map(|line| format!("{line}\n")).collect::<String>()
        };
        for (frame, (name, content)) in &files {
            let nonce = name[5..].trim_end_matches(".txt");
            assert_eq!(*content, format!("{frame} {} {nonce}\n", self.sum));
            let line = format!("run {frame} {nonce}\n");
            let end = Instant::now() + SOON;
            while said(*frame) != line {
                assert!(
                    Instant::now() < end,
                    "the log of {frame} is {:?}, not {line:?}",
                    said(*frame)
                );
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn sent(borrower: &crate::harness::Site, job: &str) -> u64 {
    let transfers = borrower.api("/v1/transfers");
    let ours = list(&transfers["jobs"]).iter().find(|bytes| bytes["job"] == job);
    ours.and_then(|bytes| bytes["sent"].as_u64()).unwrap_or(0)
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victims {
    Borrower,
    Lender,
    Everybody,
}

impl Victims {
    fn sites(self, draw: &Draw) -> Vec<usize> {
        match self {
            Self::Borrower => vec![0],
            Self::Lender => vec![1 + draw.lender],
            Self::Everybody => vec![0, 1, 2],
        }
    }
}

/// Kills the victims once for each seed, in one mesh, and checks every job.
fn kill_at_many_moments(victims: Victims, seeds: std::ops::Range<u64>) {
    let plans = vec![borrower("oslo"), lender("lyon", 1), lender("kyoto", 1)];
    let mut mesh = Mesh::of(plans);
    let mut hits = 0;
    for seed in seeds {
        let draw = Draw::of(seed);
        eprintln!("{victims:?}: seed {seed}: {draw:?}");
        let job = Counted::submit(&mesh, &draw);
        hits += u32::from(job.wait(&mesh[0], draw.moment));
        thread::sleep(draw.late);
        let (accepted, files) = (job.accepted(&mesh[0]), job.files());
        for victim in victims.sites(&draw) {
            mesh[victim].kill();
        }
        thread::sleep(draw.pause);
        for victim in victims.sites(&draw) {
            mesh[victim].start();
        }

        mesh[0].wait_done(&job.id);
        let finally = job.accepted(&mesh[0]);
        for (label, fact) in &accepted {
            assert_eq!(&finally[label], fact, "{label} was accepted and is rendered again");
        }
        for (frame, file) in files {
            assert_eq!(job.files()[&frame], file, "frame {frame} came home twice");
        }
        job.check(&mesh);
        fs::remove_dir_all(&job.out).expect("it is ours");
    }
    assert!(hits > 5, "only {hits} kills came before the job was over");
    for site in &mesh[1..] {
        wait_until("every slot is free again", SOON, || {
            (site.api("/v1/slots")["free"] == 1).then_some(())
        });
    }
}

#[test]
fn a_borrower_that_is_killed_at_any_moment_goes_on_with_its_jobs() {
    kill_at_many_moments(Victims::Borrower, 100..110);
}

#[test]
fn a_lender_that_is_killed_at_any_moment_costs_only_the_tasks_that_it_was_running() {
    kill_at_many_moments(Victims::Lender, 200..210);
}

#[test]
fn a_mesh_that_is_killed_at_any_moment_goes_on_with_its_jobs() {
    kill_at_many_moments(Victims::Everybody, 300..310);
}

#[test]
fn the_renderers_of_a_node_that_is_killed_end_with_it_and_run_elsewhere() {
    let plans = vec![borrower("oslo"), lender("lyon", 1), lender("kyoto", 1)];
    let mut mesh = Mesh::of(plans);
    let out = mesh.new_folder("out");
    // Nobody else sleeps for exactly so long.
    let sleep = format!("sleep 900.{}", std::process::id());
    let command = format!("Command=exec {sleep}");
    let flags = ["bundle:command", "--frames", "1-2", "-p", &command, "-o"];
    let job = mesh[0].submit(&[&flags[..], &[out.to_str().unwrap()]].concat());
    let sleeps = sleep.replace(' ', "\0");
    wait_until("both lenders run a task", SOON, || (processes_with(&sleeps) == 2).then_some(()));

    mesh[1].kill();
    wait_until("one renderer is left", SOON, || (processes_with(&sleeps) == 1).then_some(()));
    mesh[1].start();
    wait_until("it runs again", A_JOB, || (processes_with(&sleeps) == 2).then_some(()));
    mesh[0].kill();
    mesh[0].start();
    mesh[0].json(&["cancel", &job]);
    wait_until("the renderers are gone", SOON, || (processes_with(&sleeps) == 0).then_some(()));
}

#[test]
fn frames_of_a_renderer_survive_kills_of_everybody() {
    let plans = vec![borrower("oslo"), lender("lyon", 1), lender("kyoto", 1)];
    let mut mesh = Mesh::of(plans);
    let scene = write_scene(&mesh.new_folder("shot"));
    for (round, done) in [0, 1, 3].into_iter().enumerate() {
        let out = mesh.new_folder(&format!("frames{round}"));
        let job = submit_scene(&mesh, &scene, &out);
        wait_until("so many frames are done", A_JOB, || {
            let job = mesh[0].api(&format!("/v1/jobs/{job}?brief=true"));
            (job["done"].as_u64() >= Some(done)).then_some(())
        });
        for victim in 0..3 {
            mesh[victim].kill();
        }
        for victim in 0..3 {
            mesh[victim].start();
        }

        mesh[0].wait_done(&job);
        assert_frames(&scene, 6, &out);
    }
}

fn submit_scene(mesh: &Mesh, scene: &Path, out: &Path) -> String {
    let scene = scene.to_str().unwrap();
    let flags = ["--frames", "1-6", "--resolution", "160x120", "--output", out.to_str().unwrap()];
    mesh[0].submit(&[&[scene][..], &flags].concat())
}
