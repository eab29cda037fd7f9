//! A lender that is killed in the middle of a transfer: what is sent again, and how soon bytes flow again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::files::Tree;
use super::job::{self, LYON, OSLO, Pair};
use crate::sites::Site;
use crate::table::{Row, Table};

/// How often the borrower's figures are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The longest that half of the transfer may take.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let mut pair = Pair::start()?;
    let tree = Tree::shot(pair.folder().join("shot"), 600, table.scale())?;
    let bytes = tree.amount()?.bytes as f64;
    pair.mesh.wait_idle()?;
    let output = job::new_output(pair.folder())?;
    let id = job::submit(&pair.mesh[OSLO], &tree, &output)?;
    wait("half of the content has travelled", || Ok(sent(&pair.mesh[OSLO])? > bytes / 2.0))?;
    pair.mesh[LYON].kill()?;
    wait("the borrower has seen it go", || Ok(!connected(&pair.mesh[OSLO])?))?;
    let before = sent(&pair.mesh[OSLO])?;
    let restarted = Instant::now();
    pair.mesh[LYON].start()?;
    wait("the lender is connected again", || connected(&pair.mesh[OSLO]))?;
    let connected = Instant::now();
    wait("bytes flow again", || Ok(sent(&pair.mesh[OSLO])? > before))?;
    let silent = connected.elapsed().as_secs_f64();
    let since_start = restarted.elapsed().as_secs_f64();
    pair.mesh[OSLO].run(&["--quiet", "watch", &id])?;
    job::expect(&tree, &output)?;
    let again = (sent(&pair.mesh[OSLO])? - bytes).max(0.0);
    let row = Row::alone("content.resume.again", again / f64::from(1 << 20), "MiB").at_most(128.0);
    table.add(row.note(format!(
        "of {:.0} MiB, killed after {:.0}; what was in flight counts too",
        bytes / f64::from(1 << 20),
        before / f64::from(1 << 20)
    )));
    let row = Row::alone("content.resume.first", silent, "s").at_most(1.0);
    table.add(row.note(format!("{since_start:.2} s from starting the lender's process")));
    Ok(())
}

/// Bytes that a site has sent to all others.
fn sent(site: &Site) -> Result<f64> {
    let transfers = site.api("/v1/transfers")?;
    let sites = transfers["sites"].as_array().into_iter().flatten();
    Ok(sites.filter_map(|site| site["sent"].as_f64()).sum())
}

fn connected(site: &Site) -> Result<bool> {
    let sites: Value = site.api("/v1/sites")?;
    let mut others = sites.as_array().into_iter().flatten().filter(|site| site["own"] == false);
    Ok(others.all(|site| site["connected"] == true))
}

fn wait(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < end, "after {PATIENCE:?} still not so: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
