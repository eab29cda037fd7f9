//! The ledger in the store: receipts signed, found again, summed up in statements, and exported.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use meshfarm_core::{ChainId, EntryRecord, Key, Record, month_of};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{Millis, SiteId, TenantId, hex};
use meshfarm_protocol::receipt::{
    Entry, Money, Receipt, SignedVerdict, Used, Verdict, Worthless, sign_receipt, sign_verdict,
};
use meshfarm_protocol::seal::{Signature, SigningKey};

use crate::api::{By, Dispute, LedgerLine, Side, Statement, StatementAsk, StatementRow};
use crate::records::{self, ENTRIES, MAX_RECORD, RecordsError, TALLIES};
use crate::store::Store;

mod audit;

pub use audit::{Audit, audit};

/// Version of the format of exported ledgers.
const VERSION: u16 = 1;

/// A day of the statistics.
const DAY: u64 = 86_400_000;

/// Whether a receipt that `from` has sent is one between the two of us, with every signature that it must have.
///
/// # Errors
/// Why it is worth nothing.
pub fn check(entry: &Entry, from: SiteId, me: SiteId) -> Result<(), Worthless> {
    let (receipt, verdict) = entry.read()?;
    let lends = (receipt.lender, receipt.borrower) == (from, me);
    let answers = (receipt.lender, receipt.borrower) == (me, from) && verdict.is_some();
    // Signatures are looked at last: they cost the most.
    if lends || answers { entry.verify().map(drop) } else { Err(Worthless::Malformed) }
}

/// A receipt as it is sent and shown: what is ours to sign of it is signed with `key`.
#[must_use]
pub fn sign(record: &EntryRecord, key: &SigningKey) -> Entry {
    let lends = record.chain.lender == key.site();
    let theirs = record.signature.unwrap_or(Signature([0; 64]));
    let lender = if lends { sign_receipt(&record.receipt, key) } else { theirs };
    let body = record.verdict.clone();
    let verdict = (!body.is_empty()).then(|| {
        let signature = if lends { theirs } else { sign_verdict(&body, key) };
        SignedVerdict { body, signature }
    });
    Entry { receipt: record.receipt.clone(), lender, verdict }
}

/// The receipt at a place of a chain that both sides have signed.
///
/// # Errors
/// When the store refuses or the record is damaged.
pub fn entry(
    store: &Store,
    chain: ChainId,
    sequence: u64,
) -> Result<Option<EntryRecord>, RecordsError> {
    let (family, key) = records::place(Key::Entry(chain, sequence));
    match store.get(family, &key)? {
        Some(value) => match read(&value)? {
            Record::Entry(entry) => Ok(Some(entry)),
            _ => Ok(None),
        },
        None => Ok(None),
    }
}

fn read(value: &[u8]) -> Result<Record, RecordsError> {
    let family = ENTRIES.0.name();
    codec::decode(value, MAX_RECORD).map_err(|source| RecordsError::Damaged { family, source })
}

/// What both sides say of a receipt.
struct Booked {
    record: EntryRecord,
    receipt: Receipt,
    verdict: Verdict,
}

/// Visits every receipt that both sides have signed, chain by chain and in order, until `visit` breaks.
fn booked(
    store: &Store,
    mut visit: impl FnMut(Booked) -> ControlFlow<()>,
) -> Result<(), RecordsError> {
    let mut failed = None;
    let (family, tag) = ENTRIES;
    store.scan(family, &[tag], |_, value| match read(value) {
        Ok(Record::Entry(record)) => {
            // Only this program wrote them, after it had read them.
            let entry = sign_nothing(&record);
            match entry.read() {
                Ok((receipt, Some(verdict))) => visit(Booked { record, receipt, verdict }),
                Ok((_, None)) | Err(_) => ControlFlow::Continue(()),
            }
        }
        Ok(_) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// A receipt to be read, not to be shown.
fn sign_nothing(record: &EntryRecord) -> Entry {
    let signature = Signature([0; 64]);
    let verdict = Some(SignedVerdict { body: record.verdict.clone(), signature });
    Entry { receipt: record.receipt.clone(), lender: signature, verdict }
}

/// `2026-03` of a moment, in UTC.
fn month(at: Millis) -> String {
    let month = month_of(at);
    format!("{:04}-{:02}", month / 12, month % 12 + 1)
}

/// What was used and is owed, as a person asks for it. `name_of` names sites.
///
/// # Errors
/// When the store refuses or a record is damaged.
pub fn statement(
    store: &Store,
    (me, name): (SiteId, &str),
    ask: StatementAsk,
    name_of: impl Fn(SiteId) -> String,
) -> Result<Statement, RecordsError> {
    let within =
        |at: Millis| ask.from.is_none_or(|from| from <= at.0) && ask.to.is_none_or(|to| at.0 < to);
    let mut rows = Rows::new(ask.by);
    booked(store, |booked| {
        if within(booked.receipt.at) {
            rows.add(row_of(&booked, me, &name_of));
        }
        ControlFlow::Continue(())
    })?;
    let mut failed = None;
    let (family, tag) = TALLIES;
    store.scan(family, &[tag], |_, value| match read(value) {
        Ok(Record::Tally(tally)) => {
            let at = Millis(tally.day.saturating_mul(DAY));
            if within(at) {
                let row =
                    StatementRow { project: Some(tally.project), ..own_row(at, tally.tenant) };
                rows.add(StatementRow { used: tally.used, ..row });
            }
            ControlFlow::Continue(())
        }
        Ok(_) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let rows = rows.finish();
    let credit = rows.iter().map(|row| row.credit).fold(Money(0), Money::plus);
    let debit = rows.iter().map(|row| row.debit).fold(Money(0), Money::plus);
    let (from, to) = (ask.from.map(Millis), ask.to.map(Millis));
    Ok(Statement { site: name.to_owned(), id: me, from, to, rows, credit, debit })
}

fn own_row(at: Millis, tenant: TenantId) -> StatementRow {
    StatementRow {
        side: Side::Own,
        at: Some(at),
        month: Some(month(at)),
        site: None,
        tenant: Some(tenant),
        project: None,
        lease: None,
        receipts: 0,
        used: Used::default(),
        credit: Money(0),
        debit: Money(0),
        contested: Money(0),
    }
}

fn row_of(booked: &Booked, me: SiteId, name_of: impl Fn(SiteId) -> String) -> StatementRow {
    let Booked { receipt, verdict, .. } = booked;
    let owed = receipt.owed(verdict);
    let used = verdict.contested.as_ref().map_or(receipt.used, |own| own.used);
    let lent = receipt.lender == me;
    let other = if lent { receipt.borrower } else { receipt.lender };
    StatementRow {
        side: if lent { Side::Lent } else { Side::Borrowed },
        site: Some(name_of(other)),
        lease: Some(receipt.lease),
        receipts: 1,
        used,
        credit: if lent { owed } else { Money(0) },
        debit: if lent { Money(0) } else { owed },
        contested: receipt.amount.less(owed),
        ..own_row(receipt.at, receipt.tenant)
    }
}

/// Rows as they are, or summed up.
struct Rows {
    by: Option<By>,
    single: Vec<StatementRow>,
    sums: BTreeMap<(String, Side), StatementRow>,
}

impl Rows {
    fn new(by: Option<By>) -> Self {
        Self { by, single: Vec::new(), sums: BTreeMap::new() }
    }

    fn add(&mut self, row: StatementRow) {
        let Some(by) = self.by else {
            self.single.push(row);
            return;
        };
        let tenant = row.tenant.map(|tenant| tenant.to_string());
        let key = match by {
            By::Tenant => tenant,
            By::Site => row.site.clone(),
            By::Month => row.month.clone(),
        };
        let key = (key.unwrap_or_default(), row.side);
        match self.sums.get_mut(&key) {
            Some(sum) => {
                sum.receipts += row.receipts;
                sum.used = sum.used.plus(&row.used);
                sum.credit = sum.credit.plus(row.credit);
                sum.debit = sum.debit.plus(row.debit);
                sum.contested = sum.contested.plus(row.contested);
                if sum.project != row.project {
                    sum.project = None;
                }
            }
            None => {
                let keep = |which: By| by == which;
                let sum = StatementRow {
                    at: None,
                    lease: None,
                    month: row.month.filter(|_| keep(By::Month)),
                    site: row.site.filter(|_| keep(By::Site)),
                    tenant: row.tenant.filter(|_| keep(By::Tenant)),
                    project: row.project.filter(|_| keep(By::Tenant)),
                    ..row
                };
                self.sums.insert(key, sum);
            }
        }
    }

    fn finish(mut self) -> Vec<StatementRow> {
        self.single.sort_by_key(|row| row.at);
        self.single.extend(self.sums.into_values());
        self.single
    }
}

/// Every receipt that its borrower contests, with both sides' figures, the newest last.
///
/// # Errors
/// When the store refuses or a record is damaged.
pub fn disputes(
    store: &Store,
    name_of: impl Fn(SiteId) -> String,
) -> Result<Vec<Dispute>, RecordsError> {
    let mut found = Vec::new();
    booked(store, |Booked { receipt, verdict, .. }| {
        if let Some(own) = verdict.contested {
            found.push(Dispute {
                at: receipt.at,
                lender: name_of(receipt.lender),
                borrower: name_of(receipt.borrower),
                sequence: receipt.sequence,
                lease: receipt.lease,
                claimed: receipt.used,
                claimed_amount: receipt.amount,
                granted: own.used,
                granted_amount: own.amount,
                why: own.why,
            });
        }
        ControlFlow::Continue(())
    })?;
    found.sort_by_key(|dispute| dispute.at);
    Ok(found)
}

/// Hands out the lines of an exported ledger until `line` says that nobody reads them. Every receipt in it has both
/// signatures.
///
/// # Errors
/// When the store refuses or a record is damaged.
pub fn export(
    store: &Store,
    (key, name): (&SigningKey, &str),
    at: Millis,
    mut line: impl FnMut(LedgerLine) -> bool,
) -> Result<(), RecordsError> {
    let site = key.site();
    if !line(LedgerLine::Ledger { version: VERSION, site, name: name.to_owned(), at }) {
        return Ok(());
    }
    let (mut receipts, mut credit, mut debit, mut read) = (0, Money(0), Money(0), true);
    booked(store, |Booked { record, receipt, verdict }| {
        let owed = receipt.owed(&verdict);
        receipts += 1;
        let side = if receipt.lender == site { &mut credit } else { &mut debit };
        *side = side.plus(owed);
        read = line(LedgerLine::Receipt {
            entry: hex(&codec::encode(&sign(&record, key))),
            mesh: receipt.mesh,
            lender: receipt.lender,
            borrower: receipt.borrower,
            sequence: receipt.sequence,
            at: receipt.at,
            owed,
        });
        if read { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if read {
        line(LedgerLine::End { receipts, credit, debit });
    }
    Ok(())
}
