//! What a lender says to find out which chunks of a large job it must ask for, when it has nearly all of them.

use anyhow::Result;
use serde_json::Value;

use super::files::Tree;
use super::job::{self, LYON, OSLO};
use super::networks::{Bridged, is_root};
use crate::sites::{Mesh, Plan, Site, folder};
use crate::table::{Row, Table};

const NAME: &str = "content.negotiation.asked";
const TRIPS: &str = "content.negotiation.trips";

/// Each small file is a chunk of its own.
const CHUNKS: u64 = 100_000;
const CHUNK: usize = 2048;

/// One in a hundred is missing.
const MISSING: usize = 100;

/// Ethernet, IPv4, and TCP with the time in its options: what a frame has besides what TCP carries.
const HEADERS: f64 = 14.0 + 20.0 + 32.0;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    if !is_root() {
        table.add(Row::missing(NAME, "links are counted by root only").at_most(20.0));
        return Ok(());
    }
    let outside = folder()?;
    let bridged = Bridged::of(outside.path(), 2)?;
    let plans = [("oslo", 0), ("lyon", 1)].into_iter().zip(&bridged.ends).enumerate();
    let plans = plans.map(|(i, ((name, slots), end))| {
        Plan::new(name, slots).within(end.enter(), &Bridged::address(i))
    });
    let mesh = Mesh::planned(plans.collect())?;
    let n_chunks = table.scale().of(CHUNKS);
    let mut tree = Tree::small(outside.path().join("shot"), 500, (n_chunks, CHUNK))?;
    bring(&mesh, &tree)?;
    tree.change_small((n_chunks, CHUNK), MISSING)?;
    mesh.wait_idle()?;
    let sent = |site: usize| bridged.ends[site].sent("eth0");
    let (asked, answered, counted) = (sent(LYON)?, sent(OSLO)?, requests(&mesh[LYON])?);
    let began = job::now()?;
    let seen = bring(&mesh, &tree)?;
    let (asked_now, answered_now) = (sent(LYON)?, sent(OSLO)?);
    let said = asked_now.bytes - asked.bytes - HEADERS * (asked_now.frames - asked.frames);
    let came = (answered_now.bytes - answered.bytes) / 1e3;
    let own = requests(&mesh[LYON])?.zip(counted);
    let row = |kilobytes| Row::alone(NAME, kilobytes, "kB").at_most(20.0);
    table.add(match own {
        Some((now, before)) => row((now.bytes - before.bytes) / 1e3).note(format!(
            "by the node's own figures; all that it said within TCP is {:.1} kB, {came:.0} kB came",
            said / 1e3
        )),
        None => row(said / 1e3).note(format!(
            "all that the lender said within TCP from submission to the end of the job; {came:.0} kB came"
        )),
    });
    table.add(match own {
        Some((now, before)) => Row::alone(TRIPS, now.trips - before.trips, "").at_most(1.0),
        None => Row::missing(TRIPS, "the node does not count them").at_most(1.0),
    });
    table.add(Row::alone("content.negotiation.time", seen - began, "s"));
    Ok(())
}

/// What a site has asked others for chunks with.
#[derive(Clone, Copy, Debug)]
struct Requests {
    bytes: f64,
    /// Times that it had to wait for an answer before it could ask on.
    trips: f64,
}

/// By the node's own figures, where it has such.
fn requests(site: &Site) -> Result<Option<Requests>> {
    let transfers: Value = site.api("/v1/transfers")?;
    let sum = |key: &str| {
        let sites = transfers["sites"].as_array().into_iter().flatten();
        sites.map(|site| site[key].as_f64()).sum::<Option<f64>>()
    };
    Ok(sum("asked").zip(sum("trips")).map(|(bytes, trips)| Requests { bytes, trips }))
}

/// Brings a tree to the other site; returns when a task has seen it.
fn bring(mesh: &Mesh, tree: &Tree) -> Result<f64> {
    let output = job::new_output(mesh.folder())?;
    let id = job::submit(&mesh[OSLO], tree, &output)?;
    mesh[OSLO].run(&["--quiet", "watch", &id])?;
    job::expect(tree, &output)?;
    job::seen(&output)
}
