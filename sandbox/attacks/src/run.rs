//! Running attacks or their controls, a few at once, each judged from outside.

use std::{
    fs, io,
    net::TcpStream,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use meshfarm_sandbox::Level;

use crate::{
    acting::Acting,
    attack::{Attack, Control, Layer, Prepare},
    observe::{Process, excesses, members},
    table::attacks,
    taken,
    yard::Yard,
};

/// The programs that attack and that are attacked.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `meshfarm-sandbox`.
    pub launcher: PathBuf,
    /// `meshfarm-attacker`.
    pub attacker: PathBuf,
    /// The same, linked statically; attacks with [`Linkage::Static`] need it.
    pub static_attacker: Option<PathBuf>,
    /// `meshfarm-sandbox-weakened`; controls need it.
    pub weakened: Option<PathBuf>,
    /// The preload library; attacks on Windows paths need it.
    pub preload: Option<PathBuf>,
}

/// How the attacker is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    /// With the system's libraries, calling through them.
    Dynamic,
    /// With nothing, calling the kernel itself.
    Static,
}

/// What is around the attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surroundings {
    /// The jail as it is installed.
    Jail,
    /// What each attack's control says. Needs root.
    Control,
}

/// How attacks are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The lowest level that a jail may have.
    pub floor: Level,
    /// Only attacks whose name contains this.
    pub only: Option<String>,
    /// How the attacker is linked.
    pub linkage: Linkage,
    /// What is around it.
    pub surroundings: Surroundings,
    /// How many attacks run at once.
    pub at_once: u32,
    /// An existing folder for the yards, which every user can reach; best on a disk.
    pub folder: PathBuf,
}

/// What came of one attack.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The attack.
    pub attack: &'static Attack,
    /// What was seen.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What was seen of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: no secret came out, nothing changed, nothing is left.
    Held,
    /// It reached something; each line says what was seen.
    Broke(Vec<String>),
    /// It was not run, and why.
    Skipped(String),
}

/// Run the attacks; `each` hears of every verdict as it comes, and all are returned in the order of the table.
pub fn run(programs: &Programs, options: &Options, mut each: impl FnMut(&Verdict)) -> Vec<Verdict> {
    let wanted = |a: &&Attack| options.only.as_ref().is_none_or(|part| a.name.contains(part));
    let chosen: Vec<&'static Attack> = attacks().iter().filter(wanted).collect();
    let next = AtomicUsize::new(0);
    let (tx, rx) = channel();
    let mut verdicts: Vec<(usize, Verdict)> = Vec::new();
    thread::scope(|scope| {
        for slot in 0..options.at_once.max(1) {
            let (tx, next, chosen) = (tx.clone(), &next, &chosen);
            scope.spawn(move || work(programs, options, slot, chosen, next, &tx));
        }
        drop(tx);
        for (place, verdict) in rx {
            each(&verdict);
            verdicts.push((place, verdict));
        }
    });
    verdicts.sort_by_key(|(place, _)| *place);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Take one attack after the other; a yard that was broken is planted anew.
#[allow(clippy::too_many_arguments, reason = "what a thread is given")]
fn work(
    programs: &Programs,
    options: &Options,
    slot: u32,
    chosen: &[&'static Attack],
    next: &AtomicUsize,
    verdicts: &Sender<(usize, Verdict)>,
) {
    let mut yard = None;
    loop {
        let place = next.fetch_add(1, Ordering::Relaxed);
        let Some(attack) = chosen.get(place) else { return };
        let begun = Instant::now();
        let trial = Trial { programs, options, attack };
        let outcome = match trial.hindrance() {
            Some(why) => Outcome::Skipped(why),
            None => trial.hold(&mut yard, slot).unwrap_or_else(|e| Outcome::Skipped(e.to_string())),
        };
        if outcome != Outcome::Held {
            yard = None;
        }
        let verdict = Verdict { attack, outcome, took: begun.elapsed() };
        if verdicts.send((place, verdict)).is_err() {
            return;
        }
    }
}

/// One attack and everything that it needs.
struct Trial<'a> {
    programs: &'a Programs,
    options: &'a Options,
    attack: &'static Attack,
}

impl Trial<'_> {
    fn is_control(&self) -> bool {
        self.options.surroundings == Surroundings::Control
    }

    /// Why this attack cannot be run here, if it cannot.
    fn hindrance(&self) -> Option<String> {
        let root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
        let prepare = self.attack.prepare;
        if !root && self.is_control() {
            return Some("controls need root".to_owned());
        }
        if !root && matches!(prepare, Prepare::Device | Prepare::SetUserId) {
            return Some("needs root to lay it ready".to_owned());
        }
        if prepare == Prepare::WindowsPaths && self.programs.preload.is_none() {
            return Some("the preload library is not installed".to_owned());
        }
        match self.attack.control {
            Control::Impossible(why) if self.is_control() => Some(why.to_owned()),
            _ => None,
        }
    }

    fn attacker(&self) -> io::Result<&Path> {
        match self.options.linkage {
            Linkage::Dynamic => Ok(&self.programs.attacker),
            Linkage::Static => self
                .programs
                .static_attacker
                .as_deref()
                .ok_or_else(|| io::Error::other("there is no static attacker")),
        }
    }

    /// Furnish the yard, let the attacker act, look, and judge.
    fn hold(&self, kept: &mut Option<Yard>, slot: u32) -> io::Result<Outcome> {
        let mut yard = match kept.take() {
            Some(yard) => yard,
            None => Yard::plant(&self.options.folder, self.attacker()?, slot)?,
        };
        yard.furnish(self.attack.prepare)?;
        let before = yard.facts();
        let mut acting = self.start(&yard)?;
        // Below S2 everything is tried that S2 promises, to see what does not hold there.
        let promised = self.attack.promised;
        let unpromised = acting.level().is_some_and(|level| level < promised);
        if unpromised && promised > Level::S2 && !self.is_control() {
            acting.stop()?;
            *kept = Some(yard);
            return Ok(Outcome::Skipped(format!("promised from level {}", self.attack.promised)));
        }
        let limits = Yard::limits(self.attack.prepare);
        let look = |root| members(root, &yard.mark()).into_iter().filter_map(Process::look);
        let mut evidence = Vec::new();
        if !acting.wait_for(b"ready") {
            acting.end()?;
            let words = String::from_utf8_lossy(&acting.last_words()).into_owned();
            return Err(io::Error::other(format!("the attacker did not start: {words}")));
        }
        let at_first: Vec<Process> = look(acting.root()).collect();
        acting.go();
        acting.wait_for(b"done");
        let at_last: Vec<Process> = look(acting.root()).collect();
        evidence.extend(excesses(&at_first, &at_last, &limits));
        evidence.extend(visitors(&yard));
        acting.end()?;
        let left = members((0, usize::MAX), &yard.mark());
        if !left.is_empty() {
            evidence.push(format!("{} processes are left", left.len()));
        }
        let out = acting.outputs(&yard)?;
        evidence.extend(taken::judge(&yard, &out, self.is_careless(), limits.file_bytes)?);
        drop(out);
        if !left.is_empty() {
            kill_all(&yard)?;
        }
        let said = acting.last_words();
        if yard.is_in(&said) {
            evidence.push("a secret was printed".to_owned());
        }
        let lines = said.split(|b| *b == b'\n').map(String::from_utf8_lossy);
        evidence.extend(lines.filter(|line| line.starts_with("got: ")).map(String::from));
        if said.windows(11).any(|part| part == b"unknown act") {
            return Err(io::Error::other("the attacker does not know this attack"));
        }
        let after = yard.facts();
        for (what, was) in &before {
            match after.get(what) {
                Some(is) if is == was => {}
                is => evidence.push(format!("{what} changed: {was} became {is:?}")),
            }
        }
        let planted = after.keys().filter(|what| !before.contains_key(*what));
        evidence.extend(planted.map(|what| format!("{what} was made")));
        *kept = Some(yard);
        Ok(if evidence.is_empty() { Outcome::Held } else { Outcome::Broke(evidence) })
    }

    /// Whether outputs are taken as a careless node would.
    fn is_careless(&self) -> bool {
        self.is_control()
            && match self.attack.control {
                Control::Without(layers) => layers.contains(&Layer::Collector),
                Control::Unconfined | Control::AsRoot | Control::Impossible(_) => true,
            }
    }

    fn start(&self, yard: &Yard) -> io::Result<Acting> {
        let prepare = self.attack.prepare;
        let name = self.attack.name.to_owned();
        let mut without: &[Layer] = &[];
        if self.is_control() {
            match self.attack.control {
                Control::Without(layers) => without = layers,
                Control::Unconfined | Control::AsRoot | Control::Impossible(_) => {
                    let args: Vec<String> =
                        [name].into_iter().chain(yard.arguments(false)).collect();
                    return Acting::loose(yard, &args, self.attack.control == Control::AsRoot);
                }
            }
        }
        let mut spec = yard.spec(prepare, self.programs.preload.as_deref());
        spec.floor = self.options.floor;
        // Without namespaces the job's folders are where the host has them, and the library finds the artist's paths.
        let walls = self.options.floor >= Level::S2;
        if !walls {
            spec.preload.clone_from(&self.programs.preload);
        }
        spec.args = [name].into_iter().chain(yard.arguments(walls)).collect();
        let leaky = prepare == Prepare::LeakyNode;
        if without.is_empty() && !leaky {
            return Acting::in_jail(&self.programs.launcher, &spec);
        }
        Acting::in_jail(&self.script(yard, without, leaky)?, &spec)
    }

    /// A launcher in a script: with open descriptors that it should not have, or without some layers.
    fn script(&self, yard: &Yard, without: &[Layer], leaky: bool) -> io::Result<PathBuf> {
        let mut text = "#!/bin/sh\n".to_owned();
        if leaky {
            let theirs = yard.path("another-tenant");
            let secret = yard.secret();
            text += &format!("export NODE_SECRET='{secret}'\n");
            text += &format!("exec 7<'{0}' 8<>'{0}/secret.txt'\n", theirs.display());
        }
        let missing = || io::Error::other("there is no weakened launcher");
        let launcher = if without.is_empty() {
            &self.programs.launcher
        } else {
            self.programs.weakened.as_ref().ok_or_else(missing)?
        };
        let layers: Vec<&str> = without.iter().map(|layer| layer.name()).collect();
        text += &format!("exec '{}' {}\n", launcher.display(), layers.join(" "));
        let path = yard.path("launcher");
        // Written by another process: see `Yard::plant`.
        let write = "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"";
        let done = Command::new("sh").args(["-c", write, "sh"]).arg(&path).arg(text).status()?;
        if done.success() { Ok(path) } else { Err(io::Error::other("no script can be written")) }
    }
}

/// Whether the job can be visited from the host where nobody should listen.
fn visitors(yard: &Yard) -> Vec<String> {
    let mut found = Vec::new();
    let patience = Duration::from_millis(500);
    let free = yard.told("free").parse();
    if free.is_ok_and(|address| TcpStream::connect_timeout(&address, patience).is_ok()) {
        found.push("the job serves the host by TCP".to_owned());
    }
    let vacant = SocketAddr::from_abstract_name(yard.told("vacant"));
    if vacant.is_ok_and(|address| UnixStream::connect_addr(&address).is_ok()) {
        found.push("the job serves the host by an abstract name".to_owned());
    }
    found
}

/// End what an attack has left, until nothing is.
fn kill_all(yard: &Yard) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = members((0, usize::MAX), &yard.mark());
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("an attacker cannot be killed"));
        }
        let pids: Vec<String> = left.iter().map(u32::to_string).collect();
        // One that is gone already makes no difference.
        drop(Command::new("kill").arg("-9").args(pids).output()?);
    }
}
