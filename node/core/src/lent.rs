//! One lease that this site gave: its slots, what waits and runs under it, what it has finished.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::lease::{Assignment, Done, Outcome, Phase, Status};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{Terms, Used};

use crate::capacity::{Budget, Share};
use crate::door::{Output, Ready, Session};
use crate::jobs::{put, put_delete};
use crate::ledger::{ChainId, ChargeRecord};
use crate::lend::Coming;
use crate::record::{Key, LentRecord, Record};
use crate::reserve::Reservation;

/// How long slots stay idle for a lease whose content is on its way.
///
/// A scene of some gigabytes comes within that over a fast link. A slow one takes minutes or hours, in which
/// others can render; and a slot that is taken then is free again after a task at most.
pub(crate) const PATIENCE: Millis = Millis::seconds(30);

/// One lease that we gave.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    pub(crate) borrower: SiteId,
    pub(crate) tenant: TenantId,
    /// Slots that were promised.
    pub(crate) granted: u32,
    /// Slots that it has of them now.
    pub(crate) slots: u32,
    /// What each of its sessions takes of the machine.
    pub(crate) share: Share,
    pub(crate) state: State,
    /// What its jails have at least.
    pub(crate) isolation: Level,
    /// What it costs.
    pub(crate) terms: Terms,
    /// Bytes of its content that no charge counts yet.
    pub(crate) content: u64,
    /// Root of its content, once the borrower has committed.
    pub(crate) root: Option<ChunkId>,
    pub(crate) heard: Millis,
    /// Version of the last `Want` that counted.
    pub(crate) version: u64,
    /// When that was.
    pub(crate) counted: Millis,
    pub(crate) more: bool,
    /// The attempts of the last `Want` that counted.
    pub(crate) wanted: BTreeSet<AttemptId>,
    pub(crate) queue: VecDeque<Assignment>,
    pub(crate) running: BTreeMap<Session, Run>,
    /// Attempts whose runner in the jail has begun with them, or that another machine has begun with.
    pub(crate) started: Vec<AttemptId>,
    pub(crate) finished: BTreeMap<AttemptId, Finished>,
    /// Whether nothing more is taken or started.
    pub(crate) draining: bool,
    /// Sessions that were told to stop although some of what they run is wanted.
    pub(crate) halted: BTreeSet<Session>,
    /// Whether its tasks run on another machine: then it has no sessions here, and its queue is what is wanted there.
    pub(crate) away: bool,
    /// Whether that machine has not said yet, since a restart, what it has begun with: then it may be anything.
    pub(crate) unseen: bool,
    /// What that machine has ended, while the outputs are on their way here.
    pub(crate) coming: BTreeMap<AttemptId, Coming>,
    /// Attempts that were accepted lately: an old wish that arrives late must not start them again.
    pub(crate) accepted: VecDeque<AttemptId>,
    /// Sum and count of how long tasks ran here.
    took: (u64, u64),
}

/// A session that runs.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) tasks: Vec<Assignment>,
    pub(crate) since: Millis,
    /// The graphics cards that are its own, by their numbers on this machine.
    pub(crate) gpus: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Slots are kept until the commit comes, or this moment.
    Reserved { until: Millis },
    /// Its content is on its way.
    Preparing { since: Millis },
    /// Its sessions run. When its content is not whole yet, they can turn out to have read too early.
    Active(Ready),
    /// It runs on another machine, or will, which is so far with it.
    Away(Phase),
    /// Nothing more will run; what is finished waits to be accepted.
    Ended,
}

#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) done: Done,
    pub(crate) at: Millis,
    pub(crate) told: Millis,
}

impl Finished {
    /// The borrower has it, or nobody will ever fetch it.
    pub(crate) fn forget(self, out: &mut Vec<Output>) {
        let attempt = self.done.attempt;
        put_delete(out, Key::Finished(attempt));
        let root = self.done.outputs.map(|outputs| outputs.root);
        out.push(Output::Forget { attempt, root });
    }
}

impl Lent {
    /// Slots that it keeps from others.
    pub(crate) fn held(&self) -> u32 {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        match self.state {
            State::Ended | State::Away(_) => running,
            State::Reserved { .. } if self.away => 0,
            State::Reserved { .. } | State::Preparing { .. } | State::Active(_) => {
                self.slots.max(running)
            }
        }
    }

    pub(crate) fn new(
        (borrower, tenant): (SiteId, TenantId),
        (slots, share, isolation): (u32, Share, Level),
        state: State,
        now: Millis,
    ) -> Self {
        Self {
            borrower,
            tenant,
            granted: slots,
            slots,
            share,
            state,
            isolation,
            terms: Terms::default(),
            content: 0,
            root: None,
            heard: now,
            version: 0,
            counted: now,
            more: true,
            wanted: BTreeSet::new(),
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            started: Vec::new(),
            finished: BTreeMap::new(),
            draining: false,
            halted: BTreeSet::new(),
            away: false,
            unseen: false,
            coming: BTreeMap::new(),
            accepted: VecDeque::new(),
            took: (0, 0),
        }
    }

    pub(crate) fn record(&self, lease: LeaseId) -> LentRecord {
        let (borrower, tenant, isolation) = (self.borrower, self.tenant, self.isolation);
        LentRecord { lease, borrower, tenant, terms: self.terms, isolation, content: self.content }
    }

    /// An attempt was accepted that counts.
    pub(crate) fn charge(
        &mut self,
        (lease, lender): (LeaseId, SiteId),
        done: &Done,
        at: Millis,
        out: &mut Vec<Output>,
    ) -> ChargeRecord {
        let mut used = match done.outcome {
            Outcome::Done => Used::of(&done.usage, &self.terms),
            Outcome::Failed(_) => Used::failed(),
        };
        if self.content > 0 {
            used.content = std::mem::take(&mut self.content);
            put(out, Record::Lent(self.record(lease)));
        }
        ChargeRecord {
            attempt: done.attempt,
            lease,
            chain: ChainId { lender, borrower: self.borrower },
            tenant: self.tenant,
            terms: self.terms,
            isolation: self.isolation,
            used,
            at,
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

    /// Take back slots that were lost in a long wait for content, of those that are free, before anybody else asks.
    pub(crate) fn regain(&mut self, free: u32) {
        if self.more {
            self.slots += self.granted.saturating_sub(self.slots).min(free);
        }
    }

    /// Give up the slots in which nothing runs: somebody else is first in line for them.
    pub(crate) fn give_way(&mut self) {
        self.slots = self.slots.min(u32::try_from(self.running.len()).unwrap_or(u32::MAX));
    }

    /// Keep and take back only slots whose next tasks do not delay the first in line, of what is left of the machine.
    pub(crate) fn give_way_to(&mut self, kept: &mut Reservation, left: &mut Budget, now: Millis) {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let ends = self.task_time().map_or(Millis(u64::MAX), |time| now.plus(time));
        let wants = self.granted.min(self.busy()).saturating_sub(running);
        let may = running.saturating_add(kept.admit(&self.share, wants, ends));
        left.give(&self.share, self.slots.saturating_sub(may));
        self.slots = self.slots.min(may);
        let grown = self.grow(left.room(&self.share).min(may - self.slots));
        left.take(&self.share, grown);
    }

    /// Whether its slots in which nothing runs have nothing to wait for.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Active(_)) && self.queue.is_empty()
    }

    /// A session has run so long.
    pub(crate) fn learn(&mut self, run: &Run, now: Millis) {
        let (sum, n) = self.took;
        let ran = now.since(run.since).0;
        self.took = (sum.saturating_add(ran), n.saturating_add(run.tasks.len() as u64));
    }

    /// How long its tasks run, as far as it was seen here.
    pub(crate) fn task_time(&self) -> Option<Millis> {
        let (sum, n) = self.took;
        sum.checked_div(n).map(Millis)
    }

    pub(crate) fn busy(&self) -> u32 {
        u32::try_from(self.running.len() + self.queue.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn status(&self, lease: LeaseId) -> Status {
        let phase = match self.state {
            State::Reserved { .. } | State::Preparing { .. } => Phase::Preparing,
            State::Active(_) => Phase::Active,
            State::Away(phase) => phase,
            State::Ended => Phase::Gone,
        };
        let finished = self.finished.keys().chain(self.coming.keys()).copied().collect();
        if self.draining && phase != Phase::Gone {
            // What is about to start counts as running: it is not given back.
            let there = self.queue.iter().filter(|_| self.away);
            let running = self.in_sessions().chain(there).map(|run| run.attempt).collect();
            return Status { lease, phase: Phase::Draining, running, finished };
        }
        Status { lease, phase, running: self.started.clone(), finished }
    }

    /// The attempts of all its sessions.
    pub(crate) fn in_sessions(&self) -> impl Iterator<Item = &Assignment> {
        self.running.values().flat_map(|run| &run.tasks)
    }

    pub(crate) fn knows(&self, attempt: AttemptId) -> bool {
        let mut open = self.queue.iter().chain(self.in_sessions());
        self.finished.contains_key(&attempt)
            || self.coming.contains_key(&attempt)
            || self.accepted.contains(&attempt)
            || open.any(|known| known.attempt == attempt)
    }

    /// A session has read what was not there yet: what it ran waits again, unless it is wanted no more, and
    /// nothing starts before everything is there.
    pub(crate) fn spoil(&mut self, session: Session, now: Millis) {
        let run = self.running.remove(&session).map_or_else(Vec::new, |run| run.tasks);
        self.started.retain(|started| !run.iter().any(|run| run.attempt == *started));
        match self.state {
            State::Ended => return,
            State::Active(Ready { whole: false, .. }) => {
                self.state = State::Preparing { since: now }
            }
            State::Active(_)
            | State::Away(_)
            | State::Preparing { .. }
            | State::Reserved { .. } => {}
        }
        for assignment in run.into_iter().rev() {
            if self.wanted.contains(&assignment.attempt) {
                self.queue.push_front(assignment);
            }
        }
        self.shrink();
    }

    /// Others may use its slots when its content is on its way for long. It takes free ones when it is ready.
    pub(crate) fn lose_patience(&mut self, now: Millis) {
        if let State::Preparing { since } = self.state
            && now.since(since) >= PATIENCE
        {
            self.give_way();
        }
    }

    /// When others may use its slots.
    pub(crate) fn patient_until(&self) -> Option<Millis> {
        match self.state {
            State::Preparing { since } if self.slots > 0 => Some(since.plus(PATIENCE)),
            State::Preparing { .. }
            | State::Reserved { .. }
            | State::Active(_)
            | State::Away(_)
            | State::Ended => None,
        }
    }

    /// Of a lease that takes nothing more: what waits is dropped, and when nothing runs either it is over.
    pub(crate) fn drain(&mut self, out: &mut Vec<Output>) {
        if !self.draining || self.state == State::Ended {
            return;
        }
        // What another machine has begun with goes on there. Until the borrower has said again what it wants, that may
        // be anything.
        if self.away && self.version == 0 {
            return;
        }
        let (away, begun) = (self.away, &self.started);
        self.queue.retain(|queued| away && begun.contains(&queued.attempt));
        self.more = false;
        self.shrink();
        if self.running.is_empty() && self.queue.is_empty() {
            self.stop(out);
        }
    }

    /// End a session now. What it has not begun with, and is wanted, will run in another one.
    pub(crate) fn halt(&mut self, session: Session, out: &mut Vec<Output>) {
        let Some(run) = self.running.get(&session) else {
            return;
        };
        // Said to run no more, so that nobody asks again to stop it.
        self.started.retain(|started| !run.tasks.iter().any(|run| run.attempt == *started));
        if self.halted.insert(session) {
            out.push(Output::Stop(session));
        }
    }

    /// Sessions of which nothing is wanted, or not what they are at.
    pub(crate) fn unwanted(&self) -> Vec<Session> {
        let wanted = |run: &Assignment| self.wanted.contains(&run.attempt);
        let unwanted = self.running.iter().filter(|(_, run)| {
            let mut begun =
                run.tasks.iter().rev().filter(|run| self.started.contains(&run.attempt));
            !run.tasks.iter().any(wanted) || begun.next().is_some_and(|run| !wanted(run))
        });
        unwanted.map(|(session, _)| *session).collect()
    }

    /// Stop everything that runs or waits. What is finished stays.
    pub(crate) fn stop(&mut self, out: &mut Vec<Output>) {
        self.queue.clear();
        if self.away {
            self.started.clear();
        }
        out.extend(self.running.keys().map(|session| Output::Stop(*session)));
        self.state = State::Ended;
    }
}
