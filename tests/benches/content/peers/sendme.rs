//! sendme: its own commands on both ends, direct addresses in the ticket, no relay. It is started only in a network of our own,
//! because it may look for others on the internet whatever its flags say.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Peer, Place, remove};
use crate::content::processes::{self, Running};

/// Names the program, where it is not the one that `tests/bench.sh` builds.
const PROGRAM: &str = "MESHFARM_SENDME";

/// How often we look for the ticket.
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Sendme<'a> {
    place: Place<'a>,
    program: PathBuf,
}

impl<'a> Sendme<'a> {
    pub(crate) fn find(place: Place<'a>) -> Result<Self> {
        ensure!(place.network.is_some(), "it is started only in a network of our own");
        let named = std::env::var_os(PROGRAM).map(PathBuf::from);
        let program = named.or_else(built).context("there is no home folder to look in")?;
        ensure!(program.exists(), "{} is missing: tests/bench.sh builds it", program.display());
        Ok(Self { place, program })
    }

    /// Sends until it is dropped; returns what to ask it with.
    fn send(&self, from: &Path, patience: Duration) -> Result<(Running, String)> {
        let at = self.place.folder.join("sendme-send");
        remove(&at)?;
        fs::create_dir_all(&at)?;
        let said = at.join("said");
        let mut command = self.place.command(&self.program);
        command.current_dir(&at).arg("send").arg(from).args(["--ticket-type", "addresses"]);
        command.args(FLAGS);
        let began = Instant::now();
        let sender = Running::start(command, &said)?;
        loop {
            let text = fs::read_to_string(said.with_extension("out"))?;
            let ticket = text.lines().find_map(|line| line.strip_prefix("sendme receive "));
            // Without the end of its line it may be the beginning of a ticket.
            if let Some(ticket) = ticket.filter(|_| text.ends_with('\n')) {
                return Ok((sender, ticket.trim().to_owned()));
            }
            let why = fs::read_to_string(said.with_extension("err")).unwrap_or_default();
            ensure!(began.elapsed() < patience, "it made no ticket in {patience:?}: {why}");
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

const FLAGS: [&str; 3] = ["--relay", "disabled", "--no-progress"];

/// Where `tests/bench.sh` builds it.
fn built() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    Some(cache.join("meshfarm/peers/bin/sendme"))
}

impl Peer for Sendme<'_> {
    fn name(&self) -> &'static str {
        "sendme"
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }

    fn bring(&mut self, from: &Path, to: &Path, patience: Duration) -> Result<Duration> {
        // It does not write over what is there, and remembers nothing that it has received.
        remove(to)?;
        let into = to.parent().context("a folder lies in another")?;
        let began = Instant::now();
        let (sender, ticket) = self.send(from, patience)?;
        let mut command = self.place.command(&self.program);
        command.current_dir(into).arg("receive").arg(ticket).args(FLAGS);
        processes::run(command, &self.place.folder.join("sendme-receive"), patience)?;
        let took = began.elapsed();
        // Ended and waited for, its processor time is among that of our children.
        sender.stop()?;
        Ok(took)
    }
}
