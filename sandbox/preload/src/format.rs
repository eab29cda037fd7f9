//! The table of path rules as bytes: shared by the library that reads and the launcher that writes.
//!
//! All numbers are little-endian u32 unless said otherwise. Head (40 bytes): magic, then counts of rules,
//! entries and watched folders, offset and length of the text, flags, offset and length of the record file's
//! path (with its NUL; length 0 when nothing is recorded). Then rules of 32 bytes (u64 hash of the folded
//! source, source offset, source length, target offset, target length, first entry, entry count; the
//! count's highest bits are the rule's flags), sorted by hash. Then entries of 16 bytes (u64 hash of the folded
//! source and path, offset, length), sorted by hash within each rule. Then watched folders of 8 bytes (offset, length).
//! Offsets of text count from its start.

use super::fold::folded;

/// First bytes of a table; the last one is the version.
pub(crate) const MAGIC: [u8; 8] = *b"MFMAP\0\0\x02";
/// Bytes before the first rule.
pub(crate) const HEAD: usize = 40;
/// Bytes of a rule.
pub(crate) const RULE: usize = 32;
/// Bytes of an entry.
pub(crate) const ENTRY: usize = 16;
/// Bytes of a watched folder.
pub(crate) const WATCHED: usize = 8;

/// Flag of a rule, in its entry count: names below it are looked up in the index.
pub(crate) const INSENSITIVE: u32 = 1 << 31;
/// Flag of a rule, in its entry count: the source is a path of this system, compared byte by byte.
pub(crate) const POSIX: u32 = 1 << 30;
/// The bits of an entry count that count.
pub(crate) const COUNT: u32 = POSIX - 1;

/// Flag of the table: paths that the system hands out are mapped back to the artist's.
pub(crate) const REVERSE: u32 = 1;

/// Where hashing begins.
pub(crate) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of a path, from the hash of the folder above it and its last part. Parts that fold equally have
/// equal hashes; collisions only cost a comparison. Eight letters are taken at a time.
pub(crate) fn hash_part(above: u64, part: &[u8]) -> u64 {
    let mut words = Words { hash: mix(above, u64::from(b'/')), word: 0, n: 0 };
    for byte in part {
        if !byte.is_ascii() {
            return hash_folded(above, part);
        }
        words.put(byte.to_ascii_lowercase());
    }
    words.finish()
}

#[cold]
fn hash_folded(above: u64, part: &[u8]) -> u64 {
    let mut words = Words { hash: mix(above, u64::from(b'/')), word: 0, n: 0 };
    for letter in folded(part) {
        // What is no ASCII takes four bytes, of which the first tells it from ASCII.
        let [a, b, c, last] = (letter | 1 << 31).to_be_bytes();
        if letter >= 0x80 {
            [a, b, c].iter().for_each(|byte| words.put(*byte));
        }
        words.put(last);
    }
    words.finish()
}

struct Words {
    hash: u64,
    word: u64,
    n: u32,
}

impl Words {
    #[inline]
    fn put(&mut self, byte: u8) {
        self.word = self.word << 8 | u64::from(byte);
        self.n += 1;
        if self.n == 8 {
            *self = Self { hash: mix(self.hash, self.word), word: 0, n: 0 };
        }
    }

    fn finish(&self) -> u64 {
        if self.n > 0 { mix(self.hash, self.word) } else { self.hash }
    }
}

#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}
