//! What was learned of another site by working with it: how fast content reaches it, and how fast its slots are.

use meshfarm_protocol::id::Millis;

/// What we assume of a link that we have not used, in bytes per millisecond.
const ASSUMED_RATE: u64 = 20_000;

/// Less content than this says more about the round trip than about the link.
const LEAST_BYTES: u64 = 1 << 20;

/// A shorter task says more about starting a session than about the slot.
const LEAST_TASK: Millis = Millis(200);

/// A slot as fast as its profile says, in thousandths.
const AS_SAID: u64 = 1000;

/// A slot is believed to be at most so many times slower or faster than its profile says.
const MOST_OFF: u64 = 16;

/// Averages that follow what happens: each observation counts a quarter, so that a link which has become slow is seen
/// after some jobs and one odd transfer is soon forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Experience {
    /// Bytes per millisecond from the commit of a lease until its sessions could begin.
    rate: Option<u64>,
    /// Speed of its slots, in thousandths of what its profile says.
    pace: Option<u64>,
}

impl Experience {
    /// Content of so many bytes, none of which was there, was in place after so long.
    pub(crate) fn content_came(&mut self, bytes: u64, took: Millis) {
        if bytes >= LEAST_BYTES {
            self.rate = Some(follow(self.rate, (bytes / took.0.max(1)).max(1)));
        }
    }

    /// A task that by the site's profile should have run so long has run so long.
    pub(crate) fn task_ran(&mut self, expected: Millis, wall: Millis) {
        if wall >= LEAST_TASK && expected > Millis(0) {
            let pace = expected.0.saturating_mul(AS_SAID) / wall.0;
            let pace = pace.clamp(AS_SAID / MOST_OFF, AS_SAID * MOST_OFF);
            self.pace = Some(follow(self.pace, pace));
        }
    }

    /// How long this content takes to get there, in milliseconds.
    pub(crate) fn transfer(&self, bytes: u64) -> u64 {
        bytes / self.rate.unwrap_or(ASSUMED_RATE).max(1)
    }

    /// How long a task will run there that by the site's profile runs so long, in milliseconds.
    pub(crate) fn run(&self, expected: u64) -> u64 {
        expected.saturating_mul(AS_SAID) / self.pace.unwrap_or(AS_SAID).max(1)
    }
}

fn follow(average: Option<u64>, seen: u64) -> u64 {
    average.map_or(seen, |average| (average.saturating_mul(3).saturating_add(seen)) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_as_fast_as_it_was_and_an_odd_transfer_is_forgotten() {
        let mut site = Experience::default();
        assert_eq!(site.transfer(20_000_000), 1000);
        site.content_came(10_000_000, Millis(10_000));
        assert_eq!(site.transfer(10_000_000), 10_000);
        site.content_came(10_000_000, Millis(10));
        for _ in 0..40 {
            site.content_came(10_000_000, Millis(10_000));
        }
        assert!((9_000..=10_000).contains(&site.transfer(10_000_000)));
        let before = site;
        site.content_came(1000, Millis(1));
        assert_eq!(site, before, "so little says nothing");
    }

    #[test]
    fn slots_are_as_fast_as_they_were_within_reason() {
        let mut site = Experience::default();
        assert_eq!(site.run(6000), 6000);
        site.task_ran(Millis(1000), Millis(3000));
        assert_eq!(site.run(1000), 3003);
        let mut odd = Experience::default();
        odd.task_ran(Millis(1), Millis(u64::MAX));
        assert!(odd.run(1000) <= 17_000);
        odd.task_ran(Millis(u64::MAX), Millis(200));
        assert!(odd.run(16_000) > 0);
    }
}
