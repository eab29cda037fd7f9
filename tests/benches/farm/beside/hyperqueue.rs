//! HyperQueue, as its package on PyPI brings it: a server and a worker inside one Python, with its journal off, as it is by default.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

use super::{Other, noted};
use crate::sites::ends_with_us;

/// Names a Python in which `import hyperqueue` works.
pub(super) const PYTHON: &str = "MESHFARM_HYPERQUEUE";

/// Reads a job from each line, and says when it is over. Its client looks only once a second whether a job is, so tasks
/// note themselves when they ran.
const SCRIPT: &str = r#"
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

def say(what):
    print(json.dumps(what), file=answers, flush=True)

with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=int(sys.argv[1])))
    client = cluster.client()
    say("ready")
    for line in sys.stdin:
        wish = json.loads(line)
        job = Job()
        for args in wish["tasks"]:
            job.program(args, stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])
        say("done")
"#;

/// The Python that is named, if it has HyperQueue.
pub(super) fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os(PYTHON)?);
    let mut command = Command::new(&python);
    command.args(["-c", "import hyperqueue"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|ended| ended.success()).then_some(python)
}

/// A server with one worker.
pub(super) struct HyperQueue {
    folder: PathBuf,
    process: Child,
    wishes: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl HyperQueue {
    /// Starts it, with so many slots.
    pub(super) fn start(python: &Path, beneath: &Path, slots: u32) -> Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, &slots.to_string()]).current_dir(beneath);
        let log = std::fs::File::create(beneath.join("hyperqueue.log"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        ends_with_us(&mut command);
        let mut process = command.spawn().with_context(|| format!("{command:?}"))?;
        let wishes = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("it is a pipe")?);
        let folder = beneath.to_owned();
        let mut started = Self { folder, process, wishes, answers };
        started.hear("ready")?;
        Ok(started)
    }

    fn run(&mut self, tasks: &[Vec<&str>]) -> Result<()> {
        let wishes = self.wishes.as_mut().context("it was told to end")?;
        writeln!(wishes, "{}", serde_json::json!({ "tasks": tasks }))?;
        self.hear("done")
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == format!("{word:?}"), "HyperQueue says {line:?}, not {word}");
        Ok(())
    }
}

impl Other for HyperQueue {
    fn through(&mut self, tasks: u64) -> Result<f64> {
        // What is begun last ends last, within a few milliseconds.
        let last = self.folder.join("last");
        let note = format!("date +%s.%N > {}", last.display());
        let mut all = vec![vec!["true"]; usize::try_from(tasks)? - 1];
        all.push(vec!["sh", "-c", &note]);
        let began = SystemTime::now();
        self.run(&all)?;
        Ok(1000.0 * tasks as f64 / noted(&last, began)?)
    }

    fn first(&mut self, file: &Path) -> Result<f64> {
        let note = format!("date +%s.%N > {}", file.display());
        let began = SystemTime::now();
        self.run(&[vec!["sh", "-c", &note]])?;
        noted(file, began)
    }
}

impl Drop for HyperQueue {
    fn drop(&mut self) {
        // It ends with its wishes, and if not, then at once.
        drop(self.wishes.take());
        drop(crate::sites::terminate(self.process.id()));
        drop(self.process.wait());
    }
}
