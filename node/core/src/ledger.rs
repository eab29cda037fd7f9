//! The ledger: what accepted attempts cost, receipts in their chains, and what is said to those of others.
//!
//! A lender charges for what its borrower has accepted, and for nothing else. Both sides write a charge down when an
//! attempt is accepted; the lender sums them up in receipts, one lease and at most [`RECEIPT_EVERY`] in each, and sends
//! those of a chain in order, the next when the last is answered. A borrower compares a receipt with its own charges and
//! signs it, with its own figures where those are less. Nothing waits for an agreement.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meshfarm_protocol::id::{AttemptId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::receipt::{
    Entry, Money, Price, Receipt, Used, Verdict, read_receipt, receipt_hash,
};

use crate::door::{Event, Output};
use crate::jobs::{put, put_delete};
use crate::record::{Key, Record};

mod book;
mod count;
mod record;
mod settle;
mod view;

pub use book::month_of;
pub use record::{
    ChainId, ChainRecord, ChargeRecord, EntryRecord, Misdeed, MisdeedRecord, TallyRecord,
};
pub use view::{LedgerView, PairView, Refusal, SideView};

/// A lease that goes on gets a receipt so often: what is owed is known to both sides that soon.
const RECEIPT_EVERY: Millis = Millis::seconds(300);

/// How often a receipt is sent again that has no answer.
const TELL_AGAIN: Millis = Millis::seconds(5);

/// Charges that no receipt came for are forgotten after so long: their lender has lost them.
const UNCLAIMED: Millis = Millis::seconds(30 * 24 * 3600);

/// How often that is looked at.
const SWEEP_EVERY: Millis = Millis::seconds(3600);

/// How long a lender may take to send receipts that it has skipped.
const SKIP_GRACE: Millis = Millis::seconds(30);

/// Contested receipts of one lender in one day: more are refused, so that nobody fills our disk with claims.
const MAX_DISPUTES_A_DAY: usize = 50;

/// A contested receipt counts against its borrower for so long.
const REMEMBERED: Millis = Millis::seconds(30 * 24 * 3600);

/// So many moments of contested receipts are remembered of each chain.
const MAX_RECENT: usize = 128;

/// So many receipts are sent at once to a site that lacks them.
const MAX_SHOWN: u64 = 32;

/// How often a site that lacks receipts is answered.
const SHOW_EVERY: Millis = Millis::seconds(1);

/// A tab with so many charges gets its receipt.
const MAX_TAB: usize = 256;

/// A day of the statistics.
const DAY: Millis = Millis::seconds(86_400);

/// So many refused receipts of each site are kept.
const MAX_KEPT: u32 = 16;

/// What a lender asks, and of whom it stops asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pricing {
    /// The price of its slots.
    pub price: Price,
    /// What it waives of each site's debts in each month.
    pub free: Money,
    /// A site with so many receipts that it has not signed, or has contested lately, gets no more slots. 0: no limit.
    pub max_unsigned: u32,
}

impl Default for Pricing {
    fn default() -> Self {
        Self { price: Price::default(), free: Money(0), max_unsigned: 100 }
    }
}

/// Charges under one lease that no receipt names yet. Never empty.
#[derive(Clone, Debug)]
struct Tab {
    since: Millis,
    charges: BTreeMap<AttemptId, ChargeRecord>,
}

/// A chain, and at its lender's the receipts that have no answer.
#[derive(Clone, Debug)]
struct Chain {
    record: ChainRecord,
    pending: VecDeque<EntryRecord>,
    /// When the first of them was sent last.
    told: Millis,
    /// That receipts are lacking: from which on, and since when.
    behind: Option<(u64, Millis)>,
    /// When receipts were sent last to a site that lacks them.
    shown: Millis,
}

/// What we owe and are owed.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    me: SiteId,
    pricing: Pricing,
    chains: BTreeMap<ChainId, Chain>,
    /// Those in which receipts have no answer.
    unanswered: BTreeSet<ChainId>,
    /// Of leases that we gave, and of leases that we hold or held.
    lent: BTreeMap<LeaseId, Tab>,
    borrowed: BTreeMap<LeaseId, Tab>,
    swept: Millis,
    /// What our own tasks used today.
    tallies: Vec<TallyRecord>,
    misdeeds: BTreeMap<SiteId, Vec<MisdeedRecord>>,
}

impl Tab {
    fn of(charge: ChargeRecord) -> Self {
        Self { since: charge.at, charges: BTreeMap::from([(charge.attempt, charge)]) }
    }

    fn add(tabs: &mut BTreeMap<LeaseId, Self>, charge: ChargeRecord) {
        match tabs.get_mut(&charge.lease) {
            Some(tab) => {
                tab.since = tab.since.min(charge.at);
                tab.charges.insert(charge.attempt, charge);
            }
            None => drop(tabs.insert(charge.lease, Self::of(charge))),
        }
    }
}

impl Chain {
    fn new(chain: ChainId) -> Self {
        let record = ChainRecord {
            chain,
            next: 0,
            head: [0; 32],
            used: Used::default(),
            owed: Money(0),
            contested: Money(0),
            disputes: 0,
            recent: Vec::new(),
            month: 0,
            waived: Money(0),
        };
        let (told, behind, shown) = (Millis(0), None, Millis(0));
        Self { record, pending: VecDeque::new(), told, behind, shown }
    }

    /// Contested receipts since `span` ago.
    fn disputed_since(&self, now: Millis, span: Millis) -> usize {
        self.record.recent.iter().filter(|at| now.since(**at) < span).count()
    }
}

impl Ledger {
    pub(crate) fn new(me: SiteId, pricing: Pricing) -> Self {
        Self {
            me,
            pricing,
            chains: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            lent: BTreeMap::new(),
            borrowed: BTreeMap::new(),
            swept: Millis(0),
            tallies: Vec::new(),
            misdeeds: BTreeMap::new(),
        }
    }

    /// What is asked for our slots.
    pub(crate) const fn price(&self) -> Price {
        self.pricing.price
    }

    fn chain(&mut self, id: ChainId) -> &mut Chain {
        self.chains.entry(id).or_insert_with(|| Chain::new(id))
    }

    /// An attempt counts: it will be in a receipt.
    pub(crate) fn charge(&mut self, charge: ChargeRecord, out: &mut Vec<Output>) {
        put(out, Record::Charge(charge.clone()));
        self.restore_charge(charge);
    }

    /// Whether an attempt that another site ran for us counts, and no receipt names it yet.
    pub(crate) fn counts(&self, lease: LeaseId, attempt: AttemptId) -> bool {
        self.borrowed.get(&lease).is_some_and(|tab| tab.charges.contains_key(&attempt))
    }

    /// A task of our own has run on a machine of ours: statistics.
    pub(crate) fn tally(
        &mut self,
        (tenant, project): (TenantId, &str),
        used: &Used,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let day = now.0 / DAY.0;
        self.tallies.retain(|tally| tally.day == day);
        let of = |tally: &&mut TallyRecord| tally.tenant == tenant && tally.project == project;
        let tally = match self.tallies.iter_mut().find(of) {
            Some(tally) => {
                tally.used = tally.used.plus(used);
                tally.clone()
            }
            None => {
                let (name, project) = (TallyRecord::name_of(project), project.to_owned());
                let tally = TallyRecord { day, tenant, project, name, used: *used };
                self.tallies.push(tally.clone());
                tally
            }
        };
        put(out, Record::Tally(tally));
    }

    /// Whether a site gets no more slots: it has too many receipts that it has not signed, or has contested lately.
    pub(crate) fn withholds(&self, borrower: SiteId, now: Millis) -> bool {
        let most = self.pricing.max_unsigned as usize;
        let chain = self.chains.get(&ChainId { lender: self.me, borrower });
        most > 0
            && chain.is_some_and(|chain| {
                chain.pending.len() + chain.disputed_since(now, REMEMBERED) >= most
            })
    }

    /// What a member says about receipts. The driver has checked every signature.
    pub(crate) fn on_receipt(
        &mut self,
        from: SiteId,
        entry: Entry,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Ok((receipt, verdict)) = entry.read() else {
            let what = "it sent a receipt that contradicts itself".to_owned();
            out.push(Output::Tell(Event::Blame { site: from, what }));
            return;
        };
        let between = (receipt.lender, receipt.borrower);
        if between == (from, self.me) {
            self.on_claim(entry, (receipt, verdict), now, out);
        } else if between == (self.me, from) {
            if let Some(verdict) = verdict {
                self.on_verdict(entry, (&receipt, &verdict), now, out);
            }
        } else {
            let what = "it sent a receipt of other sites".to_owned();
            out.push(Output::Tell(Event::Blame { site: from, what }));
        }
    }

    /// A member lacks receipts of a chain that is between us.
    pub(crate) fn on_behind(
        &mut self,
        from: SiteId,
        (lender, next): (SiteId, u64),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let id = if lender == self.me {
            ChainId { lender, borrower: from }
        } else {
            ChainId { lender: from, borrower: self.me }
        };
        let Some(chain) = self.chains.get_mut(&id).filter(|_| lender == id.lender) else {
            return;
        };
        if now.since(chain.shown) < SHOW_EVERY && chain.shown != Millis(0) {
            return;
        }
        chain.shown = now;
        // When it has those, the next receipt without an answer fits, or says again what is lacking.
        chain.told = Millis(0);
        for sequence in next..chain.record.next.min(next.saturating_add(MAX_SHOWN)) {
            out.push(Output::ShowReceipt { to: from, chain: id, sequence, against: None });
        }
    }

    /// What both sides have signed: make it durable, and count it.
    fn book(
        &mut self,
        record: EntryRecord,
        (receipt, verdict): (&Receipt, &Verdict),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let chain = self.chain(record.chain);
        let known = &mut chain.record;
        let owed = receipt.owed(verdict);
        known.next += 1;
        known.head = verdict.receipt;
        known.owed = known.owed.plus(owed);
        known.contested = known.contested.plus(receipt.amount.less(owed));
        let used = verdict.contested.as_ref().map_or(&receipt.used, |own| &own.used);
        known.used = known.used.plus(used);
        if verdict.contested.is_some() {
            known.disputes += 1;
            known.recent.push(now);
            let old = known.recent.len().saturating_sub(MAX_RECENT);
            known.recent.drain(..old);
        }
        put(out, Record::Chain(known.clone()));
        put(out, Record::Entry(record));
    }

    /// Keep a receipt that is not answered, as evidence that others can check.
    fn refuse(
        &mut self,
        site: SiteId,
        (misdeed, entry): (Misdeed, Entry),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let kept = self.misdeeds.entry(site).or_default();
        if kept.iter().any(|known| known.entry.receipt == entry.receipt) {
            return;
        }
        let oldest = kept.iter().min_by_key(|known| known.at).map_or(0, |known| known.n);
        let n = u32::try_from(kept.len()).unwrap_or(MAX_KEPT);
        let n = if n < MAX_KEPT { n } else { oldest };
        let what = match entry.read() {
            Ok((receipt, _)) => format!("its receipt {} was refused: {misdeed}", receipt.sequence),
            Err(error) => format!("its receipt was refused: {error}"),
        };
        let record = MisdeedRecord { site, n, at: now, misdeed, entry };
        kept.retain(|known| known.n != n);
        kept.push(record.clone());
        put(out, Record::Misdeed(record));
        out.push(Output::Tell(Event::Blame { site, what }));
    }

    /// The receipt that stands in the store at the place of this one is another one.
    pub(crate) fn on_forked(
        &mut self,
        site: SiteId,
        entry: Entry,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.refuse(site, (Misdeed::Forked, entry), now, out);
    }

    /// A borrower is back: it is told at once what it has to sign.
    pub(crate) fn on_peer_up(&mut self, site: SiteId) {
        if let Some(chain) = self.chains.get_mut(&ChainId { lender: self.me, borrower: site }) {
            chain.told = Millis(0);
        }
    }

    /// Make the receipts that are due, send those that have no answer, forget what nobody claims.
    pub(crate) fn tick(
        &mut self,
        now: Millis,
        goes_on: impl Fn(LeaseId) -> bool,
        connected: impl Fn(SiteId) -> bool,
        out: &mut Vec<Output>,
    ) {
        let due = |lease: LeaseId, tab: &Tab| {
            tab.charges.len() >= MAX_TAB || now.since(tab.since) >= RECEIPT_EVERY || !goes_on(lease)
        };
        let due = self.lent.iter().filter(|(lease, tab)| due(**lease, tab));
        let due: Vec<LeaseId> = due.map(|(lease, _)| *lease).collect();
        for lease in due {
            self.make(lease, now, out);
        }
        for id in self.unanswered.iter().filter(|id| connected(id.borrower)) {
            let Some(chain) = self.chains.get_mut(id) else { continue };
            let Some(first) = chain.pending.front() else { continue };
            if chain.told == Millis(0) || now.since(chain.told) >= TELL_AGAIN {
                chain.told = now;
                let entry = Box::new(first.clone());
                out.push(Output::SendReceipt { to: id.borrower, entry });
            }
        }
        if now.since(self.swept) >= SWEEP_EVERY {
            self.swept = now;
            self.borrowed.retain(|_, tab| {
                let old =
                    |_: &AttemptId, charge: &mut ChargeRecord| now.since(charge.at) >= UNCLAIMED;
                for (attempt, _) in tab.charges.extract_if(.., old) {
                    put_delete(out, Key::Charge(attempt));
                }
                !tab.charges.is_empty()
            });
        }
    }

    pub(crate) fn wake_at(&self, connected: impl Fn(SiteId) -> bool) -> Option<Millis> {
        let tabs = self.lent.values().map(|tab| tab.since.plus(RECEIPT_EVERY));
        let told = self.unanswered.iter().filter(|id| connected(id.borrower));
        let told = told.filter_map(|id| self.chains.get(id));
        tabs.chain(told.map(|chain| chain.told.plus(TELL_AGAIN))).min()
    }

    pub(crate) fn restore_charge(&mut self, charge: ChargeRecord) {
        let ours = charge.chain.lender == self.me;
        Tab::add(if ours { &mut self.lent } else { &mut self.borrowed }, charge);
    }

    /// How far a chain was before the restart. Its receipts without an answer follow in any order.
    pub(crate) fn restore_chain(&mut self, record: ChainRecord) {
        let id = record.chain;
        self.chain(id).record = record;
    }

    pub(crate) fn restore_pending(&mut self, record: EntryRecord) {
        self.unanswered.insert(record.chain);
        let pending = &mut self.chain(record.chain).pending;
        let at = pending.partition_point(|known| known.sequence < record.sequence);
        pending.insert(at, record);
    }

    pub(crate) fn restore_misdeed(&mut self, record: MisdeedRecord) {
        self.misdeeds.entry(record.site).or_default().push(record);
    }

    pub(crate) fn restore_tally(&mut self, record: TallyRecord, now: Millis) {
        if record.day == now.0 / DAY.0 {
            self.tallies.push(record);
        }
    }

    pub(crate) fn check(&self) {
        let mut seen = BTreeSet::new();
        for (lease, tab) in self.lent.iter().chain(&self.borrowed) {
            assert!(!tab.charges.is_empty(), "a tab without charges");
            for (attempt, charge) in &tab.charges {
                assert_eq!(
                    (*lease, *attempt),
                    (charge.lease, charge.attempt),
                    "a misplaced charge"
                );
                assert!(seen.insert(*attempt), "an attempt would be charged twice");
            }
        }
        for tab in self.lent.values() {
            assert!(tab.charges.values().all(|charge| charge.chain.lender == self.me), "not ours");
        }
        for (id, chain) in &self.chains {
            let listed = self.unanswered.contains(id);
            assert_eq!(listed, !chain.pending.is_empty(), "a receipt would never be sent");
            assert!(
                id.lender == self.me || chain.pending.is_empty(),
                "others' receipts are theirs"
            );
            let (mut next, mut head) = (chain.record.next, chain.record.head);
            for entry in &chain.pending {
                let receipt = read_receipt(&entry.receipt).expect("we made it");
                assert_eq!(
                    (receipt.sequence, entry.sequence),
                    (next, next),
                    "a receipt is lacking"
                );
                assert_eq!(receipt.previous, head, "a receipt does not follow the one before it");
                (next, head) = (next + 1, receipt_hash(&entry.receipt));
                for attempt in &receipt.attempts {
                    assert!(seen.insert(*attempt), "an attempt is in two receipts");
                }
            }
        }
        for kept in self.misdeeds.values() {
            assert!(kept.len() <= MAX_KEPT as usize, "too much evidence is kept");
        }
    }
}
