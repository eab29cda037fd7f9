//! What a root uses, in as little room as is sound: the first four bytes of each chunk's address, in order.
//!
//! A lender forgets a manifest's key with the lease, so what the manifest uses is written down while the key
//! is known. Whole addresses would be 32 bytes a chunk. A false likeness of two marks only keeps a chunk that
//! could go (of a million chunks, one in four thousand), and can never let one go that must stay. Marks stay
//! true when a chunk is moved, or removed and fetched again, which positions or numbers of chunks would not.

use meshfarm_protocol::id::ChunkId;

use crate::chunks::mark;

/// Marks of chunks, in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(Vec<u32>);

impl Marks {
    /// The marks of these chunks.
    #[must_use]
    pub fn of(cids: &[ChunkId]) -> Self {
        let mut marks: Vec<_> = cids.iter().map(mark).collect();
        marks.sort_unstable();
        marks.dedup();
        Self(marks)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// Whether the chunk may be one of them.
    #[must_use]
    pub fn may_have(&self, cid: &ChunkId) -> bool {
        self.0.binary_search(&mark(cid)).is_ok()
    }

    /// As they are stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|mark| mark.to_be_bytes()).collect()
    }

    /// What was stored. None where it is not what we wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else { return None };
        let marks: Vec<_> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
        marks.is_sorted_by(|a, b| a < b).then_some(Self(marks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_kept_in_order_and_read_back() {
        let cid = |n: u8| ChunkId([n; 32]);
        let marks = Marks::of(&[cid(9), cid(1), cid(9), cid(4)]);
        assert_eq!(marks.iter().collect::<Vec<_>>(), [0x0101_0101, 0x0404_0404, 0x0909_0909]);
        assert!(marks.may_have(&cid(4)) && !marks.may_have(&cid(5)));
        let bytes = marks.to_bytes();
        assert_eq!(bytes.len(), 12);
        assert_eq!(Marks::from_bytes(&bytes), Some(marks));
        assert_eq!(Marks::from_bytes(&bytes[..11]), None);
        assert_eq!(Marks::from_bytes(&[0, 0, 0, 2, 0, 0, 0, 1]), None);
    }
}
