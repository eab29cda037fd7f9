//! How fast content may go: rates for everybody together and for each site, by the hour of the day.

use std::collections::BTreeMap;

use meshfarm_protocol::id::{Millis, SiteId};

/// More sites than this are not paced each; the one that has moved nothing for longest makes room.
const MAX_SITES: usize = 4096;

/// Bytes per second; none is as fast as it goes.
pub type BytesPerSecond = Option<u64>;

/// Rates of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// For all sites together.
    pub all: BytesPerSecond,
    /// For each site.
    pub each: BytesPerSecond,
}

/// Rates for some hours of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// The first hour, 0 to 23.
    pub from: u8,
    /// The hour at which they end, 0 to 24. When it is not after `from`, they last over midnight.
    pub to: u8,
    /// What counts in these hours in place of the usual rates.
    pub rates: Rates,
}

impl Hours {
    fn contain(&self, hour: u8) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&hour)
        } else {
            hour >= self.from || hour < self.to
        }
    }
}

/// The rates of one direction over the day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// When no hours say otherwise.
    pub usual: Rates,
    /// The first that contain the hour count.
    pub hours: Vec<Hours>,
}

impl Schedule {
    /// The rates in an hour of the day.
    #[must_use]
    pub fn at(&self, hour: u8) -> Rates {
        let found = self.hours.iter().find(|hours| hours.contain(hour));
        found.map_or(self.usual, |hours| hours.rates)
    }
}

/// Bytes that may go now, and when more may. Debts are allowed: what was admitted goes at once, and the next waits.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When everything that was admitted is paid for.
    free_at: Millis,
    /// Parts of a millisecond beyond that, in bytes times a thousand of the rate.
    rest: u64,
}

impl Bucket {
    fn admit(&mut self, now: Millis, bytes: u64, rate: BytesPerSecond) -> Millis {
        let Some(rate) = rate.filter(|rate| *rate > 0) else {
            return now;
        };
        if self.free_at < now {
            (self.free_at, self.rest) = (now, 0);
        }
        let begins = self.free_at;
        let due = bytes.saturating_mul(1000).saturating_add(self.rest);
        self.free_at = begins.plus(Millis(due / rate));
        self.rest = due % rate;
        begins
    }
}

/// Paces one direction.
#[derive(Clone, Debug, Default)]
pub struct Pacer {
    schedule: Schedule,
    all: Bucket,
    sites: BTreeMap<SiteId, Bucket>,
}

impl Pacer {
    /// Nothing has moved so far.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, all: Bucket::default(), sites: BTreeMap::new() }
    }

    /// So many bytes of `site` want to go at `now`, in an hour of the local day: when they may. They count as gone.
    pub fn admit(&mut self, (now, hour): (Millis, u8), site: SiteId, bytes: u64) -> Millis {
        let Rates { all, each } = self.schedule.at(hour);
        let together = self.all.admit(now, bytes, all);
        if each.is_none() {
            return together;
        }
        if self.sites.len() >= MAX_SITES && !self.sites.contains_key(&site) {
            let idle = self.sites.iter().min_by_key(|(_, bucket)| bucket.free_at);
            idle.map(|(site, _)| *site).map(|site| self.sites.remove(&site));
        }
        together.max(self.sites.entry(site).or_default().admit(now, bytes, each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: SiteId = SiteId([1; 32]);
    const OTHER: SiteId = SiteId([2; 32]);

    fn pacer(all: BytesPerSecond, each: BytesPerSecond) -> Pacer {
        Pacer::new(Schedule { usual: Rates { all, each }, hours: Vec::new() })
    }

    #[test]
    fn without_rates_everything_goes_at_once() {
        let mut pacer = pacer(None, None);
        for _ in 0..10 {
            assert_eq!(pacer.admit((Millis(5), 0), SITE, u64::MAX / 4), Millis(5));
        }
    }

    #[test]
    fn over_a_long_time_exactly_the_rate_goes() {
        let mut pacer = pacer(Some(3333), None);
        let mut now = Millis(0);
        for _ in 0..1000 {
            now = pacer.admit((now, 0), SITE, 777);
        }
        // 999 pieces are paid for when the last one may go.
        let exact = 999 * 777 * 1000 / 3333;
        assert!(now.0.abs_diff(exact) <= 1, "{now:?} {exact}");
    }

    #[test]
    fn sites_are_paced_each_and_together() {
        let mut pacer = pacer(Some(2000), Some(1000));
        assert_eq!(pacer.admit((Millis(0), 0), SITE, 1000), Millis(0));
        assert_eq!(pacer.admit((Millis(0), 0), SITE, 1000), Millis(1000));
        assert_eq!(pacer.admit((Millis(0), 0), OTHER, 1000), Millis(1000));
        assert_eq!(pacer.admit((Millis(0), 0), OTHER, 1000), Millis(1500));
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut pacer = pacer(Some(1000), None);
        pacer.admit((Millis(0), 0), SITE, 1000);
        assert_eq!(pacer.admit((Millis(60_000), 0), SITE, 1000), Millis(60_000));
        assert_eq!(pacer.admit((Millis(60_000), 0), SITE, 1000), Millis(61_000));
    }

    #[test]
    fn hours_count_also_over_midnight_and_the_first_that_fit_win() {
        let slow = Rates { all: Some(1), each: None };
        let night = Rates { all: Some(9), each: None };
        let hours = vec![
            Hours { from: 9, to: 17, rates: slow },
            Hours { from: 22, to: 6, rates: night },
            Hours { from: 0, to: 24, rates: Rates { all: Some(5), each: None } },
        ];
        let schedule = Schedule { usual: Rates::default(), hours };
        assert_eq!(schedule.at(9), slow);
        assert_eq!(schedule.at(17).all, Some(5));
        assert_eq!(schedule.at(23), night);
        assert_eq!(schedule.at(5), night);
        assert_eq!(schedule.at(6).all, Some(5));
        assert_eq!(Schedule::default().at(3), Rates::default());
    }
}
