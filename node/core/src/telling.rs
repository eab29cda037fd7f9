//! How often a site tells its profile: the more sites hear it, the less often each of them speaks.
//!
//! What a site hears grows with the number of sites, and what it hears it passes on. So each speaks so seldom that all
//! together stay within a budget: gossip costs a line the same, however many sites there are.

use meshfarm_protocol::id::Millis;

/// What profiles may cost the line of one site, in bits per second each way: of half a megabit, a tenth is left for what
/// gossipsub says of itself.
const BUDGET: u64 = 450_000;

/// How often each profile reaches a site: gossipsub sends it along several ways.
const COPIES: u64 = 4;

/// What a profile weighs beyond its own bytes: certificate, signature, frame.
const AROUND: u64 = 600;

/// Nobody speaks more often than this, nor is heard more often.
const LEAST_PAUSE: Millis = Millis::seconds(1);

/// What has changed is told after this at the latest.
const MOST_PAUSE: Millis = Millis::seconds(300);

/// How often a profile is told at most when nothing has changed.
const LEAST_REFRESH: Millis = Millis::seconds(15);

/// How often it is told at least.
const MOST_REFRESH: Millis = Millis::seconds(600);

/// How often a profile is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// When nothing has changed. The profile counts for three times as long.
    pub(crate) refresh: Millis,
    /// When something has changed: at once, but this long after the last time at the earliest.
    pub(crate) pause: Millis,
    /// While somebody is new, who has not heard it yet.
    pub(crate) greet: Millis,
}

impl Pace {
    /// Where so many other sites are known and profiles are as long as ours, in bytes.
    pub(crate) fn of(n_sites: usize, bytes: usize) -> Self {
        let bits = (bytes as u64).saturating_add(AROUND).saturating_mul(COPIES * 8);
        let all = (n_sites as u64).saturating_mul(bits);
        let even = Millis(all.saturating_mul(1000) / BUDGET);
        Self {
            // A quiet mesh costs half of the budget.
            refresh: even.times(2).clamp(LEAST_REFRESH, MOST_REFRESH),
            pause: even.clamp(LEAST_PAUSE, MOST_PAUSE),
            greet: Millis(even.0 / 8).clamp(LEAST_PAUSE, MOST_PAUSE),
        }
    }

    /// What hearing so many sites costs at most, and while nothing changes, in bits per second each way.
    #[cfg(test)]
    fn costs(self, n_sites: usize, bytes: usize) -> (u64, u64) {
        let bits = (bytes as u64 + AROUND) * COPIES * 8 * n_sites as u64 * 1000;
        (bits / self.pause.0, bits / self.refresh.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A profile of a machine with two renderers, encoded.
    const BYTES: usize = 1400;

    #[test]
    fn gossip_stays_within_its_budget_and_does_not_grow_with_the_mesh() {
        for (sites, most, quiet) in [(3, 192, 12), (100, 500, 250), (1_000, 500, 250)] {
            let pace = Pace::of(sites, BYTES);
            let (busy, idle) = pace.costs(sites, BYTES);
            assert!(busy / 1000 <= most, "{sites} sites that change all the time: {busy} bit/s");
            assert!(idle / 1000 <= quiet, "{sites} quiet sites: {idle} bit/s");
        }
    }

    #[test]
    fn few_sites_speak_at_once_and_many_take_their_time() {
        assert_eq!(
            (Pace::of(1, BYTES).pause, Pace::of(1, BYTES).refresh),
            (LEAST_PAUSE, LEAST_REFRESH)
        );
        let many = Pace::of(1_000, BYTES);
        assert!((Millis::seconds(60)..=MOST_PAUSE).contains(&many.pause), "{many:?}");
        assert!(
            many.greet < many.pause && many.pause < many.refresh && many.refresh < MOST_REFRESH
        );
        let huge = Pace::of(usize::MAX, usize::MAX);
        assert_eq!((huge.pause, huge.refresh), (MOST_PAUSE, MOST_REFRESH));
    }
}
