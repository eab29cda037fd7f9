//! Rendering three frames of a job that is done again: the lender has its content still.

use std::fs;

use anyhow::{Context, Result};

use super::files::Tree;
use super::job::{self, OSLO, Pair};
use crate::table::{Row, Table};

/// Bytes of the one texture of the job.
const BYTES: u64 = 512_000_000;

const FRAMES: &str = "1-6";

/// The frames that are rendered again, by the number of their task.
const AGAIN: &str = "1,2,4";

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let pair = Pair::start()?;
    let oslo = &pair.mesh[OSLO];
    let mut tree = Tree::new(pair.folder().join("shot"), 200)?;
    tree.noise("texture.exr", table.scale().of(BYTES))?;
    let amount = tree.amount()?;
    let output = job::new_output(pair.folder())?;
    let text =
        |path: &std::path::Path| path.to_str().map(str::to_owned).context("our paths are ASCII");
    let (input, out) = (text(&tree.folder)?, text(&output)?);
    // A frame is made of what the texture says, and when.
    let command =
        format!("Command=(tail -c 4096 {input}/texture.exr; date +%N) | cksum > {{frame4}}.txt");
    let flags = ["--frames", FRAMES, "-p", &command, "--input", &input, "--output", &out];
    let id = oslo.run(&[&["--quiet", "submit", "bundle:command"][..], &flags].concat())?;
    let id = id.trim();
    oslo.run(&["--quiet", "watch", id])?;
    let frames = || -> Result<Vec<String>> {
        let names = (1..=6).map(|frame| output.join(format!("{frame:04}.txt")));
        names.map(|name| Ok(fs::read_to_string(name)?)).collect()
    };
    let before = frames()?;
    pair.mesh.wait_idle()?;
    let wire = || pair.network.as_ref().map(|network| network.sent("lo")).transpose();
    let (was, moved) = (wire()?, job::moved(oslo)?);
    oslo.run(&["--quiet", "retry", id, "--tasks", AGAIN])?;
    oslo.run(&["--quiet", "watch", id])?;
    let api = job::moved(oslo)? - moved;
    let bytes = wire()?.zip(was).map_or(api, |(now, was)| now.bytes - was.bytes);
    let changed = frames()?.iter().zip(&before).filter(|(now, was)| now != was).count();
    anyhow::ensure!(changed == 3, "{changed} frames are new, not the three that were asked for");
    let share = 100.0 * bytes / amount.bytes as f64;
    let row = Row::alone("content.rerender.bytes", share, "%").at_most(1.0);
    table.add(row.note(format!(
        "{:.1} kB, {:.1} kB by the node's own figures",
        bytes / 1e3,
        api / 1e3
    )));
    Ok(())
}
