//! Compressing the bytes of chunks before they are sealed, and unpacking them within a known length.

use std::fmt;

use zstd::bulk::{self, Compressor};
use zstd::zstd_safe;

/// The fastest level: what is worth compressing gives most of it here.
const LEVEL: i32 = 1;

/// How much of a file shows whether compressing pays, in bytes.
pub const SAMPLE: usize = 64 << 10;

/// Compressing must save one byte in so many, or the bytes are sealed as they are: 8 %.
const PAYS: usize = 12;

/// Compresses one chunk after another, in memory that it keeps.
#[derive(Default)]
pub struct Compress {
    context: Option<Compressor<'static>>,
    packed: Vec<u8>,
}

impl fmt::Debug for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compress(..)")
    }
}

impl Compress {
    /// Whether compressing a file pays that begins with `beginning`. Looks at no more than
    /// [`SAMPLE`] bytes, from the middle: a file's first bytes are headers of another kind.
    pub fn pays(&mut self, beginning: &[u8]) -> bool {
        let len = beginning.len().min(SAMPLE);
        let from = (beginning.len() - len) / 2;
        let sample = &beginning[from..from + len];
        self.pack(sample, sample.len() - sample.len() / PAYS).is_some()
    }

    /// The packed form of `plain`, if it is shorter. Equal bytes are packed equally by equal
    /// versions of the library, which is why deduplication survives compressing.
    pub(crate) fn shorter(&mut self, plain: &[u8]) -> Option<&[u8]> {
        self.pack(plain, plain.len().saturating_sub(1))
    }

    /// Nothing when the packed form would be longer than `room`.
    fn pack(&mut self, plain: &[u8], room: usize) -> Option<&[u8]> {
        if room == 0 {
            return None;
        }
        if self.context.is_none() {
            self.context = Compressor::new(LEVEL).ok();
        }
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let into = &mut self.packed[..room];
        let len = self.context.as_mut()?.compress_to_buffer(plain, into).ok()?;
        Some(&self.packed[..len])
    }
}

/// Unpacks `packed`, which must give exactly `len` bytes. A frame that promises another length is
/// refused before anything is allocated, and none is written beyond it.
pub(crate) fn unpack(packed: &[u8], len: usize) -> Option<Vec<u8>> {
    let promised = zstd_safe::get_frame_content_size(packed).ok()?;
    if promised != u64::try_from(len).ok() {
        return None;
    }
    bulk::decompress(packed, len).ok().filter(|plain| plain.len() == len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0_u32..).flat_map(|n| format!("vertex {n} 0.5 0.25\n").into_bytes()).take(len).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let hashes = (0_u64..).flat_map(|n| crate::seal::content_hash(&n.to_le_bytes()));
        hashes.take(len).collect()
    }

    #[test]
    fn text_pays_and_noise_does_not() {
        let mut compress = Compress::default();
        assert!(compress.pays(&text(4 << 20)) && compress.pays(&text(2000)));
        assert!(!compress.pays(&noise(4 << 20)) && !compress.pays(&noise(2000)));
        assert!(!compress.pays(&[]) && compress.shorter(&[]).is_none());
        assert!(compress.shorter(&noise(5000)).is_none());
    }

    #[test]
    fn eight_in_a_hundred_must_be_saved() {
        let mut compress = Compress::default();
        let mixed = |zeros: usize| {
            let mut bytes = noise(SAMPLE - zeros);
            bytes.extend(vec![0; zeros]);
            bytes
        };
        assert!(!compress.pays(&mixed(SAMPLE / 20)));
        assert!(compress.pays(&mixed(SAMPLE / 10)));
    }

    #[test]
    fn a_bomb_is_refused_by_what_it_promises() {
        let bomb = bulk::compress(&vec![0; 8 << 20], LEVEL).unwrap();
        assert!(bomb.len() < 1000);
        assert_eq!(unpack(&bomb, 1 << 20), None);
        let mut compress = Compress::default();
        let honest = compress.shorter(&text(5000)).unwrap().to_vec();
        assert_eq!(unpack(&honest, 5000).unwrap(), text(5000));
        assert_eq!(unpack(&honest, 4999), None);
        assert_eq!(unpack(&honest, 5001), None);
        // A second frame behind the first one has no room.
        let twice = [honest.as_slice(), &honest].concat();
        assert_eq!(unpack(&twice, 5000), None);
        assert_eq!(unpack(&honest[..honest.len() - 1], 5000), None);
    }

    proptest! {
        #[test]
        fn hostile_frames_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            len in 0_usize..(1 << 20),
            magic in any::<bool>(),
        ) {
            let mut frame = if magic { vec![0x28, 0xb5, 0x2f, 0xfd] } else { Vec::new() };
            frame.extend(bytes);
            if let Some(plain) = unpack(&frame, len) {
                prop_assert_eq!(plain.len(), len);
            }
        }
    }
}
