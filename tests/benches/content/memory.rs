//! What two nodes hold in memory while they move more than fits there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::files::Tree;
use super::job::{LYON, OSLO, Pair};
use super::processes;
use crate::table::{Row, Table};

/// Names how much is moved, in GiB.
const SIZE: &str = "MESHFARM_BENCH_MEMORY_GIB";
const DEFAULT: u64 = 20;

const GIB: u64 = 1 << 30;

/// The file itself, both stores, and the lender's files for its task.
const COPIES: u64 = 4;

/// What a node wants to be left free, and everything else on this disk.
const SPARE: u64 = 4 << 30;

/// Memory that is flat does not grow by more than a quarter from the first half of the time to the second.
const GROWTH: f64 = 1.25;

const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let bytes = table.scale().of(size()? * GIB);
    let pair = Pair::start()?;
    let (free, needed) = (free(&pair)?, bytes * COPIES + SPARE);
    ensure!(
        free > needed,
        "{COPIES} copies need {} GiB of disk, {} GiB are free: set {SIZE} to less",
        needed / GIB,
        free / GIB
    );
    let mut tree = Tree::new(pair.folder().join("shot"), 400)?;
    let n_files = bytes.div_ceil(GIB);
    for i in 0..n_files {
        tree.noise(&format!("volume.{i}.vdb"), bytes / n_files)?;
    }
    let nodes = [pair.mesh[OSLO].pid()?, pair.mesh[LYON].pid()?];
    let done = AtomicBool::new(false);
    let (sent, seen) = thread::scope(|scope| {
        let watched = scope.spawn(|| watch(nodes, &done));
        let sent = pair.bring(&tree);
        done.store(true, Ordering::Relaxed);
        (sent, watched.join())
    });
    let sent = sent?;
    let seen = seen.ok().context("watching panicked")??;
    // Less than that proves nothing.
    let wanted = |row: Row, most| if bytes < DEFAULT * GIB { row } else { row.at_most(most) };
    for (i, name) in ["borrower", "lender"].into_iter().enumerate() {
        let peak = processes::memory(nodes[i], "VmHWM")?;
        let row = Row::alone(format!("content.memory.{name}"), peak, "MB");
        table.add(wanted(row, 300.0).note(format!("while {:.1} GB move", bytes as f64 / 1e9)));
        let (first, second) = halves(&seen, i);
        let row = Row::alone(format!("content.memory.{name}.growth"), second / first, "x");
        table.add(wanted(row, GROWTH).note(format!(
            "{first:.0} MB at most in the first half, {second:.0} MB in the second"
        )));
    }
    let amount = tree.amount()?;
    table.add(Row::alone("content.memory.rate", amount.mega() / sent.brought.seconds, "MB/s"));
    Ok(())
}

fn size() -> Result<u64> {
    let Ok(text) = std::env::var(SIZE) else {
        return Ok(DEFAULT);
    };
    let gib = text.parse().ok().filter(|gib| (1..=1000).contains(gib));
    gib.with_context(|| format!("{SIZE} is {text}: a whole number of GiB is wanted"))
}

fn free(pair: &Pair) -> Result<u64> {
    let output = std::process::Command::new("df")
        .args(["--output=avail", "-B1"])
        .arg(pair.folder())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().nth(1).context("df prints a number")?.trim().parse()?)
}

/// Resident memory of both nodes again and again.
fn watch(nodes: [u32; 2], done: &AtomicBool) -> Result<Vec<[f64; 2]>> {
    let mut seen = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let [borrower, lender] = nodes.map(|pid| processes::memory(pid, "VmRSS"));
        seen.push([borrower?, lender?]);
        thread::sleep(LOOK_EVERY);
    }
    Ok(seen)
}

/// The most that a node held in each half of the time.
fn halves(seen: &[[f64; 2]], node: usize) -> (f64, f64) {
    let most = |part: &[[f64; 2]]| part.iter().map(|held| held[node]).fold(0.0, f64::max);
    let (first, second) = seen.split_at(seen.len() / 2);
    (most(first), most(second))
}
