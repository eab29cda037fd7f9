//! The table of path rules as bytes, and the folding of names: shared by the library that reads and the launcher that writes.
//!
//! All numbers are little-endian. Head (24 bytes): magic, then u32 counts of rules and entries, offset and
//! length of the text. Then rules of 28 bytes (source offset, source length, target offset, target length,
//! flags, first entry, entry count), then entries of 16 bytes (u64 hash of the folded path, offset, length),
//! sorted by hash within each rule. Offsets of text count from its start.

/// First bytes of a table; the last one is the version.
pub(crate) const MAGIC: [u8; 8] = *b"MFMAP\0\0\x01";
/// Bytes before the first rule.
pub(crate) const HEAD: usize = 24;
/// Bytes of a rule.
pub(crate) const RULE: usize = 28;
/// Bytes of an entry.
pub(crate) const ENTRY: usize = 16;
/// Flag of a rule: names below it are looked up in the index.
pub(crate) const INSENSITIVE: u32 = 1;

/// The characters of a name with case folded away; bytes that are no UTF-8 stand for themselves.
pub(crate) fn folded(name: &[u8]) -> impl Iterator<Item = u32> + '_ {
    name.utf8_chunks().flat_map(|chunk| {
        let letters = chunk.valid().chars().flat_map(char::to_lowercase).map(u32::from);
        // Above every character, so that no byte is mistaken for one.
        letters.chain(chunk.invalid().iter().map(|byte| 0x11_0000 + u32::from(*byte)))
    })
}

/// FNV-1a over the folded characters: collisions only cost a comparison.
pub(crate) fn hash(name: &[u8]) -> u64 {
    folded(name).fold(0xcbf2_9ce4_8422_2325, |hash, letter| {
        (hash ^ u64::from(letter)).wrapping_mul(0x0100_0000_01b3)
    })
}
