//! The borrower's side of the ledger: a receipt is compared with what we know, and answered.

use meshfarm_protocol::codec::encode;
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::receipt::{Contested, Entry, Money, Receipt, Used, Verdict, receipt_hash};

use crate::door::{Event, Output};
use crate::jobs::put_delete;
use crate::record::Key;

use super::{ChainId, DAY, EntryRecord, Ledger, MAX_DISPUTES_A_DAY, Misdeed, SKIP_GRACE};

impl Ledger {
    /// A lender wants a receipt signed, or shows one that we have signed once and lost since.
    pub(super) fn on_claim(
        &mut self,
        entry: Entry,
        (receipt, verdict): (Receipt, Option<Verdict>),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let id = ChainId { lender: receipt.lender, borrower: receipt.borrower };
        let (lender, sequence) = (receipt.lender, receipt.sequence);
        let known = self.chains.get(&id).map(|chain| &chain.record);
        let (next, head) = known.map_or((0, [0; 32]), |record| (record.next, record.head));
        if sequence < next {
            let repeated = sequence + 1 == next && receipt_hash(&entry.receipt) == head;
            let against = (!repeated).then(|| Box::new(entry));
            out.push(Output::ShowReceipt { to: lender, chain: id, sequence, against });
            return;
        }
        if sequence > next {
            self.miss((id, next), entry, now, out);
            return;
        }
        if receipt.previous != head {
            self.refuse(lender, (Misdeed::Forked, entry), now, out);
            return;
        }
        if let Some(chain) = self.chains.get_mut(&id) {
            chain.behind = None;
        }
        match verdict {
            Some(verdict) => self.adopt(entry, (&receipt, &verdict), now, out),
            None => self.answer(entry, &receipt, now, out),
        }
    }

    /// Receipts are lacking. We may have lost them ourselves, with a disk: they are asked for.
    fn miss(
        &mut self,
        (id, next): (ChainId, u64),
        entry: Entry,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let behind = self.chains.get(&id).and_then(|chain| chain.behind);
        match behind.filter(|(from, _)| *from == next) {
            None => {
                self.chain(id).behind = Some((next, now));
                let site = id.lender;
                out.push(Output::Tell(Event::ReceiptsLacking { site, next }));
            }
            Some((_, since)) if now.since(since) >= SKIP_GRACE => {
                self.refuse(id.lender, (Misdeed::Skipped, entry), now, out);
            }
            Some(_) => {}
        }
        let message = Message::Behind { lender: id.lender, next };
        out.push(Output::Send { to: id.lender, message });
    }

    /// A receipt with our own signature that we do not have any more.
    fn adopt(
        &mut self,
        entry: Entry,
        (receipt, verdict): (&Receipt, &Verdict),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(signed) = entry.verdict else { return };
        let record = EntryRecord {
            chain: ChainId { lender: receipt.lender, borrower: receipt.borrower },
            sequence: receipt.sequence,
            receipt: entry.receipt,
            signature: Some(entry.lender),
            verdict: signed.body,
        };
        self.strike(receipt, out);
        self.book(record, (receipt, verdict), now, out);
    }

    /// Sign the next receipt of a chain, with our own figures where we know of less.
    fn answer(&mut self, entry: Entry, receipt: &Receipt, now: Millis, out: &mut Vec<Output>) {
        let lender = receipt.lender;
        let id = ChainId { lender, borrower: receipt.borrower };
        let terms = self.borrowed.get(&receipt.lease).and_then(|tab| tab.charges.values().next());
        let terms = terms.filter(|charge| charge.chain == id).map(|charge| charge.terms);
        if terms.is_some_and(|terms| terms.mesh != receipt.mesh) {
            self.refuse(lender, (Misdeed::OtherMesh, entry), now, out);
            return;
        }
        let contested = self.judge(id, receipt);
        if contested.is_some() && self.chain(id).disputed_since(now, DAY) >= MAX_DISPUTES_A_DAY {
            self.refuse(lender, (Misdeed::TooManyDisputes, entry), now, out);
            return;
        }
        let verdict = Verdict { receipt: receipt_hash(&entry.receipt), at: now, contested };
        let record = EntryRecord {
            chain: id,
            sequence: receipt.sequence,
            receipt: entry.receipt,
            signature: Some(entry.lender),
            verdict: encode(&verdict),
        };
        self.strike(receipt, out);
        self.book(record.clone(), (receipt, &verdict), now, out);
        out.push(Output::SendReceipt { to: lender, entry: Box::new(record) });
        if let Some(own) = verdict.contested {
            let (claimed, granted, why) = (receipt.amount, own.amount, own.why);
            out.push(Output::Tell(Event::Disputed { site: lender, claimed, granted, why }));
        }
    }

    /// Our own figures, when a receipt says more than we know of.
    fn judge(&self, id: ChainId, receipt: &Receipt) -> Option<Contested> {
        let tab = self.borrowed.get(&receipt.lease);
        let known = |attempt| tab.and_then(|tab| tab.charges.get(attempt));
        let charges = receipt.attempts.iter().filter_map(known);
        let charges: Vec<_> = charges.filter(|charge| charge.chain == id).collect();
        let own = charges.iter().fold(Used::default(), |sum, charge| sum.plus(&charge.used));
        let Some(first) = charges.first() else {
            let n = receipt.attempts.len();
            let why = format!("none of its {n} attempts is on our books");
            return Some(Contested::new(own, Money(0), why));
        };
        let strange = receipt.attempts.len() - charges.len();
        let why = if strange > 0 {
            format!("{strange} of its attempts are not on our books")
        } else if receipt.price != first.terms.price {
            let (asked, granted) = (receipt.price.core_hour, first.terms.price.core_hour);
            format!(
                "it asks another price than was granted: {asked} for a core-hour, not {granted}"
            )
        } else if (receipt.tenant, receipt.isolation) != (first.tenant, first.isolation) {
            "it names another tenant or isolation than its lease".to_owned()
        } else {
            receipt.used.exceeds(&own.at_most(&first.terms))?
        };
        let owed = first.terms.price.of(&own).less(receipt.waived);
        Some(Contested::new(own, owed.min(receipt.amount), why))
    }

    /// What a receipt names is on no tab any more.
    fn strike(&mut self, receipt: &Receipt, out: &mut Vec<Output>) {
        let Some(tab) = self.borrowed.get_mut(&receipt.lease) else { return };
        for attempt in &receipt.attempts {
            let theirs = tab.charges.get(attempt).is_some_and(|c| c.chain.lender == receipt.lender);
            if theirs && tab.charges.remove(attempt).is_some() {
                put_delete(out, Key::Charge(*attempt));
            }
        }
        if tab.charges.is_empty() {
            self.borrowed.remove(&receipt.lease);
        }
    }
}
