//! What a borrower writes down when an attempt is over: what it believes of the figures, what that costs, that it counts.

use meshfarm_protocol::id::{AttemptId, LeaseId, Millis, SiteId};
use meshfarm_protocol::lease::{KEEP_FINISHED, Usage};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::receipt::{Exact, Terms, Used};

use crate::door::{Output, TaskRef};
use crate::job::Task;
use crate::site::Site;

use super::{ChainId, ChargeRecord};

impl Site {
    /// How long an attempt can have run at most, as we have seen it: from the last word that it did not run, or from when
    /// it was handed over, until now.
    pub(crate) fn seen(
        &self,
        (at, attempt): (TaskRef, AttemptId),
        earliest: Millis,
        now: Millis,
    ) -> Millis {
        let handed_over = match self.jobs.task(at) {
            Some(Task::Leased { attempt: ours, since, .. }) if *ours == attempt => Some(*since),
            Some(
                Task::Leased { .. }
                | Task::Waiting { .. }
                | Task::Done { .. }
                | Task::Failed { .. }
                | Task::Canceled,
            )
            | None => None,
        };
        // Of a try that was given up, or a second one, we may know no more than how long work is kept.
        let from = earliest.max(handed_over.unwrap_or_default());
        if from > Millis(0) { now.since(from) } else { KEEP_FINISHED }
    }

    /// What an attempt under a lease used, of what it says no more than was `seen`, and what that costs.
    pub(crate) fn cost(
        &self,
        (by, lease): (SiteId, LeaseId),
        (usage, seen): (&Usage, Millis),
    ) -> (Used, Exact) {
        let terms = self.borrow.terms(lease, by).map(|(terms, _)| terms).unwrap_or_default();
        let used = if self.owns(by) {
            Used::of(usage, &Terms { cores: u32::MAX, ..terms })
        } else {
            Used::of(&Usage { wall: usage.wall.min(seen), ..*usage }, &terms)
        };
        (used, terms.price.exactly(&used))
    }

    /// An attempt counts: at another site it will be in a receipt, at home in our own statistics.
    pub(crate) fn count(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (lender, lease): (SiteId, LeaseId),
        (used, now): (&Used, Millis),
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get(at.job) else { return };
        let tenant = job.spec.tenant;
        if self.owns(lender) {
            let spec = std::sync::Arc::clone(&job.spec);
            self.ledger.tally((tenant, &spec.project), used, now, out);
            return;
        }
        // A result of a lease of which we know nothing any more is a gift.
        let Some((terms, isolation)) = self.borrow.terms(lease, lender) else { return };
        let chain = ChainId { lender, borrower: self.config.me };
        let used = *used;
        let charge =
            ChargeRecord { attempt, lease, chain, tenant, terms, isolation, used, at: now };
        self.ledger.charge(charge, out);
    }

    /// Tell a lender that we have everything of an attempt, and whether it counts.
    pub(crate) fn say_accepted(
        &self,
        (to, lease): (SiteId, LeaseId),
        attempt: AttemptId,
        out: &mut Vec<Output>,
    ) {
        let counts = self.ledger.counts(lease, attempt);
        out.push(Output::Send { to, message: Message::Accepted { lease, attempt, counts } });
    }
}
