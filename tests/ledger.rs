//! What sites owe each other: receipts on both sides, also after `kill -9`; statements, budgets, and what an auditor does.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{A_JOB, Mesh, SOON, Site, borrower, lender, list, tasks, text, wait_until};

/// Keeps a processor busy for some tenths of a second, and writes a frame.
const COMMAND: &str = "\
i=0
while [ $i -lt 500000 ]; do i=$((i + 1)); done
echo {frame} > {frame4}.txt";

/// A borrower, and a lender that asks 3600 for a core-hour: one for each core-second.
fn market(slots: u32) -> Mesh {
    let mut mesh = Mesh::apart(vec![borrower("oslo"), lender("lyon", slots)]);
    mesh[1].stop();
    let settings = mesh[1].home.join("meshfarm.toml");
    let old = fs::read_to_string(&settings).unwrap();
    assert!(old.contains("# core_hour = 0.00"), "{old}");
    fs::write(&settings, old.replace("# core_hour = 0.00", "core_hour = 3600")).unwrap();
    mesh[1].start();
    mesh.join();
    wait_until("the price is known", SOON, || {
        let sites = mesh[0].json(&["sites"]);
        let lyon = list(&sites).iter().find(|site| site["name"] == "lyon")?;
        (lyon["profile"]["price"]["core_hour"] == "3600.00" && lyon["connected"] == true)
            .then_some(())
    });
    mesh
}

fn submit(mesh: &Mesh, name: &str, frames: &str, flags: &[&str]) -> String {
    let out = mesh.new_folder(name);
    let command = format!("Command={COMMAND}");
    let fixed = ["bundle:command", "--frames", frames, "-p", &command, "-o", out.to_str().unwrap()];
    mesh[0].submit(&[&fixed[..], flags].concat())
}

/// The account of a site with the other one.
fn pair(site: &Site) -> Option<Value> {
    let ledger = site.json(&["ledger"]);
    list(&ledger["pairs"]).first().cloned()
}

/// Waits until both sides have signed for so many tasks. Returns what is owed.
#[track_caller]
fn wait_signed(mesh: &Mesh, n: u64) -> String {
    wait_until("both sides have signed", A_JOB, || {
        let (lent, borrowed) =
            (pair(&mesh[1])?["lent"].clone(), pair(&mesh[0])?["borrowed"].clone());
        let same = lent["owed"] == borrowed["owed"] && lent["used"]["done"] == n;
        (same && borrowed["used"]["done"] == n && lent["unsigned"] == 0)
            .then(|| text(&lent["owed"]).to_owned())
    })
}

fn thousandths(money: &str) -> u64 {
    let (whole, rest) = money.split_once('.').unwrap();
    whole.parse::<u64>().unwrap() * 1000 + format!("{rest:0<3}").parse::<u64>().unwrap()
}

fn export(site: &Site, mesh: &Mesh, name: &str) -> PathBuf {
    let file = mesh.folder().join(name);
    site.json(&["ledger", "export", file.to_str().unwrap()]);
    file
}

#[test]
fn both_sides_have_the_same_receipts_and_an_auditor_finds_what_is_changed_in_them() {
    let mesh = market(2);
    let job = submit(&mesh, "out", "1-4", &[]);
    mesh[0].wait_done(&job);
    let owed = wait_signed(&mesh, 4);
    // A thousandth for each millisecond of a processor.
    assert!((100..60_000).contains(&thousandths(&owed)), "{owed}");
    let (ours, theirs) = (mesh[0].json(&["statement"]), mesh[1].json(&["statement"]));
    assert_eq!(
        (&ours["debit"], &theirs["credit"]),
        (&Value::from(owed.clone()), &Value::from(owed))
    );
    assert_eq!(list(&ours["rows"]).len(), list(&theirs["rows"]).len());
    for (our, their) in list(&ours["rows"]).iter().zip(list(&theirs["rows"])) {
        for what in ["lease", "used", "at", "tenant"] {
            assert_eq!(our[what], their[what], "{what}");
        }
    }
    let tomorrow = mesh[0].json(&["statement", "--from", "2999-01-01"]);
    assert_eq!(tomorrow["rows"], serde_json::json!([]));
    let csv = mesh[1].run(&["statement", "--by", "site", "--csv"]).out;
    assert!(csv.starts_with("at,month,side,site") && csv.contains(",lent,oslo,"), "{csv}");

    let file = export(&mesh[1], &mesh, "lyon.ledger");
    let path = file.to_str().unwrap();
    let found = mesh[0].json(&["ledger", "verify", path]);
    assert_eq!((&found["n_wrong"], &found["credit"]), (&Value::from(0), &theirs["credit"]));
    mesh[1].run(&["ledger", "export", path]).refused(2, &["exists", "another file"]);
    let whole = fs::read_to_string(&file).unwrap();
    let changed = mesh.folder().join("changed.ledger");
    let at = whole.find("\"entry\":\"").unwrap() + 400;
    let digit = if whole.as_bytes()[at] == b'0' { "1" } else { "0" };
    let mut text = whole;
    text.replace_range(at..=at, digit);
    fs::write(&changed, text).unwrap();
    let refused = mesh[0].run(&["ledger", "verify", changed.to_str().unwrap()]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.out.contains("line 2:"), "{refused:?}");
}

#[test]
fn a_job_keeps_its_budget_and_goes_on_when_it_is_raised() {
    let mesh = market(1);
    let one = submit(&mesh, "one", "1", &[]);
    mesh[0].wait_done(&one);
    let one = thousandths(&wait_signed(&mesh, 1));
    // For two tasks and a half, though they never take the same time.
    let budget = format!("{}.{:03}", one * 5 / 2 / 1000, one * 5 / 2 % 1000);
    let job = submit(&mesh, "out", "1-6", &["--budget", &budget]);
    let spent = |job: &Value| thousandths(text(&job["spent"]));
    let reached = wait_until("the budget is reached", A_JOB, || {
        let explained = mesh[0].run(&["explain", &job]).out;
        let now = mesh[0].job(&job);
        assert!(spent(&now) <= thousandths(&budget), "{now}");
        (explained.contains("reached:") && now["leased"] == 0).then_some(now)
    });
    assert!(reached["done"].as_u64() < Some(6), "{reached}");
    assert_eq!(mesh[0].json(&["budget", &job, "100"])["budget"], "100.00");
    let done = mesh[0].wait_done(&job);
    let owed = thousandths(&wait_signed(&mesh, 7));
    // Parts of a thousandth count whole in a job's budget, and not at all in receipts.
    let more = spent(&done).checked_sub(owed - one);
    assert!(more.is_some_and(|more| more < 10), "{} {owed} {one}", spent(&done));
}

#[test]
fn nobody_is_used_who_asks_more_than_a_job_pays() {
    let mesh = market(1);
    let job = submit(&mesh, "out", "1", &["--max-price", "3599.99"]);
    wait_until("it is said why", SOON, || {
        let explained = mesh[0].run(&["explain", &job]).out;
        explained.contains("it asks 3600.00 for a core-hour").then_some(())
    });
    assert_eq!(mesh[0].job(&job)["done"], 0);
}

#[test]
fn a_kill_between_done_and_receipt_loses_no_money_and_makes_none() {
    let mut mesh = market(2);
    for (round, victim) in [(1u64, 0), (2, 1), (3, 0), (4, 1)] {
        let job = submit(&mesh, &format!("out{round}"), "1-2", &[]);
        // Some rounds die with the first result on its way, others when the job is done and the receipt is not.
        let at_least = usize::from(round > 2) + 1;
        wait_until("results arrive", A_JOB, || {
            let now = mesh[0].job(&job);
            let done = tasks(&now).iter().filter(|task| task["state"] == "done").count();
            (done >= at_least).then_some(())
        });
        mesh[victim].kill();
        mesh[victim].start();
        mesh[0].wait_done(&job);
        wait_signed(&mesh, round * 2);
    }
    let (ours, theirs) = (pair(&mesh[0]).unwrap(), pair(&mesh[1]).unwrap());
    assert_eq!(ours["borrowed"], theirs["lent"]);
    assert_eq!(ours["borrowed"]["disputes"], 0, "{ours}");
    for (site, name) in [(0, "oslo.ledger"), (1, "lyon.ledger")] {
        let file = export(&mesh[site], &mesh, name);
        let found = mesh[1 - site].json(&["ledger", "verify", file.to_str().unwrap()]);
        assert_eq!((&found["n_wrong"], &found["used"]["done"]), (&Value::from(0), &Value::from(8)));
    }
}
