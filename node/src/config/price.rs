//! What the site asks of others for its slots: the table `[price]` of `meshfarm.toml`.

use serde::{Deserialize, Serialize};

use meshfarm_core::Pricing;
use meshfarm_protocol::receipt::{Money, Price};

/// A higher price is a slip of the finger, in thousandths.
const MOST: Money = Money(1_000_000_000);

/// The table `[price]` of `meshfarm.toml`. Every amount is in the mesh's own unit, to three places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriceConfig {
    /// For an hour of processor time. 0: nothing.
    pub core_hour: Money,
    /// For an hour of a graphics card. 0: nothing.
    pub card_hour: Money,
    /// What is waived of each site's debts in each month (UTC).
    pub free: Money,
    /// A site with so many receipts that it has not signed, or has contested within 30 days, gets no more slots. 0: no
    /// limit.
    pub max_unsigned: u32,
}

impl Default for PriceConfig {
    fn default() -> Self {
        let Pricing { price, free, max_unsigned } = Pricing::default();
        Self { core_hour: price.core_hour, card_hour: price.card_hour, free, max_unsigned }
    }
}

impl PriceConfig {
    /// What the node acts by.
    #[must_use]
    pub const fn pricing(&self) -> Pricing {
        let price = Price { core_hour: self.core_hour, card_hour: self.card_hour };
        Pricing { price, free: self.free, max_unsigned: self.max_unsigned }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, amount) in [
            ("price.core_hour", self.core_hour),
            ("price.card_hour", self.card_hour),
            ("price.free", self.free),
        ] {
            if amount > MOST {
                return Err((key, format!("at most {MOST} is possible")));
            }
        }
        Ok(())
    }

    pub(super) fn to_text(self) -> String {
        let usual = Self::default();
        let line = |key: &str, value: String, is_usual: bool| {
            format!("{}{key} = {value}\n", if is_usual { "# " } else { "" })
        };
        let money = |key: &str, value: Money| line(key, value.to_string(), value == Money(0));
        let unsigned = line(
            "max_unsigned",
            self.max_unsigned.to_string(),
            self == usual || self.max_unsigned == usual.max_unsigned,
        );
        format!(
            "# What other sites owe for tasks whose results they took, in the mesh's own unit: for an hour of processor time,\n\
             # for an hour of a graphics card. Of what each site owes, so much is waived in each month. A site with max_unsigned\n\
             # receipts that it has not signed, or has contested within 30 days, gets no more slots; 0 is no limit.\n\
             [price]\n{}{}{}{}",
            money("core_hour", self.core_hour),
            money("card_hour", self.card_hour),
            money("free", self.free),
            unsigned,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Whole {
        price: PriceConfig,
    }

    #[test]
    fn what_is_written_is_read_again() {
        let full = PriceConfig {
            core_hour: Money(50),
            card_hour: Money(1_200),
            free: Money(10_005),
            max_unsigned: 7,
        };
        for config in [PriceConfig::default(), full] {
            let whole: Whole = toml::from_str(&config.to_text()).unwrap();
            assert_eq!(whole.price, config);
            assert!(config.check().is_ok());
        }
    }

    #[test]
    fn prices_are_numbers_or_texts_of_three_places() {
        let read = |text: &str| toml::from_str::<Whole>(&format!("[price]\n{text}"));
        let whole = read("core_hour = 0.05\ncard_hour = \"1.20\"\nfree = 10").unwrap();
        assert_eq!(whole.price.core_hour, Money(50));
        assert_eq!((whole.price.card_hour, whole.price.free), (Money(1_200), Money(10_000)));
        for wrong in ["core_hour = -1", "core_hour = 0.0001", "core_hour = nan", "hour = 1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let dear = PriceConfig { free: Money(u64::MAX), ..PriceConfig::default() };
        assert_eq!(dear.check().map_err(|(key, _)| key), Err("price.free"));
    }
}
