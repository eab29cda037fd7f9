//! Sites: what they run, hold and are asked for, and who gets the keys of a job (I4, I8, I11, I15).

use std::collections::HashMap;

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::job::Place;

use crate::check::{Broken, broken};
use crate::plan::Plan;
use crate::seen::{Seen, What};

/// More records of leases and finished work than this are not on one disk.
const MAX_RECORDS: usize = 20_000;

/// More tries than this are not wanted of one lease.
const MAX_WISH: usize = 1024;

/// Offers are counted over so long: a profile is told as often.
const WINDOW: Millis = Millis::seconds(15);

/// So many offers in a window overrun nobody, and so many more for each slot.
const OFFERS: (u64, u64) = (400, 16);

/// What is known of each site.
#[derive(Debug)]
pub(crate) struct Places {
    names: Vec<String>,
    slots: Vec<u32>,
    /// Of which site each is a host.
    heads: Vec<Option<String>>,
    /// Of each job: its home and where it may run.
    jobs: HashMap<u32, (String, Place)>,
    /// Since when, and how many.
    offers: Vec<(Millis, u64)>,
}

impl Places {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            names: plan.site.iter().map(|site| site.name.clone()).collect(),
            slots: plan.site.iter().map(|site| site.slots).collect(),
            heads: plan.site.iter().map(|site| site.host_of.clone()).collect(),
            jobs: plan
                .job
                .iter()
                .map(|job| (job.id, (job.site.clone(), job.place.clone())))
                .collect(),
            offers: vec![(Millis(0), 0); plan.site.len()],
        }
    }

    pub(crate) fn see(&mut self, seen: &Seen) -> Option<Broken> {
        let Seen { at, site, what } = seen;
        let name = &self.names[*site];
        match what {
            What::Session { running, slots, .. } if *running > *slots as usize => {
                Some(broken("I4", format!("{name} runs {running} sessions on {slots} slots")))
            }
            What::Session { over: Some(over), .. } => {
                Some(broken("I4", format!("{name} hands out {over}, more than it has")))
            }
            What::Records { n } if *n > MAX_RECORDS => {
                Some(broken("I8", format!("{name} keeps {n} records of leases")))
            }
            What::Wish { n, .. } if *n > MAX_WISH => {
                Some(broken("I8", format!("{name} wants {n} tries of one lease")))
            }
            What::Trusted { to, number, .. } => self.trusted(*to, *number),
            What::Offered { to, .. } => {
                let (since, n) = &mut self.offers[*to];
                if at.since(*since) >= WINDOW {
                    (*since, *n) = (*at, 0);
                }
                *n += 1;
                let most = OFFERS.0 + OFFERS.1 * u64::from(self.slots[*to]);
                (*n > most).then(|| {
                    let to = &self.names[*to];
                    broken("I11", format!("{to} gets {n} offers in 15 seconds"))
                })
            }
            _ => None,
        }
    }

    fn trusted(&self, to: usize, number: Option<u32>) -> Option<Broken> {
        let (host_of, to, number) = (self.heads[to].as_ref(), &self.names[to], number?);
        let (home, place) = self.jobs.get(&number)?;
        // What a site's own machines are told is its own matter.
        if let Some(head) = host_of {
            return (head != home).then(|| {
                broken(
                    "I15",
                    format!("{to}, a host of {head}, gets the keys of job {number} of {home}"),
                )
            });
        }
        let allowed = match place {
            Place::Local => to == home,
            Place::Remote => to != home,
            Place::Auto => true,
            Place::Site(only) => to == only,
        };
        (!allowed).then(|| {
            broken(
                "I15",
                format!("{to} gets the keys of job {number} of {home}, which does not allow it"),
            )
        })
    }
}
