//! Leases that we gave and that run on another machine: what is wanted there, what it said of them, what came of them.
//!
//! To their borrowers they are leases like others. Their queue is what is wanted of the other machine, and what that
//! has ended stays among what is coming until its outputs are here.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{AttemptId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::lease::{
    Done, MAX_ATTEMPTS, MAX_REASON, Offer, Outcome, Outputs, Phase, RESERVATION, Status,
};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::Terms;

use crate::capacity::Share;
use crate::door::Output;
use crate::jobs::put;
use crate::lent::{Finished, Lent, State};
use crate::record::{FinishedRecord, Record};

use super::Lend;

/// What another machine has ended for a lease of ours.
#[derive(Clone, Debug)]
pub(crate) struct Coming {
    /// What the borrower will be told, but for its outputs, which are still those of the other machine.
    pub(crate) done: Done,
    /// None while its outputs are being fetched; otherwise not before this moment.
    pub(crate) again: Option<Millis>,
    /// Since when they cannot be fetched.
    pub(crate) unreachable: Option<Millis>,
}

/// What becomes of an attempt that another machine says has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The borrower does not want it, or has it, or will: the machine may forget it.
    Over,
    /// The machine shall keep it.
    Kept,
}

impl Lent {
    /// Whether more of it may run.
    pub(crate) const fn is_live(&self) -> bool {
        match self.state {
            State::Preparing { .. } | State::Active(_) | State::Away(_) => true,
            State::Reserved { .. } | State::Ended => false,
        }
    }

    /// Of what another machine has begun with, only what is wanted counts.
    pub(crate) fn begin_away(&mut self) {
        let queue = &self.queue;
        if self.unseen {
            self.started = queue.iter().map(|queued| queued.attempt).collect();
        } else if self.away {
            self.started.retain(|begun| queue.iter().any(|queued| queued.attempt == *begun));
        }
    }

    /// Outputs that are on their way here are wanted no more.
    pub(crate) fn drop_coming(&mut self, out: &mut Vec<Output>) {
        for (attempt, coming) in std::mem::take(&mut self.coming) {
            let root = coming.done.outputs.map(|outputs| outputs.root);
            out.push(Output::Forget { attempt, root });
        }
    }

    pub(crate) fn check_away(&self) {
        if !self.away {
            assert!(!matches!(self.state, State::Away(_)), "a lease of our own machine is away");
            assert!(self.coming.is_empty(), "our own machine's outputs are not here");
            return;
        }
        let here = matches!(self.state, State::Preparing { .. } | State::Active(_));
        assert!(!here && self.running.is_empty(), "a lease runs here and elsewhere");
        let queued: BTreeSet<_> = self.queue.iter().map(|queued| queued.attempt).collect();
        let wanted = |begun| self.version == 0 || queued.contains(begun);
        assert!(self.started.iter().all(wanted), "an attempt runs that nobody wants");
        let ended =
            |attempt| self.coming.contains_key(attempt) || self.finished.contains_key(attempt);
        assert!(!queued.iter().any(ended), "an attempt that has ended is wanted");
        let both = self.coming.keys().any(|attempt| self.finished.contains_key(attempt));
        assert!(!both, "an attempt has two results");
        let n = self.coming.len() + self.finished.len();
        assert!(n <= 2 * MAX_ATTEMPTS, "a lease keeps more results than it may");
    }
}

impl Lend {
    /// Promise slots of another machine, which it keeps for us.
    pub(crate) fn reserve_away(
        &mut self,
        (asks, lease, borrower): (&Offer, LeaseId, SiteId),
        (slots, isolation, terms): (u32, Level, Terms),
        now: Millis,
    ) -> Message {
        let promise = (slots, Share::default(), isolation);
        let state = State::Reserved { until: now.plus(RESERVATION) };
        let mut lent = Lent::new((borrower, asks.tenant), promise, state, now);
        (lent.away, lent.content, lent.terms) = (true, asks.bytes, terms);
        let granted = self.grant(lease, &lent);
        self.leases.insert(lease, lent);
        granted
    }

    /// A lease that runs on another machine.
    pub(crate) fn away(&self, lease: LeaseId) -> Option<&Lent> {
        self.leases.get(&lease).filter(|lent| lent.away)
    }

    /// What it has ended, whose outputs are on their way here.
    pub(crate) fn coming(&mut self, lease: LeaseId, attempt: AttemptId) -> Option<&mut Coming> {
        self.leases.get_mut(&lease)?.coming.get_mut(&attempt)
    }

    /// A lease from before a restart that goes on on another machine. What is wanted of it, its borrower says. None when
    /// there is no such lease.
    pub(crate) fn restore_away(
        &mut self,
        lease: LeaseId,
        (slots, isolation, root): (u32, Level, meshfarm_protocol::id::ChunkId),
        now: Millis,
    ) -> Option<(SiteId, TenantId)> {
        let lent = self.leases.get_mut(&lease)?;
        (lent.away, lent.unseen) = (true, true);
        (lent.state, lent.heard) = (State::Away(Phase::Active), now);
        (lent.granted, lent.slots, lent.isolation) = (slots, slots, isolation);
        lent.root = Some(root);
        Some((lent.borrower, lent.tenant))
    }

    /// The machine says how a lease stands.
    pub(crate) fn on_away(&mut self, lease: LeaseId, status: &Status, out: &mut Vec<Output>) {
        let Some(lent) = self.leases.get_mut(&lease).filter(|lent| lent.away) else {
            return;
        };
        if !lent.is_live() {
            return;
        }
        // What has ended there and is not heard of in detail is not given back either. Before its borrower has said
        // what it wants, all of it may be wanted.
        let begun: BTreeSet<_> = status.running.iter().chain(&status.finished).copied().collect();
        let started: Vec<_> = match lent.version {
            0 => begun.into_iter().take(2 * MAX_ATTEMPTS).collect(),
            _ => {
                let queued = lent.queue.iter().map(|queued| queued.attempt);
                queued.filter(|attempt| begun.contains(attempt)).collect()
            }
        };
        lent.unseen = false;
        let before = (lent.state, lent.draining, std::mem::replace(&mut lent.started, started));
        match status.phase {
            Phase::Preparing | Phase::Active => {
                lent.state = State::Away(status.phase);
                lent.drain(out);
            }
            Phase::Draining | Phase::Gone => {
                lent.draining = true;
                match status.phase == Phase::Gone && lent.started.is_empty() {
                    true => lent.stop(out),
                    false => lent.drain(out),
                }
            }
        }
        if before != (lent.state, lent.draining, lent.started.clone()) {
            let message = Message::Status(lent.status(lease));
            out.push(Output::Send { to: lent.borrower, message });
        }
        self.forget_if_over(lease, out);
    }

    /// The machine has ended an attempt.
    pub(crate) fn take_in(
        &mut self,
        lease: LeaseId,
        mut done: Done,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Taken {
        let attempt = done.attempt;
        let Some(lent) = self.leases.get_mut(&lease).filter(|lent| lent.away) else {
            return Taken::Over;
        };
        if lent.coming.contains_key(&attempt) {
            return Taken::Kept;
        }
        let at = lent.queue.iter().position(|queued| queued.attempt == attempt);
        // After a restart nobody knows what was wanted until the borrower says so.
        let unknown = lent.version == 0 && lent.is_live() && !lent.finished.contains_key(&attempt);
        if at.is_none() && !unknown {
            return Taken::Over;
        }
        if lent.coming.len() + lent.finished.len() >= 2 * MAX_ATTEMPTS {
            return Taken::Kept;
        }
        at.map(|at| lent.queue.remove(at));
        lent.started.retain(|begun| *begun != attempt);
        done.lease = lease;
        if done.outcome == Outcome::Done && done.outputs.is_some() {
            lent.coming.insert(attempt, Coming { done, again: Some(now), unreachable: None });
            self.settle_away(lease, out);
            return Taken::Kept;
        }
        done.outputs = None;
        if let Outcome::Failed(reason) = &mut done.outcome {
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
        }
        lent.finish(done, now, out);
        self.settle_away(lease, out);
        Taken::Over
    }

    /// Outputs are here and sealed to the borrower, or never will be, for this reason. Returns false when nobody
    /// waits for them.
    pub(crate) fn taken_in(
        &mut self,
        (lease, attempt): (LeaseId, AttemptId),
        result: Result<Outputs, String>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let lent = self.leases.get_mut(&lease);
        let Some((lent, coming)) =
            lent.and_then(|lent| lent.coming.remove(&attempt).map(|coming| (lent, coming)))
        else {
            return false;
        };
        let mut done = coming.done;
        match result {
            Ok(outputs) => done.outputs = Some(outputs),
            Err(reason) => (done.outputs, done.outcome) = (None, Outcome::Failed(reason)),
        }
        lent.finish(done, now, out);
        self.settle_away(lease, out);
        true
    }

    /// The machine takes nothing more, or is not to: what it has begun with goes on, the rest goes back.
    pub(crate) fn drain_away(&mut self, lease: LeaseId, out: &mut Vec<Output>) {
        let lent = self.leases.get_mut(&lease).filter(|lent| lent.away && lent.is_live());
        if let Some(lent) = lent {
            lent.draining = true;
            lent.drain(out);
            let message = Message::Status(lent.status(lease));
            out.push(Output::Send { to: lent.borrower, message });
        }
        self.forget_if_over(lease, out);
    }

    /// The machine is lost, and what it has with it: all of it goes back but what is here.
    pub(crate) fn lose_away(&mut self, lease: LeaseId, out: &mut Vec<Output>) {
        let Some(lent) = self.leases.get_mut(&lease).filter(|lent| lent.away) else {
            return;
        };
        lent.stop(out);
        lent.drop_coming(out);
        let message = Message::Status(lent.status(lease));
        out.push(Output::Send { to: lent.borrower, message });
        self.forget_if_over(lease, out);
    }

    fn settle_away(&mut self, lease: LeaseId, out: &mut Vec<Output>) {
        if let Some(lent) = self.leases.get_mut(&lease) {
            lent.shrink();
            lent.drain(out);
        }
        self.forget_if_over(lease, out);
    }
}

impl Lent {
    /// An attempt has ended elsewhere, and all of it is here: keep it until the borrower has it.
    fn finish(&mut self, done: Done, now: Millis, out: &mut Vec<Output>) {
        let (borrower, attempt) = (self.borrower, done.attempt);
        put(out, Record::Finished(FinishedRecord { borrower, at: now, done: done.clone() }));
        let message = Message::Done(Box::new(done.clone()));
        out.push(Output::Send { to: borrower, message });
        self.finished.insert(attempt, Finished { done, at: now, told: now });
    }
}
