//! How two runs differ, figure by figure.

use std::fmt::Write as _;

use serde::Serialize;

use crate::outcome::Outcome;
use crate::units::{spoken, spoken_bytes};

/// One figure of two runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What it is.
    pub figure: String,
    /// Of the first run, for people.
    pub one: String,
    /// Of the second run.
    pub other: String,
    /// By how many percent the second is greater.
    pub percent: Option<f64>,
}

/// Every figure of both runs.
#[must_use]
pub fn rows(one: &Outcome, other: &Outcome) -> Vec<Row> {
    let mut rows = Vec::new();
    let text = |outcome: &Outcome| {
        [
            outcome.scenario.clone(),
            outcome.seed.to_string(),
            outcome.verdict.to_string(),
            outcome.audit.clone(),
        ]
    };
    for (figure, (a, b)) in
        ["scenario", "seed", "verdict", "audit"].iter().zip(text(one).into_iter().zip(text(other)))
    {
        rows.push(Row { figure: (*figure).to_owned(), one: a, other: b, percent: None });
    }
    let mut add = |figure: &str, of: fn(&Outcome) -> f64, spoken: fn(f64) -> String| {
        let (a, b) = (of(one), of(other));
        let percent = (a > 0.0).then(|| (b / a - 1.0) * 100.0);
        rows.push(Row { figure: figure.to_owned(), one: spoken(a), other: spoken(b), percent });
    };
    let ms = |ms: f64| spoken(crate::units::round(ms));
    let bytes = |bytes: f64| spoken_bytes(crate::units::round(bytes));
    let count = |n: f64| format!("{n:.0}");
    let share = |share: f64| format!("{:.1} %", share * 100.0);
    add("makespan", |o| o.makespan_ms.unwrap_or(o.ended_ms) as f64, ms);
    add("greatest bound", |o| o.bound_ms() as f64, ms);
    add("mean turnaround", |o| o.turnaround_ms as f64, ms);
    add("mean waiting", |o| o.waiting_ms as f64, ms);
    add("tries", |o| o.tries as f64, count);
    add("slot time lost", Outcome::lost_share, share);
    add("rendered elsewhere", |o| o.rendered_elsewhere, share);
    add("bytes", |o| o.bytes.values().sum::<u64>() as f64, bytes);
    add("bytes over least", Outcome::bytes_over_least, |x| format!("{x:.2}"));
    add("messages", |o| o.messages.values().sum::<u64>() as f64, count);
    add("offers refused", Outcome::refusals, share);
    add("leases lost", |o| o.leases_lost as f64, count);
    add("fairness (Jain)", |o| o.fairness_jain, |x| format!("{x:.3}"));
    add("longest recovery", |o| o.recovery_max_ms.unwrap_or(0) as f64, ms);
    rows
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let wide = |of: fn(&Row) -> &String| rows.iter().map(|row| of(row).len()).max().unwrap_or(0);
    let (a, b, c) = (wide(|row| &row.figure), wide(|row| &row.one), wide(|row| &row.other));
    let mut text = String::new();
    for row in rows {
        let percent = row.percent.map_or_else(String::new, |percent| format!("{percent:+.1} %"));
        let _ = writeln!(text, "{:<a$}  {:<b$}  {:<c$}  {percent}", row.figure, row.one, row.other);
    }
    text.trim_end().to_owned()
}
