//! An exported ledger looked at by somebody who has nothing but the file: chains, both signatures of each receipt, sums.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read};

use serde::Serialize;

use meshfarm_core::ChainId;
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, SiteId};
use meshfarm_protocol::receipt::{Entry, Money, Used, receipt_hash};

use crate::api::LedgerLine;

use super::VERSION;

/// A longer line is refused, in bytes: a receipt of 512 attempts has a third of that.
const MAX_LINE: u64 = 128 << 10;

/// So many wrong lines are told of.
const MAX_WRONG: usize = 100;

/// What a ledger is found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Whose ledger it is.
    pub site: Option<SiteId>,
    /// Its name, as the file says.
    pub name: String,
    /// Receipts that hold.
    pub receipts: u64,
    /// Other sites that they are with.
    pub sites: usize,
    /// Of them, those that the borrower contests.
    pub disputes: u64,
    /// What is owed to the site.
    pub credit: Money,
    /// What it owes.
    pub debit: Money,
    /// What was used, as both sides agree.
    pub used: Used,
    /// Lines that do not hold, by their numbers from one, and why; the first of them.
    pub wrong: Vec<(u64, String)>,
    /// How many there are.
    pub n_wrong: u64,
}

#[derive(Default)]
struct Auditor {
    audit: Audit,
    /// Of each chain the place and predecessor of its next receipt.
    tips: BTreeMap<ChainId, (u64, [u8; 32])>,
    attempts: BTreeSet<AttemptId>,
    ended: bool,
}

/// Look at an exported ledger. It is read once, and never whole.
///
/// # Errors
/// When it cannot be read.
pub fn audit(mut file: impl BufRead) -> io::Result<Audit> {
    let mut auditor = Auditor::default();
    let (mut number, mut text) = (0, Vec::new());
    loop {
        text.clear();
        number += 1;
        let read = (&mut file).take(MAX_LINE).read_until(b'\n', &mut text)?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE {
            auditor.wrong(number, "the line is too long; what follows was not looked at");
            return Ok(auditor.audit);
        }
        match serde_json::from_slice(&text) {
            Ok(line) => {
                if let Err(why) = auditor.line(number, line) {
                    auditor.wrong(number, &why);
                }
            }
            Err(error) => auditor.wrong(number, &format!("it is no line of a ledger: {error}")),
        }
    }
    if !auditor.ended {
        auditor.wrong(number, "the file ends before its last line: something is lacking");
    }
    auditor.audit.sites = auditor.others().len();
    Ok(auditor.audit)
}

impl Auditor {
    fn wrong(&mut self, line: u64, why: &str) {
        self.audit.n_wrong += 1;
        if self.audit.wrong.len() < MAX_WRONG {
            self.audit.wrong.push((line, why.to_owned()));
        }
    }

    fn others(&self) -> BTreeSet<SiteId> {
        let ends = self.tips.keys().flat_map(|chain| [chain.lender, chain.borrower]);
        ends.filter(|site| Some(*site) != self.audit.site).collect()
    }

    fn line(&mut self, number: u64, line: LedgerLine) -> Result<(), String> {
        if self.ended {
            return Err("something follows the last line".to_owned());
        }
        if (number == 1) != matches!(line, LedgerLine::Ledger { .. }) {
            return Err("the first line, and no other, says whose ledger it is".to_owned());
        }
        match line {
            LedgerLine::Ledger { version, site, name, .. } => {
                (self.audit.site, self.audit.name) = (Some(site), name);
                match version {
                    VERSION => Ok(()),
                    other => Err(format!("version {other} of the format is not known here")),
                }
            }
            LedgerLine::Receipt { ref entry, .. } => {
                let bytes = unhex(entry).ok_or("its receipt is not hexadecimal digits")?;
                let entry: Entry = codec::decode(&bytes, bytes.len())
                    .map_err(|error| format!("its receipt is malformed: {error}"))?;
                self.receipt(&entry, &line)
            }
            LedgerLine::End { receipts, credit, debit } => {
                self.ended = true;
                let says = (receipts, credit, debit);
                let is = (self.audit.receipts, self.audit.credit, self.audit.debit);
                if says == is {
                    return Ok(());
                }
                Err(format!(
                    "it says {receipts} receipts, {credit} owed to the site and {debit} by it; those that hold make \
                     {}, {} and {}",
                    is.0, is.1, is.2
                ))
            }
        }
    }

    fn receipt(&mut self, entry: &Entry, line: &LedgerLine) -> Result<(), String> {
        let (receipt, verdict) = entry.verify().map_err(|error| error.to_string())?;
        let verdict = verdict.ok_or("its borrower has not answered it")?;
        let site = self.audit.site.ok_or("nobody knows whose ledger it is")?;
        if receipt.lender != site && receipt.borrower != site {
            return Err("it is between two other sites".to_owned());
        }
        let chain = ChainId { lender: receipt.lender, borrower: receipt.borrower };
        let (next, previous) = self.tips.get(&chain).copied().unwrap_or((0, [0; 32]));
        // Whatever is wrong with this one, the next one follows it.
        self.tips.insert(chain, (receipt.sequence.saturating_add(1), receipt_hash(&entry.receipt)));
        if receipt.sequence != next {
            return Err(format!("receipt {} stands where {next} should", receipt.sequence));
        }
        if receipt.previous != previous {
            return Err(format!("receipt {next} does not follow the one before it"));
        }
        let owed = receipt.owed(&verdict);
        let says = LedgerLine::Receipt {
            entry: String::new(),
            mesh: receipt.mesh,
            lender: receipt.lender,
            borrower: receipt.borrower,
            sequence: receipt.sequence,
            at: receipt.at,
            owed,
        };
        if without_entry(line) != says {
            return Err("what it says for reading is not what is signed".to_owned());
        }
        if let Some(twice) =
            receipt.attempts.iter().find(|attempt| !self.attempts.insert(**attempt))
        {
            return Err(format!("attempt {} is in two receipts", twice.short()));
        }
        let used = verdict.contested.as_ref().map_or(receipt.used, |own| own.used);
        let side =
            if receipt.lender == site { &mut self.audit.credit } else { &mut self.audit.debit };
        *side = side.plus(owed);
        self.audit.used = self.audit.used.plus(&used);
        self.audit.receipts += 1;
        self.audit.disputes += u64::from(verdict.contested.is_some());
        Ok(())
    }
}

fn without_entry(line: &LedgerLine) -> LedgerLine {
    let mut line = line.clone();
    if let LedgerLine::Receipt { entry, .. } = &mut line {
        entry.clear();
    }
    line
}

/// The bytes of hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use meshfarm_core::EntryRecord;
    use meshfarm_protocol::id::{LeaseId, MeshId, Millis, TenantId};
    use meshfarm_protocol::profile::Level;
    use meshfarm_protocol::receipt::{
        Price, RECEIPT_VERSION, Receipt, Verdict, sign_receipt, sign_verdict,
    };
    use meshfarm_protocol::seal::SigningKey;

    use super::super::{export, sign};
    use super::*;
    use crate::records;
    use crate::store::{Batch, Store};

    fn lender() -> SigningKey {
        SigningKey::from_seed(&[2; 32])
    }

    fn borrower() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    /// So many receipts of an hour each in a store of the lender.
    fn exported(n: u8) -> Vec<String> {
        let room = tempfile::tempdir().unwrap();
        let store = Store::open(room.path()).unwrap();
        let chain = ChainId { lender: lender().site(), borrower: borrower().site() };
        let (mut batch, mut previous) = (Batch::new(), [0; 32]);
        for sequence in 0..n {
            let receipt = codec::encode(&Receipt {
                version: RECEIPT_VERSION,
                mesh: MeshId([3; 32]),
                lender: chain.lender,
                borrower: chain.borrower,
                sequence: sequence.into(),
                previous,
                at: Millis(5),
                lease: LeaseId([4; 16]),
                tenant: TenantId([5; 16]),
                isolation: Level::S2,
                price: Price { core_hour: Money(100), card_hour: Money(0) },
                used: Used { done: 1, core: Millis(3_600_000), ..Used::default() },
                waived: Money(0),
                amount: Money(100),
                attempts: vec![AttemptId([sequence; 16])],
            });
            previous = receipt_hash(&receipt);
            let verdict = Verdict { receipt: previous, at: Millis(6), contested: None };
            let verdict = codec::encode(&verdict);
            let signature = Some(sign_verdict(&verdict, &borrower()));
            let record =
                EntryRecord { chain, sequence: sequence.into(), receipt, signature, verdict };
            // What the lender sends is what the borrower would have got.
            assert_eq!(sign(&record, &lender()).lender, sign_receipt(&record.receipt, &lender()));
            let change = meshfarm_core::Change::Put(Box::new(meshfarm_core::Record::Entry(record)));
            records::stage(&change, &mut batch);
        }
        store.commit(batch).unwrap();
        let mut lines = Vec::new();
        let line = |line: LedgerLine| {
            lines.push(serde_json::to_string(&line).unwrap());
            true
        };
        export(&store, (&lender(), "lyon"), Millis(9), line).unwrap();
        lines
    }

    fn look(lines: &[String]) -> Audit {
        audit(lines.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn an_exported_ledger_holds_as_it_is() {
        let found = look(&exported(3));
        assert_eq!(found.wrong, []);
        assert_eq!((found.receipts, found.credit, found.debit), (3, Money(300), Money(0)));
        assert_eq!((found.sites, found.used.done), (1, 3));
        assert_eq!(look(&exported(0)).n_wrong, 0);
    }

    #[test]
    fn whatever_is_changed_in_it_the_line_is_named() {
        let whole = exported(3);
        let wrong = |change: &dyn Fn(&mut Vec<String>)| {
            let mut lines = whole.clone();
            change(&mut lines);
            let found = look(&lines);
            found.wrong.first().map(|(line, why)| (*line, why.clone()))
        };
        let first = |change: &dyn Fn(&mut Vec<String>)| wrong(change).map(|(line, _)| line);
        assert_eq!(first(&|_| {}), None);
        // Any byte of a receipt, what is said of it, its place, its absence, its repetition, the end.
        let flip = |at: usize| {
            move |lines: &mut Vec<String>| {
                let old = lines[2].as_bytes()[at];
                let new = if old == b'0' { "1" } else { "0" };
                lines[2].replace_range(at..=at, new);
            }
        };
        let start = whole[2].find("\"entry\":\"").unwrap() + 9;
        let end = start + whole[2][start..].find('"').unwrap();
        for at in (start..end).step_by(7) {
            assert_eq!(first(&flip(at)), Some(3), "{at}");
        }
        assert_eq!(first(&|lines| lines[2] = lines[2].replace("0.10", "0.20")), Some(3));
        assert_eq!(first(&|lines| lines.swap(2, 3)), Some(3));
        assert_eq!(first(&|lines| drop(lines.remove(2))), Some(3));
        assert_eq!(first(&|lines| lines.insert(3, lines[2].clone())), Some(4));
        assert_eq!(first(&|lines| drop(lines.remove(4))), Some(5));
        assert_eq!(first(&|lines| lines[4] = lines[4].replace("0.30", "0.40")), Some(5));
        assert_eq!(first(&|lines| drop(lines.remove(0))), Some(1));
        assert_eq!(first(&|lines| lines[3].truncate(50)), Some(4));
        assert_eq!(first(&|lines| lines.push("x".repeat(200_000))), Some(6));
    }
}
