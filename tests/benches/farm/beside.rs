//! The same tasks through Slurm and HyperQueue, in the same run: how many a second, and how soon the first one begins.

mod hyperqueue;
mod slurm;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};

use super::dispatch::{Pace, through};
use super::sessions::PROCESS;
use crate::demo::first_process;
use crate::sites::{Plan, Site, folder};
use crate::table::{Row, Table};

use hyperqueue::HyperQueue;
use slurm::Slurm;

/// Submissions whose first process is timed.
const SUBMISSIONS: usize = 5;

/// Nothing that another program is asked takes longer.
const MOST: Duration = Duration::from_secs(90);

/// Another program that runs tasks.
trait Other {
    /// Runs `true` so often, at most as many at once as it was given slots. Returns tasks a second, from the
    /// submission until it says that all are done.
    fn through(&mut self, tasks: u64) -> Result<f64>;

    /// Milliseconds from the submission of a task until it has noted in this file, which is not there yet, that it runs.
    fn first(&mut self, file: &Path) -> Result<f64>;
}

/// Ours in jails and as plain processes, beside each of the others that are installed.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let of = |n: u64| table.scale().of(n).max(4);
    let (few, some, many) = (of(40), of(200), of(1000));
    slurm(table, few, some)?;
    hyperqueue(table, some, many)
}

fn slurm(table: &mut Table, few: u64, some: u64) -> Result<()> {
    if let Some(missing) = slurm::missing() {
        let why = format!("{missing} is not installed (slurm-wlm and munge of Debian)");
        table.add(Row::missing("farm.beside.slurm", why));
        return Ok(());
    }
    let folder = folder()?;
    let mut other = Slurm::start(folder.path(), 2)?;
    let theirs = (other.through(few)?, firsts(&mut other, folder.path())?);
    drop(other);
    let ours = ours(folder.path(), Plan::new("two", 2), few)?;
    let note = format!("{few} times `true` on 2 slots; ours in jails");
    let pairs = [(ours.0.rate, theirs.0)];
    table.add(Row::ratio("farm.beside.slurm.rate", "/s", &pairs).at_least(1.0).note(note));
    let pairs: Vec<_> = ours.1.into_iter().zip(theirs.1).collect();
    let note = "from the submission until the first process runs, both idle";
    table.add(Row::ratio("farm.beside.slurm.first", "ms", &pairs).at_most(1.0).note(note));
    let theirs = Slurm::start(folder.path(), 64)?.through(some)?;
    let ours = rate(folder.path(), Plan::new("many", 64), some)?;
    let note = format!("{some} times `true` on 64 slots of this machine; ours in jails");
    let pairs = [(ours.rate, theirs)];
    table.add(Row::ratio("farm.beside.slurm.64-slots", "/s", &pairs).at_least(1.0).note(note));
    Ok(())
}

fn hyperqueue(table: &mut Table, some: u64, many: u64) -> Result<()> {
    let Some(python) = hyperqueue::python() else {
        let why = format!("{} names no Python that has hyperqueue of PyPI", hyperqueue::PYTHON);
        table.add(Row::missing("farm.beside.hyperqueue", why));
        return Ok(());
    };
    let folder = folder()?;
    let mut other = HyperQueue::start(&python, folder.path(), 2)?;
    let theirs = (other.through(many)?, firsts(&mut other, folder.path())?);
    drop(other);
    let jailed = ours(folder.path(), Plan::new("jailed", 2), some)?;
    let plain = rate(folder.path(), Plan::new("plain", 2).instead(PROCESS), many)?;
    let note =
        format!("`true` on 2 slots; ours {some} in jails and durable, theirs {many} without");
    let pairs = [(jailed.0.rate, theirs.0)];
    table.add(Row::ratio("farm.beside.hyperqueue.jail", "/s", &pairs).note(note));
    let note = format!("{many} times `true` on 2 slots, without jails; ours durable");
    let pairs = [(plain.rate, theirs.0)];
    table.add(Row::ratio("farm.beside.hyperqueue.process", "/s", &pairs).note(note));
    let pairs: Vec<_> = jailed.1.into_iter().zip(theirs.1).collect();
    let note = "from the submission until the first process runs, both idle; ours in a jail";
    table.add(Row::ratio("farm.beside.hyperqueue.first", "ms", &pairs).note(note));
    Ok(())
}

/// Our own pace, and how soon the first process of each of some jobs runs.
fn ours(folder: &Path, plan: Plan, tasks: u64) -> Result<(Pace, Vec<f64>)> {
    let mut site = Site::init(folder, plan)?;
    site.start()?;
    through(&site, folder, 4)?;
    let pace = through(&site, folder, tasks)?;
    let quick = folder.join("quick");
    let times = first_process(&site, (&quick, &[]), SUBMISSIONS, || Ok(()))?;
    site.stop()?;
    Ok((pace, times))
}

fn rate(folder: &Path, plan: Plan, tasks: u64) -> Result<Pace> {
    let mut site = Site::init(folder, plan)?;
    site.start()?;
    through(&site, folder, 4)?;
    let pace = through(&site, folder, tasks)?;
    site.stop()?;
    Ok(pace)
}

fn firsts(other: &mut dyn Other, folder: &Path) -> Result<Vec<f64>> {
    let files = (0..SUBMISSIONS).map(|n| folder.join(format!("first-{n}")));
    files.map(|file| other.first(&file)).collect()
}

/// Waits until a task has noted in a file when it ran; returns the milliseconds since `began`.
fn noted(file: &Path, began: SystemTime) -> Result<f64> {
    let waited = Instant::now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(moment) = text.strip_suffix('\n') {
            let began = began.duration_since(UNIX_EPOCH)?.as_secs_f64();
            return Ok(1000.0 * (moment.parse::<f64>()? - began));
        }
        ensure!(waited.elapsed() < MOST, "after {MOST:?} no task has run");
        thread::sleep(Duration::from_millis(5));
    }
}
