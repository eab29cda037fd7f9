//! What the index says about chunks and segments.

use meshfarm_protocol::id::Millis;

use super::HEADER;

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    /// When it was stored first, in seconds since 1970; a chunk that is moved keeps it.
    pub(super) born: u32,
}

impl Place {
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.segment.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_be_bytes());
        bytes[12..].copy_from_slice(&self.born.to_be_bytes());
        bytes
    }

    /// An entry without a time is from before chunks had one.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (place, born) = bytes.split_at_checked(12)?;
        let born = match born {
            [] => 0,
            born => u32::from_be_bytes(born.try_into().ok()?),
        };
        let part = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| place[at + i]));
        Some(Self { segment: part(0), offset: part(4), len: part(8), born })
    }

    /// Bytes that the chunk takes in its segment.
    pub(super) fn span(self) -> u64 {
        HEADER + u64::from(self.len)
    }

    /// The first byte behind it in its segment.
    pub(super) fn end(self) -> u64 {
        u64::from(self.offset) + self.span()
    }
}

/// A moment as the index writes it.
pub(super) fn seconds(at: Millis) -> u32 {
    u32::try_from(at.0 / 1000).unwrap_or(u32::MAX)
}

/// What the index says about a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes that are durable.
    pub(super) committed: u64,
    /// Bytes of chunks that were not removed.
    pub(super) live: u64,
    /// Its index was lost, and not all of it was read again.
    pub(super) unread: bool,
}

impl Extent {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = [self.committed.to_be_bytes(), self.live.to_be_bytes()].concat();
        if self.unread {
            bytes.push(1);
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (committed, rest) = bytes.split_at_checked(8)?;
        let (live, unread) = rest.split_at_checked(8)?;
        let part = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
        let unread = match unread {
            [] => false,
            [1] => true,
            _ => return None,
        };
        Some(Self { committed: part(committed)?, live: part(live)?, unread })
    }
}
