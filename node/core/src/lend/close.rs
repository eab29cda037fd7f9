//! How leases that we gave end because their borrowers say so.

use meshfarm_protocol::id::{LeaseId, SiteId};
use meshfarm_protocol::lease::{Done, Outcome};

use crate::door::Output;

use super::Lend;

impl Lend {
    /// The borrower needs the lease no more. What is done stays until it has said whether it counts: that word may be
    /// lost, and this one not.
    pub(crate) fn on_close(&mut self, from: SiteId, lease: LeaseId, out: &mut Vec<Output>) {
        let unpaid = from == self.me || self.head == Some(from);
        self.close(from, lease, |done| unpaid || done.outcome != Outcome::Done, out);
    }

    /// A lease is over. Of what is finished, forget what `of` says.
    fn close(
        &mut self,
        from: SiteId,
        lease: LeaseId,
        of: impl Fn(&Done) -> bool,
        out: &mut Vec<Output>,
    ) {
        let lent = self.leases.get_mut(&lease).filter(|lent| lent.borrower == from);
        let Some(lent) = lent else { return };
        lent.stop(out);
        lent.drop_coming(out);
        for (_, finished) in lent.finished.extract_if(.., |_, finished| of(&finished.done)) {
            finished.forget(out);
        }
        self.forget_if_over(lease, out);
    }

    /// Somebody borrows nothing any more.
    pub(crate) fn close_all(&mut self, borrower: SiteId, out: &mut Vec<Output>) {
        let of_it = self.leases.iter().filter(|(_, lent)| lent.borrower == borrower);
        let of_it: Vec<LeaseId> = of_it.map(|(lease, _)| *lease).collect();
        for lease in of_it {
            self.close(borrower, lease, |_| true, out);
        }
    }
}
