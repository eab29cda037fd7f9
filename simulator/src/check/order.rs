//! Order and measure: what only grows, and how much is said (I14, I16).

use std::collections::HashMap;

use meshfarm_protocol::id::{LeaseId, Millis};

use crate::check::{Broken, broken};
use crate::plan::Plan;
use crate::seen::{Seen, What};

/// Messages are counted over so long.
const WINDOW: Millis = Millis::seconds(10);

/// So many messages of one site to another in a window are no storm, and so many more for each slot of either.
const MESSAGES: (u64, u64) = (400, 60);

/// What has grown so far.
#[derive(Debug)]
pub(crate) struct Order {
    slots: Vec<u32>,
    sequence: Vec<u64>,
    wishes: HashMap<LeaseId, (usize, u64)>,
    /// Between two sites: since when, and how many.
    said: HashMap<(usize, usize), (Millis, u64)>,
}

impl Order {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            slots: plan.site.iter().map(|site| site.slots).collect(),
            sequence: vec![0; plan.site.len()],
            wishes: HashMap::new(),
            said: HashMap::new(),
        }
    }

    pub(crate) fn see(&mut self, seen: &Seen) -> Option<Broken> {
        let Seen { at, site, what } = seen;
        match what {
            // What grows in one life starts from the clock, which may have been set back before the next.
            What::Up { .. } => {
                self.sequence[*site] = 0;
                self.wishes.retain(|_, (of, _)| of != site);
                None
            }
            What::Profile { sequence, .. } => {
                let before = std::mem::replace(&mut self.sequence[*site], *sequence);
                (before >= *sequence).then(|| {
                    broken("I14", format!("a profile has sequence {sequence} after {before}"))
                })
            }
            What::Wish { lease, version, .. } => {
                let before =
                    self.wishes.insert(*lease, (*site, *version)).map_or(0, |(_, version)| version);
                (before > *version)
                    .then(|| broken("I14", format!("a wish has version {version} after {before}")))
            }
            What::Said { to, .. } => {
                let (since, n) = self.said.entry((*site, *to)).or_insert((*at, 0));
                if at.since(*since) >= WINDOW {
                    (*since, *n) = (*at, 0);
                }
                *n += 1;
                let slots = u64::from(self.slots[*site]) + u64::from(self.slots[*to]);
                (*n > MESSAGES.0 + MESSAGES.1 * slots).then(|| {
                    broken("I16", format!("one site sends another {n} messages in 10 seconds"))
                })
            }
            _ => None,
        }
    }
}
