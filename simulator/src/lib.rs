//! Many sites in one process: one virtual clock, one heap of events, one seed.
//!
//! Every site is the core that the daemon runs. A scenario becomes a plan in which nothing is drawn any more; the plan
//! runs with messages, transfers, renderers and crashes that follow from the seed; an observer that sees all sites
//! checks every step; and the same seed gives the same run to the last event.
#![forbid(unsafe_code)]

mod bounds;
mod bug;
mod check;
pub mod compare;
mod expand;
pub mod explain;
mod ideal;
pub mod import;
mod outcome;
mod plan;
pub mod record;
mod report;
mod scenario;
mod seen;
pub mod shrink;
mod story;
mod streams;
mod units;
mod watch;
mod workload;
mod world;

pub use bounds::Bound;
pub use bug::Bug;
pub use check::Broken;
pub use outcome::{Outcome, Verdict};
pub use plan::Plan;
pub use scenario::{Scenario, ScenarioError, Source};

use watch::Watch;

/// Run a plan once.
#[must_use]
pub fn run(plan: &Plan, bug: Option<Bug>) -> Outcome {
    let (ran, watch) = world::run(plan, Watch::new(plan, None), bug);
    let n_results = watch.checks.results.n_results();
    outcome::judge(plan, &ran, (&watch.story, watch.broken()), n_results)
}

/// Run a plan once, and hand everything that an observer sees to `show`, as a line of JSON.
#[must_use]
pub fn run_shown(plan: &Plan, bug: Option<Bug>, show: &mut dyn FnMut(&str)) -> Outcome {
    let mut listener = |seen: &seen::Seen| show(&serde_json::to_string(seen).unwrap_or_default());
    let (ran, watch) = world::run(plan, Watch::new(plan, Some(&mut listener)), bug);
    let n_results = watch.checks.results.n_results();
    outcome::judge(plan, &ran, (&watch.story, watch.broken()), n_results)
}

/// States that `sometimes` can name, and what each means.
pub fn states() -> impl Iterator<Item = (&'static str, &'static str)> {
    story::STATES.into_iter()
}
