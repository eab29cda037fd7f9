//! Receipts, budgets and those who cheat with them, between whole sites.

use meshfarm_core::{
    ChainId, EntryRecord, Event, Input, JobPhase, Key, Misdeed, Operation, Pricing, Record, Reply,
};
use meshfarm_protocol::codec::encode;
use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, MeshId, Millis, TenantId};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{
    Entry, Money, Price, RECEIPT_VERSION, Receipt, Used, read_receipt, receipt_hash,
};
use meshfarm_protocol::seal::Signature;

use crate::mesh::{Mesh, frames, id, unsigned, with};

const HOUR: Millis = Millis::seconds(3600);

/// Oslo borrows of lyon, which asks so much for a core-hour. Each task takes an hour.
fn market(price: u64, slots: u32) -> Mesh {
    let mut mesh = Mesh::new([("oslo", 0), ("lyon", slots)]);
    mesh.peers[1].pricing.price = Price { core_hour: Money(price), card_hour: Money(0) };
    mesh.peers[1].tells_true = true;
    mesh.restart(1);
    mesh.advance(3000);
    mesh.peers.iter_mut().for_each(|peer| peer.told.clear());
    mesh
}

/// Let so many rounds of tasks run for an hour each.
fn work(mesh: &mut Mesh, rounds: u32) {
    for _ in 0..rounds {
        mesh.advance(HOUR.0);
        mesh.finish(1, None);
    }
    mesh.advance(2000);
}

/// The receipts of lyon for oslo that stand on a disk.
pub(crate) fn booked(mesh: &Mesh, at: usize) -> Vec<EntryRecord> {
    let records = mesh.peers[at].disk.values();
    let entries = records.filter_map(|record| match record {
        Record::Entry(entry) => Some(entry.clone()),
        _ => None,
    });
    entries.collect()
}

fn lent(mesh: &Mesh) -> meshfarm_core::SideView {
    mesh.site(1).ledger(mesh.now).pairs[0].lent
}

fn borrowed(mesh: &Mesh) -> meshfarm_core::SideView {
    mesh.site(0).ledger(mesh.now).pairs[0].borrowed
}

fn misdeeds(mesh: &Mesh, at: usize) -> Vec<Misdeed> {
    let records = mesh.peers[at].disk.values();
    let kept = records.filter_map(|record| match record {
        Record::Misdeed(kept) => Some(kept.misdeed),
        _ => None,
    });
    kept.collect()
}

fn blames(mesh: &Mesh, at: usize) -> Vec<&str> {
    let told = mesh.peers[at].told.iter();
    let blames = told.filter_map(|event| match event {
        Event::Blame { what, .. } => Some(what.as_str()),
        _ => None,
    });
    blames.collect()
}

const CHAIN: fn() -> ChainId = || ChainId { lender: id(1), borrower: id(0) };

#[test]
fn what_a_job_used_stands_on_both_disks_with_the_same_bytes() {
    let mut mesh = market(50, 2);
    let job = mesh.submit(0, frames(4));
    work(&mut mesh, 2);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    let (ours, theirs) = (booked(&mesh, 0), booked(&mesh, 1));
    let bytes = |entries: &[EntryRecord]| {
        entries.iter().map(|e| (e.receipt.clone(), e.verdict.clone())).collect::<Vec<_>>()
    };
    assert_eq!(bytes(&ours), bytes(&theirs));
    let receipts: Vec<_> = ours.iter().map(|e| read_receipt(&e.receipt).unwrap()).collect();
    let sum = receipts.iter().fold(Used::default(), |sum, r| sum.plus(&r.used));
    assert_eq!((sum.done, sum.core), (4, HOUR.times(4)));
    assert_eq!((lent(&mesh).owed, borrowed(&mesh).owed), (Money(200), Money(200)));
    assert_eq!(sum.content, 1000, "content is counted once");
    assert_eq!(mesh.job(0, job).spent, Money(200));
    let charges = |at: usize| mesh.peers[at].disk.keys().any(|key| matches!(key, Key::Charge(_)));
    assert!(!charges(0) && !charges(1));
}

#[test]
fn a_failed_task_is_counted_and_costs_nothing() {
    let mut mesh = market(50, 1);
    mesh.submit(0, with(frames(1), |policy| policy.retries = 0));
    mesh.advance(HOUR.0);
    mesh.finish(1, Some("no such texture"));
    mesh.advance(2000);
    let receipt = read_receipt(&booked(&mesh, 0)[0].receipt).unwrap();
    assert_eq!((receipt.used.failed, receipt.used.core, receipt.amount), (1, Millis(0), Money(0)));
}

#[test]
fn own_tasks_and_those_of_hosts_have_no_receipts() {
    let mut mesh = Mesh::new([("oslo", 1), ("shed", 1)]);
    mesh.become_hosts(0, &[1]);
    let job = mesh.submit(0, frames(6));
    mesh.finish_all();
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    assert!(mesh.site(0).ledger(mesh.now).pairs.is_empty());
    let tally = mesh.peers[0].disk.values().find_map(|record| match record {
        Record::Tally(tally) => Some(tally.clone()),
        _ => None,
    });
    let tally = tally.unwrap();
    assert_eq!((tally.used.done, tally.project.as_str()), (6, "film"));
}

#[test]
fn a_kill_at_any_moment_loses_no_charge_and_books_none_twice() {
    for who in [0, 1] {
        for moment in 0..24 {
            // A minute each.
            let mut mesh = market(60 * 50, 1);
            let job = mesh.submit(0, frames(2));
            mesh.advance(60_000);
            for running in mesh.peers[1].running.clone() {
                mesh.end(1, running.session, None);
            }
            for _ in 0..moment {
                if let Some((from, to, message)) = mesh.wires.pop_front() {
                    mesh.give(to, Input::Heard { from: id(from), message });
                }
            }
            mesh.restart(who);
            mesh.advance(2000);
            for _ in 0..3 {
                mesh.advance(60_000);
                mesh.finish(1, None);
                mesh.advance(10_000);
            }
            assert_eq!(mesh.phase(0, job), JobPhase::Done, "{who} {moment}");
            let entries = booked(&mesh, 1);
            assert_eq!(entries.len(), booked(&mesh, 0).len(), "{who} {moment}");
            let receipts = entries.iter().map(|e| read_receipt(&e.receipt).unwrap());
            let attempts: Vec<AttemptId> = receipts.flat_map(|r| r.attempts).collect();
            assert_eq!(attempts.len(), 2, "{who} {moment}");
            assert_eq!(lent(&mesh).owed, borrowed(&mesh).owed, "{who} {moment}");
            assert!(lent(&mesh).owed >= Money(100), "{:?}", lent(&mesh));
            assert_eq!((lent(&mesh).unsigned, lent(&mesh).disputes), (0, 0), "{who} {moment}");
        }
    }
}

#[test]
fn a_lender_is_paid_though_the_word_that_its_result_was_taken_is_lost() {
    let mut mesh = market(50, 1);
    let job = mesh.submit(0, frames(1));
    mesh.advance(HOUR.0);
    for running in mesh.peers[1].running.clone() {
        mesh.end(1, running.session, None);
    }
    let mut lost = 0;
    while !mesh.wires.is_empty() || !mesh.peers[0].collects.is_empty() {
        match mesh.wires.pop_front() {
            Some((_, _, Message::Accepted { .. })) => lost += 1,
            Some((from, to, message)) => mesh.give(to, Input::Heard { from: id(from), message }),
            None => {
                let (attempt, _) = mesh.peers[0].collects.pop_front().unwrap();
                let landed = meshfarm_core::Landed { files: 1, bytes: 1 };
                mesh.give(0, Input::Collected { attempt, result: Ok(landed) });
            }
        }
    }
    assert_eq!((mesh.phase(0, job), lost), (JobPhase::Done, 1));
    mesh.advance(20_000);
    assert_eq!((lent(&mesh).owed, borrowed(&mesh).owed), (Money(50), Money(50)));
    assert_eq!(mesh.leftovers(), 0);
}

#[test]
fn an_hour_of_each_month_is_free() {
    let mut mesh = market(50, 1);
    mesh.peers[1].pricing.free = Money(60);
    mesh.restart(1);
    mesh.advance(3000);
    mesh.submit(0, frames(2));
    work(&mut mesh, 2);
    assert_eq!(lent(&mesh).owed, Money(40));
    // A month later.
    mesh.advance(Millis::seconds(32 * 24 * 3600).0);
    mesh.submit(0, frames(2));
    mesh.advance(2000);
    work(&mut mesh, 2);
    assert_eq!(borrowed(&mesh).owed, Money(80));
}

#[test]
fn a_lease_that_goes_on_has_receipts_meanwhile() {
    let mut mesh = market(60, 1);
    mesh.submit(0, frames(10));
    work(&mut mesh, 3);
    mesh.advance(310_000);
    assert!(lent(&mesh).owed >= Money(180), "{:?}", lent(&mesh));
    assert!(mesh.n_running(1) > 0);
}

#[test]
fn a_lender_that_claims_more_than_was_seen_gets_what_was_seen_and_the_chain_goes_on() {
    let mut mesh = market(50, 1);
    mesh.peers[1].claims = 3;
    let job = mesh.submit(0, frames(2));
    work(&mut mesh, 2);
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    let (lender, borrower) = (lent(&mesh), borrowed(&mesh));
    assert_eq!(lender, borrower, "both sides see the same");
    assert!(lender.disputes > 0 && lender.owed < Money(110), "{lender:?}");
    assert_eq!(lender.owed.plus(lender.contested), Money(300));
    let disputed = |at: usize| {
        let told = mesh.peers[at].told.iter();
        told.filter(|event| matches!(event, Event::Disputed { .. })).count() as u64
    };
    assert_eq!((disputed(0), disputed(1)), (lender.disputes, lender.disputes));
    mesh.peers[1].claims = 1;
    mesh.submit(0, frames(1));
    mesh.advance(2000);
    work(&mut mesh, 1);
    assert_eq!(lent(&mesh).owed, lender.owed.plus(Money(50)));
}

/// A receipt as lyon might write it.
fn forged(mesh: &Mesh, change: impl FnOnce(&mut Receipt)) -> Entry {
    let last = booked(mesh, 0).pop().unwrap();
    let known = read_receipt(&last.receipt).unwrap();
    let mut receipt = Receipt {
        sequence: known.sequence + 1,
        previous: receipt_hash(&last.receipt),
        lease: LeaseId([77; 16]),
        attempts: vec![AttemptId([77; 16])],
        used: Used { done: 1, core: HOUR, wall: HOUR, ..Used::default() },
        waived: Money(0),
        amount: known.price.core_hour,
        ..known
    };
    change(&mut receipt);
    Entry { receipt: encode(&receipt), lender: Signature([0; 64]), verdict: None }
}

fn say(mesh: &mut Mesh, entry: &Entry) {
    let message = Message::Receipt(Box::new(entry.clone()));
    mesh.give(0, Input::Heard { from: id(1), message });
}

/// One task is paid for.
fn paid() -> Mesh {
    let mut mesh = market(50, 1);
    mesh.submit(0, frames(1));
    work(&mut mesh, 1);
    assert_eq!(borrowed(&mesh).owed, Money(50));
    mesh.peers.iter_mut().for_each(|peer| peer.told.clear());
    mesh
}

#[test]
fn an_attempt_that_was_paid_for_is_not_paid_for_again() {
    let mut mesh = paid();
    let first = read_receipt(&booked(&mesh, 0)[0].receipt).unwrap();
    let again = forged(&mesh, |receipt| {
        (receipt.lease, receipt.attempts) = (first.lease, first.attempts);
    });
    say(&mut mesh, &again);
    assert_eq!((borrowed(&mesh).owed, borrowed(&mesh).contested), (Money(50), Money(50)));
    let told = &mesh.peers[0].told;
    assert!(matches!(&told[..], [Event::Disputed { granted: Money(0), .. }]), "{told:?}");
}

#[test]
fn a_receipt_that_takes_the_place_of_another_is_kept_as_evidence() {
    let mut mesh = paid();
    work(&mut mesh, 0);
    let rewritten = forged(&mesh, |receipt| {
        (receipt.sequence, receipt.previous) = (0, [0; 32]);
    });
    say(&mut mesh, &rewritten);
    say(&mut mesh, &rewritten);
    assert_eq!(misdeeds(&mesh, 0), [Misdeed::Forked]);
    let elsewhere = forged(&mesh, |receipt| receipt.previous = [9; 32]);
    say(&mut mesh, &elsewhere);
    assert_eq!(misdeeds(&mesh, 0), [Misdeed::Forked, Misdeed::Forked]);
    assert_eq!(blames(&mesh, 0).len(), 2, "{:?}", mesh.peers[0].told);
    assert_eq!((borrowed(&mesh).owed, borrowed(&mesh).receipts), (Money(50), 1));
    // The chain goes on all the same.
    mesh.submit(0, frames(1));
    mesh.advance(2000);
    work(&mut mesh, 1);
    assert_eq!((lent(&mesh).owed, borrowed(&mesh).owed), (Money(100), Money(100)));
}

#[test]
fn a_lender_that_skips_receipts_is_asked_for_them_and_then_kept_as_evidence() {
    let mut mesh = paid();
    let skipped = forged(&mesh, |receipt| receipt.sequence = 5);
    say(&mut mesh, &skipped);
    let asked = (0, 1, Message::Behind { lender: id(1), next: 1 });
    assert_eq!(mesh.wires.pop_front(), Some(asked));
    assert!(misdeeds(&mesh, 0).is_empty());
    mesh.advance(40_000);
    say(&mut mesh, &skipped);
    say(&mut mesh, &skipped);
    assert_eq!(misdeeds(&mesh, 0), [Misdeed::Skipped]);
    assert_eq!(blames(&mesh, 0).len(), 1);
    assert_eq!(borrowed(&mesh).receipts, 1);
}

#[test]
fn a_repeated_receipt_gets_the_same_answer_again() {
    let mut mesh = paid();
    let first = booked(&mesh, 0)[0].clone();
    let entry = Entry { verdict: None, ..unsigned(&first) };
    say(&mut mesh, &entry);
    let answer = Message::Receipt(Box::new(unsigned(&first)));
    assert_eq!(mesh.wires.pop_front(), Some((0, 1, answer)));
    assert_eq!(borrowed(&mesh).receipts, 1);
    assert!(mesh.peers[0].told.is_empty());
}

#[test]
fn a_receipt_of_another_mesh_is_refused() {
    let mut mesh = market(50, 1);
    mesh.submit(0, frames(1));
    mesh.advance(HOUR.0);
    for running in mesh.peers[1].running.clone() {
        mesh.end(1, running.session, None);
    }
    // The borrower has accepted, and its word has not arrived: the lender makes a receipt of its own.
    while !mesh.peers[0].disk.keys().any(|key| matches!(key, Key::Charge(_))) {
        let Some((from, to, message)) = mesh.wires.pop_front() else {
            let (attempt, _) = mesh.peers[0].collects.pop_front().unwrap();
            let landed = meshfarm_core::Landed { files: 1, bytes: 1 };
            mesh.give(0, Input::Collected { attempt, result: Ok(landed) });
            continue;
        };
        mesh.give(to, Input::Heard { from: id(from), message });
    }
    let charge = mesh.peers[0].disk.values().find_map(|record| match record {
        Record::Charge(charge) => Some(charge.clone()),
        _ => None,
    });
    let charge = charge.unwrap();
    let receipt = Receipt {
        version: RECEIPT_VERSION,
        mesh: MeshId([66; 32]),
        lender: id(1),
        borrower: id(0),
        sequence: 0,
        previous: [0; 32],
        at: mesh.now,
        lease: charge.lease,
        tenant: charge.tenant,
        isolation: charge.isolation,
        price: charge.terms.price,
        used: charge.used,
        waived: Money(0),
        amount: charge.terms.price.of(&charge.used),
        attempts: vec![charge.attempt],
    };
    let entry = |receipt: &Receipt| Entry {
        receipt: encode(receipt),
        lender: Signature([0; 64]),
        verdict: None,
    };
    say(&mut mesh, &entry(&receipt));
    assert_eq!(misdeeds(&mesh, 0), [Misdeed::OtherMesh]);
    // Another price than was granted is a dispute, and is paid as granted.
    let mut dear = receipt.clone();
    (dear.mesh, dear.price.core_hour) = (charge.terms.mesh, Money(5000));
    dear.amount = dear.price.of(&dear.used);
    say(&mut mesh, &entry(&dear));
    assert_eq!((borrowed(&mesh).owed, borrowed(&mesh).contested), (Money(50), Money(4950)));
}

#[test]
fn absurd_figures_change_nothing() {
    let mut mesh = paid();
    for change in [
        (|r| r.amount = Money(u64::MAX)) as fn(&mut Receipt),
        |r| r.used.core = Millis(u64::MAX),
        |r| r.used.done = u32::MAX,
        |r| r.price.core_hour = Money(u64::MAX),
        |r| r.attempts = Vec::new(),
        |r| r.sequence = u64::MAX,
        |r| (r.tenant, r.isolation) = (TenantId([1; 16]), Level::S0),
    ] {
        let entry = forged(&mesh, change);
        say(&mut mesh, &entry);
        assert_eq!(borrowed(&mesh).owed, Money(50));
    }
    let stranger = forged(&mesh, |r| r.borrower = id(5));
    say(&mut mesh, &stranger);
    assert_eq!(borrowed(&mesh).owed, Money(50));
}

#[test]
fn a_lender_that_claims_without_end_does_not_fill_the_disk() {
    let mut mesh = paid();
    for n in 0..200u8 {
        let claim = forged(&mesh, |receipt| receipt.attempts = vec![AttemptId([n; 16])]);
        say(&mut mesh, &claim);
        mesh.wires.clear();
    }
    assert!(booked(&mesh, 0).len() <= 51, "{}", booked(&mesh, 0).len());
    assert!(misdeeds(&mesh, 0).len() <= 16);
}

#[test]
fn a_borrower_that_signs_nothing_gets_no_more_slots() {
    let mut mesh = market(50, 1);
    mesh.peers[1].pricing = Pricing { max_unsigned: 2, ..mesh.peers[1].pricing };
    mesh.restart(1);
    mesh.advance(3000);
    mesh.signs_nothing = Some(0);
    for round in 0..4 {
        mesh.submit(0, frames(1));
        mesh.settle();
        let runs = mesh.n_running(1);
        assert_eq!(runs, usize::from(round < 2), "{round}");
        work(&mut mesh, 1);
    }
    assert_eq!(lent(&mesh).unsigned, 2);
    assert!(mesh.site(1).ledger(mesh.now).pairs[0].withheld);
    let policy = meshfarm_protocol::lease::Declined::Policy;
    let declined = Event::Declined { lender: id(1), reason: policy };
    assert!(mesh.peers[0].told.contains(&declined));
    // It signs after all.
    mesh.signs_nothing = None;
    mesh.advance(70_000);
    assert_eq!((lent(&mesh).unsigned, mesh.n_running(1)), (0, 1));
}

/// A site loses what it has of a chain behind some receipts, as when it is restored from a backup.
fn forget(mesh: &mut Mesh, at: usize, disk: &std::collections::BTreeMap<Key, Record>) {
    mesh.kill(at);
    mesh.peers[at].disk = disk.clone();
    mesh.boot(at);
    mesh.advance(3000);
}

#[test]
fn whoever_has_lost_receipts_gets_them_back_from_the_other_side() {
    for who in [0, 1] {
        let mut mesh = paid();
        let old = mesh.peers[who].disk.clone();
        for _ in 0..2 {
            mesh.submit(0, frames(1));
            mesh.advance(2000);
            work(&mut mesh, 1);
        }
        forget(&mut mesh, who, &old);
        let before = if who == 0 { borrowed(&mesh) } else { lent(&mesh) };
        assert_eq!(before.receipts, 1);
        mesh.submit(0, frames(1));
        mesh.advance(2000);
        work(&mut mesh, 1);
        mesh.advance(60_000);
        let (lender, borrower) = (lent(&mesh), borrowed(&mesh));
        assert_eq!((lender.owed, lender.receipts, lender.unsigned), (Money(200), 4, 0), "{who}");
        assert_eq!((borrower.owed, borrower.receipts), (Money(200), 4), "{who}");
        assert!(mesh.peers[0].disk.contains_key(&Key::Entry(CHAIN(), 3)));
    }
}

#[test]
fn a_job_stops_before_its_budget_is_exceeded_and_goes_on_when_it_is_raised() {
    let mut mesh = market(400, 2);
    let job = mesh.submit(0, with(frames(8), |policy| policy.budget = Some(Money(1000))));
    // What a task costs is not known yet: the first ones are cheap in advance, and are stopped when they are not.
    for _ in 0..6 {
        work(&mut mesh, 1);
        mesh.advance(10_000);
        assert!(mesh.job(0, job).spent <= Money(1000));
    }
    let view = mesh.job(0, job);
    // Parts of a thousandth count whole here, and not at all in receipts.
    assert!((800..803).contains(&view.spent.0) && view.done == 2, "{view:?}");
    assert_eq!(mesh.n_running(1), 0, "nothing runs that the job cannot pay");
    let explained = mesh.site(0).explain(job, None, mesh.now).unwrap();
    let waits = explained.steps[0].waits.join("; ");
    for words in ["budget of 1.00 reached: 0.80", "used, the next task costs about 0.40"] {
        assert!(waits.contains(words), "{waits}");
    }
    assert_eq!(borrowed(&mesh).owed, Money(800));
    let raise =
        |mesh: &mut Mesh, job: JobId| mesh.operate(0, job, Operation::Budget(Money(10_000)));
    assert_eq!(raise(&mut mesh, job), Reply::Changed(1));
    for _ in 0..5 {
        work(&mut mesh, 1);
        mesh.advance(10_000);
    }
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    let spent = mesh.job(0, job).spent;
    assert!((3200..3220).contains(&spent.0), "{spent}");
    assert!(borrowed(&mesh).owed <= spent, "{:?}", borrowed(&mesh));
}

#[test]
fn a_budget_holds_over_restarts_and_repetitions() {
    let mut mesh = market(400, 1);
    let job = mesh.submit(0, with(frames(1), |policy| policy.budget = Some(Money(500))));
    work(&mut mesh, 1);
    assert_eq!(mesh.job(0, job).spent, Money(400));
    mesh.retry(0, job, meshfarm_core::Tasks::All);
    assert_eq!(mesh.job(0, job).spent, Money(400));
    mesh.restart(0);
    mesh.advance(3000);
    assert_eq!(mesh.job(0, job).spent, Money(400));
    work(&mut mesh, 2);
    assert_eq!(mesh.job(0, job).spent, Money(400), "it was not rendered again");
}

#[test]
fn nobody_is_asked_who_is_too_dear() {
    let mut mesh = market(400, 2);
    let job = mesh.submit(0, with(frames(2), |policy| policy.max_price = Some(Money(399))));
    mesh.advance(10_000);
    assert_eq!(mesh.n_running(1), 0);
    let explained = mesh.site(0).explain(job, None, mesh.now).unwrap();
    let blocks = explained.steps[0].sites[1].blocks.join("; ");
    assert!(blocks.contains("it asks 0.40 for a core-hour, and the job pays 0.399"), "{blocks}");
    let cheap = mesh.submit(0, with(frames(2), |policy| policy.max_price = Some(Money(400))));
    mesh.advance(10_000);
    assert_eq!(mesh.n_running(1), 2);
    assert_eq!(mesh.job(0, cheap).leased, 2);
}
