//! Segments read without their index: what stands before each chunk, and finding the chunks again.
//!
//! A segment is hostile: the bytes of a chunk are chosen by whoever sealed it and may look like records.
//! So nothing is believed but what its own address proves, and time and memory are bounded whatever the
//! bytes are.

use std::io::{self, Read};

/// What stands before each chunk: a mark, its length and the beginning of its address. In bytes.
pub const HEADER: usize = 16;

/// The mark.
pub const MARK: [u8; 4] = *b"mfc1";

/// So many bytes may be hashed in vain before the search leaves the place: a chunk full of false headers
/// costs this much and not the square of its length.
const IN_VAIN: usize = 16 << 20;

/// So many bytes are read at a time.
const READ: usize = 1 << 20;

/// What stands before a chunk of `len` bytes with this address.
#[must_use]
pub fn header(len: u32, address: &[u8; 32]) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MARK);
    bytes[4..8].copy_from_slice(&len.to_be_bytes());
    bytes[8..].copy_from_slice(&address[..8]);
    bytes
}

/// A chunk that its address proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Where its header begins.
    pub offset: u64,
    /// Its address.
    pub address: [u8; 32],
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// A walk over the bytes of a segment, from chunk to chunk. Holes, torn ends and garbage are passed over.
#[derive(Debug)]
pub struct Walk<R> {
    from: R,
    longest: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the walk stands.
    at: usize,
    /// Where in the segment the buffer begins.
    base: u64,
    ended: bool,
    in_vain: usize,
}

impl<R: Read> Walk<R> {
    /// A walk over `from`, whose chunks have at most `longest` bytes.
    pub fn new(from: R, longest: usize) -> Self {
        Self { from, longest, buffer: Vec::new(), at: 0, base: 0, ended: false, in_vain: 0 }
    }

    /// How far it is, in bytes.
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The next chunk, whose address is `hash` of its bytes.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    pub fn next(&mut self, hash: impl Fn(&[u8]) -> [u8; 32]) -> io::Result<Option<Found<'_>>> {
        loop {
            if !self.fill(HEADER)? {
                return Ok(None);
            }
            let rest = &self.buffer[self.at..];
            let Some(gap) = rest.windows(MARK.len()).position(|bytes| bytes == MARK) else {
                // The mark may begin in the last bytes.
                self.at += rest.len() - (MARK.len() - 1);
                continue;
            };
            self.at += gap;
            if !self.fill(HEADER)? {
                return Ok(None);
            }
            let header = &self.buffer[self.at..self.at + HEADER];
            let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            if len == 0 || len > self.longest || !self.fill(HEADER + len)? {
                self.at += 1;
                continue;
            }
            let (start, end) = (self.at + HEADER, self.at + HEADER + len);
            let address = hash(&self.buffer[start..end]);
            if address[..8] != self.buffer[self.at + 8..start] {
                self.wrong(len)?;
                continue;
            }
            let offset = self.offset();
            self.at = end;
            self.in_vain = 0;
            return Ok(Some(Found { offset, address, bytes: &self.buffer[start..end] }));
        }
    }

    /// What looked like a header is none, or its chunk is damaged: a true one may begin at the next byte.
    fn wrong(&mut self, len: usize) -> io::Result<()> {
        self.in_vain += len;
        let mut step = 1;
        if self.in_vain > IN_VAIN {
            // The end of the longest chunk is behind us then, whatever this one holds.
            self.in_vain = 0;
            step = HEADER + self.longest;
            self.fill(step)?;
        }
        self.at += step.min(self.buffer.len() - self.at);
        Ok(())
    }

    /// Makes `n` bytes available from where the walk stands; false when there are not as many.
    fn fill(&mut self, n: usize) -> io::Result<bool> {
        let is_there = self.buffer.len() - self.at >= n;
        if is_there || self.ended {
            return Ok(is_there);
        }
        self.buffer.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        while self.buffer.len() < n && !self.ended {
            let want = (n - self.buffer.len()).max(READ);
            let got = (&mut self.from).take(want as u64).read_to_end(&mut self.buffer)?;
            self.ended = got < want;
        }
        Ok(self.buffer.len() >= n)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const LONGEST: usize = 5000;

    /// Any function will do that the writer of a chunk cannot steer here.
    fn hash(bytes: &[u8]) -> [u8; 32] {
        meshfarm_protocol::seal::content_hash(bytes)
    }

    fn record(bytes: &[u8]) -> Vec<u8> {
        let len = u32::try_from(bytes.len()).unwrap();
        [&header(len, &hash(bytes))[..], bytes].concat()
    }

    fn walk(segment: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut walk = Walk::new(segment, LONGEST);
        let mut found = Vec::new();
        while let Some(chunk) = walk.next(hash).unwrap() {
            assert_eq!(chunk.address, hash(chunk.bytes));
            found.push((chunk.offset, chunk.bytes.to_vec()));
        }
        found
    }

    #[test]
    fn chunks_are_found_between_holes_and_a_torn_end() {
        let (one, two, three) = (record(&[1; 4000]), record(&[2; 17]), record(&[3; 900]));
        let hole = vec![0; 70_000];
        let segment = [&one[..], &hole, &two, &three[..200]].concat();
        let found = walk(&segment);
        let second = (one.len() + hole.len()) as u64;
        assert_eq!(found, [(0, vec![1; 4000]), (second, vec![2; 17])]);
    }

    #[test]
    fn a_damaged_chunk_hides_no_other() {
        let (one, two) = (record(&[1; 4000]), record(&[2; 17]));
        for damaged in [0, 5, 9, 2000] {
            let mut segment = [one.clone(), two.clone()].concat();
            segment[damaged] ^= 0x40;
            assert_eq!(walk(&segment), [(one.len() as u64, vec![2; 17])], "byte {damaged}");
        }
    }

    #[test]
    fn a_chunk_full_of_false_headers_costs_little() {
        let longest = 1 << 20;
        let mut segment = record(&header(longest, &[7; 32]).repeat(longest as usize / HEADER));
        segment[4] ^= 1;
        segment.extend(record(&[9; 100]));
        let hashed = Cell::new(0);
        let counting = |bytes: &[u8]| {
            hashed.set(hashed.get() + bytes.len());
            hash(bytes)
        };
        // Twenty of them, one after the other.
        let segment = segment.repeat(20);
        let mut walk = Walk::new(&segment[..], longest as usize);
        while walk.next(counting).unwrap().is_some() {}
        assert!(hashed.get() < 40 * segment.len(), "{} for {}", hashed.get(), segment.len());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_only_proven_chunks_are_found(
            parts in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(any::<u8>(), 1..3000)),
                0..12,
            ),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 0..4),
        ) {
            let mut segment = Vec::new();
            let mut chunks = Vec::new();
            for (is_chunk, bytes) in &parts {
                if *is_chunk {
                    chunks.push((segment.len() as u64, bytes.clone()));
                    segment.extend(record(bytes));
                } else {
                    segment.extend(bytes);
                }
            }
            let whole = segment.clone();
            if !segment.is_empty() {
                for (at, flip) in &flips {
                    let at = at.index(segment.len());
                    segment[at] ^= flip;
                }
            }
            let found = walk(&segment);
            for (offset, bytes) in &chunks {
                let from = usize::try_from(*offset).unwrap();
                let to = from + HEADER + bytes.len();
                if segment[from..to] == whole[from..to] {
                    prop_assert!(found.contains(&(*offset, bytes.clone())));
                }
            }
            for chunk in &found {
                prop_assert!(chunks.contains(chunk), "nothing is found that was not written");
            }
        }
    }
}
