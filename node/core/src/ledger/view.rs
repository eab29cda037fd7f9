//! What people see of the ledger: the balance with each site, what is not signed, what is contested, what was refused.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{Millis, SiteId};
use meshfarm_protocol::receipt::{Money, Price, Used};

use crate::site::Site;

use super::{Chain, ChainId, Ledger, Misdeed};

/// The ledger as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LedgerView {
    /// Our site.
    pub site: SiteId,
    /// Its name.
    pub name: String,
    /// What it asks for its slots.
    pub price: Price,
    /// What it waives of each site's debts in each month.
    pub free: Money,
    /// The account with each site that there ever was one with.
    pub pairs: Vec<PairView>,
}

/// The account with another site. Every sum in it stands at the other site too, on the other side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairView {
    /// The other site.
    pub site: SiteId,
    /// Its name, or the beginning of its id when it was not met since the start.
    pub name: String,
    /// What we did for it.
    pub lent: SideView,
    /// What it did for us.
    pub borrowed: SideView,
    /// Whether it gets no slots of ours, because it has not signed or contested too much.
    pub withheld: bool,
    /// Receipts of it that were refused: evidence.
    pub refused: Vec<Refusal>,
}

/// What one site did for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideView {
    /// What is owed for it, as both sides have signed.
    pub owed: Money,
    /// What the lender asks beyond that.
    pub contested: Money,
    /// Receipts that both sides have signed.
    pub receipts: u64,
    /// Those of them whose figures the borrower contests.
    pub disputes: u64,
    /// Receipts that the borrower has not answered, and what they are over.
    pub unsigned: usize,
    /// What those are over.
    pub unsigned_amount: Money,
    /// What was used.
    pub used: Used,
}

/// A receipt that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// When.
    pub at: Millis,
    /// Why.
    pub why: Misdeed,
}

impl Chain {
    fn view(&self) -> SideView {
        let pending = self.pending.iter().filter_map(|e| super::read_receipt(&e.receipt).ok());
        let unsigned_amount = pending.fold(Money(0), |sum, receipt| sum.plus(receipt.amount));
        SideView {
            owed: self.record.owed,
            contested: self.record.contested,
            receipts: self.record.next,
            disputes: self.record.disputes,
            unsigned: self.pending.len(),
            unsigned_amount,
            used: self.record.used,
        }
    }
}

impl Ledger {
    fn side(&self, lender: SiteId, borrower: SiteId) -> SideView {
        self.chains.get(&ChainId { lender, borrower }).map(Chain::view).unwrap_or_default()
    }
}

impl Site {
    /// What we owe and are owed.
    #[must_use]
    pub fn ledger(&self, now: Millis) -> LedgerView {
        let (ledger, me) = (&self.ledger, self.config.me);
        let ends =
            ledger.chains.keys().map(|id| if id.lender == me { id.borrower } else { id.lender });
        let mut others: Vec<SiteId> = ends.chain(ledger.misdeeds.keys().copied()).collect();
        others.sort_unstable();
        others.dedup();
        let pairs = others.into_iter().map(|site| {
            let refused = ledger.misdeeds.get(&site).into_iter().flatten();
            PairView {
                site,
                name: self.sites.name(site),
                lent: ledger.side(me, site),
                borrowed: ledger.side(site, me),
                withheld: ledger.withholds(site, now),
                refused: refused.map(|kept| Refusal { at: kept.at, why: kept.misdeed }).collect(),
            }
        });
        LedgerView {
            site: me,
            name: self.config.name.clone(),
            price: ledger.pricing.price,
            free: ledger.pricing.free,
            pairs: pairs.collect(),
        }
    }
}
