//! Other programs that bring the same files from one folder to another over the same loopback, each set up as its own
//! documentation advises.

mod copy;
mod rsync;
mod sendme;
mod syncthing;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::files::{self, Amount};
use super::networks::Network;
use super::processes::Processors;

pub(crate) use copy::Copy;
pub(crate) use rsync::{Daemon, Known, Shell};
pub(crate) use sendme::Sendme;
pub(crate) use syncthing::Syncthing;

/// A slower peer than this is taken for one that hangs, in bytes a second.
const SLOWEST: u64 = 20_000_000;

/// The least patience with a peer: it starts, connects and looks at its files.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a peer runs, and where it may put its own files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// None: the network of this machine, where peers that look for others on the internet are not started.
    pub(crate) network: Option<&'a Network>,
    pub(crate) folder: &'a Path,
}

impl Place<'_> {
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self.network {
            Some(network) => network.command(program),
            None => Command::new(program),
        }
    }
}

/// A program that brings files from one folder to another.
pub(crate) trait Peer {
    /// What its rows are called.
    fn name(&self) -> &'static str;
    /// Its processes that were started before anything was measured.
    fn servers(&self) -> Vec<u32>;
    /// Make `to` what `from` is, both of the same name; returns the time from asking for it until the files are there.
    fn bring(&mut self, from: &Path, to: &Path, patience: Duration) -> Result<Duration>;
}

/// What bringing files has cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    /// Seconds until the files are there for a process to read.
    pub(crate) seconds: f64,
    /// Seconds until the disk has them too.
    pub(crate) durable: f64,
    /// Processor seconds of both ends.
    pub(crate) processors: f64,
    /// Bytes that passed the loopback, headers and acknowledgements too. None without a network of our own.
    pub(crate) wire: Option<f64>,
}

/// Lets a peer bring files, counts what it costs, and checks that they came.
pub(crate) fn bring(
    peer: &mut dyn Peer,
    place: Place<'_>,
    (from, to): (&Path, &Path),
    amount: Amount,
) -> Result<Brought> {
    let name = peer.name();
    files::flush(place.folder)?;
    let patience = PATIENCE + Duration::from_secs(amount.bytes / SLOWEST);
    let wire = || place.network.map(|network| network.sent("lo")).transpose();
    let before = wire()?;
    let processors = Processors::watch(peer.servers())?;
    let took = peer.bring(from, to, patience).with_context(|| name.to_owned())?;
    let began = std::time::Instant::now();
    files::flush(to)?;
    let durable = took + began.elapsed();
    let brought = Brought {
        seconds: took.as_secs_f64(),
        durable: durable.as_secs_f64(),
        processors: processors.seconds()?,
        wire: wire()?.zip(before).map(|(after, before)| after.bytes - before.bytes),
    };
    ensure!(files::same(from, to)?, "{name} brought other files than it was given");
    Ok(brought)
}

/// Whether a program can be started.
fn is_there(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin"].map(Into::into);
    std::env::split_paths(&folders).chain(usual).any(|folder| folder.join(program).exists())
}

/// The whole path of a program that is started by it.
fn path_of(program: &str, package: &str) -> Result<std::path::PathBuf> {
    ensure!(is_there(program), "{program} is missing: apt-get install {package}");
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin"].map(Into::into);
    let mut paths = std::env::split_paths(&folders).chain(usual).map(|folder| folder.join(program));
    paths.find(|path| path.exists()).context("it was there a moment ago")
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
