//! How fast content goes to and from other sites: the settings, and waiting for one's turn.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use meshfarm_core::rate::{self, Hours, Pacer, Schedule};
use meshfarm_protocol::id::{Millis, SiteId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::net::Clock;

/// Bytes per second, written like `50 MB/s` or `200 Mbit/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

/// The lowest rate, in bytes per second: with less a lane would seem dead to its other end.
pub const SLOWEST: u64 = 64_000;

/// Units and how many bytes per second each is.
const UNITS: [(&str, u64); 7] = [
    ("GB/s", 1_000_000_000),
    ("MB/s", 1_000_000),
    ("kB/s", 1000),
    ("B/s", 1),
    ("Gbit/s", 125_000_000),
    ("Mbit/s", 125_000),
    ("kbit/s", 125),
];

impl Rate {
    /// The rate in `text`, at least [`SLOWEST`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, bytes) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
        let number = text.strip_suffix(unit)?.trim();
        number.parse::<u64>().ok()?.checked_mul(*bytes).filter(|rate| *rate >= SLOWEST).map(Self)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bytes): &&(&str, u64)| self.0.is_multiple_of(*bytes);
        let (unit, bytes) = UNITS.iter().find(fits).unwrap_or(&("B/s", 1));
        write!(f, "{} {unit}", self.0 / bytes)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no rate: write a whole number with kB/s, MB/s, GB/s, kbit/s, Mbit/s or Gbit/s, at least {}",
                Self(SLOWEST)
            ))
        })
    }
}

/// Rates for some hours of the local day, in place of the usual ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HourLimits {
    /// The first hour, 0 to 23.
    pub from: u8,
    /// The hour at which they end, 0 to 24. When it is not after `from`, they last over midnight.
    pub to: u8,
    /// To all sites together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Rate>,
    /// From all sites together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<Rate>,
    /// To each site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_each: Option<Rate>,
    /// From each site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_each: Option<Rate>,
}

/// The table `[rates]` of `meshfarm.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSettings {
    /// To all sites together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Rate>,
    /// From all sites together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<Rate>,
    /// To each site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_each: Option<Rate>,
    /// From each site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_each: Option<Rate>,
    /// Other rates for some hours; the first that contain the hour count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<HourLimits>,
}

impl RateSettings {
    /// What is wrong with it, in words.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let wrong = self.hours.iter().find(|hours| hours.from > 23 || hours.to > 24)?;
        let (from, to) = (wrong.from, wrong.to);
        Some(format!("hours from {from} to {to}: from is 0 to 23, and to is 0 to 24"))
    }

    fn schedules(&self) -> [Schedule; 2] {
        let rates = |all: Option<Rate>, each: Option<Rate>| rate::Rates {
            all: all.map(|rate| rate.0),
            each: each.map(|rate| rate.0),
        };
        let hours = |of: fn(&HourLimits) -> (Option<Rate>, Option<Rate>)| {
            let each = self.hours.iter().map(|hours| {
                let (all, each) = of(hours);
                Hours { from: hours.from, to: hours.to, rates: rates(all, each) }
            });
            each.collect()
        };
        [
            Schedule {
                usual: rates(self.send, self.send_each),
                hours: hours(|hours| (hours.send, hours.send_each)),
            },
            Schedule {
                usual: rates(self.receive, self.receive_each),
                hours: hours(|hours| (hours.receive, hours.receive_each)),
            },
        ]
    }
}

/// Paces both directions. Shared by all lanes.
#[derive(Debug, Default)]
pub struct Pace {
    sending: Mutex<Pacer>,
    receiving: Mutex<Pacer>,
}

impl Pace {
    /// With the rates that a person has set.
    #[must_use]
    pub fn new(settings: &RateSettings) -> Self {
        let [send, receive] = settings.schedules();
        Self { sending: Mutex::new(Pacer::new(send)), receiving: Mutex::new(Pacer::new(receive)) }
    }

    /// Waits until so many bytes may go to `site`. Dropping it midway counts them all the same.
    pub async fn send(&self, site: SiteId, bytes: u64, clock: &Arc<dyn Clock>) {
        wait(&self.sending, site, bytes, clock).await;
    }

    /// Waits until so many bytes may be asked of `site`. Dropping it midway counts them all the same.
    pub async fn receive(&self, site: SiteId, bytes: u64, clock: &Arc<dyn Clock>) {
        wait(&self.receiving, site, bytes, clock).await;
    }
}

async fn wait(pacer: &Mutex<Pacer>, site: SiteId, bytes: u64, clock: &Arc<dyn Clock>) {
    let now = clock.now();
    // A panic elsewhere leaves a pacer that is a few bytes off.
    let at =
        pacer.lock().unwrap_or_else(PoisonError::into_inner).admit((now, hour(now)), site, bytes);
    if at > now {
        clock.wait_until(at).await;
    }
}

/// The hour of the local day.
fn hour(now: Millis) -> u8 {
    let stamp = i64::try_from(now.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let hour = stamp.map_or(0, |stamp| stamp.to_zoned(TimeZone::system()).hour());
    u8::try_from(hour).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_written_as_people_write_them() {
        for (text, rate) in
            [("50 MB/s", 50_000_000), ("200 Mbit/s", 25_000_000), ("1GB/s", 1_000_000_000)]
        {
            assert_eq!(Rate::parse(text), Some(Rate(rate)), "{text}");
        }
        for text in [
            "",
            "50",
            "MB/s",
            "0 MB/s",
            "63 kB/s",
            "-1 kB/s",
            "1.5 MB/s",
            "50 MiB/s",
            "99999999999 GB/s",
        ] {
            assert_eq!(Rate::parse(text), None, "{text}");
        }
        for rate in [64_000, 64_001, 25_000_000, 3_000_000_000] {
            assert_eq!(Rate::parse(&Rate(rate).to_string()), Some(Rate(rate)));
        }
    }

    #[test]
    fn a_table_of_rates_becomes_a_schedule_of_each_direction() {
        let text = "send = \"1 MB/s\"\n[[hours]]\nfrom = 8\nto = 20\nreceive_each = \"200 kB/s\"\n";
        let settings: RateSettings = toml::from_str(text).unwrap();
        assert_eq!(settings.problem(), None);
        let [send, receive] = settings.schedules();
        assert_eq!(send.at(3).all, Some(1_000_000));
        assert_eq!(send.at(9).all, None);
        assert_eq!(receive.at(9).each, Some(200_000));
        assert_eq!(receive.at(21), rate::Rates::default());
        let wrong: RateSettings = toml::from_str("[[hours]]\nfrom = 24\nto = 3\n").unwrap();
        assert!(wrong.problem().unwrap().contains("from 24 to 3"));
    }
}
