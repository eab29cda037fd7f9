//! Random draws by purpose, entity and number, so that removing one event shifts no other draw.

use meshfarm_protocol::seal::content_hash;

/// All randomness of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    seed: u64,
}

impl Streams {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// 32 bytes that depend on nothing but the seed and the arguments.
    pub(crate) fn bytes(self, purpose: &str, entity: u64, n: u64) -> [u8; 32] {
        let numbers = [self.seed, entity, n].map(u64::to_le_bytes).concat();
        content_hash(&[purpose.as_bytes(), &[0], &numbers].concat())
    }

    fn draw(self, purpose: &str, entity: u64, n: u64) -> u64 {
        let bytes = self.bytes(purpose, entity, n);
        let (head, _) = bytes.split_first_chunk().expect("a hash is longer than eight bytes");
        u64::from_le_bytes(*head)
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

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(self, purpose: &str, (entity, n): (u64, u64), percent: u32) -> bool {
        percent > 0 && self.draw(purpose, entity, n) % 100 < u64::from(percent)
    }
}
