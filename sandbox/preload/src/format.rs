//! The table of path rules as bytes: shared by the library that reads and the launcher that writes.
//!
//! All numbers are little-endian u32 unless said otherwise. Head (40 bytes): magic, then counts of rules,
//! entries and watched folders, offset and length of the text, flags, offset and length of the record file's
//! path (with its NUL; length 0 when nothing is recorded). Then rules of 32 bytes (u64 hash of the folded
//! source, source offset, source length, target offset, target length, first entry, entry count; the
//! count's highest bits are the rule's flags), sorted by hash. Then entries of 16 bytes (u64 hash of the folded
//! path, offset, length), sorted by hash within each rule. Then watched folders of 8 bytes (offset, length).
//! Offsets of text count from its start.

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

/// One more folded character: FNV-1a, whose collisions only cost a comparison.
pub(crate) fn step(hash: u64, letter: u32) -> u64 {
    (hash ^ u64::from(letter)).wrapping_mul(0x0100_0000_01b3)
}
