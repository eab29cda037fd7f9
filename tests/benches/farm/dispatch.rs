//! How many tasks that do nothing one site gets through in a second, each durable at every step.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sessions::{NOTHING, PROCESS};
use crate::node::used;
use crate::sites::{Plan, Site, folder};
use crate::table::{Row, Table};

/// As many as a large machine of a farm has.
const SLOTS: u32 = 64;

const TASKS: u64 = 20_000;

/// Fewer where each is a process.
const PROCESSES: u64 = 2000;

/// Fewer still where each has a jail of its own.
const JAILS: u64 = 400;

/// How long a job may take.
const MOST: Duration = Duration::from_secs(60);

/// Tasks a second of a node, and what it has cost.
pub(crate) struct Pace {
    /// Tasks a second, from the submission's record until the job's end.
    pub(crate) rate: f64,
    /// Milliseconds of the node's own processor time for each task; its children are not counted.
    pub(crate) cpu_ms: f64,
}

/// Without processes, then with them.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let folder = folder()?;
    let of = |n: u64| table.scale().of(n).max(20);
    let (tasks, processes, jails) = (of(TASKS), of(PROCESSES), of(JAILS));
    let plan = |name, slots| Plan::new(name, slots);
    let null = run(folder.path(), plan("null", SLOTS).instead(NOTHING), tasks)?;
    let note = format!("{tasks} tasks on {SLOTS} slots; from the submission to the job's end");
    table.add(Row::alone("farm.dispatch.null", null.rate, "/s").at_least(5000.0).note(note));
    let note = "of the node for each of those, all threads";
    table.add(Row::alone("farm.dispatch.null.cpu", null.cpu_ms, "ms").at_most(0.2).note(note));
    let few = run(folder.path(), plan("few", 2).instead(NOTHING), tasks / 10)?;
    let note = "2 slots: each waits for the disk between two tasks";
    table.add(Row::alone("farm.dispatch.null.2-slots", few.rate, "/s").note(note));
    let process = run(folder.path(), plan("process", 2).instead(PROCESS), processes)?;
    let note = format!("each is `true` without a jail, 2 slots; the node {:.2} ms", process.cpu_ms);
    table.add(Row::alone("farm.dispatch.process", process.rate, "/s").note(note));
    let jailed = run(folder.path(), plan("jailed", 2), jails)?;
    let note = format!("each is `true` in a jail (S2), 2 slots; the node {:.2} ms", jailed.cpu_ms);
    table.add(Row::alone("farm.dispatch.jail", jailed.rate, "/s").note(note));
    Ok(())
}

fn run(folder: &Path, plan: Plan, tasks: u64) -> Result<Pace> {
    let mut site = Site::init(folder, plan)?;
    site.start()?;
    // What a first job makes once for all is not measured.
    through(&site, folder, 4)?;
    let pace = through(&site, folder, tasks)?;
    site.stop()?;
    Ok(pace)
}

/// One job of so many tasks, from its submission to its end.
pub(crate) fn through(site: &Site, folder: &Path, tasks: u64) -> Result<Pace> {
    let template = template(folder, tasks, "true")?;
    let before = used(site)?;
    let job = submit(site, &template, &[])?;
    let began = Instant::now();
    let view = loop {
        let view = view(site, &job)?;
        if view["ended"].is_u64() {
            break view;
        }
        ensure!(began.elapsed() < MOST, "after {MOST:?} the job is not done: {view}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let cpu = used(site)? - before;
    ensure!(view["done"] == tasks, "not all of {tasks} tasks are done: {view}");
    let moment = |key: &str| view[key].as_f64().context("a moment is a number");
    let ms = moment("ended")? - moment("submitted")?;
    Ok(Pace { rate: 1000.0 * tasks as f64 / ms.max(1.0), cpu_ms: 1000.0 * cpu / tasks as f64 })
}

/// A job's file, with so many tasks that run this shell command.
pub(crate) fn template(folder: &Path, tasks: u64, command: &str) -> Result<PathBuf> {
    let path = folder.join(format!("{tasks}.yaml"));
    let (program, args) = match command {
        "true" => ("true".to_owned(), String::new()),
        command => ("sh".to_owned(), format!(", args: [\"-c\", {command:?}]")),
    };
    let text = format!(
        "specificationVersion: jobtemplate-2023-09\n\
         name: measured\n\
         steps:\n\
         - name: Step\n  \
           parameterSpace: {{taskParameterDefinitions: [{{name: N, type: INT, range: \"1-{tasks}\"}}]}}\n  \
           script: {{actions: {{onRun: {{command: {program:?}{args}}}}}}}\n"
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// Submits a template; returns the job's id.
pub(crate) fn submit(site: &Site, template: &Path, flags: &[&str]) -> Result<String> {
    let template = template.to_str().context("our paths are ASCII")?;
    let said = site.run(&[&["--quiet", "submit", template], flags].concat())?;
    Ok(said.trim().to_owned())
}

/// A job in the list of all, without its tasks.
pub(crate) fn view(site: &Site, job: &str) -> Result<Value> {
    let jobs = site.api("/v1/jobs")?;
    let mut jobs = jobs.as_array().into_iter().flatten();
    let found = jobs.find(|view| view["job"] == job);
    Ok(found.context("a job is not in the list")?.clone())
}
