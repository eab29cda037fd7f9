//! How long a session's runner may take for one thing: in all, and without a word in the log.

use std::time::Duration;

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::job::SessionSpec;

/// How long something may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// In all.
    pub(super) whole: Duration,
    /// Without a word in the log.
    silence: Option<Duration>,
}

impl Limit {
    /// From a runner's start to being ready, environments included.
    pub(super) const READY: Self = Self { whole: Duration::from_secs(3600), silence: None };

    /// For leaving the environments after the last task.
    pub(super) const FINISH: Self = Self { whole: Duration::from_secs(600), silence: None };

    /// For one task.
    pub(super) fn of_task(session: &SessionSpec) -> Self {
        let span = |millis: Millis| Duration::from_millis(millis.0);
        let whole = session.timeout.map_or(Duration::MAX, span);
        Self { whole, silence: session.silence.map(span) }
    }

    /// Whether what has begun so long ago, and was last heard of so long ago, may go on.
    ///
    /// # Errors
    /// Which limit is over, and how long it was.
    pub(super) fn check(&self, begun: Millis, heard: Millis) -> Result<(), String> {
        if Duration::from_millis(begun.0) >= self.whole {
            return Err(format!("stopped after its time limit of {} s", self.whole.as_secs()));
        }
        match self.silence.filter(|most| Duration::from_millis(heard.0) >= *most) {
            None => Ok(()),
            Some(most) => {
                let seconds = most.as_secs();
                Err(format!("stopped: its log said nothing for its limit of {seconds} s"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_which_limit_is_over_and_how_long_it_was() {
        let (whole, silence) = (Duration::from_secs(60), Some(Duration::from_secs(5)));
        let limit = Limit { whole, silence };
        assert_eq!(limit.check(Millis(59_999), Millis(4_999)), Ok(()));
        let said = |begun, heard| limit.check(Millis(begun), Millis(heard)).unwrap_err();
        assert_eq!(said(60_000, 0), "stopped after its time limit of 60 s");
        assert_eq!(said(10_000, 5_000), "stopped: its log said nothing for its limit of 5 s");
        assert_eq!(Limit::READY.check(Millis(3_000_000), Millis(3_000_000)), Ok(()));
    }
}
