//! What is remembered of leases and attempts that are over, because their results may arrive after all.

use meshfarm_protocol::id::{AttemptId, LeaseId, Millis, SiteId};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::Terms;

use crate::door::TaskRef;

use super::{Borrow, Borrowed, State};

/// So many attempts that were given up, and so many leases, are remembered.
const MAX_GIVEN_UP: usize = 10_000;

impl Borrow {
    /// A lease is ours no more: what it cost is remembered.
    pub(super) fn remember_terms(&mut self, lease: LeaseId, borrowed: &Borrowed) {
        let State::Held(held) = &borrowed.state else { return };
        if self.past.insert(lease, (borrowed.lender, held.terms, held.isolation)).is_none() {
            self.past_order.push_back(lease);
        }
        if self.past_order.len() > MAX_GIVEN_UP
            && let Some(oldest) = self.past_order.pop_front()
        {
            self.past.remove(&oldest);
        }
    }

    /// What a lease of a lender costs, or has cost, and the isolation that was promised.
    pub(crate) fn terms(&self, lease: LeaseId, lender: SiteId) -> Option<(Terms, Level)> {
        let found = match self.get(lease, lender).map(|borrowed| &borrowed.state) {
            Some(State::Held(held)) => Some((lender, held.terms, held.isolation)),
            Some(State::Offered { .. }) => None,
            None => self.past.get(&lease).copied(),
        };
        let (of, terms, isolation) = found?;
        (of == lender).then(|| (terms, isolation.unwrap_or_default()))
    }

    /// Since when an attempt may have run at its lender; the beginning of time when we cannot tell.
    pub(crate) fn earliest(&self, lease: LeaseId, attempt: AttemptId) -> Millis {
        match self.leases.get(&lease).map(|borrowed| &borrowed.state) {
            Some(State::Held(held)) => held.earliest(attempt),
            Some(State::Offered { .. }) | None => Millis(0),
        }
    }

    /// Remember an attempt that was given up.
    pub(crate) fn give_up(&mut self, attempt: AttemptId, at: TaskRef) {
        if self.given_up.insert(attempt, at).is_none() {
            self.given_up_order.push_back(attempt);
        }
        if self.given_up_order.len() > MAX_GIVEN_UP
            && let Some(oldest) = self.given_up_order.pop_front()
        {
            self.given_up.remove(&oldest);
        }
    }

    /// The task of an attempt that was given up.
    pub(crate) fn given_up(&self, attempt: AttemptId) -> Option<TaskRef> {
        self.given_up.get(&attempt).copied()
    }
}
