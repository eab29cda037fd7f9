//! What the index says about chunks and segments.

use super::HEADER;

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl Place {
    pub(super) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.segment.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_be_bytes());
        bytes[8..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 12] = bytes.try_into().ok()?;
        let part = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        Some(Self { segment: part(0), offset: part(4), len: part(8) })
    }

    /// Bytes that the chunk takes in its segment.
    pub(super) fn span(self) -> u64 {
        HEADER + u64::from(self.len)
    }
}

/// What the index says about a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes that are durable.
    pub(super) committed: u64,
    /// Bytes of chunks that were not removed.
    pub(super) live: u64,
}

impl Extent {
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.committed.to_be_bytes());
        bytes[8..].copy_from_slice(&self.live.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (committed, live) = bytes.split_at_checked(8)?;
        let part = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
        Some(Self { committed: part(committed)?, live: part(live)? })
    }
}
