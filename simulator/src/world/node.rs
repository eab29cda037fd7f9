//! One site of the world: its core while it lives, and what its machine keeps without it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use meshfarm_core::{Key, Output, Record, Session, Site};
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, TaskNo};
use meshfarm_protocol::lease::Outcome;
use meshfarm_protocol::profile::{Amount, HostClass, Level, Profile};

use crate::plan::{Lie, PlanSite};
use crate::streams::{Streams, number_of};
use crate::world::Event;

/// One site.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// A number for its name: its draws go by it.
    pub(crate) number: u64,
    pub(crate) id: SiteId,
    pub(crate) site: Option<Box<Site>>,
    /// Counts starts: what was begun in an earlier life does not reach a later one.
    pub(crate) life: u64,
    /// For so many reasons it does not run. It has not been started yet: that is one.
    pub(crate) dead: u32,
    pub(crate) disk: BTreeMap<Key, Record>,
    /// Of the records, leases and finished work.
    pub(crate) n_leases: usize,
    pub(crate) active: BTreeSet<JobId>,
    /// Outputs that are stored here, by what made them.
    pub(crate) kept: BTreeMap<AttemptId, ChunkId>,
    pub(crate) sessions: BTreeMap<Session, Running>,
    pub(crate) lanes: Vec<bool>,
    pub(crate) laid: BTreeMap<LeaseId, Laid>,
    /// Keys of leases that will run on another machine.
    pub(crate) keys: BTreeMap<LeaseId, Vec<u8>>,
    pub(crate) cached: BTreeSet<ChunkId>,
    pub(crate) tenants: BTreeSet<String>,
    /// Sites that it believes to be connected.
    pub(crate) peers: BTreeSet<usize>,
    /// Sites that believe it to be connected.
    pub(crate) known_by: BTreeSet<usize>,
    /// Sites that it hears of while it has work; all when there is no bound.
    pub(crate) view: Vec<usize>,
    pub(crate) attentive: bool,
    pub(crate) watchers: Vec<usize>,
    pub(crate) profile: Option<Rc<Profile>>,
    pub(crate) published: Millis,
    pub(crate) wake: Option<Millis>,
    /// How often it was woken at the last moment at which it was.
    pub(crate) ticks: (Millis, u32),
    pub(crate) kill_after: Option<(u64, Millis)>,
    pub(crate) ahead: Millis,
    /// Outputs that are not durable yet.
    pub(crate) unsynced: VecDeque<(Millis, Vec<Output>)>,
    pub(crate) disk_ms: u64,
    pub(crate) disk_full: u32,
    /// What a node that stands still has not noticed yet.
    pub(crate) paused: u32,
    pub(crate) held: Vec<Event>,
    pub(crate) lie: Option<(Lie, u32)>,
    pub(crate) unlicensed: u32,
}

/// The content of a lent lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Laid {
    pub(crate) root: ChunkId,
    pub(crate) borrower: SiteId,
    pub(crate) shared_sessions: bool,
    /// Transfers that still bring some of it.
    pub(crate) parts: u32,
}

/// A session that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) borrower: SiteId,
    pub(crate) root: ChunkId,
    pub(crate) lane: usize,
    pub(crate) holds: BTreeMap<String, Amount>,
    pub(crate) tries: Vec<Try>,
    pub(crate) stopped: Option<Millis>,
}

/// A try in a session: when it begins and ends, and how.
#[derive(Clone, Debug)]
pub(crate) struct Try {
    pub(crate) attempt: AttemptId,
    pub(crate) task: TaskNo,
    pub(crate) end: Millis,
    pub(crate) wall: u64,
    pub(crate) outcome: Outcome,
    /// Whether its pixels are not those that the scene has.
    pub(crate) wrong: bool,
    pub(crate) begun: bool,
}

impl Node {
    pub(crate) fn new(plan: &PlanSite) -> Self {
        let number = number_of(&plan.name);
        Self {
            name: plan.name.clone(),
            number,
            id: SiteId(Streams::new(0).bytes("site id", number, 0)),
            site: None,
            life: 0,
            dead: 1,
            disk: BTreeMap::new(),
            n_leases: 0,
            active: BTreeSet::new(),
            kept: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lanes: Vec::new(),
            laid: BTreeMap::new(),
            keys: BTreeMap::new(),
            cached: BTreeSet::new(),
            tenants: BTreeSet::new(),
            peers: BTreeSet::new(),
            known_by: BTreeSet::new(),
            view: Vec::new(),
            attentive: false,
            watchers: Vec::new(),
            profile: None,
            published: Millis(0),
            wake: None,
            ticks: (Millis(0), 0),
            kill_after: None,
            ahead: Millis(0),
            unsynced: VecDeque::new(),
            disk_ms: 0,
            disk_full: 0,
            paused: 0,
            held: Vec::new(),
            lie: None,
            unlicensed: 0,
        }
    }

    /// What its machine has, as its profile says it.
    pub(crate) fn host(&self, plan: &PlanSite) -> HostClass {
        let amounts = plan.amounts.iter().map(|(name, have)| {
            let have = if self.unlicensed > 0 { 0 } else { *have };
            (amount_name(name), Amount::whole(have))
        });
        HostClass {
            count: 1,
            description: "simulated".to_owned(),
            amounts: amounts.collect(),
            attributes: Default::default(),
            software: BTreeMap::new(),
            slots: plan.slots,
            speed: plan.speed,
            level: Level::S2,
        }
    }

    /// A lane of the picture in which nothing else runs.
    pub(crate) fn take_lane(&mut self) -> usize {
        let free = self.lanes.iter().position(|taken| !taken);
        let lane = free.unwrap_or(self.lanes.len());
        if lane == self.lanes.len() {
            self.lanes.push(true);
        }
        self.lanes[lane] = true;
        lane
    }

    /// What of its amounts more is held than there is.
    pub(crate) fn over_committed(&self, plan: &PlanSite) -> Option<String> {
        if plan.amounts.is_empty() {
            return None;
        }
        let mut held: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, amount) in self.sessions.values().flat_map(|session| &session.holds) {
            *held.entry(name).or_default() += amount.0;
        }
        let have = |name: &str| {
            let found = plan.amounts.iter().find(|(known, _)| amount_name(known) == name);
            found.map(|(_, have)| Amount::whole(*have).0)
        };
        let mut over =
            held.iter().filter(|(name, held)| have(name).is_some_and(|have| **held > have));
        over.next().map(|(name, held)| format!("{} of {name}", Amount(*held)))
    }
}

/// An amount's name in profiles: the standard refuses unknown names without a prefix.
pub(crate) fn amount_name(name: &str) -> String {
    format!("{}amount.{}", meshfarm_protocol::profile::VENDOR, name.to_ascii_lowercase())
}
