//! The borrower's side: offers, leases that we hold, and the attempts of our tasks under them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::lease::{
    Assignment, Done, Grant, LENDER_GRACE, MAX_ATTEMPTS, Offer, Outputs, Phase, RENEW_EVERY,
    RESERVATION, Status, Usage, Want,
};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::Terms;

use crate::door::TaskRef;
use crate::record::BorrowedRecord;

mod held;
mod past;

pub(crate) use held::Held;
use held::PATIENCE;

/// A lease that we hold or have asked for.
#[derive(Clone, Debug)]
pub(crate) struct Borrowed {
    pub(crate) job: JobId,
    pub(crate) step: StepNo,
    pub(crate) lender: SiteId,
    pub(crate) state: State,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are held")]
pub(crate) enum State {
    /// Asked; no answer yet.
    Offered { slots: u32, until: Millis },
    /// Ours.
    Held(Held),
}

/// Outputs of an attempt on their way to where the job named them.
#[derive(Clone, Debug)]
pub(crate) struct Landing {
    pub(crate) task: TaskRef,
    pub(crate) lease: LeaseId,
    pub(crate) lender: SiteId,
    pub(crate) usage: Usage,
    /// What its lease promised.
    pub(crate) isolation: Option<Level>,
    /// How long the attempt can have run at most.
    pub(crate) seen: Millis,
    pub(crate) outputs: Outputs,
    /// None while being fetched; otherwise not before this moment.
    pub(crate) again: Option<Millis>,
    /// When the attempt's end was heard of.
    pub(crate) since: Millis,
    /// Why the last try to put them in place failed.
    pub(crate) blocked: Option<String>,
    /// Since when its lender cannot be reached, or has not got them.
    pub(crate) unreachable: Option<Millis>,
}

/// How long outputs are asked for that a connected lender does not hand out: it has lost them, or never had them.
const REFUSED_GRACE: Millis = LENDER_GRACE.times(10);

/// So many other lenders a lender is told of: enough to fill its line, few enough to ask.
const MAX_TOLD_OF: usize = 4;

/// The borrower's side of a site.
#[derive(Clone, Debug, Default)]
pub(crate) struct Borrow {
    leases: BTreeMap<LeaseId, Borrowed>,
    /// Those of each step.
    by_step: BTreeMap<(JobId, StepNo), BTreeSet<LeaseId>>,
    landing: BTreeMap<AttemptId, Landing>,
    /// Second tries, of which the tasks' records know nothing: after a restart there are none.
    pub(crate) seconds: BTreeMap<AttemptId, TaskRef>,
    /// Attempts that were given up and whose results would still be welcome, and their order in time.
    given_up: BTreeMap<AttemptId, TaskRef>,
    given_up_order: VecDeque<AttemptId>,
    /// What leases cost that we hold no more, for results that arrive after all, and their order in time.
    past: BTreeMap<LeaseId, (SiteId, Terms, Option<Level>)>,
    past_order: VecDeque<LeaseId>,
}

/// What a lease leaves behind that the lender has given back.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    pub(crate) lender: SiteId,
    pub(crate) tasks: Vec<(TaskRef, AttemptId)>,
    /// Whether nothing of it is left.
    pub(crate) over: bool,
    /// Whether its content had arrived there.
    pub(crate) prepared: bool,
}

impl Borrowed {
    /// Since when its content is on its way for the first time.
    pub(crate) fn fetching_since(&self) -> Option<Millis> {
        match &self.state {
            State::Held(held) if !held.prepared => Some(held.since),
            State::Held(_) | State::Offered { .. } => None,
        }
    }
}

impl Borrow {
    pub(crate) fn all(&self) -> impl Iterator<Item = (LeaseId, &Borrowed)> {
        self.leases.iter().map(|(lease, borrowed)| (*lease, borrowed))
    }

    pub(crate) fn get(&self, lease: LeaseId, from: SiteId) -> Option<&Borrowed> {
        self.leases.get(&lease).filter(|borrowed| borrowed.lender == from)
    }

    pub(crate) fn held_mut(&mut self, lease: LeaseId) -> Option<&mut Held> {
        match &mut self.leases.get_mut(&lease)?.state {
            State::Held(held) => Some(held),
            State::Offered { .. } => None,
        }
    }

    /// The isolation that a lease of ours promised, as far as it is known.
    pub(crate) fn isolation(&self, lease: LeaseId) -> Option<Level> {
        match &self.leases.get(&lease)?.state {
            State::Held(held) => held.isolation,
            State::Offered { .. } => None,
        }
    }

    /// Whether a lease or an offer of a job is open, or outputs of it are on their way.
    pub(crate) fn serves(&self, job: JobId) -> bool {
        self.leases.values().any(|borrowed| borrowed.job == job)
            || self.landing.values().any(|landing| landing.task.job == job)
    }

    /// Leases and open offers of one step.
    pub(crate) fn of_step(
        &self,
        job: JobId,
        step: StepNo,
    ) -> impl Iterator<Item = (LeaseId, &Borrowed)> {
        let leases = self.by_step.get(&(job, step)).into_iter().flatten();
        leases.filter_map(|lease| Some((*lease, self.leases.get(lease)?)))
    }

    fn insert(&mut self, lease: LeaseId, borrowed: Borrowed) {
        self.by_step.entry((borrowed.job, borrowed.step)).or_default().insert(lease);
        self.leases.insert(lease, borrowed);
    }

    fn take(&mut self, lease: LeaseId) -> Option<Borrowed> {
        let borrowed = self.leases.remove(&lease)?;
        let step = (borrowed.job, borrowed.step);
        if let Some(of_step) = self.by_step.get_mut(&step) {
            of_step.remove(&lease);
            if of_step.is_empty() {
                self.by_step.remove(&step);
            }
        }
        self.remember_terms(lease, &borrowed);
        Some(borrowed)
    }

    pub(crate) fn offered(
        &mut self,
        offer: &Offer,
        (job, step): (JobId, StepNo),
        lender: SiteId,
        now: Millis,
    ) {
        let (lease, slots) = (offer.lease, offer.slots);
        // A lender that has not answered by then will not hold the slots for us either.
        let state = State::Offered { slots, until: now.plus(RESERVATION) };
        self.insert(lease, Borrowed { job, step, lender, state });
    }

    /// An offer came to nothing. Returns false when there was none.
    pub(crate) fn declined(&mut self, lease: LeaseId, from: SiteId) -> bool {
        let is_offer = |b: &Borrowed| matches!(b.state, State::Offered { .. }) && b.lender == from;
        let found = self.leases.get(&lease).is_some_and(is_offer);
        if found {
            self.take(lease);
        }
        found
    }

    /// The lender grants: the lease is ours once the commit is said. None when nothing was offered.
    pub(crate) fn granted(
        &mut self,
        from: SiteId,
        grant: &Grant,
        now: Millis,
    ) -> Option<(JobId, StepNo)> {
        let borrowed = self.leases.get_mut(&grant.lease).filter(|b| b.lender == from)?;
        let State::Offered { slots, .. } = borrowed.state else {
            return None;
        };
        let slots = grant.slots.min(slots);
        let mut held = Held::new((slots, Some(grant.isolation)), now);
        held.terms = grant.terms;
        borrowed.state = State::Held(held);
        Some((borrowed.job, borrowed.step))
    }

    /// Let a lease go. Returns how many slots it held.
    pub(crate) fn remove(&mut self, lease: LeaseId) -> u32 {
        match self.take(lease).map(|borrowed| borrowed.state) {
            Some(State::Held(held)) => held.slots,
            Some(State::Offered { .. }) | None => 0,
        }
    }

    /// An offer came to nothing: to whom it was made. None when it is a lease by now.
    pub(crate) fn forget_offer(&mut self, lease: LeaseId) -> Option<SiteId> {
        let borrowed = self.leases.get(&lease)?;
        let State::Offered { .. } = borrowed.state else {
            return None;
        };
        let lender = borrowed.lender;
        self.take(lease);
        Some(lender)
    }

    /// Take everything from a lease but what the lender has finished under it.
    pub(crate) fn split_off(&mut self, lease: LeaseId, finished: &[AttemptId]) -> Option<Lost> {
        let borrowed = self.leases.get_mut(&lease)?;
        let State::Held(held) = &mut borrowed.state else {
            return None;
        };
        let (job, step, lender) = (borrowed.job, borrowed.step, borrowed.lender);
        let open = held.attempts.extract_if(.., |a| !finished.contains(&a.attempt));
        let tasks = open.map(|a| (TaskRef { job, step, task: a.task }, a.attempt)).collect();
        let prepared = held.prepared;
        held.phase = Phase::Gone;
        held.running.clear();
        held.begun.clear();
        held.earliest.clear();
        let over = held.attempts.is_empty();
        if over {
            self.take(lease);
        }
        Some(Lost { lender, tasks, over, prepared })
    }

    /// Take from a lease every attempt that is not in `keeps`.
    pub(crate) fn shed(
        &mut self,
        lease: LeaseId,
        keeps: &BTreeSet<AttemptId>,
    ) -> Vec<(TaskRef, AttemptId)> {
        let Some(borrowed) = self.leases.get_mut(&lease) else {
            return Vec::new();
        };
        let State::Held(held) = &mut borrowed.state else {
            return Vec::new();
        };
        let (job, step) = (borrowed.job, borrowed.step);
        let shed = held.attempts.extract_if(.., |a| !keeps.contains(&a.attempt));
        shed.map(|a| (TaskRef { job, step, task: a.task }, a.attempt)).collect()
    }

    /// Offers of a job that have no answer yet, and to whom they were made.
    pub(crate) fn offers(&self, job: JobId) -> Vec<(LeaseId, SiteId)> {
        let open = self.all().filter(|(_, borrowed)| match borrowed.state {
            State::Offered { .. } => borrowed.job == job,
            State::Held(_) => false,
        });
        open.map(|(lease, borrowed)| (lease, borrowed.lender)).collect()
    }

    /// Every attempt that runs at its lender, as far as we were told.
    pub(crate) fn running(&self) -> BTreeSet<AttemptId> {
        let held = self.leases.values().filter_map(|borrowed| match &borrowed.state {
            State::Held(held) => Some(&held.running),
            State::Offered { .. } => None,
        });
        held.flatten().copied().collect()
    }

    /// Take the tasks from lenders that are still preparing after a while: whoever is ready first shall have them.
    pub(crate) fn take_back(&mut self, now: Millis) -> Vec<(SiteId, TaskRef, AttemptId)> {
        let mut taken = Vec::new();
        for borrowed in self.leases.values_mut() {
            let (job, step, lender) = (borrowed.job, borrowed.step, borrowed.lender);
            if let State::Held(held) = &mut borrowed.state
                && held.is_slow(now)
            {
                let attempts = std::mem::take(&mut held.attempts).into_iter();
                taken.extend(
                    attempts.map(|a| (lender, TaskRef { job, step, task: a.task }, a.attempt)),
                );
            }
        }
        taken
    }

    /// Take from a lender what it has not begun with, of the steps that `of` names.
    pub(crate) fn take_queued(
        &mut self,
        lender: SiteId,
        of: impl Fn(JobId, StepNo) -> bool,
    ) -> Vec<(TaskRef, AttemptId)> {
        let mut taken = Vec::new();
        for borrowed in self.leases.values_mut() {
            let (job, step) = (borrowed.job, borrowed.step);
            if let State::Held(held) = &mut borrowed.state
                && borrowed.lender == lender
                && of(job, step)
            {
                let running = &held.running;
                let queued = held.attempts.extract_if(.., |a| !running.contains(&a.attempt));
                taken.extend(queued.map(|a| (TaskRef { job, step, task: a.task }, a.attempt)));
            }
        }
        taken
    }

    /// The lender says how a lease stands. Returns the tasks that have begun to run since.
    pub(crate) fn on_status(&mut self, status: &Status, now: Millis) -> Option<Vec<TaskRef>> {
        let borrowed = self.leases.get_mut(&status.lease)?;
        let (job, step) = (borrowed.job, borrowed.step);
        let State::Held(held) = &mut borrowed.state else {
            return None;
        };
        held.heard = now;
        if held.phase != status.phase {
            (held.phase, held.since) = (status.phase, now);
        }
        held.prepared |= status.phase == Phase::Active;
        let mine: BTreeMap<_, _> = held.attempts.iter().map(|a| (a.attempt, a.task)).collect();
        let running: BTreeSet<_> =
            status.running.iter().filter(|a| mine.contains_key(a)).copied().collect();
        let new = running.difference(&held.running).map(|a| mine[a]);
        let started = new.map(|task| TaskRef { job, step, task }).collect();
        held.begun.retain(|attempt, _| running.contains(attempt));
        for attempt in &running {
            held.begun.entry(*attempt).or_insert(now);
        }
        held.heard_what_runs(&running, &status.finished, now);
        held.running = running;
        Some(started)
    }

    /// An attempt has ended at the lender: it holds no slot any more. None when it is not ours.
    pub(crate) fn ended(&mut self, from: SiteId, done: &Done, now: Millis) -> Option<TaskRef> {
        let borrowed = self.leases.get_mut(&done.lease).filter(|b| b.lender == from)?;
        let State::Held(held) = &mut borrowed.state else {
            return None;
        };
        held.heard = now;
        let at = held.attempts.iter().position(|a| a.attempt == done.attempt)?;
        let task = held.attempts.remove(at).task;
        held.running.remove(&done.attempt);
        held.begun.remove(&done.attempt);
        held.earliest.remove(&done.attempt);
        Some(TaskRef { job: borrowed.job, step: borrowed.step, task })
    }

    /// For every lease whose content is still on its way, leases of other lenders for the same step that it has not
    /// been told of: at most [`MAX_TOLD_OF`] each.
    pub(crate) fn strangers(&self, own: impl Fn(SiteId) -> bool) -> Vec<(LeaseId, LeaseId)> {
        let held = |b: &Borrowed| match &b.state {
            State::Held(held) => held.phase != Phase::Gone && !own(b.lender),
            State::Offered { .. } => false,
        };
        let mut strangers = Vec::new();
        for (lease, borrowed) in self.all().filter(|(_, b)| held(b)) {
            let State::Held(Held { prepared: false, told_of, .. }) = &borrowed.state else {
                continue;
            };
            let room = MAX_TOLD_OF.saturating_sub(told_of.len());
            let others = self.of_step(borrowed.job, borrowed.step).filter(|(other, b)| {
                held(b) && b.lender != borrowed.lender && !told_of.contains(other)
            });
            strangers.extend(others.take(room).map(|(other, _)| (lease, other)));
        }
        strangers
    }

    /// A lender was told of another one's lease.
    pub(crate) fn told_of(&mut self, lease: LeaseId, other: LeaseId) {
        if let Some(held) = self.held_mut(lease) {
            held.told_of.insert(other);
        }
    }

    /// Outputs shall be fetched, at the next opportunity.
    pub(crate) fn land(&mut self, attempt: AttemptId, landing: Landing) {
        self.landing.insert(attempt, landing);
    }

    /// Whether outputs of a lease, or of a task, are on their way.
    pub(crate) fn is_landing(&self, what: impl Fn(&Landing) -> bool) -> bool {
        self.landing.values().any(what)
    }

    /// Forget attempts that are no longer wanted.
    pub(crate) fn retain(&mut self, wanted: impl Fn(TaskRef, AttemptId) -> bool) {
        for borrowed in self.leases.values_mut() {
            let (job, step) = (borrowed.job, borrowed.step);
            if let State::Held(held) = &mut borrowed.state {
                held.attempts.retain(|a| wanted(TaskRef { job, step, task: a.task }, a.attempt));
            }
        }
    }

    /// Under which lease an attempt is.
    pub(crate) fn holder(&self, attempt: AttemptId) -> Option<(LeaseId, SiteId, Option<Level>)> {
        self.leases.iter().find_map(|(lease, borrowed)| match &borrowed.state {
            State::Held(held) if held.attempts.iter().any(|a| a.attempt == attempt) => {
                Some((*lease, borrowed.lender, held.isolation))
            }
            State::Held(_) | State::Offered { .. } => None,
        })
    }

    pub(crate) fn landing(&mut self, attempt: AttemptId) -> Option<&mut Landing> {
        self.landing.get_mut(&attempt)
    }

    pub(crate) fn landing_of(&self, attempt: AttemptId) -> Option<&Landing> {
        self.landing.get(&attempt)
    }

    pub(crate) fn landed(&mut self, attempt: AttemptId) -> Option<Landing> {
        self.landing.remove(&attempt)
    }

    /// Outputs of a job that are on their way.
    pub(crate) fn landings(&self, job: JobId) -> impl Iterator<Item = &Landing> {
        self.landing.values().filter(move |landing| landing.task.job == job)
    }

    /// Outputs that shall be fetched now.
    pub(crate) fn due(&self, now: Millis) -> Vec<AttemptId> {
        let due = self.landing.iter().filter(|(_, l)| l.again.is_some_and(|at| at <= now));
        due.map(|(attempt, _)| *attempt).collect()
    }

    /// Whether content is on its way under a lease, and under another one of the step that has tasks: whoever is ready
    /// first shall have them. Letting go of either would send the content back and forth for ever.
    pub(crate) fn may_be_first(&self, lease: LeaseId) -> bool {
        let fetching = |borrowed: &Borrowed| match &borrowed.state {
            State::Held(held) => held.phase == Phase::Preparing && !held.prepared,
            State::Offered { .. } => false,
        };
        let Some(ours) = self.leases.get(&lease).filter(|ours| fetching(ours)) else {
            return false;
        };
        self.of_step(ours.job, ours.step).any(|(other, borrowed)| {
            let has_tasks = match &borrowed.state {
                State::Held(held) => !held.attempts.is_empty(),
                State::Offered { .. } => false,
            };
            other != lease && has_tasks && fetching(borrowed)
        })
    }

    /// Leases under which nothing runs or waits.
    pub(crate) fn idle(&self) -> Vec<(LeaseId, (JobId, StepNo), SiteId)> {
        let idle = self.all().filter(|(_, b)| match &b.state {
            State::Held(held) => held.attempts.is_empty(),
            State::Offered { .. } => false,
        });
        idle.map(|(lease, b)| (lease, (b.job, b.step), b.lender)).collect()
    }

    /// Attempts whose outputs a lender still has that was silent, or refused them, for too long.
    pub(crate) fn lost_landings(
        &self,
        now: Millis,
        connected: impl Fn(SiteId) -> bool,
        grace: impl Fn(SiteId) -> Millis,
    ) -> Vec<AttemptId> {
        let lost = |l: &Landing| {
            let silent = !connected(l.lender) && now.since(l.since) >= grace(l.lender);
            let refused = l.unreachable.is_some_and(|since| now.since(since) >= REFUSED_GRACE);
            l.again.is_some() && (silent || refused)
        };
        self.landing.iter().filter(|(_, l)| lost(l)).map(|(attempt, _)| *attempt).collect()
    }

    /// Offers without an answer and leases of silent lenders. We are never silent to ourselves, even when
    /// the machine has slept.
    pub(crate) fn overdue(
        &self,
        now: Millis,
        me: SiteId,
        grace: impl Fn(SiteId) -> Millis,
    ) -> Vec<LeaseId> {
        let overdue = |borrowed: &Borrowed| match &borrowed.state {
            State::Offered { until, .. } => *until <= now,
            State::Held(held) => {
                borrowed.lender != me && now.since(held.heard) >= grace(borrowed.lender)
            }
        };
        self.all().filter(|(_, b)| overdue(b)).map(|(lease, _)| lease).collect()
    }

    /// What has to be said now: wishes that have changed, and renewals that are due.
    pub(crate) fn wishes(&mut self, now: Millis) -> Vec<(SiteId, Want)> {
        let mut said = Vec::new();
        for (lease, borrowed) in &mut self.leases {
            let State::Held(held) = &mut borrowed.state else {
                continue;
            };
            let changed = held.attempts != held.said_attempts || held.more != held.said_more;
            if changed || now.since(held.said) >= RENEW_EVERY {
                said.push((borrowed.lender, held.say(*lease, now)));
            }
        }
        said
    }

    /// A lender is back: say at once what we want of it.
    pub(crate) fn on_peer_up(&mut self, site: SiteId) {
        for borrowed in self.leases.values_mut().filter(|b| b.lender == site) {
            if let State::Held(held) = &mut borrowed.state {
                held.said = Millis(0);
            }
        }
        for landing in self.landing.values_mut().filter(|l| l.lender == site) {
            landing.again = landing.again.map(|_| Millis(0));
        }
    }

    pub(crate) fn restore(&mut self, record: &BorrowedRecord, now: Millis) {
        let mut held = Held::new((record.slots, record.isolation), now);
        (held.terms, held.told) = (record.terms, Millis(0));
        (held.phase, held.prepared) = (Phase::Active, true);
        // Before the restart less was said than in so many milliseconds: later versions count.
        held.version = now.0;
        let (job, step, lender) = (record.job, record.step, record.lender);
        let state = State::Held(held);
        self.insert(record.lease, Borrowed { job, step, lender, state });
    }

    /// An attempt goes on under its lease. Returns false when there is no such lease.
    pub(crate) fn restore_attempt(
        &mut self,
        lease: LeaseId,
        attempt: AttemptId,
        at: TaskRef,
    ) -> bool {
        let Some(borrowed) = self.leases.get_mut(&lease) else {
            return false;
        };
        match &mut borrowed.state {
            State::Held(held) if (borrowed.job, borrowed.step) == (at.job, at.step) => {
                let task = at.task;
                held.attempts.push(Assignment { attempt, task });
                // What a lender had is taken to run until it says what does.
                held.running.insert(attempt);
                true
            }
            State::Held(_) | State::Offered { .. } => false,
        }
    }

    pub(crate) fn wake_at(&self, me: SiteId, grace: impl Fn(SiteId) -> Millis) -> Option<Millis> {
        let leases = self.leases.values().map(|borrowed| match &borrowed.state {
            State::Offered { until, .. } => *until,
            State::Held(held) => {
                let renew = held.said.plus(RENEW_EVERY);
                let silent = held.heard.plus(grace(borrowed.lender));
                let own = borrowed.lender == me;
                let soon = if own { renew } else { renew.min(silent) };
                let tied = held.phase == Phase::Preparing && !held.attempts.is_empty();
                if tied { soon.min(held.since.plus(PATIENCE)) } else { soon }
            }
        });
        let landing = self.landing.values().filter_map(|landing| landing.again);
        leases.chain(landing).min()
    }

    pub(crate) fn check(&self) {
        let listed = self.by_step.values().map(BTreeSet::len).sum::<usize>();
        assert_eq!(listed, self.leases.len(), "a lease is of no step");
        for (lease, borrowed) in self.all() {
            let mut of_step = self.of_step(borrowed.job, borrowed.step);
            assert!(of_step.any(|(known, _)| known == lease), "a lease is of another step");
        }
        let mut seen = BTreeSet::new();
        for borrowed in self.leases.values() {
            let State::Held(held) = &borrowed.state else {
                continue;
            };
            assert!(held.attempts.len() <= MAX_ATTEMPTS, "a lease has too many attempts");
            for a in held.attempts.iter().filter(|a| !self.seconds.contains_key(&a.attempt)) {
                let task = (borrowed.job, borrowed.step, a.task);
                assert!(seen.insert(task), "a task is leased twice");
            }
            let shared: usize = held.shares.iter().map(BTreeSet::len).sum();
            let distinct: BTreeSet<_> = held.shares.iter().flatten().collect();
            assert_eq!(distinct.len(), shared, "an attempt was given to two sessions");
        }
    }
}
