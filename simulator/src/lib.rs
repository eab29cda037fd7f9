//! Many sites in one process: one virtual clock, one heap of events, one seed.
//!
//! Every site is the core that the daemon runs. Messages, transfers, renderers and crashes are drawn from
//! the seed, an observer that sees all sites checks them after every step, and the same seed gives the
//! same run to the last event.
#![forbid(unsafe_code)]

mod driver;
mod fault;
mod link;
mod oracle;
mod report;
mod scenario;
mod streams;
mod workload;
mod world;

pub use report::{Report, Verdict};
pub use scenario::{Scenario, ScenarioError};
pub use world::run;
