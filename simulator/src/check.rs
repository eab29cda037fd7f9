//! What must hold whatever goes wrong, told from what an observer of all sites sees. Nothing here knows how it was seen.
//!
//! | | statement | seen at level model |
//! |---|---|---|
//! | I0 | no core panics, and its rooms agree | yes |
//! | I1 | an acknowledged job is on its home's disk, after every restart | yes |
//! | I2 | one result of a task is accepted, and is what stands in its place | yes |
//! | I3 | a try begins once, and only a try that ran for the task is accepted | yes |
//! | I4 | no more sessions than slots, no more of an amount than there is | yes |
//! | I5 | no plaintext leaves the jail | no: there are no bytes |
//! | I6 | what is used is what was announced | by roots, not by signatures |
//! | I7 | credits over all ledgers are constant | no: there are no receipts yet |
//! | I8 | leases, wishes and records stay within their bounds | yes |
//! | I9 | after the healing every job ends in time | yes |
//! | I10 | what was durable is there after a crash | yes |
//! | I11 | nobody is overrun with offers | yes, by a generous bound; the share of refusals is an expectation |
//! | I12 | nothing is left of a job that is over | leases, content, outputs, sessions |
//! | I13 | nobody starves behind others | as an expectation (`fairness_jain`) |
//! | I14 | profiles and wishes only grow, jobs end once | yes |
//! | I15 | only sites that a job allows get its keys | yes |
//! | I16 | nobody talks without end | yes |
//! | I17 | a seed repeats its run | by `--twice` and by sweeps |

mod order;
mod places;
mod results;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::seen::{Seen, What};

/// An invariant is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Which: `I2`.
    pub invariant: String,
    /// What was seen.
    pub what: String,
}

pub(crate) fn broken(invariant: &str, what: String) -> Broken {
    Broken { invariant: invariant.to_owned(), what }
}

/// All invariants.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) results: results::Results,
    places: places::Places,
    order: order::Order,
}

impl Checks {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            results: results::Results::new(),
            places: places::Places::new(plan),
            order: order::Order::new(plan),
        }
    }

    /// The invariant that is broken by what was seen, if one is.
    pub(crate) fn see(&mut self, seen: &Seen) -> Option<Broken> {
        match &seen.what {
            What::Broke { invariant, what } => Some(broken(invariant, what.clone())),
            What::Left { what } => Some(broken("I12", what.clone())),
            _ => self
                .results
                .see(seen)
                .or_else(|| self.places.see(seen))
                .or_else(|| self.order.see(seen)),
        }
    }
}
