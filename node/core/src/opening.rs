//! When a site lends: at its weekly hours, and while its owner does not need the machine.

use std::fmt;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::Millis;

use crate::record::Intake;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A moment of the local week, in minutes since Monday began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeekMinute(u16);

impl WeekMinute {
    /// A minute of a day; days count from Monday, which is 0. Both wrap.
    #[must_use]
    pub const fn new(day: u8, minute: u16) -> Self {
        Self((day as u16 % 7) * DAY + minute % DAY)
    }

    const fn day(self) -> usize {
        (self.0 / DAY) as usize
    }

    const fn minute(self) -> u16 {
        self.0 % DAY
    }
}

/// Hours of some days of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// On which days they begin, Monday first.
    pub days: [bool; 7],
    /// The minute of the day at which they begin.
    pub from: u16,
    /// The minute at which they end. When it is not after `from`, that is on the next day.
    pub to: u16,
}

impl Hours {
    fn contain(&self, at: WeekMinute) -> bool {
        let (day, minute) = (at.day(), at.minute());
        if self.from < self.to {
            return self.days[day] && (self.from..self.to).contains(&minute);
        }
        let yesterday = (day + 6) % 7;
        (self.days[day] && minute >= self.from) || (self.days[yesterday] && minute < self.to)
    }
}

/// What a site's owner has set of when it lends. The default is always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Only in these hours of the local week; always when there are none.
    pub hours: Vec<Hours>,
    /// Only when nobody has touched keyboard or pointer for so long.
    pub idle: Option<Millis>,
    /// Only while other programs than our sessions use at most so many processors, in thousandths.
    pub load: Option<u32>,
    /// How long tasks of other sites may go on when it closes, before they go back unfinished.
    pub grace: Millis,
}

/// What is seen of the machine's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The moment of the local week.
    pub at: WeekMinute,
    /// How long nobody has touched keyboard or pointer. None: nobody has since the machine started, as far as can be seen.
    pub idle: Option<Millis>,
    /// Processors that other programs than our sessions have used over the last minute, in thousandths.
    pub load: u32,
}

/// Why a site does not lend now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shut {
    /// These are not its hours.
    Hours,
    /// Somebody is at the keyboard.
    Keyboard,
    /// Other programs need the machine.
    Load,
}

impl fmt::Display for Shut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hours => "outside of its lending hours",
            Self::Keyboard => "its owner is at the keyboard",
            Self::Load => "other programs need the machine",
        })
    }
}

impl Opening {
    /// Whether the site always lends, so that nobody needs to look at its owner.
    #[must_use]
    pub const fn is_always(&self) -> bool {
        self.hours.is_empty() && self.idle.is_none() && self.load.is_none()
    }

    /// Why the site does not lend, if it does not. `was` is the answer before: a site that has closed for the load opens
    /// only when the load is well below the bound, so that it does not flap.
    #[must_use]
    pub fn shut(&self, owner: &Owner, was: Option<Shut>) -> Option<Shut> {
        if !self.hours.is_empty() && !self.hours.iter().any(|hours| hours.contain(owner.at)) {
            return Some(Shut::Hours);
        }
        if self.idle.zip(owner.idle).is_some_and(|(wanted, idle)| idle < wanted) {
            return Some(Shut::Keyboard);
        }
        let bound = self.load.map(|most| if was == Some(Shut::Load) { most / 2 } else { most });
        bound.is_some_and(|most| owner.load > most).then_some(Shut::Load)
    }
}

/// How the hours and the owner's presence stand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opened {
    shut: Option<Shut>,
    give_back: Option<Millis>,
}

impl Opened {
    /// Nobody has looked yet: a site that does not always lend waits for the first look.
    pub(crate) fn before_the_first_look(opening: &Opening) -> Self {
        Self { shut: (!opening.is_always()).then_some(Shut::Hours), give_back: None }
    }

    /// Somebody has looked. Returns whether the site opens or closes.
    pub(crate) fn look(&mut self, opening: &Opening, owner: &Owner, now: Millis) -> bool {
        let shut = opening.shut(owner, self.shut);
        let turns = shut.is_some() != self.shut.is_some();
        if turns {
            self.give_back = shut.map(|_| now.plus(opening.grace));
        }
        self.shut = shut;
        turns
    }

    /// Why it is closed, if it is.
    pub(crate) const fn shut(&self) -> Option<Shut> {
        self.shut
    }

    /// Whether tasks of other sites are taken, as far as hours and owner have a say.
    pub(crate) const fn intake(&self) -> Intake {
        match self.shut {
            None => Intake::Open,
            Some(_) => Intake::Closed { give_back: self.give_back },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEKDAYS: [bool; 7] = [true, true, true, true, true, false, false];
    const WEEKEND: [bool; 7] = [false, false, false, false, false, true, true];

    fn owner(day: u8, hour: u16) -> Owner {
        Owner { at: WeekMinute::new(day, hour * 60), idle: None, load: 0 }
    }

    #[test]
    fn nights_of_weekdays_last_into_saturday_and_the_weekend_is_free() {
        let nights = Hours { days: WEEKDAYS, from: 19 * 60, to: 7 * 60 };
        let weekend = Hours { days: WEEKEND, from: 0, to: 0 };
        let opening = Opening { hours: vec![nights, weekend], ..Opening::default() };
        let open = |day, hour| opening.shut(&owner(day, hour), None).is_none();
        // Monday morning belongs to Sunday's whole day only until midnight.
        assert_eq!([open(0, 6), open(0, 12), open(0, 19), open(1, 6)], [false, false, true, true]);
        assert_eq!([open(4, 23), open(5, 6), open(5, 12), open(6, 23)], [true, true, true, true]);
        let hours = Opening { hours: vec![nights], ..Opening::default() };
        assert_eq!(hours.shut(&owner(5, 12), None), Some(Shut::Hours));
        assert_eq!(hours.shut(&owner(5, 6), None), None, "Friday's night");
        assert_eq!(hours.shut(&owner(6, 6), None), Some(Shut::Hours), "Saturday has no night");
    }

    #[test]
    fn a_key_press_closes_until_the_owner_was_away_long_enough() {
        let idle = Some(Millis::seconds(600));
        let opening = Opening { idle, ..Opening::default() };
        let seen = |idle| Owner { idle, ..owner(0, 0) };
        assert_eq!(opening.shut(&seen(Some(Millis(0))), None), Some(Shut::Keyboard));
        assert_eq!(opening.shut(&seen(Some(Millis(599_999))), None), Some(Shut::Keyboard));
        assert_eq!(opening.shut(&seen(idle), None), None);
        assert_eq!(opening.shut(&seen(None), None), None, "a machine without a keyboard");
    }

    #[test]
    fn a_load_about_the_bound_does_not_flap() {
        let opening = Opening { load: Some(1000), ..Opening::default() };
        let seen = |load| Owner { load, ..owner(0, 0) };
        assert_eq!(opening.shut(&seen(1000), None), None);
        assert_eq!(opening.shut(&seen(1001), None), Some(Shut::Load));
        assert_eq!(opening.shut(&seen(800), Some(Shut::Load)), Some(Shut::Load));
        assert_eq!(opening.shut(&seen(500), Some(Shut::Load)), None);
        assert!(Opening::default().is_always() && !opening.is_always());
    }
}
