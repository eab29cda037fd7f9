//! One lease that this site gave: its slots, what waits and runs under it, what it has finished.

use std::collections::{BTreeMap, VecDeque};

use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::lease::{Assignment, Done, Phase, Status};

use crate::door::{Output, Session};

/// One lease that we gave.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    pub(crate) borrower: SiteId,
    pub(crate) tenant: TenantId,
    /// Slots that were promised.
    pub(crate) granted: u32,
    /// Slots that it has of them now.
    pub(crate) slots: u32,
    pub(crate) state: State,
    /// Root of its content, once the borrower has committed.
    pub(crate) root: Option<ChunkId>,
    pub(crate) heard: Millis,
    /// Version of the last `Want` that counted.
    pub(crate) version: u64,
    pub(crate) more: bool,
    pub(crate) queue: VecDeque<Assignment>,
    pub(crate) running: BTreeMap<Session, Vec<Assignment>>,
    /// Attempts whose runner in the jail has begun with them.
    pub(crate) started: Vec<AttemptId>,
    pub(crate) finished: BTreeMap<AttemptId, Finished>,
    /// Attempts that were accepted lately: an old wish that arrives late must not start them again.
    pub(crate) accepted: VecDeque<AttemptId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Slots are kept until the commit comes, or this moment.
    Reserved { until: Millis },
    /// Its content is on its way.
    Preparing,
    /// Its sessions run.
    Active { shared_sessions: bool },
    /// Nothing more will run; what is finished waits to be accepted.
    Ended,
}

#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) done: Done,
    pub(crate) at: Millis,
    pub(crate) told: Millis,
}

impl Lent {
    /// Slots that it keeps from others.
    pub(crate) fn held(&self) -> u32 {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        match self.state {
            State::Ended => running,
            State::Reserved { .. } | State::Preparing | State::Active { .. } => {
                self.slots.max(running)
            }
        }
    }

    pub(crate) fn new(
        (borrower, tenant): (SiteId, TenantId),
        slots: u32,
        state: State,
        now: Millis,
    ) -> Self {
        Self {
            borrower,
            tenant,
            granted: slots,
            slots,
            state,
            root: None,
            heard: now,
            version: 0,
            more: true,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            started: Vec::new(),
            finished: BTreeMap::new(),
            accepted: VecDeque::new(),
        }
    }

    /// Give up slots for which nothing waits, when nothing more will come.
    pub(crate) fn shrink(&mut self) {
        if !self.more {
            self.slots = self.slots.min(self.busy());
        }
    }

    /// Take back slots that were given up, of those that are free, when something waits for them after all.
    /// Returns how many.
    pub(crate) fn grow(&mut self, free: u32) -> u32 {
        let lacks = self.granted.min(self.busy()).saturating_sub(self.slots);
        let grown = lacks.min(free);
        self.slots += grown;
        grown
    }

    pub(crate) fn busy(&self) -> u32 {
        u32::try_from(self.running.len() + self.queue.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn status(&self, lease: LeaseId) -> Status {
        let phase = match self.state {
            State::Reserved { .. } | State::Preparing => Phase::Preparing,
            State::Active { .. } => Phase::Active,
            State::Ended => Phase::Gone,
        };
        let finished = self.finished.keys().copied().collect();
        Status { lease, phase, running: self.started.clone(), finished }
    }

    pub(crate) fn knows(&self, attempt: AttemptId) -> bool {
        let mut open = self.queue.iter().chain(self.running.values().flatten());
        self.finished.contains_key(&attempt)
            || self.accepted.contains(&attempt)
            || open.any(|known| known.attempt == attempt)
    }

    /// Stop everything that runs or waits. What is finished stays.
    pub(crate) fn stop(&mut self, out: &mut Vec<Output>) {
        self.queue.clear();
        out.extend(self.running.keys().map(|session| Output::Stop(*session)));
        self.state = State::Ended;
    }
}
