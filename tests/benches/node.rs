//! A node by itself: how long it takes to start, and what it costs while nothing happens.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sites::{Plan, Site, folder};
use crate::table::{Row, Table, percentile};

/// Homes that are started, each twice.
const RUNS: usize = 5;

/// A node that has just started or worked still tidies up for a moment.
const SETTLE: Duration = Duration::from_secs(3);

/// Over which a node at rest is watched: long enough for its timers to fire.
const REST: Duration = Duration::from_secs(10);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let folder = folder()?;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut last = None;
    for run in 0..RUNS {
        let mut site = Site::init(folder.path(), Plan::new(&format!("site{run}"), 1))?;
        first.push(site.start()?.as_secs_f64());
        site.stop()?;
        second.push(site.start()?.as_secs_f64());
        last = Some(site);
    }
    table.add(Row::alone("node.start.first", percentile(&first, 50), "s").at_most(1.0));
    table.add(Row::alone("node.start.again", percentile(&second, 50), "s").at_most(1.0));
    let site = last.context("there was a run")?;
    rest(table, &[&site], ["node.rest.memory", "node.rest.cpu"])
}

/// Adds rows for the greatest memory and processor use of nodes to which nothing happens.
pub(crate) fn rest(table: &mut Table, sites: &[&Site], names: [&'static str; 2]) -> Result<()> {
    thread::sleep(SETTLE);
    let used = || sites.iter().map(|site| threads(site)).collect::<Result<Vec<_>>>();
    let (before, began) = (used()?, Instant::now());
    thread::sleep(REST);
    let (after, took) = (used()?, began.elapsed().as_secs_f64());
    let mut most = (0.0_f64, 0.0_f64);
    for ((before, after), site) in before.iter().zip(&after).zip(sites) {
        // A thread that has ended in between was an idle one of the pool.
        let since = |(id, now): (&OsString, &f64)| now - before.get(id).unwrap_or(&0.0);
        let seconds: f64 = after.iter().map(since).sum();
        most = (most.0.max(resident_mib(site)?), most.1.max(100.0 * seconds / took));
    }
    let [memory, cpu] = names;
    table.add(Row::alone(memory, most.0, "MiB").at_most(50.0));
    table.add(Row::alone(cpu, most.1, "%").at_most(0.5));
    Ok(())
}

/// Seconds of processor time that each thread of the node has used; its children are not counted.
fn threads(site: &Site) -> Result<HashMap<OsString, f64>> {
    let mut used = HashMap::new();
    for thread in fs::read_dir(format!("/proc/{}/task", site.pid()?))? {
        let thread = thread?;
        // It may end while we look.
        let Ok(stat) = fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        let first = stat.split(' ').next().context("schedstat has three numbers")?;
        used.insert(thread.file_name(), first.parse::<f64>()? / 1e9);
    }
    Ok(used)
}

/// Seconds of processor time that the node has used; of threads that have ended too, of children not.
pub(crate) fn used(site: &Site) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", site.pid()?))?;
    // The name of the program may have spaces.
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 / 100.0)
}

fn resident_mib(site: &Site) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", site.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.context("a process has a size")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
