//! A job's deadline as people write it: a span from its submission, or a moment.

use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use meshfarm_protocol::id::Millis;
use serde::{Deserialize, Serialize};

use super::policy::{Duration, Written};

/// When a job shall be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum Deadline {
    /// So long after it was submitted.
    In(Millis),
    /// At this moment.
    At(Millis),
}

/// A span longer than this, a hundred years, is a slip.
const LONGEST: Millis = Millis::seconds(100 * 366 * 86_400);

impl Deadline {
    /// The moment, for a job that is submitted `now`.
    ///
    /// # Errors
    /// When it is not ahead, in words.
    pub fn moment(self, now: Millis) -> Result<Millis, String> {
        let at = match self {
            Self::In(span) => now.plus(span),
            Self::At(at) => at,
        };
        match at > now {
            true => Ok(at),
            false => Err("it is over already: a deadline lies ahead".to_owned()),
        }
    }
}

impl FromStr for Deadline {
    type Err = String;

    /// `90m`, `2h`, `3d`; `2026-11-30 18:00` by the machine's own time; `2026-11-30T18:00:00+01:00`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(Duration(span)) = text.parse() {
            return match span > Millis(0) && span <= LONGEST {
                true => Ok(Self::In(span)),
                false => Err(format!("{text} is no time ahead: write such as 90m, 2h or 3d")),
            };
        }
        let millis = |at: Timestamp| u64::try_from(at.as_millisecond()).ok().map(Millis);
        let moment = text.parse::<Timestamp>().ok().or_else(|| {
            // A date alone says no time of the day.
            let civil = text.contains(':').then(|| text.parse::<DateTime>().ok()).flatten()?;
            civil.to_zoned(TimeZone::system()).ok().map(|zoned: Zoned| zoned.timestamp())
        });
        moment.and_then(millis).map(Self::At).ok_or_else(|| {
            format!(
                "{text} is no deadline: write such as 90m, 2h, 3d, or a moment such as \"2026-11-30 18:00\""
            )
        })
    }
}

impl TryFrom<Written> for Deadline {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Seconds(n) => format!("{n}s").parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Deadline> for String {
    fn from(deadline: Deadline) -> Self {
        match deadline {
            Deadline::In(span) => format!("{}s", span.0 / 1000),
            Deadline::At(at) => {
                let at = i64::try_from(at.0).ok();
                let stamp = at.and_then(|at| Timestamp::from_millisecond(at).ok());
                stamp.unwrap_or(Timestamp::MAX).to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_a_span_or_a_moment_ahead() {
        let at = |text: &str| text.parse::<Deadline>();
        assert_eq!(at("90m"), Ok(Deadline::In(Millis::seconds(5400))));
        let noon = Deadline::At(Millis::seconds(1_800_000_000));
        assert_eq!(at("2027-01-15T08:00:00Z"), Ok(noon));
        assert_eq!(at("2027-01-15T10:00:00+02:00"), Ok(noon));
        let here = at("2027-01-15 10:00").unwrap();
        assert_eq!(at(&String::from(here)), Ok(here), "the machine's own time");
        for wrong in ["soon", "2027-01-15", "0s", "999999999999d", "", "-5m", "2027-13-01 10:00"] {
            let error = at(wrong).unwrap_err();
            assert!(error.contains("2h"), "{error}");
        }
        let now = Millis::seconds(1_800_000_000);
        assert_eq!(Deadline::In(Millis(5)).moment(now), Ok(now.plus(Millis(5))));
        assert!(noon.moment(now).unwrap_err().contains("over"));
    }

    #[test]
    fn it_survives_being_written_down() {
        for deadline in [Deadline::In(Millis::seconds(7200)), Deadline::At(Millis::seconds(9))] {
            let text = serde_json::to_string(&deadline).unwrap();
            assert_eq!(serde_json::from_str::<Deadline>(&text).unwrap(), deadline);
        }
        assert_eq!(
            serde_json::from_str::<Deadline>("60").unwrap(),
            Deadline::In(Millis::seconds(60))
        );
    }
}
