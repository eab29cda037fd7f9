//! Two sites in a network of their own, and jobs that bring files from one to the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::files::{Amount, Tree};
use super::networks::Network;
use super::peers::{Brought, Place};
use super::processes::Processors;
use crate::sites::{Mesh, Plan, Site, folder};

/// The borrower and the lender of a pair.
pub(crate) const OSLO: usize = 0;
pub(crate) const LYON: usize = 1;

/// A borrower without slots and a lender with one, on the same machine.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) mesh: Mesh,
    pub(crate) network: Option<Network>,
    /// For files and peers. After the network: its process has files there.
    folder: TempDir,
}

impl Pair {
    pub(crate) fn start() -> Result<Self> {
        let folder = folder()?;
        let network = match Network::alone(folder.path()) {
            Ok(network) => Some(network),
            Err(why) => {
                eprintln!("without a network of our own: {why:#}");
                None
            }
        };
        let within = network.as_ref().map(Network::enter).unwrap_or_default();
        let plan = |name, slots, address| {
            let plan = Plan::new(name, slots);
            if within.is_empty() { plan } else { plan.within(within.clone(), address) }
        };
        let plans = vec![plan("oslo", 0, "127.0.0.1"), plan("lyon", 1, "127.0.0.2")];
        Ok(Self { mesh: Mesh::planned(plans)?, network, folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place { network: self.network.as_ref(), folder: self.folder.path() }
    }

    /// Brings the files of a tree to the other site.
    pub(crate) fn bring(&self, tree: &Tree) -> Result<Sent> {
        self.mesh.wait_idle()?;
        super::files::flush(self.folder())?;
        let output = new_output(self.folder())?;
        let wire = || self.network.as_ref().map(|network| network.sent("lo")).transpose();
        let (before, moved) = (wire()?, moved(&self.mesh[OSLO])?);
        let servers = vec![self.mesh[OSLO].pid()?, self.mesh[LYON].pid()?];
        let processors = Processors::watch(servers)?;
        let began = now()?;
        let job = submit(&self.mesh[OSLO], tree, &output)?;
        self.mesh[OSLO].run(&["--quiet", "watch", &job])?;
        let used = processors.seconds()?;
        let whole = moment(&output, WHOLE)? - began;
        let seen = seen(&output)? - began;
        expect(tree, &output)?;
        let api = self::moved(&self.mesh[OSLO])? - moved;
        let brought = Brought {
            seconds: seen,
            // The lender makes chunks durable before it starts anything.
            durable: seen,
            processors: used,
            wire: wire()?.zip(before).map(|(after, before)| after.bytes - before.bytes),
        };
        Ok(Sent { brought, whole, api })
    }
}

/// What a job of ours has cost.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) brought: Brought,
    /// Seconds until the task had read the end of every file.
    pub(crate) whole: f64,
    /// Bytes between the two by the figures of the borrower's node.
    pub(crate) api: f64,
}

impl Sent {
    /// Bytes that travelled: by the network where it is ours, else by the node's own figures.
    pub(crate) fn travelled(&self) -> f64 {
        self.brought.wire.unwrap_or(self.api)
    }

    /// What the node says of the bytes, for a reader who wonders.
    pub(crate) fn by_whom(&self) -> String {
        let own = format!("{:.1} MB by the node's own figures", self.api / 1e6);
        match self.brought.wire {
            Some(wire) => format!("{own}, {:.1} MB in the network", wire / 1e6),
            None => own,
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("our paths are ASCII")
}

/// A new folder for what a job writes.
pub(crate) fn new_output(folder: &Path) -> Result<PathBuf> {
    let made = tempfile::Builder::new().prefix("out").tempdir_in(folder)?;
    // The whole folder goes in the end.
    Ok(made.keep())
}

/// The lines of what a task says in which a time stands: when it had seen all files, and when it had read the end of each.
const SEEN: usize = 1;
const WHOLE: usize = 3;

/// What a task says of the files that it sees: how many, how many bytes, when it had seen them, a sum of the end of each,
/// and when it had that.
fn look(files: &Path) -> Result<String> {
    let files = utf8(files)?;
    let count = r#"awk '{n++; s+=$1} END {printf "%d %.0f\n", n, s}'"#;
    let ends = "LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 tail -q -c 4096 | cksum";
    Ok(format!(
        "find {files} -type f -printf '%s\\n' | {count} > seen; date +%s.%N >> seen; find {files} -type f | {ends} >> seen; date +%s.%N >> seen"
    ))
}

/// Submits a job of one task that looks at all files of a tree; returns its id.
pub(crate) fn submit(site: &Site, tree: &Tree, output: &Path) -> Result<String> {
    let command = format!("Command={}", look(&tree.folder)?);
    let (files, output) = (utf8(&tree.folder)?, utf8(output)?);
    let flags = ["-p", &command, "--input", files, "--output", output];
    let job = site.run(&[&["--quiet", "submit", "bundle:command"][..], &flags].concat())?;
    Ok(job.trim().to_owned())
}

/// When the task of a job that is done had seen its files, in seconds since 1970.
pub(crate) fn seen(output: &Path) -> Result<f64> {
    moment(output, SEEN)
}

fn moment(output: &Path, line: usize) -> Result<f64> {
    let said = fs::read_to_string(output.join("seen"))?;
    Ok(said.lines().nth(line).context("a task says when it has seen its files")?.parse()?)
}

/// Checks that the task of a job has seen the files of a tree and no other.
pub(crate) fn expect(tree: &Tree, output: &Path) -> Result<()> {
    let mine = new_output(output.parent().context("a folder lies in another")?)?;
    let status =
        Command::new("sh").args(["-ec", &look(&tree.folder)?]).current_dir(&mine).status()?;
    ensure!(status.success(), "looking at our own files ended with {status}");
    let without_time = |folder: &Path| -> Result<Vec<String>> {
        let said = fs::read_to_string(folder.join("seen"))?;
        Ok(said
            .lines()
            .enumerate()
            .filter(|(i, _)| ![SEEN, WHOLE].contains(i))
            .map(|(_, line)| line.to_owned())
            .collect())
    };
    let (theirs, ours) = (without_time(output)?, without_time(&mine)?);
    ensure!(theirs == ours, "the task saw other files: {theirs:?} instead of {ours:?}");
    Ok(())
}

/// Bytes between a site and all others, both ways, by its own figures.
pub(crate) fn moved(site: &Site) -> Result<f64> {
    let transfers = site.api("/v1/transfers")?;
    let sites = transfers["sites"].as_array().context("transfers are listed by site")?;
    Ok(sites.iter().map(|site| number(&site["sent"]) + number(&site["received"])).sum())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// The rate of an amount in megabytes a second.
pub(crate) fn rate(amount: Amount, seconds: f64) -> f64 {
    amount.mega() / seconds
}
