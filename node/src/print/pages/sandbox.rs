//! The sandbox report, and what attacks on the sandbox came to, as people see them.

use serde::Serialize;

use meshfarm_attacks::{Outcome, Verdict};
use meshfarm_sandbox::Report;

use crate::print::{Cell, Page, Tone, faint, plain, strong};

/// What is in force around a jail, and what would make it better.
#[must_use]
pub fn sandbox_report(report: &Report) -> Page {
    let mut page = Page::of(report);
    page.quiet = vec![report.level.to_string()];
    page.line([plain("isolation"), strong(report.level.to_string())]);
    let rows = report.mechanisms.iter().map(|mechanism| {
        let state = match (mechanism.in_force, mechanism.asked) {
            (true, _) => Cell::new("in force", Tone::Good),
            (false, true) => Cell::new("missing", Tone::Bad),
            (false, false) => Cell::new("not asked for", Tone::Faint),
        };
        let better = mechanism.better.as_deref().unwrap_or("");
        vec![plain(&mechanism.name), state, plain(&mechanism.evidence), faint(better)]
    });
    page.table(&["MECHANISM", "STATE", "EVIDENCE", "WHAT WOULD HELP"], rows);
    page
}

/// What came of one attack.
#[derive(Clone, Debug, Serialize)]
pub struct Attacked {
    /// Its name.
    pub attack: &'static str,
    /// What it is aimed at.
    pub family: String,
    /// What it tries.
    pub tries: &'static str,
    /// `held`, `broke` or `skipped`.
    pub outcome: &'static str,
    /// What was seen, or why it was not run.
    pub evidence: Vec<String>,
    /// How long it took.
    pub ms: u128,
}

impl From<&Verdict> for Attacked {
    fn from(verdict: &Verdict) -> Self {
        let (outcome, evidence) = match &verdict.outcome {
            Outcome::Held => ("held", Vec::new()),
            Outcome::Broke(seen) => ("broke", seen.clone()),
            Outcome::Skipped(why) => ("skipped", vec![why.clone()]),
        };
        Self {
            attack: verdict.attack.name,
            family: verdict.attack.family.to_string(),
            tries: verdict.attack.tries,
            outcome,
            evidence,
            ms: verdict.took.as_millis(),
        }
    }
}

/// What held and what did not: each family's count and what did not hold, or every attack.
#[must_use]
pub fn attacked(all: &[Attacked], every: bool) -> Page {
    let count = |outcome: &str| all.iter().filter(|attack| attack.outcome == outcome).count();
    let (held, broke, skipped) = (count("held"), count("broke"), count("skipped"));
    let mut page = Page::of(&serde_json::json!({
        "held": held, "broke": broke, "skipped": skipped, "attacks": all,
    }));
    let broken = all.iter().filter(|attack| attack.outcome == "broke");
    page.quiet = broken.map(|attack| attack.attack.to_owned()).collect();
    if !every {
        let mut families: Vec<&str> = all.iter().map(|attack| attack.family.as_str()).collect();
        families.dedup();
        let rows = families.into_iter().map(|family| {
            let of = all.iter().filter(|attack| attack.family == family);
            let held = of.clone().filter(|attack| attack.outcome == "held").count();
            let n = of.count();
            let tone = if held == n { Tone::Good } else { Tone::Plain };
            vec![plain(family), Cell::new(format!("{held} of {n}"), tone)]
        });
        page.table(&["ATTACKS ON", "HELD"], rows);
    }
    let shown: Vec<_> = all.iter().filter(|attack| every || attack.outcome != "held").collect();
    if !every && !shown.is_empty() {
        page.gap();
    }
    let rows = shown.into_iter().map(|attack| {
        let tone = match attack.outcome {
            "held" => Tone::Good,
            "broke" => Tone::Bad,
            _ => Tone::Faint,
        };
        let evidence = attack.evidence.join("; ");
        vec![
            plain(&attack.family),
            plain(attack.attack),
            Cell::new(attack.outcome, tone),
            faint(if evidence.is_empty() { attack.tries } else { &evidence }),
        ]
    });
    page.table(&["FAMILY", "ATTACK", "OUTCOME", "WHAT"], rows);
    page.gap();
    let tone = if broke > 0 { Tone::Bad } else { Tone::Good };
    let words = format!("{held} of {} attacks held, {broke} broke, {skipped} skipped", all.len());
    page.line([Cell::new(words, tone)]);
    page
}
