//! Three lenders that need the same content, each behind a link of the same rate.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::files::Tree;
use super::job;
use super::networks::{Bridged, is_root};
use crate::sites::{Mesh, Plan, Site, folder};
use crate::table::{Row, Table};

const NAME: &str = "content.receivers";

/// Of every link in each direction, in bits a second: that of a good line of a studio, and little enough for two cores.
const RATE: f64 = 400e6;

const BYTES: u64 = 512_000_000;

const LENDERS: [&str; 3] = ["lyon", "kyoto", "quito"];

/// Tasks for each lender: with as many tasks as slots one lender may be given two.
const TASKS: usize = 3;

/// What a task says when it has seen its files, before the time.
const SEEN: &str = "seen-at ";

/// The whole takes this many times as long as the submitter's link needs for all three, or it hangs.
const PATIENCE: f64 = 5.0;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    if !is_root() {
        table.add(Row::missing(NAME, "links are shaped by root only").at_least(2.0));
        return Ok(());
    }
    let outside = folder()?;
    let bridged = Bridged::of(outside.path(), 1 + LENDERS.len())?;
    if let Err(why) = bridged.shape(RATE) {
        table.add(Row::missing(NAME, format!("{why:#}")).at_least(2.0));
        return Ok(());
    }
    let plans = ["oslo"].into_iter().chain(LENDERS).zip(&bridged.ends).enumerate();
    let plans = plans.map(|(i, (name, end))| {
        Plan::new(name, u32::from(i > 0)).within(end.enter(), &Bridged::address(i))
    });
    let mesh = Mesh::planned(plans.collect())?;
    let mut tree = Tree::new(outside.path().join("shot"), 300)?;
    tree.noise("texture.exr", table.scale().of(BYTES))?;
    let bytes = tree.amount()?.bytes as f64;
    let before = bridged.ends[0].sent("eth0")?;
    let floor = bytes * LENDERS.len() as f64 * 8.0 / RATE;
    let took = until_all_have_it(&mesh, &tree, Duration::from_secs_f64(30.0 + floor * PATIENCE))?;
    let sent = bridged.ends[0].sent("eth0")?.bytes - before.bytes;
    let rate = |seconds: f64| bytes * LENDERS.len() as f64 / 1e6 / seconds;
    let row = Row::ratio(format!("{NAME}.one-source-floor"), "MB/s", &[(rate(took), rate(floor))]);
    table.add(row.at_least(2.0).note(format!(
        "{took:.1} s; one source needs {floor:.1} s for the bytes alone; the submitter sent {:.2} copies",
        sent / bytes
    )));
    Ok(())
}

/// Seconds until a process at each lender has the files.
fn until_all_have_it(mesh: &Mesh, tree: &Tree, patience: Duration) -> Result<f64> {
    let oslo = &mesh[0];
    let output = job::new_output(mesh.folder())?;
    let text =
        |path: &std::path::Path| path.to_str().map(str::to_owned).context("our paths are ASCII");
    let (input, out) = (text(&tree.folder)?, text(&output)?);
    // It holds its slot until all have said so: no lender gets two of them.
    let command = format!("Command=test -s {input}/texture.exr; date +'{SEEN}%s.%N'; sleep 3600");
    let frames = format!("1-{}", TASKS * LENDERS.len());
    let flags = ["--frames", &frames, "-p", &command, "--input", &input, "--output", &out];
    let began = job::now()?;
    let clock = Instant::now();
    let id = oslo.run(&[&["--quiet", "submit", "bundle:command"][..], &flags].concat())?;
    let times = loop {
        let times = said(oslo, id.trim())?;
        if times.len() == LENDERS.len() {
            break times;
        }
        if clock.elapsed() > patience {
            let job = oslo.run(&["job", id.trim()])?;
            bail!("after {patience:?} {} of the lenders have the files:\n{job}", times.len());
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    oslo.run(&["--quiet", "cancel", id.trim()])?;
    let last = times.into_iter().fold(0.0, f64::max);
    ensure!(last > began, "a task has seen its files before it was submitted");
    Ok(last - began)
}

/// When tasks have seen their files, by their logs.
fn said(oslo: &Site, id: &str) -> Result<Vec<f64>> {
    let log = oslo.run(&["logs", id])?;
    let lines = log.lines().filter_map(|line| line.split_once(SEEN));
    Ok(lines.filter_map(|(_, time)| time.trim().parse().ok()).collect())
}
