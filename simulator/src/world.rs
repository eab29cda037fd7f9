//! All sites, the heap of events and the virtual clock: one event after the other until all is done.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use meshfarm_core::opening::Opening;
use meshfarm_core::{Ask, Config, Input, JobPhase, Key, Pricing, Record, Request, Site, TaskRef};
use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, MeshId, Millis, SiteId, StepNo, hex};
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{Level, Profile};
use meshfarm_protocol::seal::{SealingKey, content_hash};

use crate::driver::{Laid, Running};
use crate::fault::{self, Fault};
use crate::link::Links;
use crate::oracle::Oracle;
use crate::report::{Report, Verdict};
use crate::scenario::{JobsEnd, Scenario, SiteEntry};
use crate::streams::Streams;
use crate::workload;

/// How long after the last job has ended nothing may be left of any lease: a lender's grace and a bit.
const DRAIN: Millis = Millis::seconds(120);

/// How long a cut line goes unnoticed at most, in milliseconds.
const NOTICE: u64 = 20_000;

/// How long a member that is back needs to connect, in milliseconds.
const CONNECT: [u64; 2] = [100, 2000];

/// How long after a refused or lost submission it is tried again.
const SUBMIT_AGAIN: u64 = 1000;

/// Something that will happen at its moment.
#[derive(Debug)]
pub(crate) enum Event {
    Wake(usize),
    Input(usize, Input),
    Message { from: usize, to: usize, message: Message },
    Gossip { from: usize, to: usize, profile: Profile },
    Link(usize, usize),
    AttemptBegin(usize, meshfarm_core::Session, AttemptId),
    SessionEnd(usize, meshfarm_core::Session),
    Fetched { site: usize, lease: LeaseId, borrower: SiteId },
    Arrived { site: usize, task: TaskRef, attempt: AttemptId, lender: SiteId, lease: LeaseId },
    Submit(usize),
    Fault(usize),
    Mend(Vec<(usize, usize)>),
    Boot(usize),
    Calm,
}

/// One site: its core while it lives, and what its driver has on disk.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) entry: SiteEntry,
    pub(crate) id: SiteId,
    pub(crate) site: Option<Site>,
    /// Counts starts: what was begun in an earlier life does not reach a later one.
    pub(crate) life: u64,
    pub(crate) disk: BTreeMap<Key, Record>,
    /// Attempts whose outputs are stored here.
    pub(crate) kept: BTreeSet<AttemptId>,
    pub(crate) sessions: BTreeMap<meshfarm_core::Session, Running>,
    pub(crate) laid: BTreeMap<LeaseId, Laid>,
    pub(crate) cached: BTreeSet<ChunkId>,
    pub(crate) draws: u64,
    kill_after: Option<(u64, Millis)>,
    wake: Option<Millis>,
}

pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) streams: Streams,
    pub(crate) now: Millis,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Links,
    pub(crate) oracle: Oracle,
    /// Which scenario's job and step a content belongs to.
    pub(crate) roots: BTreeMap<ChunkId, (usize, StepNo)>,
    pub(crate) by_id: BTreeMap<SiteId, usize>,
    pub(crate) messages: u64,
    heap: std::collections::BinaryHeap<Reverse<(Millis, u64)>>,
    due: BTreeMap<u64, (u64, Event)>,
    faults: Vec<(Millis, Fault)>,
    acknowledged: BTreeSet<usize>,
    n_events: u64,
    killed: u64,
    audit: Vec<u8>,
    show: Option<&'a mut dyn FnMut(&str)>,
}

/// Run a scenario with a seed, handing every event to `show` as a line of text.
pub fn run<'a>(scenario: &'a Scenario, seed: u64, show: Option<&'a mut dyn FnMut(&str)>) -> Report {
    let mut world = World::new(scenario, seed, show);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let ended = ran.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        world.oracle.blame(said.unwrap_or_else(|| "the core panicked".to_owned()));
        None
    });
    world.report(seed, ended)
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64, show: Option<&'a mut dyn FnMut(&str)>) -> Self {
        let streams = Streams::new(seed);
        let nodes: Vec<_> =
            scenario.sites().map(|(name, entry)| Node::new(name, entry.clone())).collect();
        let mut roots = BTreeMap::new();
        for (n, job) in scenario.job.iter().enumerate() {
            for (step, _) in (0..).map(StepNo).zip(&job.frames) {
                roots.insert(workload::root(n, step), (n, step));
            }
        }
        let by_id = nodes.iter().enumerate().map(|(n, node)| (node.id, n)).collect();
        let mut world = Self {
            scenario,
            streams,
            now: Millis(0),
            nodes,
            links: Links::new(scenario.link.clone()),
            oracle: Oracle::default(),
            roots,
            by_id,
            messages: 0,
            heap: std::collections::BinaryHeap::new(),
            due: BTreeMap::new(),
            faults: fault::draw(scenario, streams),
            acknowledged: BTreeSet::new(),
            n_events: 0,
            killed: 0,
            audit: Vec::new(),
            show,
        };
        world.schedule();
        world
    }

    /// Everything that is known beforehand.
    fn schedule(&mut self) {
        for site in 0..self.nodes.len() {
            self.after(site as u64 % 100, Event::Boot(site));
        }
        for (n, job) in self.scenario.job.iter().enumerate() {
            self.after(job.at_s * 1000, Event::Submit(n));
        }
        for n in 0..self.faults.len() {
            self.after(self.faults[n].0.0, Event::Fault(n));
        }
        self.after(self.scenario.calm().0, Event::Calm);
    }

    /// Let something happen so many milliseconds from now.
    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.n_events += 1;
        self.heap.push(Reverse((self.now.plus(Millis(ms)), self.n_events)));
        let life = event.site().map_or(0, |site| self.nodes[site].life);
        self.due.insert(self.n_events, (life, event));
    }

    /// Until every job has ended and everything was tidied up, or time is up. When the last job ended.
    fn run(&mut self) -> Option<Millis> {
        let calm = self.scenario.calm();
        let limit = calm.plus(Millis::seconds(self.scenario.expect.within_s));
        let mut drained = None;
        while let Some(Reverse((at, n))) = self.heap.pop() {
            self.now = at;
            let (life, event) = self.due.remove(&n).expect("each number of the heap has its event");
            if event.site().is_some_and(|site| self.nodes[site].life != life) {
                continue;
            }
            self.record(&event);
            self.happen(event);
            if self.oracle.broken().is_some() {
                return None;
            }
            if drained.is_none() && self.now >= calm && self.all_ended().is_some() {
                drained = Some(self.now.plus(DRAIN));
            }
            match drained {
                Some(moment) if moment <= self.now => {
                    self.nothing_is_left();
                    self.oracle.complete();
                    return self.all_ended();
                }
                None if self.now > limit => {
                    self.oracle.blame("a job has not ended in its time".to_owned());
                    return None;
                }
                Some(_) | None => {}
            }
        }
        self.oracle.blame("every site fell asleep".to_owned());
        None
    }

    fn all_ended(&self) -> Option<Millis> {
        self.oracle.all_ended(self.scenario.job.len())
    }

    fn record(&mut self, event: &Event) {
        let line = format!("{:>9} {event:?}", self.now.0);
        self.say(&line);
        self.audit.extend_from_slice(line.as_bytes());
        if self.audit.len() > 1 << 16 {
            self.audit = content_hash(&self.audit).to_vec();
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        if let Some(show) = &mut self.show {
            show(line);
        }
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.show.is_some()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(site) => {
                if self.nodes[site].wake == Some(self.now) {
                    self.nodes[site].wake = None;
                    self.hear(site, Input::Tick);
                    self.does_not_spin(site);
                }
            }
            Event::Input(site, input) => self.hear(site, input),
            Event::AttemptBegin(site, session, attempt) => {
                self.attempt_begins(site, session, attempt)
            }
            Event::Message { from, to, message } => {
                if self.links.is_whole(from, to) {
                    let from = self.nodes[from].id;
                    self.hear(to, Input::Heard { from, message });
                }
            }
            Event::Gossip { from, to, profile } => {
                if self.links.is_whole(from, to) {
                    self.hear(to, Input::Profile(profile));
                }
            }
            Event::Link(a, b) => self.notice(a, b),
            Event::SessionEnd(site, session) => self.session_ended(site, session),
            Event::Fetched { site, lease, borrower } => self.fetched(site, lease, borrower),
            Event::Arrived { site, task, attempt, lender, lease } => {
                self.arrived(site, (task, attempt), lender, lease);
            }
            Event::Submit(n) => self.submit(n),
            Event::Fault(n) => self.go_wrong(n),
            Event::Mend(pairs) => {
                for (a, b) in pairs {
                    self.links.mend(a, b);
                    self.look_at((a, b), CONNECT);
                }
            }
            Event::Boot(site) => self.boot(site),
            Event::Calm => {
                self.links.calm = true;
                self.nodes.iter_mut().for_each(|node| node.kill_after = None);
            }
        }
    }

    /// A site hears something, decides, and its driver does what it says.
    pub(crate) fn hear(&mut self, at: usize, input: Input) {
        let mut out = Vec::new();
        let node = &mut self.nodes[at];
        let Some(site) = &mut node.site else { return };
        site.handle(self.now, input, &mut out);
        site.check();
        for output in out {
            if let Some((left, down)) = self.nodes[at].kill_after {
                if left == 0 {
                    self.kill(at, down);
                    return;
                }
                self.nodes[at].kill_after = Some((left - 1, down));
            }
            if self.is_shown() {
                let line = format!("          {} -> {output:?}", self.nodes[at].name);
                self.say(&line);
            }
            self.perform(at, output);
        }
        let node = &mut self.nodes[at];
        let wake = node.site.as_ref().and_then(|site| site.wake_at(self.now));
        if let Some(wake) = wake.filter(|wake| node.wake.is_none_or(|old| *wake < old)) {
            node.wake = Some(wake.max(self.now));
            self.after(wake.since(self.now).0, Event::Wake(at));
        }
    }

    fn does_not_spin(&mut self, at: usize) {
        let node = &self.nodes[at];
        let wake = node.site.as_ref().and_then(|site| site.wake_at(self.now));
        if wake.is_some_and(|wake| wake <= self.now) {
            let what = format!("{} asks to be woken at once, again and again", node.name);
            self.oracle.blame(what);
        }
    }

    fn boot(&mut self, at: usize) {
        let seed = self.streams.bytes("site", at as u64, self.nodes[at].life);
        let node = &mut self.nodes[at];
        // What a session had stored before its end was recorded belongs to nobody.
        let disk = &node.disk;
        node.kept.retain(|attempt| disk.contains_key(&Key::Finished(*attempt)));
        let config = Config {
            me: node.id,
            name: node.name.clone(),
            host: workload::host(&node.entry),
            head: None,
            submitter: false,
            sealing_key: SealingKey([1; 32]),
            addresses: Vec::new(),
            lending: node.entry.lending,
            pass_on: false,
            floor: Level::S2,
            opening: Opening::default(),
            keep_jobs: Millis(u64::MAX),
            kept: BTreeSet::new(),
            pricing: Pricing::default(),
            seed,
        };
        let records = node.disk.values().cloned().collect();
        node.site = Some(Site::new(config, self.now, records));
        for other in 0..self.nodes.len() {
            if other != at {
                self.look_at((at, other), CONNECT);
            }
        }
        self.hear(at, Input::Tick);
    }

    /// Both ends of a line look at it, each after a while of its own.
    fn look_at(&mut self, (a, b): (usize, usize), after: [u64; 2]) {
        for (a, b) in [(a, b), (b, a)] {
            let key = (((a as u64) << 32) | b as u64, self.now.0);
            let ms = self.streams.between("notice", key, after);
            self.after(ms, Event::Link(a, b));
        }
    }

    /// A site learns whether another is connected.
    fn notice(&mut self, a: usize, b: usize) {
        let alive = self.nodes[a].site.is_some() && self.nodes[b].site.is_some();
        let connected = alive && self.links.is_whole(a, b);
        let (site, name) = (self.nodes[b].id, self.nodes[b].name.clone());
        if connected && self.links.told.insert((a, b)) {
            let (role, mesh) = (Role::Site, None);
            let meshes = BTreeSet::from([MeshId([1; 32])]);
            self.hear(a, Input::PeerUp { site, name, role, mesh, meshes });
        } else if !connected && self.links.told.remove(&(a, b)) {
            self.hear(a, Input::PeerDown { site });
        }
    }

    fn submit(&mut self, n: usize) {
        if self.acknowledged.contains(&n) {
            return;
        }
        self.after(SUBMIT_AGAIN, Event::Submit(n));
        let entry = &self.scenario.job[n];
        let ask = Ask::Submit {
            spec: Box::new(workload::spec(n, entry)),
            root: workload::root(n, StepNo(0)),
            bytes: entry.bytes,
        };
        let at = self.nodes.iter().position(|node| node.name == entry.site);
        let at = at.expect("names were checked when the scenario was read");
        self.hear(at, Input::Asked(Request(n as u64), ask));
    }

    /// A submission was acknowledged.
    pub(crate) fn submitted(&mut self, request: Request, job: meshfarm_protocol::id::JobId) {
        let n = usize::try_from(request.0).unwrap_or(usize::MAX);
        let tasks = self.scenario.job[n].frames.iter().map(|n| u64::from(*n)).sum();
        self.acknowledged.insert(n);
        self.oracle.submitted(job, tasks);
    }

    fn go_wrong(&mut self, n: usize) {
        match self.faults[n].1.clone() {
            Fault::Kill { site, down } => self.kill(site, down),
            Fault::KillPoint { site, outputs, down } => {
                self.nodes[site].kill_after = Some((outputs, down));
            }
            Fault::Cut { pairs, down } => {
                for (a, b) in &pairs {
                    self.links.cut(*a, *b);
                    self.look_at((*a, *b), [0, NOTICE]);
                }
                self.after(down.0, Event::Mend(pairs));
            }
        }
    }

    /// The node dies: what it had made durable stays.
    fn kill(&mut self, at: usize, down: Millis) {
        let node = &mut self.nodes[at];
        if node.site.take().is_none() {
            return;
        }
        self.killed += 1;
        node.life += 1;
        node.sessions.clear();
        node.laid.clear();
        (node.kill_after, node.wake) = (None, None);
        self.links.told.retain(|(a, _)| *a != at);
        for other in 0..self.nodes.len() {
            if other != at {
                self.after(100, Event::Link(other, at));
            }
        }
        self.after(down.0, Event::Boot(at));
    }

    /// Once all is over, no lease, session or result may be left anywhere.
    fn nothing_is_left(&mut self) {
        for node in &self.nodes {
            let left = node
                .disk
                .keys()
                .find(|key| matches!(key, Key::Borrowed(_) | Key::Lent(_) | Key::Finished(_)));
            let free = node.site.as_ref().map(|site| site.slots().free);
            let name = &node.name;
            let what = if let Some(key) = left {
                format!("{name} still keeps {key:?}")
            } else if !node.kept.is_empty() || !node.laid.is_empty() || !node.sessions.is_empty() {
                format!("{name} still keeps outputs, content or sessions")
            } else if free != Some(node.entry.slots) {
                format!("{name} has {free:?} of {} slots free", node.entry.slots)
            } else {
                continue;
            };
            self.oracle.blame(what);
            return;
        }
    }

    fn report(self, seed: u64, ended: Option<Millis>) -> Report {
        let wanted = |phase: &JobPhase| match self.scenario.expect.jobs {
            JobsEnd::Done => *phase == JobPhase::Done,
            JobsEnd::Failed => matches!(phase, JobPhase::Failed(_)),
        };
        let verdict = match (self.oracle.broken(), self.oracle.misses(wanted)) {
            (Some(what), _) => Verdict::Broken(what.to_owned()),
            (None, Some(what)) => Verdict::Missed(what),
            (None, None) => Verdict::Pass,
        };
        Report {
            scenario: self.scenario.name.clone(),
            seed,
            verdict,
            audit: hex(&content_hash(&self.audit)[..16]),
            ended_ms: self.now.0,
            makespan_ms: ended.map(|at| at.0),
            events: self.n_events,
            messages: self.messages,
            started: self.oracle.n_started,
            accepted: self.oracle.n_accepted(),
            killed: self.killed,
        }
    }
}

impl Node {
    fn new(name: String, entry: SiteEntry) -> Self {
        Self {
            id: SiteId(content_hash(name.as_bytes())),
            name,
            entry,
            site: None,
            life: 0,
            disk: BTreeMap::new(),
            kept: BTreeSet::new(),
            sessions: BTreeMap::new(),
            laid: BTreeMap::new(),
            cached: BTreeSet::new(),
            draws: 0,
            kill_after: None,
            wake: None,
        }
    }
}

impl Event {
    /// The site in whose life it happens; none when it happens whoever lives.
    const fn site(&self) -> Option<usize> {
        match self {
            Self::Wake(site)
            | Self::Input(site, _)
            | Self::AttemptBegin(site, ..)
            | Self::SessionEnd(site, _)
            | Self::Fetched { site, .. }
            | Self::Arrived { site, .. } => Some(*site),
            Self::Message { .. }
            | Self::Gossip { .. }
            | Self::Link(..)
            | Self::Submit(_)
            | Self::Fault(_)
            | Self::Mend(_)
            | Self::Boot(_)
            | Self::Calm => None,
        }
    }
}
