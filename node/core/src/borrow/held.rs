//! One lease in our hands: what its lender shall have, what it was told, and how far it is.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::{AttemptId, LeaseId, Millis};
use meshfarm_protocol::lease::{Assignment, MAX_ATTEMPTS, Phase, Want};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::Terms;

/// How long tasks are tied to a lender that the content is on its way to.
pub(super) const PATIENCE: Millis = Millis::seconds(10);

/// A lease in our hands.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) slots: u32,
    /// What the lender promised.
    pub(crate) isolation: Option<Level>,
    /// What it costs.
    pub(crate) terms: Terms,
    /// What the lender shall have, oldest first.
    pub(crate) attempts: Vec<Assignment>,
    pub(crate) running: BTreeSet<AttemptId>,
    /// When those began to run, as far as we heard.
    pub(crate) begun: BTreeMap<AttemptId, Millis>,
    /// Of those that run or have ended: the last moment at which we heard that they did not run yet.
    pub(super) earliest: BTreeMap<AttemptId, Millis>,
    /// When we last heard what runs.
    pub(super) told: Millis,
    pub(crate) phase: Phase,
    /// Since when it is in that phase.
    pub(super) since: Millis,
    pub(crate) heard: Millis,
    /// Whether the lender ever had the content in place.
    pub(super) prepared: bool,
    /// Leases of other lenders that it was told of, as sources of its content.
    pub(super) told_of: BTreeSet<LeaseId>,
    pub(super) version: u64,
    pub(super) said: Millis,
    /// What was last said, to see whether it has changed.
    pub(super) said_attempts: Vec<Assignment>,
    pub(super) said_more: bool,
    pub(super) more: bool,
    /// What was given together for a session of one slot, where tasks share sessions.
    pub(super) shares: Vec<BTreeSet<AttemptId>>,
}

impl Held {
    pub(super) fn new((slots, isolation): (u32, Option<Level>), now: Millis) -> Self {
        Self {
            slots,
            isolation,
            terms: Terms::default(),
            attempts: Vec::new(),
            running: BTreeSet::new(),
            begun: BTreeMap::new(),
            earliest: BTreeMap::new(),
            told: now,
            phase: Phase::Preparing,
            since: now,
            heard: now,
            prepared: false,
            told_of: BTreeSet::new(),
            // A node that restarts goes on above what it said before: see `Borrow::restore`.
            version: now.0,
            said: Millis(0),
            said_attempts: Vec::new(),
            said_more: true,
            more: true,
            shares: Vec::new(),
        }
    }

    /// How many further attempts the lender shall get, when `waiting` tasks wait: one for each slot, and
    /// with `ahead` one more behind each while plenty wait, so that no slot idles for a round trip.
    pub(crate) fn room(&self, waiting: usize, (spare, ahead): (usize, bool), now: Millis) -> usize {
        if self.is_closing() || self.is_slow(now) {
            return 0;
        }
        let slots = self.slots as usize;
        let deep = if ahead && waiting > spare + slots { slots * 2 } else { slots };
        deep.min(MAX_ATTEMPTS).saturating_sub(self.attempts.len())
    }

    /// Whether the lender takes nothing more under the lease.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Gone)
    }

    /// How many further attempts a lender shall get whose tasks share sessions, when a session shall have `each`: so
    /// many for every slot that has none. A session's results come together, so nothing is put behind it.
    pub(crate) fn room_of_shares(&mut self, each: usize, now: Millis) -> usize {
        if self.is_closing() || self.is_slow(now) {
            return 0;
        }
        let most = MAX_ATTEMPTS.saturating_sub(self.attempts.len());
        self.idle_slots().saturating_mul(each).min(most)
    }

    /// Slots for which nothing was given that has not ended. What was given before a restart may be in any.
    pub(super) fn idle_slots(&mut self) -> usize {
        let open: BTreeSet<_> = self.attempts.iter().map(|a| a.attempt).collect();
        self.shares.retain(|share| !share.is_disjoint(&open));
        let shared: usize = self.shares.iter().map(|share| share.intersection(&open).count()).sum();
        let others = open.len().saturating_sub(shared);
        (self.slots as usize).saturating_sub(self.shares.len() + others)
    }

    /// Notes what was given to the slots that have nothing, before it is among the attempts.
    pub(crate) fn share(&mut self, given: &[AttemptId]) {
        let each = given.len().div_ceil(self.idle_slots().max(1)).max(1);
        self.shares.extend(given.chunks(each).map(|share| share.iter().copied().collect()));
    }

    /// Whether the content has been on its way there for long. Tasks are not tied to such a lender: it gets some
    /// of those that wait when it is ready.
    pub(crate) fn is_slow(&self, now: Millis) -> bool {
        self.phase == Phase::Preparing && now.since(self.since) >= PATIENCE
    }

    /// What runs and what has ended, as the lender says.
    pub(super) fn heard_what_runs(
        &mut self,
        running: &BTreeSet<AttemptId>,
        finished: &[AttemptId],
        now: Millis,
    ) {
        // Never later than it was first: an old word that arrives late must not make a task younger.
        let ours = |attempt: &&AttemptId| self.attempts.iter().any(|a| a.attempt == **attempt);
        for attempt in running.iter().chain(finished.iter().filter(ours)) {
            self.earliest.entry(*attempt).or_insert(self.told);
        }
        if self.earliest.len() > self.attempts.len() {
            let open: BTreeSet<_> = self.attempts.iter().map(|a| a.attempt).collect();
            self.earliest.retain(|attempt, _| open.contains(attempt));
        }
        self.told = now;
    }

    /// Since when an attempt may have run: the last moment at which we heard that it did not. The beginning of time
    /// when we cannot tell, because we have restarted.
    pub(crate) fn earliest(&self, attempt: AttemptId) -> Millis {
        let known = self.earliest.get(&attempt).copied();
        let waits = || if self.running.contains(&attempt) { Millis(0) } else { self.told };
        known.unwrap_or_else(waits)
    }

    pub(crate) fn set_more(&mut self, more: bool) {
        self.more = more;
    }

    /// The whole wish, to be said now.
    pub(crate) fn say(&mut self, lease: LeaseId, now: Millis) -> Want {
        self.version += 1;
        self.said = now;
        self.said_attempts.clone_from(&self.attempts);
        self.said_more = self.more;
        let attempts = self.attempts.clone();
        Want { lease, version: self.version, attempts, more: self.more }
    }
}
