//! The lender's side of the ledger: receipts are made, sent in order, and booked when their borrower has answered.

use meshfarm_protocol::codec::encode;
use meshfarm_protocol::id::{LeaseId, Millis};
use meshfarm_protocol::receipt::{
    Entry, MAX_RECEIPT_ATTEMPTS, Money, RECEIPT_VERSION, Receipt, Used, Verdict, read_receipt,
    receipt_hash,
};

use crate::door::{Event, Output};
use crate::jobs::{put, put_delete};
use crate::record::{Key, Record};

use super::{Chain, ChainId, DAY, EntryRecord, Ledger};

/// The month of a moment in UTC, counted from the year 0: 24,312 is January 2026.
#[must_use]
pub const fn month_of(at: Millis) -> u64 {
    // Days from 1 March of the year 0, in eras of 400 years, as in Hinnant's "chrono-compatible date algorithms".
    let days = at.0 / DAY.0 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    // Its years begin in March.
    (era * 400 + year) * 12 + month + 2
}

impl Chain {
    /// Place and predecessor of the next receipt.
    fn tip(&self) -> (u64, [u8; 32]) {
        let sequence = self.record.next + self.pending.len() as u64;
        let last = self.pending.back().map(|entry| receipt_hash(&entry.receipt));
        (sequence, last.unwrap_or(self.record.head))
    }

    /// A receipt waits for its answer.
    fn append(&mut self, receipt: &Receipt, out: &mut Vec<Output>) {
        let entry = EntryRecord {
            chain: self.record.chain,
            sequence: receipt.sequence,
            receipt: encode(receipt),
            signature: None,
            verdict: Vec::new(),
        };
        put(out, Record::Pending(entry.clone()));
        self.pending.push_back(entry);
    }

    /// How much of a sum is waived, of what is free in a month.
    fn waive(&mut self, sum: Money, free: Money, now: Millis) -> Money {
        let month = month_of(now);
        if self.record.month != month {
            (self.record.month, self.record.waived) = (month, Money(0));
        }
        let waived = sum.min(free.less(self.record.waived));
        self.record.waived = self.record.waived.plus(waived);
        waived
    }
}

impl Ledger {
    /// Make a receipt of what a lease's tab has, as much as one has room for.
    pub(super) fn make(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) {
        let Some(tab) = self.lent.get_mut(&lease) else { return };
        let mut charges = Vec::new();
        while charges.len() < MAX_RECEIPT_ATTEMPTS
            && let Some((_, charge)) = tab.charges.pop_first()
        {
            charges.push(charge);
        }
        if tab.charges.is_empty() {
            self.lent.remove(&lease);
        }
        let Some(first) = charges.first() else { return };
        let used = charges.iter().fold(Used::default(), |sum, charge| sum.plus(&charge.used));
        let (id, free, price) = (first.chain, self.pricing.free, first.terms.price);
        let chain = self.chain(id);
        let sum = price.of(&used);
        let waived = chain.waive(sum, free, now);
        let (sequence, previous) = chain.tip();
        let receipt = Receipt {
            version: RECEIPT_VERSION,
            mesh: first.terms.mesh,
            lender: id.lender,
            borrower: id.borrower,
            sequence,
            previous,
            at: now,
            lease,
            tenant: first.tenant,
            isolation: first.isolation,
            price,
            used,
            waived,
            amount: sum.less(waived),
            attempts: charges.iter().map(|charge| charge.attempt).collect(),
        };
        chain.append(&receipt, out);
        put(out, Record::Chain(chain.record.clone()));
        self.unanswered.insert(id);
        for charge in charges {
            put_delete(out, Key::Charge(charge.attempt));
        }
    }

    /// A borrower answers a receipt; or shows one that we have signed once and lost since, in a restored backup.
    pub(super) fn on_verdict(
        &mut self,
        entry: Entry,
        (receipt, verdict): (&Receipt, &Verdict),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let id = ChainId { lender: receipt.lender, borrower: receipt.borrower };
        let chain = self.chain(id);
        let due = (chain.record.next, chain.record.head);
        if (receipt.sequence, receipt.previous) != due {
            return;
        }
        let ours = chain.pending.front().is_some_and(|first| first.receipt == entry.receipt);
        if ours {
            chain.pending.pop_front();
            put_delete(out, Key::Pending(id, receipt.sequence));
        }
        chain.told = Millis(0);
        let later = if ours { Default::default() } else { std::mem::take(&mut chain.pending) };
        let Some(signed) = entry.verdict else { return };
        let record = EntryRecord {
            chain: id,
            sequence: receipt.sequence,
            receipt: entry.receipt,
            signature: Some(signed.signature),
            verdict: signed.body,
        };
        self.book(record, (receipt, verdict), now, out);
        // Those that were made without the lost one follow it now.
        let chain = self.chain(id);
        for pending in &later {
            put_delete(out, Key::Pending(id, pending.sequence));
        }
        for pending in later {
            if let Ok(again) = read_receipt(&pending.receipt) {
                let (sequence, previous) = chain.tip();
                chain.append(&Receipt { sequence, previous, ..again }, out);
            }
        }
        if chain.pending.is_empty() {
            self.unanswered.remove(&id);
        }
        if let Some(own) = &verdict.contested {
            let (site, why) = (receipt.borrower, own.why.clone());
            let (claimed, granted) = (receipt.amount, own.amount);
            out.push(Output::Tell(Event::Disputed { site, claimed, granted, why }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_where_the_calendar_has_them() {
        let at = |day: u64| month_of(Millis(day * DAY.0));
        assert_eq!([at(0), at(30), at(31)], [1970 * 12, 1970 * 12, 1970 * 12 + 1]);
        // 29 February and 1 March of 2024; 31 December 2025 and 1 January 2026.
        assert_eq!([at(19_782), at(19_783)], [2024 * 12 + 1, 2024 * 12 + 2]);
        assert_eq!([at(20_453), at(20_454)], [2025 * 12 + 11, 2026 * 12]);
    }
}
