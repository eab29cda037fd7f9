//! The sandbox report as people see it.

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
