//! Where files are cut.

use fastcdc::v2020::{FastCDC, Normalization};
use meshfarm_protocol::seal::MAX_PLAIN;

use super::Cutting;

/// Smallest and average cut of file contents, in bytes; the largest is [`MAX_PLAIN`].
const MIN_CUT: usize = 64 << 10;
const AVERAGE_CUT: usize = 256 << 10;

/// Finds the ends of chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cutter(Cutting);

impl Cutter {
    pub(super) const fn new(cutting: Cutting) -> Self {
        Self(cutting)
    }

    /// How long the first chunk of `bytes` is. They must be [`MAX_PLAIN`], or all that is left.
    pub(super) fn next(self, bytes: &[u8]) -> usize {
        match self.0 {
            Cutting::Fixed => bytes.len().min(MAX_PLAIN),
            Cutting::ByContent if bytes.len() <= MIN_CUT => bytes.len(),
            Cutting::ByContent => {
                let level = Normalization::Level2;
                let cutter = FastCDC::with_level(bytes, MIN_CUT, AVERAGE_CUT, MAX_PLAIN, level);
                cutter.cut(0, bytes.len()).1
            }
        }
    }
}
