//! Level `model`: all sites, the heap of events and the virtual clock, one event after the other.

mod crowd;
mod driver;
mod flow;
mod net;
pub(crate) mod node;
mod passing;
mod sessions;
mod transfers;
mod troubles;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use meshfarm_core::{HostMode, HostRecord, Input, Key, Record, Session, TaskRef};
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::Profile;

use crate::bug::Bug;
use crate::plan::{JobsEnd, Plan};
use crate::seen::What;
use crate::streams::{Audit, Streams};
use crate::watch::Watch;
use crate::workload;
use flow::Flows;
use net::Net;
use node::Node;

/// How long after the last job has ended nothing may be left of any lease: both graces and a bit.
const DRAIN: Millis = Millis::seconds(150);

/// How long after a refused or lost submission it is tried again, in milliseconds.
const SUBMIT_AGAIN: u64 = 1000;

/// Of larger worlds the rooms of each core are compared with each other only now and then.
const CHECK_ALWAYS: usize = 64;

/// More events than this at one moment are a storm without end.
const MOST_AT_ONCE: u64 = 5_000_000;

/// A core that is woken more often at one moment spins.
const TICKS_AT_ONCE: u32 = 4;

/// Something that will happen at its moment.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Wake(usize),
    Input(usize, Rc<Input>),
    AttemptBegin(usize, Session, AttemptId),
    Message {
        from: usize,
        to: usize,
        message: Rc<Message>,
    },
    Gossip {
        from: usize,
        to: usize,
        profile: Rc<Profile>,
    },
    Link(usize, usize),
    SessionEnd(usize, Session),
    /// A transfer is over, as was foreseen when its rate changed last.
    Flow {
        flow: u64,
        version: u64,
    },
    /// A transfer has stood still for long.
    Stalled {
        flow: u64,
        version: u64,
    },
    Arrived {
        site: usize,
        task: TaskRef,
        attempt: AttemptId,
        lender: SiteId,
        lease: LeaseId,
    },
    Synced(usize),
    Submit(usize),
    Fault {
        n: usize,
        begins: bool,
    },
    Boot(usize),
    Hours(usize),
    Healed,
}

impl Event {
    /// The site in whose life it happens; none when it happens whoever lives.
    const fn site(&self) -> Option<usize> {
        match self {
            Self::Wake(site)
            | Self::Input(site, _)
            | Self::AttemptBegin(site, ..)
            | Self::SessionEnd(site, _)
            | Self::Arrived { site, .. }
            | Self::Synced(site) => Some(*site),
            Self::Message { .. }
            | Self::Gossip { .. }
            | Self::Link(..)
            | Self::Flow { .. }
            | Self::Stalled { .. }
            | Self::Submit(_)
            | Self::Fault { .. }
            | Self::Boot(_)
            | Self::Hours(_)
            | Self::Healed => None,
        }
    }

    /// A number for what it is, for the audit.
    fn word(&self) -> u64 {
        let (kind, a, b) = match self {
            Self::Wake(site) => (1, *site as u64, 0),
            Self::Input(site, _) => (2, *site as u64, 0),
            Self::AttemptBegin(site, session, _) => (3, *site as u64, session.0),
            Self::Message { from, to, .. } => (4, *from as u64, *to as u64),
            Self::Gossip { from, to, profile } => {
                (5, *from as u64, *to as u64 ^ (profile.sequence << 20))
            }
            Self::Link(a, b) => (6, *a as u64, *b as u64),
            Self::SessionEnd(site, session) => (7, *site as u64, session.0),
            Self::Flow { flow, version } => (8, *flow, *version),
            Self::Stalled { flow, version } => (9, *flow, *version),
            Self::Arrived { site, task, .. } => (10, *site as u64, u64::from(task.task.0)),
            Self::Synced(site) => (11, *site as u64, 0),
            Self::Submit(n) => (12, *n as u64, 0),
            Self::Fault { n, begins } => (13, *n as u64, u64::from(*begins)),
            Self::Boot(site) => (14, *site as u64, 0),
            Self::Hours(site) => (15, *site as u64, 0),
            Self::Healed => (16, 0, 0),
        };
        kind ^ (a << 8) ^ b.rotate_left(36)
    }
}

/// How much a run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) events: u64,
    pub(crate) inputs: u64,
    pub(crate) messages: u64,
    pub(crate) profiles: u64,
}

pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) streams: Streams,
    pub(crate) now: Millis,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Net,
    pub(crate) flows: Flows,
    pub(crate) goals: BTreeMap<u64, transfers::Goal>,
    pub(crate) watch: Watch<'a>,
    pub(crate) bug: Option<Bug>,
    /// Which of the plan's jobs and which step a content belongs to.
    pub(crate) roots: HashMap<ChunkId, (usize, StepNo)>,
    pub(crate) jobs: HashMap<JobId, usize>,
    pub(crate) by_id: HashMap<SiteId, usize>,
    pub(crate) by_name: HashMap<&'a str, usize>,
    /// How often each task has been tried.
    pub(crate) tries: HashMap<(usize, StepNo, u32), u64>,
    /// Messages that stand still.
    pub(crate) clogged: Vec<(usize, usize, Event)>,
    pub(crate) acknowledged: Vec<bool>,
    pub(crate) healed: bool,
    pub(crate) counts: Counts,
    heap: BinaryHeap<Reverse<(Millis, u64, u32)>>,
    due: Vec<Option<(u64, Event)>>,
    room: Vec<u32>,
    audit: Audit,
    at_once: u64,
}

/// What a run of the model leaves: when the last job had ended, what it did, and its audit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    pub(crate) makespan: Option<Millis>,
    pub(crate) ended: Millis,
    pub(crate) counts: Counts,
    pub(crate) audit: Audit,
}

/// Run a plan under the eyes of `watch`, with a defect in the driver if one is wanted.
pub(crate) fn run<'a>(plan: &'a Plan, watch: Watch<'a>, bug: Option<Bug>) -> (Ran, Watch<'a>) {
    let mut world = World::new(plan, watch, bug);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let makespan = ran.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let said = said.unwrap_or_else(|| "it panicked".to_owned());
        world.see(0, What::Broke { invariant: "I0", what: format!("the core: {said}") });
        None
    });
    let ran = Ran { makespan, ended: world.now, counts: world.counts, audit: world.audit };
    (ran, world.watch)
}

/// A head knows its hosts: they have joined before.
fn join_hosts(plan: &Plan, nodes: &mut [Node]) {
    for n in 0..nodes.len() {
        let head = plan.site[n].host_of.as_ref();
        let head = head.and_then(|head| plan.site.iter().position(|site| site.name == *head));
        if let Some(head) = head {
            let (host, name, mode) = (nodes[n].id, nodes[n].name.clone(), HostMode::Open);
            let record = Record::Host(HostRecord { host, name, joined: Millis(0), mode });
            nodes[head].disk.insert(record.key(), record);
        }
    }
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, watch: Watch<'a>, bug: Option<Bug>) -> Self {
        let nodes: Vec<_> = plan.site.iter().map(Node::new).collect();
        let mut roots = HashMap::new();
        for (n, job) in plan.job.iter().enumerate() {
            for (step, _) in (0..).map(StepNo).zip(&job.steps) {
                roots.insert(workload::root(job.id, step), (n, step));
            }
        }
        let mut nodes = nodes;
        join_hosts(plan, &mut nodes);
        let by_id = nodes.iter().enumerate().map(|(n, node)| (node.id, n)).collect();
        let by_name =
            plan.site.iter().enumerate().map(|(n, site)| (site.name.as_str(), n)).collect();
        let mut world = Self {
            plan,
            streams: Streams::new(plan.seed),
            now: Millis(0),
            nodes,
            net: Net::new(plan),
            flows: Flows::new(plan.site.iter().map(|site| (site.up, site.down))),
            goals: BTreeMap::new(),
            watch,
            bug,
            roots,
            jobs: HashMap::new(),
            by_id,
            by_name,
            tries: HashMap::new(),
            clogged: Vec::new(),
            acknowledged: vec![false; plan.job.len()],
            healed: false,
            counts: Counts::default(),
            heap: BinaryHeap::new(),
            due: Vec::new(),
            room: Vec::new(),
            audit: Audit::default(),
            at_once: 0,
        };
        world.draw_views();
        world.schedule();
        world
    }

    /// Everything that is known beforehand.
    fn schedule(&mut self) {
        for site in 0..self.nodes.len() {
            self.after(site as u64 % 1000, Event::Boot(site));
            if self.plan.site[site].hours.is_some() {
                self.after(self.until_hours_turn(site), Event::Hours(site));
            }
        }
        for (n, job) in self.plan.job.iter().enumerate() {
            self.after(job.at_ms, Event::Submit(n));
        }
        for (n, fault) in self.plan.fault.iter().enumerate() {
            self.after(fault.at_ms, Event::Fault { n, begins: true });
            if fault.for_ms < crate::plan::FOREVER {
                self.after(fault.at_ms + fault.for_ms, Event::Fault { n, begins: false });
            }
        }
        self.after(self.plan.heal_ms, Event::Healed);
    }

    /// Let something happen so many milliseconds from now.
    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.counts.events += 1;
        let life = event.site().map_or(0, |site| self.nodes[site].life);
        let slot = self.room.pop().unwrap_or_else(|| {
            self.due.push(None);
            u32::try_from(self.due.len() - 1).unwrap_or(u32::MAX)
        });
        self.due[slot as usize] = Some((life, event));
        self.heap.push(Reverse((self.now.plus(Millis(ms)), self.counts.events, slot)));
    }

    /// An observer sees something.
    pub(crate) fn see(&mut self, site: usize, what: What) {
        self.watch.see(self.now, site, what);
    }

    /// Until every job has ended and everything was tidied up, or time is up. When the last job ended.
    fn run(&mut self) -> Option<Millis> {
        let limit = Millis(self.plan.heal_ms.saturating_add(crate::bounds::patience_ms(self.plan)));
        let stop = Millis(self.plan.duration_ms).max(limit);
        let mut drained: Option<Millis> = None;
        while let Some(Reverse((at, _, slot))) = self.heap.pop() {
            self.at_once = if at > self.now { 0 } else { self.at_once + 1 };
            self.now = at;
            let Some((life, event)) = self.due[slot as usize].take() else { continue };
            self.room.push(slot);
            if event.site().is_some_and(|site| self.nodes[site].life != life) {
                continue;
            }
            self.audit.add(at.0);
            self.audit.add(event.word());
            self.happen(event);
            if self.at_once > MOST_AT_ONCE {
                let what = "time stands still: events follow each other without end".to_owned();
                self.see(0, What::Broke { invariant: "I16", what });
            }
            if self.watch.is_broken() {
                return None;
            }
            let ended = self.watch.all_ended(self.plan.job.len());
            match (drained, ended) {
                (Some(moment), Some(last)) if moment <= self.now => {
                    self.nothing_is_left();
                    return Some(last);
                }
                (Some(_), Some(_)) => {}
                (None, Some(_)) if self.healed => drained = Some(self.now.plus(DRAIN)),
                (Some(_), None) => drained = None,
                (None, _) if self.now > stop => {
                    if self.plan.expect.jobs != JobsEnd::Ended || self.now > stop.plus(limit) {
                        let what = self.watch.unfinished();
                        self.see(0, What::Broke { invariant: "I9", what });
                    }
                    return None;
                }
                (None, _) => {}
            }
        }
        // Sites of a large mesh that have nothing to do sleep without end.
        let ended = self.watch.all_ended(self.plan.job.len()).filter(|_| self.healed);
        match ended {
            Some(_) => self.nothing_is_left(),
            None => self
                .see(0, What::Broke { invariant: "I9", what: "every site fell asleep".to_owned() }),
        }
        ended
    }

    fn happen(&mut self, event: Event) {
        if let Some(site) = self.belongs_to(&event).filter(|site| self.nodes[*site].paused > 0) {
            self.nodes[site].held.push(event);
            return;
        }
        match event {
            Event::Wake(site) => self.wake(site),
            Event::Input(site, input) => {
                let input = Rc::unwrap_or_clone(input);
                self.hear(site, input);
            }
            Event::AttemptBegin(site, session, attempt) => {
                self.attempt_begins(site, session, attempt);
            }
            Event::Message { from, to, message } => self.message_arrives((from, to), message),
            Event::Gossip { from, to, profile } => {
                if self.net.carries(from, to) && self.nodes[to].site.is_some() {
                    self.hear(to, Input::Profile((*profile).clone()));
                }
            }
            Event::Link(a, b) => self.notice(a, b),
            Event::SessionEnd(site, session) => self.session_ended(site, session),
            Event::Flow { flow, version } => self.flow_over(flow, version),
            Event::Stalled { flow, version } => self.flow_stalled(flow, version),
            Event::Arrived { site, task, attempt, lender, lease } => {
                self.arrived(site, (task, attempt), lender, lease);
            }
            Event::Synced(site) => self.synced(site),
            Event::Submit(n) => self.submit(n),
            Event::Fault { n, begins } => self.trouble(n, begins),
            Event::Boot(site) => self.boot(site),
            Event::Hours(site) => self.hours_turn(site),
            Event::Healed => {
                self.healed = true;
                self.nodes.iter_mut().for_each(|node| node.kill_after = None);
            }
        }
    }

    /// Whose node must run for it to happen; jails go on without.
    const fn belongs_to(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Message { to, .. } | Event::Gossip { to, .. } => Some(*to),
            Event::Link(at, _) => Some(*at),
            other => other.site(),
        }
    }

    fn wake(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.wake != Some(self.now) {
            return;
        }
        node.wake = None;
        let Some(site) = &node.site else { return };
        let local = self.now.plus(node.ahead);
        let due = site.wake_at(local);
        if due.is_some_and(|due| due > local) || self.may_sleep(at) {
            self.set_wake(at);
            return;
        }
        let node = &mut self.nodes[at];
        let (when, n) = node.ticks;
        node.ticks = if when == self.now { (when, n + 1) } else { (self.now, 1) };
        if node.ticks.1 > TICKS_AT_ONCE {
            let what = format!("{} asks to be woken at once, again and again", node.name);
            self.see(at, What::Broke { invariant: "I16", what });
        }
        self.hear(at, Input::Tick);
    }

    /// Wake a site when it wants to be.
    pub(crate) fn set_wake(&mut self, at: usize) {
        if self.bug == Some(Bug::NoTimers) && self.now.0 > 8_000 {
            return;
        }
        let node = &mut self.nodes[at];
        let local = self.now.plus(node.ahead);
        let Some(wake) = node.site.as_ref().and_then(|site| site.wake_at(local)) else {
            return;
        };
        let wake = self.now.plus(wake.since(local));
        if self.may_sleep_until(at, wake) {
            return;
        }
        let node = &mut self.nodes[at];
        if node.wake.is_none_or(|old| wake < old) {
            node.wake = Some(wake);
            self.after(wake.since(self.now).0, Event::Wake(at));
        }
    }

    /// A site hears something, decides, and its driver does what it says.
    pub(crate) fn hear(&mut self, at: usize, input: Input) {
        let node = &mut self.nodes[at];
        let Some(site) = &mut node.site else { return };
        let input = match self.bug {
            Some(bug) => match bug.input(input) {
                Some(input) => input,
                None => return,
            },
            None => input,
        };
        let mut out = Vec::new();
        site.handle(self.now.plus(node.ahead), input, &mut out);
        self.counts.inputs += 1;
        if self.nodes.len() <= CHECK_ALWAYS || self.counts.inputs.is_multiple_of(1021) {
            self.nodes[at].site.iter().for_each(|site| site.check());
        }
        if let Some(bug) = self.bug {
            bug.outputs(&mut out);
        }
        self.audit.add(out.len() as u64);
        let node = &mut self.nodes[at];
        if node.disk_ms > 0 || !node.unsynced.is_empty() {
            let (ms, when) = (node.disk_ms, self.now.plus(Millis(node.disk_ms)));
            let when = node.unsynced.back().map_or(when, |(last, _)| when.max(*last));
            node.unsynced.push_back((when, out));
            self.after(when.since(self.now).0.max(ms), Event::Synced(at));
        } else {
            self.perform_all(at, out);
        }
        self.set_wake(at);
    }

    /// What was made durable is so by now: what relies on it happens.
    fn synced(&mut self, at: usize) {
        while let Some((when, _)) = self.nodes[at].unsynced.front() {
            if *when > self.now {
                return;
            }
            if let Some((_, out)) = self.nodes[at].unsynced.pop_front() {
                self.perform_all(at, out);
            }
        }
        self.set_wake(at);
    }

    /// Once all is over, no lease, session or result may be left anywhere.
    fn nothing_is_left(&mut self) {
        for at in 0..self.nodes.len() {
            let (node, plan) = (&self.nodes[at], &self.plan.site[at]);
            let Some(site) = &node.site else { continue };
            let left = node
                .disk
                .keys()
                .find(|key| matches!(key, Key::Borrowed(_) | Key::Lent(_) | Key::Finished(_)));
            let free = site.slots().free;
            let name = &node.name;
            let what = if let Some(key) = left {
                format!("{name} still keeps {key:?}")
            } else if !node.kept.is_empty() || !node.laid.is_empty() || !node.sessions.is_empty() {
                format!(
                    "{name} still keeps {} outputs, content of {} leases, {} sessions",
                    node.kept.len(),
                    node.laid.len(),
                    node.sessions.len()
                )
            } else if free != plan.slots && self.bug != Some(Bug::OverCommit) {
                format!("{name} has {free} of {} slots free", plan.slots)
            } else {
                continue;
            };
            self.see(at, What::Left { what });
        }
    }
}
