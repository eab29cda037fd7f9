//! Sizes as people write them: `24GiB`, `512 MiB`, `20 GB`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units and their bytes; for showing a size, the first that fits counts.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes, at least one, that is written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let parsed = UNITS.iter().find_map(|(unit, bytes)| {
            let number = text.strip_suffix(unit)?.trim_end();
            number.parse::<u64>().ok()?.checked_mul(*bytes).filter(|size| *size > 0)
        });
        parsed.map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no size: write a whole number with its unit, such as 24GiB or 512MiB"
            )
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bytes): &&(&str, u64)| self.0.is_multiple_of(*bytes);
        let (unit, bytes) = UNITS.iter().find(fits).unwrap_or(&("B", 1));
        // What is no round number of anything is read in MiB, to a tenth.
        if *bytes == 1 && self.0 >= 1 << 20 {
            return write!(f, "{}.{} MiB", self.0 >> 20, ((self.0 % (1 << 20)) * 10) >> 20);
        }
        write!(f, "{} {unit}", self.0 / bytes)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_with_its_unit_and_shown_the_same() {
        for (text, bytes, shown) in [
            ("24GiB", 24 << 30, "24 GiB"),
            (" 512 MiB ", 512 << 20, "512 MiB"),
            ("20 GB", 20_000_000_000, "20 GB"),
            ("1500MiB", 1500 << 20, "1500 MiB"),
            ("7B", 7, "7 B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        }
        assert_eq!(Size((3 << 30) + 1).to_string(), "3072.0 MiB");
        for bad in ["", "24", "GiB", "-1GiB", "0MiB", "1.5GiB", "24 gibibytes", "99999999999TiB"] {
            let error = bad.parse::<Size>().unwrap_err();
            assert!(error.contains("24GiB"), "{error}");
        }
    }
}
