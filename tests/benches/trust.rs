//! Trust: what a receipt costs, from the lender's charges to the borrower's disk, and how much of that a task bears.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshfarm_core::{ChainId, ChargeRecord, EntryRecord, Record};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, LeaseId, MeshId, Millis, TenantId};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{
    Entry, Money, Price, RECEIPT_VERSION, Receipt, SignedVerdict, Terms, Used, Verdict,
    receipt_hash, sign_receipt, sign_verdict,
};
use meshfarm_protocol::seal::SigningKey;
use rocksdb::{DB, WriteBatch, WriteOptions};

use crate::Part;
use crate::farm::cpu;
use crate::table::{Row, Table, percentile};

/// The parts of this room.
pub(crate) const PARTS: [Part; 1] = [("receipts", measure)];

/// Attempts of a receipt: what a lease that is busy gathers before it makes one.
const ATTEMPTS: u16 = 256;

/// How often each step is repeated.
const RUNS: u64 = 500;

/// What dispatching one null task may cost, in microseconds: the farm's own target.
const DISPATCH_US: f64 = 200.0;

fn keys() -> (SigningKey, SigningKey) {
    (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]))
}

fn attempt(n: u64, of: u16) -> AttemptId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    id[8..10].copy_from_slice(&of.to_be_bytes());
    AttemptId(id)
}

fn receipt(chain: ChainId, n: u64, previous: [u8; 32]) -> Receipt {
    let used = Used { done: ATTEMPTS.into(), core: Millis::seconds(3600), ..Used::default() };
    let price = Price { core_hour: Money(50), card_hour: Money(0) };
    Receipt {
        version: RECEIPT_VERSION,
        mesh: MeshId([3; 32]),
        lender: chain.lender,
        borrower: chain.borrower,
        sequence: n,
        previous,
        at: Millis(n),
        lease: LeaseId([4; 16]),
        tenant: TenantId([5; 16]),
        isolation: Level::S2,
        price,
        used,
        waived: Money(0),
        amount: price.of(&used),
        attempts: (0..ATTEMPTS).map(|of| attempt(n, of)).collect(),
    }
}

fn charge(chain: ChainId, n: u64, of: u16) -> Record {
    Record::Charge(ChargeRecord {
        attempt: attempt(n, of),
        lease: LeaseId([4; 16]),
        chain,
        tenant: TenantId([5; 16]),
        terms: Terms::default(),
        isolation: Level::S2,
        used: Used { done: 1, ..Used::default() },
        at: Millis(n),
    })
}

/// Add a record to a batch, as a node does.
fn stage(record: &Record, batch: &mut WriteBatch) {
    batch.put(record.key().to_bytes(), codec::encode(record));
}

/// The median of a step, in microseconds: of processor time, but for what waits for the disk.
fn median(times: &[Duration]) -> f64 {
    let times: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    percentile(&times, 50)
}

/// Each step of a receipt's life.
fn measure(table: &mut Table) -> Result<()> {
    let (lender, borrower) = keys();
    let chain = ChainId { lender: lender.site(), borrower: borrower.site() };
    let room = tempfile::tempdir()?;
    let store = DB::open_default(room.path())?;
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    let runs = table.scale().of(RUNS).max(10);
    let [mut made, mut signed, mut verified, mut stored, mut charged] = [const { Vec::new() }; 5];
    let mut previous = [0; 32];
    for n in 0..runs {
        let begun = cpu();
        let bytes = codec::encode(&receipt(chain, n, previous));
        previous = receipt_hash(&bytes);
        made.push(cpu() - begun);
        let begun = cpu();
        let signature = sign_receipt(&bytes, &lender);
        let verdict = codec::encode(&Verdict { receipt: previous, at: Millis(n), contested: None });
        let answer = sign_verdict(&verdict, &borrower);
        signed.push(cpu() - begun);
        let body = verdict.clone();
        let verdict_signed = Some(SignedVerdict { body, signature: answer });
        let entry = Entry { receipt: bytes.clone(), lender: signature, verdict: verdict_signed };
        let begun = cpu();
        entry.verify().context("a good receipt does not hold")?;
        verified.push(cpu() - begun);
        let record =
            EntryRecord { chain, sequence: n, receipt: bytes, signature: Some(answer), verdict };
        let begun = Instant::now();
        let mut batch = WriteBatch::default();
        stage(&Record::Entry(record), &mut batch);
        store.write_opt(batch, &synced)?;
        stored.push(begun.elapsed());
        // Charges are written with what makes a task done, in the same synced write: their own part is what counts.
        let begun = cpu();
        let mut batch = WriteBatch::default();
        (0..ATTEMPTS).for_each(|of| stage(&charge(chain, n, of), &mut batch));
        charged.push((cpu() - begun) / u32::from(ATTEMPTS));
    }
    let name = |what: &str| format!("trust.receipts.{what}");
    let steps = [median(&made), median(&signed), median(&verified), median(&stored)];
    for (what, us) in ["made", "signed", "verified", "stored"].into_iter().zip(steps) {
        table.add(Row::alone(name(what), us, "us").note(match what {
            "signed" => format!("by both, over {ATTEMPTS} attempts"),
            "stored" => "one synced write alone; a node writes it with others".to_owned(),
            _ => format!("over {ATTEMPTS} attempts"),
        }));
    }
    // The dearer side is the lender's: it makes and signs a receipt, and checks both signatures when it is back.
    let [made, signed, verified, _] = steps;
    let per_task = median(&charged) + (made + signed / 2.0 + verified) / f64::from(ATTEMPTS);
    ensure!(per_task > 0.0, "the clock does not move");
    table.add(
        Row::alone(name("task"), 100.0 * per_task / DISPATCH_US, "%").at_most(1.0).note(format!(
            "of a dispatch of {DISPATCH_US} us: {per_task:.2} us of the lender's processor for each task, its charge and \
             its part of a receipt"
        )),
    );
    Ok(())
}
