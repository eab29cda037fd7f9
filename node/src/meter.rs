//! Bytes moved since the node started, by job and by site.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use meshfarm_protocol::id::{JobId, SiteId};

/// More jobs than this are not counted each; the oldest ids make room.
const MAX_JOBS: usize = 10_000;

/// Bytes of one job or one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Sent to others.
    pub sent: u64,
    /// Received from others.
    pub received: u64,
}

/// Counts bytes.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    jobs: BTreeMap<JobId, Moved>,
    sites: BTreeMap<SiteId, Moved>,
}

impl Meter {
    /// Count bytes sent to `site`, for one of our jobs if `job` says so.
    pub fn sent(&self, site: SiteId, job: Option<JobId>, bytes: u64) {
        self.count(site, job, |moved| moved.sent += bytes);
    }

    /// Count bytes received from `site`, for one of our jobs if `job` says so.
    pub fn received(&self, site: SiteId, job: Option<JobId>, bytes: u64) {
        self.count(site, job, |moved| moved.received += bytes);
    }

    fn count(&self, site: SiteId, job: Option<JobId>, add: impl Fn(&mut Moved)) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        add(counts.sites.entry(site).or_default());
        if let Some(job) = job {
            if counts.jobs.len() >= MAX_JOBS && !counts.jobs.contains_key(&job) {
                counts.jobs.pop_first();
            }
            add(counts.jobs.entry(job).or_default());
        }
    }

    /// What was counted so far, by job.
    #[must_use]
    pub fn jobs(&self) -> BTreeMap<JobId, Moved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).jobs.clone()
    }

    /// What was counted so far, by site.
    #[must_use]
    pub fn sites(&self) -> BTreeMap<SiteId, Moved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).sites.clone()
    }
}
