//! A job's deadline in words: when it is, when the job is expected to end, and what that means.

use meshfarm_core::{DeadlineState, DeadlineView};
use meshfarm_protocol::id::Millis;

use crate::print::{Cell, Tone, span};

/// The deadline of a job that ended at some moment, or has not.
pub(super) fn deadline(view: &DeadlineView, ended: Option<Millis>, now: Millis) -> Cell {
    let at = match view.at > now {
        true => format!("deadline in {}", span(view.at.since(now))),
        false => format!("deadline {} ago", span(now.since(view.at))),
    };
    let expected = |end: Millis| format!("{at}, expected in {}", span(end.since(now)));
    let late = |end: Millis| span(end.since(view.at));
    let (text, tone) = match (view.state, view.expected, ended) {
        (DeadlineState::Met, _, Some(ended)) => {
            (format!("deadline met, {} before", span(view.at.since(ended))), Tone::Good)
        }
        (DeadlineState::Missed, _, Some(ended)) => {
            (format!("deadline missed by {}", late(ended)), Tone::Bad)
        }
        (DeadlineState::Missed, Some(end), None) => {
            (format!("{}: missed, by {}", expected(end), late(end)), Tone::Bad)
        }
        (DeadlineState::Missed, None, None) => (format!("{at}: missed"), Tone::Bad),
        (DeadlineState::WillMiss, Some(end), _) => {
            (format!("{}: will miss by {}", expected(end), late(end)), Tone::Bad)
        }
        (DeadlineState::AtRisk, Some(end), _) => {
            (format!("{}: at risk, comes first among its priority", expected(end)), Tone::Busy)
        }
        (DeadlineState::AtRisk, None, _) => {
            (format!("{at}: at risk, nothing is done yet"), Tone::Busy)
        }
        (DeadlineState::InTime, Some(end), _) => {
            (format!("{}: in time", expected(end)), Tone::Good)
        }
        (
            DeadlineState::Open
            | DeadlineState::InTime
            | DeadlineState::WillMiss
            | DeadlineState::Met,
            _,
            _,
        ) => (at, Tone::Plain),
    };
    Cell::new(text, tone)
}

/// The same in a word, for a column.
pub(super) fn short(view: &DeadlineView, now: Millis) -> Cell {
    let left = span(view.at.since(now));
    match view.state {
        DeadlineState::Open => Cell::new(left, Tone::Plain),
        DeadlineState::InTime => Cell::new(left, Tone::Good),
        DeadlineState::AtRisk => Cell::new(format!("{left}, at risk"), Tone::Busy),
        DeadlineState::WillMiss => Cell::new(format!("{left}, will miss"), Tone::Bad),
        DeadlineState::Missed => Cell::new("missed", Tone::Bad),
        DeadlineState::Met => Cell::new("met", Tone::Good),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn it_says_when_and_whether_that_is_in_time() {
        let now = Millis(100 * HOUR);
        let hours = |n: u64| Millis((100 + n) * HOUR);
        let words = |state, expected: Option<u64>, ended| {
            let view = DeadlineView { at: hours(2), expected: expected.map(hours), state };
            deadline(&view, ended, now).text
        };
        assert_eq!(
            words(DeadlineState::WillMiss, Some(3), None),
            "deadline in 2h 00m, expected in 3h 00m: will miss by 1h 00m"
        );
        assert!(words(DeadlineState::InTime, Some(1), None).ends_with("1h 00m: in time"));
        assert_eq!(words(DeadlineState::Open, None, None), "deadline in 2h 00m");
        let met = words(DeadlineState::Met, None, Some(hours(1)));
        assert_eq!(met, "deadline met, 1h 00m before");
        let missed = words(DeadlineState::Missed, None, Some(hours(4)));
        assert_eq!(missed, "deadline missed by 2h 00m");
    }
}
