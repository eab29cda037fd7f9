//! A node by itself: how long it takes to start, and what it costs while nothing happens.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sites::{Site, folder};
use crate::table::{Row, Table, percentile};

/// Homes that are started, each twice.
const RUNS: usize = 5;

/// A node that is ready still probes its machine for a moment.
const SETTLE: Duration = Duration::from_secs(3);

/// Over which a node at rest is watched: long enough for its timers to fire.
const REST: Duration = Duration::from_secs(10);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let folder = folder()?;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut last = None;
    for run in 0..RUNS {
        let mut site = Site::init(folder.path(), &format!("site{run}"), 1)?;
        first.push(site.start()?.as_secs_f64());
        site.stop()?;
        second.push(site.start()?.as_secs_f64());
        last = Some(site);
    }
    table.add(Row::alone("node.start.first", percentile(&first, 50), "s").at_most(1.0));
    table.add(Row::alone("node.start.again", percentile(&second, 50), "s").at_most(1.0));
    let site = last.context("there was a run")?;
    thread::sleep(SETTLE);
    rest(table, &[&site], ["node.rest.memory", "node.rest.cpu"])
}

/// Adds rows for the greatest memory and processor use of nodes to which nothing happens.
pub(crate) fn rest(table: &mut Table, sites: &[&Site], names: [&'static str; 2]) -> Result<()> {
    let used = || {
        sites
            .iter()
            .map(|site| cpu_seconds(site))
            .collect::<Result<Vec<_>>>()
    };
    let (before, began) = (used()?, Instant::now());
    thread::sleep(REST);
    let (after, took) = (used()?, began.elapsed().as_secs_f64());
    let percent = before
        .iter()
        .zip(&after)
        .map(|(before, after)| 100.0 * (after - before).max(0.0) / took);
    let memory = sites
        .iter()
        .map(|site| resident_mib(site))
        .collect::<Result<Vec<_>>>()?;
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let [memory_name, cpu_name] = names;
    let memory = most(&mut memory.into_iter());
    table.add(Row::alone(memory_name, memory, "MiB").at_most(50.0));
    let cpu = most(&mut percent.into_iter());
    table.add(Row::alone(cpu_name, cpu, "%").at_most(0.5));
    Ok(())
}

/// Processor time of the node's threads since they were started; its children are not counted.
fn cpu_seconds(site: &Site) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{}/task", site.pid()?))? {
        // A thread may end while we look; the pool of idle ones shrinks.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let first = stat
            .split(' ')
            .next()
            .context("schedstat has three numbers")?;
        nanoseconds += first.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

fn resident_mib(site: &Site) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", site.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .context("a process has a size")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kib / 1024.0)
}
