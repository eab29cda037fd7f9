//! The lender's side: admission, slots, leases that we gave, sessions, finished work until it is accepted.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, Millis, SiteId};
use meshfarm_protocol::lease::{
    BORROWER_GRACE, Declined, Done, KEEP_FINISHED, MAX_ATTEMPTS, Outcome, Phase, Status, Usage,
    Want,
};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{GPU, HostClass, Level};
use meshfarm_protocol::receipt::Price;
use meshfarm_protocol::seal::SealingKey;

use crate::capacity::{Budget, Capacity, Share};
use crate::door::{Content, Ended, Event, Hold, Output, PrepareError, Ready, Session};
use crate::jobs::{put, put_delete};
use crate::ledger::ChargeRecord;
use crate::lent::{Finished, Lent, Run, State};
use crate::record::{FinishedRecord, Key, LentRecord, Record};
use crate::reserve::Reservation;

mod admit;
mod away;
mod close;

pub(crate) use away::{Coming, Taken};

/// How often a finished attempt is told again until its borrower has it.
const TELL_AGAIN: Millis = Millis::seconds(5);

/// When a borrower that found every slot taken may ask again.
pub(crate) const BUSY_PAUSE: Millis = Millis::seconds(3);

/// When a borrower that we cannot serve may ask again.
const LONG_PAUSE: Millis = Millis::seconds(60);

/// More leases than this of one borrower are declined, counting those of which only finished work is left.
const MAX_LEASES: usize = 256;

/// More leases than this of all other sites together are declined.
const MAX_LEASES_OF_ALL: usize = 4096;

/// The lender's side of a site.
#[derive(Clone, Debug)]
pub(crate) struct Lend {
    me: SiteId,
    /// The site that we are a host of.
    pub(crate) head: Option<SiteId>,
    sealing_key: SealingKey,
    host: HostClass,
    /// Names of amounts that only our own jobs may have.
    kept: BTreeSet<String>,
    capacity: Capacity,
    /// What was promised when the machine last turned out to be another: it may be more than this one has.
    owed: Budget,
    /// What our hosts hold of what is the site's and not a machine's: floating licences.
    pub(crate) away: Budget,
    pub(crate) lending: bool,
    pub(crate) floor: Level,
    pub(crate) full: bool,
    /// What is kept for the first of our own tasks in line.
    pub(crate) reserved: Option<Reservation>,
    /// What is asked for its slots.
    pub(crate) price: Price,
    leases: BTreeMap<LeaseId, Lent>,
    next_session: u64,
}

impl Lend {
    pub(crate) fn new(
        (me, head, sealing_key): (SiteId, Option<SiteId>, SealingKey),
        (host, kept): (HostClass, BTreeSet<String>),
        (lending, floor): (bool, Level),
    ) -> Self {
        let (owed, away, leases) = (Budget::default(), Budget::default(), BTreeMap::new());
        let (full, reserved, next_session) = (false, None, 1);
        let mut capacity = Capacity::default();
        capacity.set(&host);
        Self {
            me,
            head,
            sealing_key,
            host,
            kept,
            capacity,
            owed,
            away,
            lending,
            floor,
            full,
            reserved,
            price: Price::default(),
            leases,
            next_session,
        }
    }

    /// What the machine offers.
    pub(crate) const fn host(&self) -> &HostClass {
        &self.host
    }

    /// Whether `borrower` may read our store: it holds a lease, or outputs of its attempts are here.
    pub(crate) fn serves(&self, borrower: SiteId, lease: LeaseId) -> bool {
        self.leases.get(&lease).is_some_and(|lent| lent.borrower == borrower)
    }

    /// Whether `borrower` has a lease here whose content is on its way.
    pub(crate) fn is_preparing(&self, borrower: SiteId, lease: LeaseId) -> bool {
        let preparing = |lent: &Lent| {
            let fetching = matches!(
                lent.state,
                State::Preparing { .. }
                    | State::Active(Ready { whole: false, .. })
                    | State::Away(Phase::Preparing)
            );
            lent.borrower == borrower && fetching
        };
        self.leases.get(&lease).is_some_and(preparing)
    }

    /// Whether content of a lease that `borrower` has here may go to whoever shows its pass.
    pub(crate) fn shares(&self, borrower: SiteId, lease: LeaseId, root: ChunkId) -> bool {
        let shares = |lent: &Lent| lent.borrower == borrower && lent.root == Some(root);
        self.leases.get(&lease).is_some_and(shares)
    }

    /// The borrower takes reserved slots: promise them durably, then fetch the content.
    pub(crate) fn on_commit(
        &mut self,
        from: SiteId,
        (want, root, content): (Want, ChunkId, Content),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let lease = want.lease;
        let reserved = |lent: &&mut Lent| {
            lent.borrower == from && matches!(lent.state, State::Reserved { .. })
        };
        if let Some(lent) = self.leases.get_mut(&lease).filter(reserved) {
            lent.root = Some(root);
            put(out, Record::Lent(lent.record(lease)));
            let borrower = from;
            match content {
                Content::Sealed(envelope) if lent.away => {
                    lent.state = State::Away(Phase::Preparing);
                    out.push(Output::Fetch { lease, borrower, root, envelope });
                }
                content @ (Content::Sealed(_) | Content::Own(..)) => {
                    lent.state = State::Preparing { since: now };
                    out.push(Output::Prepare { lease, borrower, root, content });
                }
            }
        }
        self.on_want(from, want, now, out);
    }

    /// Make it as the borrower wants it, and say how it stands.
    pub(crate) fn on_want(&mut self, from: SiteId, want: Want, now: Millis, out: &mut Vec<Output>) {
        let lease = want.lease;
        let Some(lent) = self.leases.get_mut(&lease).filter(|lent| lent.borrower == from) else {
            let phase = Phase::Gone;
            let status = Status { lease, phase, running: Vec::new(), finished: Vec::new() };
            out.push(Output::Send { to: from, message: Message::Status(status) });
            return;
        };
        lent.heard = now;
        // Versions begin at the borrower's clock. One that was set back before a restart would never be heard again: when
        // nothing higher has come for so long that nothing older can still be on its way, what is said now counts.
        let newer = want.version > lent.version || now.since(lent.counted) >= BORROWER_GRACE;
        if lent.is_live() && newer && want.attempts.len() <= MAX_ATTEMPTS {
            (lent.version, lent.counted) = (want.version, now);
            lent.more = want.more;
            lent.wanted = want.attempts.iter().map(|wanted| wanted.attempt).collect();
            let wanted = &lent.wanted;
            lent.queue.retain(|queued| wanted.contains(&queued.attempt));
            for session in lent.unwanted() {
                lent.halt(session, out);
            }
            for assignment in &want.attempts {
                if !lent.knows(assignment.attempt) {
                    lent.queue.push_back(*assignment);
                }
            }
            lent.begin_away();
            lent.drain(out);
            lent.shrink();
        }
        let status = lent.status(lease);
        out.push(Output::Send { to: from, message: Message::Status(status) });
    }

    /// Start nothing more for these borrowers: what runs goes on to its end, what waits goes back.
    pub(crate) fn drain(&mut self, whose: impl Fn(SiteId) -> bool, out: &mut Vec<Output>) {
        self.leases.retain(|_, lent| match lent.state {
            State::Reserved { .. } => !whose(lent.borrower),
            State::Preparing { .. } | State::Active(_) | State::Away(_) | State::Ended => true,
        });
        self.turn_away(
            whose,
            |lent, out| {
                lent.draining = true;
                lent.drain(out);
            },
            out,
        );
    }

    /// Stop what runs for these borrowers, and give everything back that is not finished.
    pub(crate) fn give_back(&mut self, whose: impl Fn(SiteId) -> bool, out: &mut Vec<Output>) {
        self.turn_away(whose, Lent::stop, out);
    }

    fn turn_away(
        &mut self,
        whose: impl Fn(SiteId) -> bool,
        how: impl Fn(&mut Lent, &mut Vec<Output>),
        out: &mut Vec<Output>,
    ) {
        let mut turned = Vec::new();
        let theirs = |lent: &Lent| whose(lent.borrower) && lent.is_live();
        let theirs = self.leases.iter_mut().filter(|(_, lent)| theirs(lent));
        for (lease, lent) in theirs {
            how(lent, out);
            let message = Message::Status(lent.status(*lease));
            out.push(Output::Send { to: lent.borrower, message });
            turned.push(*lease);
        }
        for lease in turned {
            self.forget_if_over(lease, out);
        }
    }

    /// Content is in place, or enough of it, or will not be.
    pub(crate) fn on_prepared(
        &mut self,
        lease: LeaseId,
        result: Result<Ready, PrepareError>,
        out: &mut Vec<Output>,
    ) {
        let left = self.left();
        let Some(lent) = self.leases.get_mut(&lease) else {
            return;
        };
        match lent.state {
            State::Preparing { .. } | State::Active(Ready { whole: false, .. }) => {}
            State::Reserved { .. } | State::Active(_) | State::Away(_) | State::Ended => return,
        }
        match result {
            Ok(ready) => {
                lent.state = State::Active(ready);
                lent.regain(left.room(&lent.share));
            }
            Err(error) => {
                if let PrepareError::Bad(what) = error {
                    let site = lent.borrower;
                    out.push(Output::Tell(Event::Blame { site, what }));
                }
                lent.stop(out);
            }
        }
        let message = Message::Status(lent.status(lease));
        out.push(Output::Send { to: lent.borrower, message });
    }

    /// Start what can start. A lease that has given up its last slot and finds none gives its tasks back.
    pub(crate) fn fill(&mut self, now: Millis, out: &mut Vec<Output>) {
        let mut left = self.left();
        let mut gpus = self.free_gpus();
        for (lease, lent) in &mut self.leases {
            let State::Active(Ready { shared_sessions, .. }) = lent.state else {
                continue;
            };
            // A borrower that fetches nothing gets nothing more: what is finished stays here until it does.
            if lent.queue.is_empty() || lent.finished.len() >= MAX_ATTEMPTS {
                continue;
            }
            let others = lent.borrower != self.me;
            match self.reserved.as_mut().filter(|_| others) {
                Some(kept) if kept.share.is_wider(&lent.share) => {
                    lent.give_way_to(kept, &mut left, now);
                }
                Some(_) | None => {
                    let grown = lent.grow(left.room(&lent.share));
                    left.take(&lent.share, grown);
                }
            }
            if lent.slots == 0 {
                lent.stop(out);
                let message = Message::Status(lent.status(*lease));
                out.push(Output::Send { to: lent.borrower, message });
            }
            while lent.running.len() < lent.slots as usize && !lent.queue.is_empty() {
                let idle = lent.slots as usize - lent.running.len();
                let share = lent.queue.len().div_ceil(idle);
                let n = if shared_sessions { share } else { 1 };
                let run: Vec<_> = lent.queue.drain(..n).collect();
                let session = Session(self.next_session);
                self.next_session += 1;
                let n_gpus = usize::try_from(self.capacity.amount(&lent.share, GPU).0 / 1000)
                    .unwrap_or(usize::MAX);
                let gpus: Vec<_> = gpus.by_ref().take(n_gpus).collect();
                let (amounts, tasks) = (self.capacity.of_share(&lent.share), run.clone());
                let holds = Hold { amounts, gpus: gpus.clone() };
                lent.running.insert(session, Run { tasks, since: now, gpus });
                let (lease, borrower, isolation) = (*lease, lent.borrower, lent.isolation);
                out.push(Output::Start { session, lease, borrower, isolation, holds, run });
            }
        }
    }

    /// Graphics cards that no session has, by their numbers.
    fn free_gpus(&self) -> impl Iterator<Item = u32> + use<> {
        let runs = self.leases.values().flat_map(|lent| lent.running.values());
        let taken: BTreeSet<u32> = runs.flat_map(|run| run.gpus.iter().copied()).collect();
        (0..).filter(move |gpu| !taken.contains(gpu))
    }

    pub(crate) fn on_started(&mut self, attempt: AttemptId, out: &mut Vec<Output>) {
        let runs = |lent: &Lent| lent.in_sessions().any(|run| run.attempt == attempt);
        if let Some((lease, lent)) = self.leases.iter_mut().find(|(_, lent)| runs(lent)) {
            // The word comes from the jail, which may repeat itself.
            if lent.started.contains(&attempt) {
                return;
            }
            lent.started.push(attempt);
            for session in lent.unwanted() {
                lent.halt(session, out);
            }
            let message = Message::Status(lent.status(*lease));
            out.push(Output::Send { to: lent.borrower, message });
        }
    }

    /// A session is over: keep what it made until the borrower has it.
    pub(crate) fn on_ended(
        &mut self,
        session: Session,
        results: Vec<Ended>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let found = self.leases.iter_mut().find(|(_, lent)| lent.running.contains_key(&session));
        let Some((lease, lent)) = found else { return };
        let Some(run) = lent.running.remove(&session) else { return };
        let halted = lent.halted.remove(&session);
        lent.learn(&run, now);
        lent.shrink();
        let stopped = lent.state == State::Ended;
        let mut again = Vec::new();
        for assignment in run.tasks {
            let attempt = assignment.attempt;
            lent.started.retain(|started| *started != attempt);
            let result = results.iter().find(|ended| ended.attempt == attempt);
            let made = result.is_some_and(|ended| ended.outcome == Outcome::Done);
            if (stopped || halted) && !made {
                again.extend(lent.wanted.contains(&attempt).then_some(assignment));
                continue;
            }
            let done = done_of(*lease, attempt, result);
            let borrower = lent.borrower;
            put(out, Record::Finished(FinishedRecord { borrower, at: now, done: done.clone() }));
            let message = Message::Done(Box::new(done.clone()));
            out.push(Output::Send { to: borrower, message });
            lent.finished.insert(attempt, Finished { done, at: now, told: now });
        }
        if !stopped {
            again.into_iter().rev().for_each(|assignment| lent.queue.push_front(assignment));
        }
        lent.drain(out);
        lent.shrink();
        let lease = *lease;
        self.forget_if_over(lease, out);
    }

    /// A session is over that has read what was not there yet.
    pub(crate) fn on_spoiled(&mut self, session: Session, now: Millis, out: &mut Vec<Output>) {
        let found = self.leases.iter_mut().find(|(_, lent)| lent.running.contains_key(&session));
        let Some((lease, lent)) = found else { return };
        lent.halted.remove(&session);
        lent.spoil(session, now);
        lent.drain(out);
        let (lease, message) = (*lease, Message::Status(lent.status(*lease)));
        out.push(Output::Send { to: lent.borrower, message });
        self.forget_if_over(lease, out);
    }

    pub(crate) fn on_accepted(
        &mut self,
        from: SiteId,
        (lease, attempt, counts): (LeaseId, AttemptId, bool),
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Option<ChargeRecord> {
        let lent = self.leases.get_mut(&lease).filter(|lent| lent.borrower == from)?;
        let counts = counts && from != self.me && self.head != Some(from);
        let mut charge = None;
        if let Some(finished) = lent.finished.remove(&attempt) {
            if counts {
                charge = Some(lent.charge((lease, self.me), &finished.done, now, out));
            }
            finished.forget(out);
            lent.accepted.push_back(attempt);
            if lent.accepted.len() > MAX_ATTEMPTS {
                lent.accepted.pop_front();
            }
        }
        self.forget_if_over(lease, out);
        charge
    }

    /// Whether more may be charged under a lease.
    pub(crate) fn goes_on(&self, lease: LeaseId) -> bool {
        self.leases.contains_key(&lease)
    }

    /// Drop an ended lease of which nothing is left.
    fn forget_if_over(&mut self, lease: LeaseId, out: &mut Vec<Output>) {
        let over = |lent: &&Lent| {
            let nothing_left = lent.finished.is_empty() && lent.coming.is_empty();
            lent.state == State::Ended && lent.running.is_empty() && nothing_left
        };
        if self.leases.get(&lease).filter(over).is_some() {
            self.leases.remove(&lease);
            put_delete(out, Key::Lent(lease));
            out.push(Output::Release(lease));
        }
    }

    /// Take back what nobody claims, and tell again what nobody has acknowledged.
    pub(crate) fn tick(
        &mut self,
        now: Millis,
        connected: impl Fn(SiteId) -> bool,
        out: &mut Vec<Output>,
    ) {
        self.leases.retain(|_, lent| match lent.state {
            State::Reserved { until } => until > now,
            State::Preparing { .. } | State::Active(_) | State::Away(_) | State::Ended => true,
        });
        let mut over = Vec::new();
        for (lease, lent) in &mut self.leases {
            // We are never silent to ourselves, even when the machine has slept.
            lent.lose_patience(now);
            let live = lent.is_live() && lent.borrower != self.me;
            let grace = grace(self.head, lent.borrower, &connected);
            if live && now.since(lent.heard) >= grace {
                lent.stop(out);
                let message = Message::Status(lent.status(*lease));
                out.push(Output::Send { to: lent.borrower, message });
            }
            let stale = |finished: &Finished| now.since(finished.at) >= KEEP_FINISHED;
            for (_, old) in lent.finished.extract_if(.., |_, finished| stale(finished)) {
                old.forget(out);
            }
            let to = lent.borrower;
            for finished in lent.finished.values_mut().filter(|_| connected(to)) {
                if now.since(finished.told) >= TELL_AGAIN {
                    finished.told = now;
                    let message = Message::Done(Box::new(finished.done.clone()));
                    out.push(Output::Send { to, message });
                }
            }
            over.push(*lease);
        }
        for lease in over {
            self.forget_if_over(lease, out);
        }
    }

    /// A borrower is back: tell it at once what it has missed.
    pub(crate) fn on_peer_up(&mut self, site: SiteId, now: Millis) {
        for lent in self.leases.values_mut().filter(|lent| lent.borrower == site) {
            // A head that was away says what it still wants; what it says nothing of ends after the usual grace.
            if self.head == Some(site) {
                lent.heard = now;
            }
            for finished in lent.finished.values_mut() {
                finished.told = Millis(0);
            }
        }
    }

    pub(crate) fn wake_at(&self, connected: impl Fn(SiteId) -> bool) -> Option<Millis> {
        let moments = self.leases.values().flat_map(|lent| {
            let grace = match lent.state {
                State::Reserved { until } => Some(until),
                _ if lent.is_live() && lent.borrower != self.me => {
                    Some(lent.heard.plus(grace(self.head, lent.borrower, &connected)))
                }
                State::Preparing { .. } | State::Active(_) | State::Away(_) | State::Ended => None,
            };
            let again = connected(lent.borrower);
            let tell = lent.finished.values().map(move |finished| {
                let keep = finished.at.plus(KEEP_FINISHED);
                if again { keep.min(finished.told.plus(TELL_AGAIN)) } else { keep }
            });
            tell.chain(grace).chain(lent.patient_until())
        });
        moments.min()
    }

    /// A lease from before a restart: its sessions are dead, so it is over but for what is finished.
    pub(crate) fn restore_lease(&mut self, record: &LentRecord) {
        let whose = (record.borrower, record.tenant);
        let promise = (0, Share::default(), record.isolation);
        let mut lent = Lent::new(whose, promise, State::Ended, Millis(0));
        (lent.terms, lent.content) = (record.terms, record.content);
        self.leases.insert(record.lease, lent);
    }

    pub(crate) fn restore_finished(&mut self, record: FinishedRecord) {
        if let Some(lent) = self.leases.get_mut(&record.done.lease) {
            let finished = Finished { done: record.done, at: record.at, told: Millis(0) };
            lent.finished.insert(finished.done.attempt, finished);
        }
    }

    /// Every lease that we gave and of which something is left.
    pub(crate) fn all(&self) -> impl Iterator<Item = (LeaseId, &Lent)> {
        self.leases.iter().map(|(lease, lent)| (*lease, lent))
    }

    /// Whether somebody of whom `who` holds has a lease here that is not over.
    pub(crate) fn lends_to(&self, who: impl Fn(SiteId) -> bool) -> bool {
        self.leases.values().any(|lent| who(lent.borrower) && lent.state != State::Ended)
    }

    pub(crate) fn check(&self) {
        let most = self.capacity.whole().clone().or(&self.owed);
        assert!(most.covers(&self.held()), "more is promised than the machine has");
        let runs = self.leases.values().flat_map(|lent| lent.running.values());
        let gpus: Vec<_> = runs.flat_map(|run| &run.gpus).collect();
        let distinct: BTreeSet<_> = gpus.iter().collect();
        assert_eq!(distinct.len(), gpus.len(), "two sessions have the same graphics card");
        for lent in self.leases.values() {
            let halted = lent.halted.iter().all(|session| lent.running.contains_key(session));
            assert!(halted, "a session that is over is to stop");
            lent.check_away();
            assert!(
                !lent.draining || lent.queue.is_empty() || lent.away,
                "a lease that takes nothing has tasks"
            );
            let mut ids: Vec<_> = lent.queue.iter().chain(lent.in_sessions()).collect();
            let n = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), n, "an attempt would run twice");
        }
    }
}

/// What is said to an offer that is not even looked at.
pub(crate) const fn decline(lease: LeaseId, reason: Declined) -> Message {
    Message::Decline { lease, reason, retry_after: LONG_PAUSE }
}

/// How long a silent borrower is waited for. A host waits for a head that is away as long as it would keep finished
/// work for it: nobody else wants its slots, and what it was given shall be done when the head is back.
fn grace(head: Option<SiteId>, borrower: SiteId, connected: impl Fn(SiteId) -> bool) -> Millis {
    if head == Some(borrower) && !connected(borrower) { KEEP_FINISHED } else { BORROWER_GRACE }
}

fn done_of(lease: LeaseId, attempt: AttemptId, result: Option<&Ended>) -> Done {
    match result {
        Some(ended) => Done {
            lease,
            attempt,
            outcome: ended.outcome.clone(),
            outputs: ended.outputs.clone(),
            usage: ended.usage,
        },
        None => Done {
            lease,
            attempt,
            outcome: Outcome::Failed("the session ended before the task did".to_owned()),
            outputs: None,
            usage: Usage::default(),
        },
    }
}
