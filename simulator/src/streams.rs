//! Random draws by purpose, entity and number, so that removing one event shifts no other draw.

/// All randomness of a run. A draw depends on nothing but the seed and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    seed: u64,
}

/// Mixes a word so that every bit of it reaches every bit of the result (the finaliser of SplitMix64).
const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number for a text: the same in every program.
pub(crate) fn number_of(text: &str) -> u64 {
    text.bytes().fold(GOLDEN, |sum, byte| mix(sum ^ u64::from(byte)).wrapping_add(GOLDEN))
}

/// A running hash of words: two runs that did the same have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Audit(u64, u64);

impl Default for Audit {
    fn default() -> Self {
        Self(GOLDEN, !GOLDEN)
    }
}

impl Audit {
    pub(crate) fn add(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word).wrapping_add(GOLDEN);
        self.1 = mix(self.1.rotate_left(23) ^ word.wrapping_mul(GOLDEN)).wrapping_add(self.0);
    }
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}{:016x}", self.0, self.1)
    }
}

impl Streams {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub(crate) fn draw(self, purpose: &str, entity: u64, n: u64) -> u64 {
        let mut word = mix(self.seed.wrapping_add(GOLDEN)) ^ number_of(purpose);
        for part in [entity, n] {
            word = mix(word ^ part.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN);
        }
        mix(word)
    }

    /// 32 bytes, such as a seed.
    pub(crate) fn bytes(self, purpose: &str, entity: u64, n: u64) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, chunk) in (0..).zip(bytes.chunks_exact_mut(8)) {
            let word = mix(self.draw(purpose, entity, n).wrapping_add(mix(part)));
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(
        self,
        purpose: &str,
        (entity, n): (u64, u64),
        [low, high]: [u64; 2],
    ) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low + self.draw(purpose, entity, n) % span
    }

    /// True in so many of a million cases.
    pub(crate) fn chance(self, purpose: &str, (entity, n): (u64, u64), ppm: u32) -> bool {
        ppm > 0 && self.draw(purpose, entity, n) % 1_000_000 < u64::from(ppm)
    }

    /// A number above 0 and at most 1.
    pub(crate) fn unit(self, purpose: &str, (entity, n): (u64, u64)) -> f64 {
        ((self.draw(purpose, entity, n) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A draw from the normal distribution of mean 0 and deviation 1 (Box and Muller).
    pub(crate) fn normal(self, purpose: &str, (entity, n): (u64, u64)) -> f64 {
        let (one, other) =
            (self.unit(purpose, (entity, n)), self.unit(purpose, (entity, n ^ (1 << 63))));
        (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_each_of_its_arguments_and_is_spread_evenly() {
        let streams = Streams::new(7);
        let draw = streams.draw("latency", 3, 4);
        assert_eq!(draw, Streams::new(7).draw("latency", 3, 4));
        for other in [
            streams.draw("latency", 4, 3),
            streams.draw("loss", 3, 4),
            Streams::new(8).draw("latency", 3, 4),
        ] {
            assert_ne!(draw, other);
        }
        let hits = (0..100_000).filter(|n| streams.chance("x", (1, *n), 250_000)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        let mean = (0..100_000).map(|n| streams.normal("y", (1, n))).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02, "{mean}");
    }
}
