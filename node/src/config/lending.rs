//! The settings of when the slots are lent: hours of the week, and only while the owner does not need the machine.

use serde::{Deserialize, Serialize};

use crate::cli::span;
use meshfarm_core::opening::{Hours, Opening};

/// Names of days as people write them, Monday first.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// How long tasks of other sites go on when it closes, unless said otherwise.
const USUAL_GRACE: &str = "10m";

/// More stretches of hours than this are a mistake.
const MOST_HOURS: usize = 64;

/// The table `[lending]` of `meshfarm.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LendingConfig {
    /// Hours of the local week, such as `mon-fri 19:00-07:00` or `sat,sun`. None: always.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<String>,
    /// Only when keyboard and pointer were not touched for so long, such as `15m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<String>,
    /// Only while other programs use at most so many processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Processors>,
    /// How long tasks of other sites go on when it closes; then they go back unfinished. None: 10 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<String>,
    /// Whether tasks of other sites for which there is no room here are handed on to further sites, when their jobs
    /// let it (`--hops`). The site's own hosts are no other site.
    pub pass_on: bool,
}

impl LendingConfig {
    /// What the node acts by.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub fn opening(&self) -> Result<Opening, (&'static str, String)> {
        if self.hours.len() > MOST_HOURS {
            return Err(("lending.hours", format!("at most {MOST_HOURS} are possible")));
        }
        let hours = self.hours.iter().map(|text| hours(text).map_err(|e| ("lending.hours", e)));
        let idle = self.idle.as_deref().map(span).transpose();
        let grace = span(self.grace.as_deref().unwrap_or(USUAL_GRACE));
        Ok(Opening {
            hours: hours.collect::<Result<_, _>>()?,
            idle: idle.map_err(|e| ("lending.idle", e))?,
            load: self.load.map(|Processors(thousandths)| thousandths),
            grace: grace.map_err(|e| ("lending.grace", e))?,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let string = |text: &str| toml::Value::from(text).to_string();
        let list = |texts: &[String]| toml::Value::from(texts.to_vec()).to_string();
        let or = |given: Option<String>, key: &str, example: &str| match given {
            Some(value) => format!("{key} = {value}\n"),
            None => format!("# {key} = {example}\n"),
        };
        let hours = (!self.hours.is_empty()).then(|| list(&self.hours));
        [
            "# When the slots are lent to other sites, if they are. Own jobs run at any time.\n[lending]\n".to_owned(),
            "# Hours of the local week. Always unless said.\n".to_owned(),
            or(hours, "hours", "[\"mon-fri 19:00-07:00\", \"sat,sun\"]"),
            "# Only when keyboard and pointer were not touched for so long.\n".to_owned(),
            or(self.idle.as_deref().map(string), "idle", "\"15m\""),
            "# Only while other programs use at most so many processors.\n".to_owned(),
            or(self.load.map(|load| f64::from(load).to_string()), "load", "0.5"),
            "# How long tasks of other sites go on when it closes, before they go back unfinished.\n".to_owned(),
            or(self.grace.as_deref().map(string), "grace", &string(USUAL_GRACE)),
            "# Whether their tasks are handed on to further sites when there is no room here and their jobs let it.\n".to_owned(),
            format!("pass_on = {}\n", self.pass_on),
        ]
        .concat()
    }
}

/// A number of processors, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Processors(u32);

impl TryFrom<f64> for Processors {
    type Error = String;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the number is between the bounds"
    )]
    fn try_from(n: f64) -> Result<Self, String> {
        if (0.0..=4096.0).contains(&n) {
            Ok(Self((n * 1000.0).round() as u32))
        } else {
            Err(format!("{n} processors are not 0 to 4096"))
        }
    }
}

impl From<Processors> for f64 {
    fn from(Processors(thousandths): Processors) -> Self {
        Self::from(thousandths) / 1000.0
    }
}

/// `mon-fri 19:00-07:00`, `sat,sun`, `20:00-06:00`.
fn hours(text: &str) -> Result<Hours, String> {
    let wrong = |what: &str| {
        format!("{text:?}: {what}; right are \"mon-fri 19:00-07:00\", \"sat,sun\", \"20:00-06:00\"")
    };
    let mut hours = Hours { days: [true; 7], from: 0, to: 0 };
    let mut parts = text.split_whitespace();
    let mut part = parts.next().ok_or_else(|| wrong("it is empty"))?;
    if part.starts_with(|c: char| c.is_ascii_alphabetic()) {
        hours.days =
            days(part).ok_or_else(|| wrong("days are mon, tue, wed, thu, fri, sat, sun"))?;
        match parts.next() {
            Some(next) => part = next,
            None => return Ok(hours),
        }
    }
    let clock = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        (minute < 60 && hour * 60 + minute <= 24 * 60).then_some(hour * 60 + minute)
    };
    let times = part.split_once('-').and_then(|(from, to)| Some((clock(from)?, clock(to)?)));
    let (from, to) = times.ok_or_else(|| wrong("hours are from 00:00 to 24:00"))?;
    if parts.next().is_some() {
        return Err(wrong("there is more than days and hours"));
    }
    (hours.from, hours.to) = (from % (24 * 60), to);
    Ok(hours)
}

/// `mon-fri`, `sat,sun`, `fri-mon,wed`.
fn days(text: &str) -> Option<[bool; 7]> {
    let number = |name: &str| DAYS.iter().position(|day| name.eq_ignore_ascii_case(day));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (number(first)?, number(last)?);
        while day != last {
            days[day] = true;
            day = (day + 1) % 7;
        }
        days[last] = true;
    }
    Some(days)
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::id::Millis;

    use super::*;

    #[test]
    fn hours_are_read_as_people_write_them() {
        let weekdays = [true, true, true, true, true, false, false];
        let read = |text| hours(text).unwrap();
        let nights = Hours { days: weekdays, from: 19 * 60, to: 7 * 60 + 30 };
        assert_eq!(read("mon-fri 19:00-07:30"), nights);
        let weekend = [false, false, false, false, false, true, true];
        assert_eq!(read("Sat,Sun"), Hours { days: weekend, from: 0, to: 0 });
        assert_eq!(read("20:00-24:00"), Hours { days: [true; 7], from: 20 * 60, to: 24 * 60 });
        let long = [true, false, true, false, true, true, true];
        assert_eq!(read("fri-mon,wed").days, long);
        for wrong in [
            "",
            "monday",
            "mon-",
            "8-20",
            "25:00-26:00",
            "mon 08:60-09:00",
            "mon 08:00-09:00 x",
            "24:01-25:00",
        ] {
            let error = hours(wrong).unwrap_err();
            assert!(error.contains("right are"), "{wrong}: {error}");
        }
    }

    #[test]
    fn wrong_values_name_their_key() {
        let with = |change: fn(&mut LendingConfig)| {
            let mut config = LendingConfig::default();
            change(&mut config);
            config.opening().map_err(|(key, _)| key)
        };
        assert_eq!(with(|_| {}).unwrap().grace, Millis::seconds(600));
        assert_eq!(with(|c| c.idle = Some("15 minutes".into())), Err("lending.idle"));
        assert_eq!(with(|c| c.grace = Some("-1s".into())), Err("lending.grace"));
        assert_eq!(with(|c| c.load = Some(Processors(500))).unwrap().load, Some(500));
        for wrong in [f64::NAN, -0.1, 5000.0] {
            assert!(Processors::try_from(wrong).is_err(), "{wrong}");
        }
        assert_eq!(with(|c| c.hours = vec!["always".into()]), Err("lending.hours"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let full = LendingConfig {
            hours: vec!["mon-fri 19:00-07:00".into()],
            idle: Some("15m".into()),
            load: Some(Processors(500)),
            grace: Some("1m".into()),
            pass_on: true,
        };
        for config in [LendingConfig::default(), full] {
            #[derive(Deserialize)]
            struct Whole {
                lending: LendingConfig,
            }
            let whole: Whole = toml::from_str(&config.to_text()).unwrap();
            assert_eq!(whole.lending, config);
        }
    }
}
