//! Bytes moved since the node started, by job and by site, and how fast they move now.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meshfarm_protocol::id::{JobId, Millis, SiteId};

/// More jobs than this are not counted each; the oldest ids make room.
const MAX_JOBS: usize = 10_000;

/// More sites than this are not counted each for one job; the smallest ids make room.
const MAX_SITES: usize = 256;

/// What was moved before this no longer counts as speed.
const LATELY: Millis = Millis::seconds(3);

/// Bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flow {
    bytes: u64,
    /// Bytes since `since`, and those of the span before it.
    now: u64,
    before: u64,
    since: Millis,
}

impl Flow {
    fn count(&mut self, at: Millis, bytes: u64) {
        self.turn(at);
        self.bytes += bytes;
        self.now += bytes;
    }

    /// Begins a new span when the last one is over.
    fn turn(&mut self, at: Millis) {
        let spans = at.since(self.since).0 / LATELY.0;
        if spans > 0 {
            self.before = if spans == 1 { self.now } else { 0 };
            self.now = 0;
            self.since = Millis(at.0 / LATELY.0 * LATELY.0);
        }
    }

    /// Bytes per second over the last span and the current one.
    fn rate(mut self, at: Millis) -> u64 {
        self.turn(at);
        (self.before + self.now) * 1000 / (LATELY.0 + at.since(self.since).0).max(1)
    }
}

/// Bytes of one job or one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Sent to others.
    pub sent: u64,
    /// Received from others.
    pub received: u64,
    /// Bytes per second on their way out now.
    pub sending: u64,
    /// Bytes per second on their way in now.
    pub receiving: u64,
    /// Bytes that the receiver said it lacks, when it said so last.
    pub left: u64,
    /// Bytes with which we asked for chunks.
    pub asked: u64,
    /// Times that we asked while nothing else was under way: each costs the time there and back.
    pub trips: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Both {
    sent: Flow,
    received: Flow,
    left: u64,
    asked: u64,
    trips: u64,
}

impl Both {
    fn moved(&self, at: Millis) -> Moved {
        Moved {
            sent: self.sent.bytes,
            received: self.received.bytes,
            sending: self.sent.rate(at),
            receiving: self.received.rate(at),
            left: self.left,
            asked: self.asked,
            trips: self.trips,
        }
    }
}

/// Counts bytes.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    jobs: BTreeMap<JobId, BTreeMap<SiteId, Both>>,
    sites: BTreeMap<SiteId, Both>,
}

impl Meter {
    /// Count bytes sent to `site`, for one of our jobs if `job` says so.
    pub fn sent(&self, at: Millis, (site, job): (SiteId, Option<JobId>), bytes: u64) {
        self.count(site, job, |both| {
            both.sent.count(at, bytes);
            both.left = both.left.saturating_sub(bytes);
        });
    }

    /// Count bytes received from `site`, for one of our jobs if `job` says so.
    pub fn received(&self, at: Millis, (site, job): (SiteId, Option<JobId>), bytes: u64) {
        self.count(site, job, |both| both.received.count(at, bytes));
    }

    /// Count the bytes of a request for chunks; `alone` when nothing else was under way.
    pub fn asked(&self, (site, job): (SiteId, Option<JobId>), bytes: usize, alone: bool) {
        self.count(site, job, |both| {
            both.asked += bytes as u64;
            both.trips += u64::from(alone);
        });
    }

    /// `site` says how many bytes it lacks.
    pub fn left(&self, (site, job): (SiteId, Option<JobId>), bytes: u64) {
        self.count(site, job, |both| both.left = bytes);
    }

    fn count(&self, site: SiteId, job: Option<JobId>, add: impl Fn(&mut Both)) {
        let mut counts = self.lock();
        add(counts.sites.entry(site).or_default());
        if let Some(job) = job {
            if counts.jobs.len() >= MAX_JOBS && !counts.jobs.contains_key(&job) {
                counts.jobs.pop_first();
            }
            let of_job = counts.jobs.entry(job).or_default();
            if of_job.len() >= MAX_SITES && !of_job.contains_key(&site) {
                of_job.pop_first();
            }
            add(of_job.entry(site).or_default());
        }
    }

    /// What was counted so far, by job and by site.
    #[must_use]
    pub fn jobs(&self, at: Millis) -> BTreeMap<JobId, BTreeMap<SiteId, Moved>> {
        let moved = |both: &BTreeMap<SiteId, Both>| {
            both.iter().map(|(site, both)| (*site, both.moved(at))).collect()
        };
        self.lock().jobs.iter().map(|(job, sites)| (*job, moved(sites))).collect()
    }

    /// What was counted so far, by site.
    #[must_use]
    pub fn sites(&self, at: Millis) -> BTreeMap<SiteId, Moved> {
        self.lock().sites.iter().map(|(site, both)| (*site, both.moved(at))).collect()
    }

    /// A panic elsewhere leaves counts that are a little off.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: SiteId = SiteId([1; 32]);
    const JOB: JobId = JobId([2; 16]);

    #[test]
    fn bytes_are_counted_by_job_and_site_and_their_speed_fades() {
        let meter = Meter::default();
        meter.left((SITE, Some(JOB)), 100_000);
        for second in 0..6 {
            meter.sent(Millis::seconds(second), (SITE, Some(JOB)), 10_000);
        }
        meter.received(Millis::seconds(5), (SITE, None), 7);
        let of_job = meter.jobs(Millis::seconds(6))[&JOB][&SITE];
        assert_eq!((of_job.sent, of_job.received, of_job.left), (60_000, 0, 40_000));
        assert!((9_000..=11_000).contains(&of_job.sending), "{of_job:?}");
        assert_eq!(meter.sites(Millis::seconds(6))[&SITE].received, 7);
        for alone in [true, false, false] {
            meter.asked((SITE, None), 100, alone);
        }
        let of_site = meter.sites(Millis::seconds(6))[&SITE];
        assert_eq!((of_site.asked, of_site.trips), (300, 1));
        assert_eq!(meter.sites(Millis::seconds(60))[&SITE].sending, 0);
    }
}
