//! Quantities as people write them (`10m`, `500MiB`, `100Mbit`), and distributions of them.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};

use crate::streams::Streams;

/// The nearest whole number; what is negative becomes zero.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float-to-int cast saturates, which is what is wanted"
)]
pub(crate) fn round(number: f64) -> u64 {
    number.round() as u64
}

/// A kind of quantity: what its texts mean in its unit.
pub(crate) trait Quantity {
    /// How its texts look, for an error.
    const LOOKS: &'static str;
    /// The value of a text in the kind's own unit.
    fn parse(text: &str) -> Option<u64>;
    /// The value of a bare number, where one makes sense.
    fn bare(_: f64) -> Option<u64> {
        None
    }
}

/// Milliseconds: `250ms`, `30s`, `10m`, `4h`, `2d`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span;

/// Bytes: `24MiB`, `3GB`, `700B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size;

/// Bytes per second: `100Mbit`, `1Gbit`, `12MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate;

/// A plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count;

/// Thousandths: `1.4` is 1400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thousandths;

/// A number and its unit: the unit's factor is looked up.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    let number: f64 = number.parse().ok()?;
    Some(round(number * factor))
}

impl Quantity for Span {
    const LOOKS: &'static str = "a span such as \"250ms\", \"30s\", \"10m\", \"4h\" or \"1h30m\"";
    fn parse(text: &str) -> Option<u64> {
        let units = [("ms", 1.0), ("s", 1e3), ("m", 6e4), ("h", 3.6e6), ("d", 8.64e7)];
        let (mut rest, mut sum) = (text, 0u64);
        while !rest.is_empty() {
            let unit = rest.find(|c: char| c.is_ascii_alphabetic())?;
            let next = rest[unit..].find(|c: char| c.is_ascii_digit());
            let (part, after) = rest.split_at(next.map_or(rest.len(), |next| unit + next));
            sum = sum.checked_add(scaled(part, &units)?)?;
            rest = after;
        }
        (!text.is_empty()).then_some(sum)
    }
}

impl Quantity for Size {
    const LOOKS: &'static str = "a size such as \"700B\", \"24MiB\" or \"3GB\"";
    fn parse(text: &str) -> Option<u64> {
        let units = [
            ("B", 1.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("TB", 1e12),
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
        ];
        scaled(text, &units)
    }
}

impl Quantity for Rate {
    const LOOKS: &'static str = "a rate a second such as \"100Mbit\", \"1Gbit\" or \"12MB\"";
    fn parse(text: &str) -> Option<u64> {
        let units = [("kbit", 125.0), ("Mbit", 125e3), ("Gbit", 125e6), ("kB", 1e3), ("MB", 1e6)];
        scaled(text, &units)
    }
}

impl Quantity for Count {
    const LOOKS: &'static str = "a whole number";
    fn parse(text: &str) -> Option<u64> {
        text.parse().ok()
    }
    fn bare(number: f64) -> Option<u64> {
        (number >= 0.0 && number.fract() == 0.0).then(|| round(number))
    }
}

impl Quantity for Thousandths {
    const LOOKS: &'static str = "a number such as 1.4";
    fn parse(text: &str) -> Option<u64> {
        text.parse().ok().and_then(Self::bare)
    }
    fn bare(number: f64) -> Option<u64> {
        (number >= 0.0).then(|| round(number * 1000.0))
    }
}

/// A fixed quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fixed<Q>(pub(crate) u64, PhantomData<Q>);

impl<'de, Q: Quantity> Deserialize<'de> for Fixed<Q> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match from.deserialize_any(Reader::<Q>(PhantomData))? {
            Dist { kind: Kind::Fixed(value), .. } => Ok(Self(value, PhantomData)),
            Dist { .. } => Err(de::Error::custom("one value is wanted here, not a distribution")),
        }
    }
}

/// A quantity that is drawn anew for each thing that has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dist<Q> {
    kind: Kind,
    quantity: PhantomData<Q>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Fixed(u64),
    Uniform(u64, u64),
    Choice(Vec<u64>),
    LogNormal { median: u64, sigma: f64, max: u64 },
    Exponential { mean: u64 },
}

impl<Q> Dist<Q> {
    pub(crate) const fn fixed(value: u64) -> Self {
        Self { kind: Kind::Fixed(value), quantity: PhantomData }
    }

    /// One draw.
    pub(crate) fn draw(&self, streams: Streams, purpose: &str, key: (u64, u64)) -> u64 {
        match &self.kind {
            Kind::Fixed(value) => *value,
            Kind::Uniform(low, high) => streams.between(purpose, key, [*low, *high]),
            Kind::Choice(of) => {
                let n = streams.between(purpose, key, [0, of.len() as u64 - 1]);
                usize::try_from(n).ok().and_then(|n| of.get(n)).copied().unwrap_or(0)
            }
            Kind::LogNormal { median, sigma, max } => {
                let factor = (streams.normal(purpose, key) * sigma).exp();
                round(*median as f64 * factor).min(*max)
            }
            Kind::Exponential { mean } => round(-(streams.unit(purpose, key).ln()) * *mean as f64),
        }
    }
}

/// A distribution as a table.
#[derive(Deserialize)]
#[serde(tag = "dist", rename_all = "lowercase", deny_unknown_fields)]
#[serde(bound = "Q: Quantity")]
enum Table<Q> {
    Fixed { value: Fixed<Q> },
    Uniform { from: Fixed<Q>, to: Fixed<Q> },
    Choice { of: Vec<Fixed<Q>> },
    Lognormal { median: Fixed<Q>, sigma: f64, max: Option<Fixed<Q>> },
    Exp { mean: Fixed<Q> },
}

struct Reader<Q>(PhantomData<Q>);

impl<Q: Quantity> Reader<Q> {
    fn value<E: de::Error>(value: Option<u64>, said: &dyn fmt::Display) -> Result<Dist<Q>, E> {
        let wrong = || E::custom(format!("{said} is not {}", Q::LOOKS));
        value.map(Dist::fixed).ok_or_else(wrong)
    }
}

impl<'de, Q: Quantity> Visitor<'de> for Reader<Q> {
    type Value = Dist<Q>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, or a distribution of it such as {{ dist = \"uniform\", from, to }}",
            Q::LOOKS
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Self::value(Q::parse(text), &format!("{text:?}"))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Self::value(Q::bare(number as f64), &number)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Self::value(Q::bare(number), &number)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let table = Table::<Q>::deserialize(MapAccessDeserializer::new(map))?;
        let kind = match table {
            Table::Fixed { value } => Kind::Fixed(value.0),
            Table::Uniform { from, to } if from.0 > to.0 => {
                return Err(de::Error::custom("`from` is greater than `to`"));
            }
            Table::Uniform { from, to } => Kind::Uniform(from.0, to.0),
            Table::Choice { of } if of.is_empty() => {
                return Err(de::Error::custom("`of` is empty"));
            }
            Table::Choice { of } => Kind::Choice(of.iter().map(|value| value.0).collect()),
            Table::Lognormal { sigma, .. } if !(0.0..=5.0).contains(&sigma) => {
                return Err(de::Error::custom("`sigma` is from 0 to 5"));
            }
            Table::Lognormal { median, sigma, max } => {
                // No draw is a thousand times the median: one frame would outlast every run.
                let most = max.map_or_else(|| median.0.saturating_mul(1000), |max| max.0);
                Kind::LogNormal { median: median.0, sigma, max: most }
            }
            Table::Exp { mean } => Kind::Exponential { mean: mean.0 },
        };
        Ok(Dist { kind, quantity: PhantomData })
    }
}

impl<'de, Q: Quantity> Deserialize<'de> for Dist<Q> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader(PhantomData))
    }
}

/// Milliseconds as people write them: `1h 02m`, `4m 03s`, `5.2 s`.
pub(crate) fn spoken(ms: u64) -> String {
    let (s, m, h) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", s, ms % 1000 / 100),
        60_000..3_600_000 => format!("{m}m {:02}s", s % 60),
        3_600_000..172_800_000 => format!("{h}h {:02}m", m % 60),
        _ => format!("{}d {:02}h", h / 24, h % 24),
    }
}

/// Bytes as people write them.
pub(crate) fn spoken_bytes(bytes: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    let unit = units.iter().find(|(factor, _)| bytes >= *factor);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(factor, name)| format!("{:.1} {name}", bytes as f64 / *factor as f64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_people_write_them() {
        assert_eq!(Span::parse("1h30m"), Some(5_400_000));
        assert_eq!(Span::parse("250ms"), Some(250));
        assert_eq!(Span::parse("1.5s"), Some(1500));
        assert_eq!(Size::parse("24MiB"), Some(24 << 20));
        assert_eq!(Rate::parse("100Mbit"), Some(12_500_000));
        for wrong in ["", "5", "s", "5 parsecs", "-3s"] {
            assert_eq!(Span::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_distribution_keeps_its_median() {
        #[derive(Deserialize)]
        struct Has {
            of: Dist<Span>,
        }
        let text = "of = { dist = \"lognormal\", median = \"100s\", sigma = 0.5 }";
        let has: Has = toml::from_str(text).unwrap();
        let draw = |n| has.of.draw(Streams::new(1), "x", (1, n));
        let below = (0..10_000).map(draw).filter(|ms| *ms < 100_000).count();
        assert!((4800..5200).contains(&below), "{below}");
        assert!(
            toml::from_str::<Has>("of = { dist = \"uniform\", from = \"2s\", to = \"1s\" }")
                .is_err()
        );
        assert!(toml::from_str::<Has>("of = 7").is_err());
    }
}
