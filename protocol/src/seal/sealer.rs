//! Sealing many chunks one after another, without memory of their own and without hashing twice.

use std::fmt;

use super::{COMPRESSED, ChunkKey, ChunkSecret, MAX_PLAIN, MAX_SEALED, SEAL_OVERHEAD};
use super::{chunk_id, encrypt, header, key_of};
use crate::compress::Compress;
use crate::id::ChunkId;

/// Whether the bytes of a chunk are compressed before they are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Plain,
    /// Compressed, if that makes them shorter.
    Compressed,
}

/// Seals the chunks of one secret.
pub struct Sealer {
    secret: ChunkSecret,
    sealed: Box<[u8]>,
    /// What compresses them, to ask it whether that pays.
    pub compress: Compress,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// Bytes of a chunk, with the key that they have when they are sealed as they are.
#[derive(Clone, Debug)]
pub struct Keyed<'a> {
    plain: &'a [u8],
    key: ChunkKey,
}

impl Keyed<'_> {
    /// The key, which only these bytes have. It tells whether they were sealed before.
    #[must_use]
    pub fn key(&self) -> &ChunkKey {
        &self.key
    }
}

/// A chunk that was sealed a moment ago: that its address is the one of its bytes needs no proof.
#[derive(Debug)]
pub struct Fresh<'a> {
    cid: ChunkId,
    key: ChunkKey,
    plain_len: u32,
    flags: u8,
    bytes: &'a [u8],
}

impl Fresh<'_> {
    /// The hash of its bytes.
    #[must_use]
    pub fn cid(&self) -> &ChunkId {
        &self.cid
    }

    /// What opens it.
    #[must_use]
    pub fn key(&self) -> &ChunkKey {
        &self.key
    }

    /// Its length when opened, in bytes.
    #[must_use]
    pub fn plain_len(&self) -> u32 {
        self.plain_len
    }

    /// How it was sealed: 0, or [`COMPRESSED`].
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Ciphertext and tag.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

impl Sealer {
    /// A sealer for chunks of `secret`.
    #[must_use]
    pub fn new(secret: ChunkSecret) -> Self {
        let sealed = vec![0; MAX_SEALED].into_boxed_slice();
        Self { secret, sealed, compress: Compress::default() }
    }

    /// Derives the key of `plain`.
    ///
    /// # Panics
    /// When `plain` is longer than [`MAX_PLAIN`]: chunkers never cut so long.
    #[must_use]
    pub fn key<'a>(&self, plain: &'a [u8]) -> Keyed<'a> {
        assert!(plain.len() <= MAX_PLAIN, "a chunk holds at most {MAX_PLAIN} bytes");
        Keyed { plain, key: key_of(&self.secret, &header(0, plain.len()), plain) }
    }

    /// Seals what was keyed. Equal bytes in the same form give the same chunk, every time.
    pub fn seal(&mut self, keyed: Keyed<'_>, form: Form) -> Fresh<'_> {
        let Keyed { plain, key } = keyed;
        let packed = match form {
            Form::Plain => None,
            Form::Compressed => self.compress.shorter(plain),
        };
        // The packed bytes are another message, so they have a key of their own.
        let (flags, message, key) = match packed {
            Some(packed) => {
                let header = header(COMPRESSED, plain.len());
                (COMPRESSED, packed, key_of(&self.secret, &header, packed))
            }
            None => (0, plain, key),
        };
        let bytes = &mut self.sealed[..message.len() + SEAL_OVERHEAD];
        encrypt(&key, &header(flags, plain.len()), message, bytes);
        let plain_len = u32::try_from(plain.len()).expect("a chunk's length was checked");
        Fresh { cid: chunk_id(bytes), key, plain_len, flags, bytes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{OpenError, TenantSecret, open_chunk, open_form, open_stored, seal_chunk};
    use super::*;
    use crate::id::TenantId;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(TenantSecret::new(TenantId([byte; 16]), 1, [byte; 32]).chunks())
    }

    /// A chunk that outlives the next one.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Kept {
        cid: ChunkId,
        key: ChunkKey,
        flags: u8,
        len: u32,
        bytes: Vec<u8>,
    }

    impl Kept {
        fn open(&self) -> Result<Vec<u8>, OpenError> {
            let (form, mut bytes) = ((self.flags, self.len), self.bytes.clone());
            let opened = open_form(&self.cid, &self.key, form, &bytes);
            let again = open_stored(&self.cid, &self.key, form, &mut bytes).map(|()| bytes);
            assert_eq!(opened.as_ref().ok(), again.as_ref().ok(), "both open alike");
            opened
        }
    }

    fn seal(sealer: &mut Sealer, plain: &[u8], form: Form) -> Kept {
        let keyed = sealer.key(plain);
        let fresh = sealer.seal(keyed, form);
        Kept {
            cid: *fresh.cid(),
            key: fresh.key().clone(),
            flags: fresh.flags(),
            len: fresh.plain_len(),
            bytes: fresh.bytes().to_vec(),
        }
    }

    /// Bytes of which some compress and some do not.
    fn contents() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            (any::<u8>(), 0_usize..4000).prop_map(|(byte, len)| vec![byte; len]),
            (0_u8..4, 0_usize..4000).prop_map(|(step, len)| {
                (0..len).map(|i| u8::try_from(i % 251).unwrap().wrapping_mul(step)).collect()
            }),
        ]
    }

    fn form() -> impl Strategy<Value = Form> {
        prop_oneof![Just(Form::Plain), Just(Form::Compressed)]
    }

    proptest! {
        #[test]
        fn equal_keys_mean_equal_headers_and_equal_bytes_to_encrypt(
            (one, first) in (contents(), form()),
            (other, second) in (contents(), form()),
        ) {
            let mut sealer = sealer(1);
            for (one, other) in [(&one, &other), (&one, &one)] {
                let a = seal(&mut sealer, one, first);
                let b = seal(&mut sealer, other, second);
                // Under one key the ciphertext stands for what was encrypted.
                let same = (a.flags, a.len, &a.bytes) == (b.flags, b.len, &b.bytes);
                prop_assert_eq!(a.key == b.key, same);
                prop_assert_eq!(a.cid == b.cid, same);
                prop_assert_eq!(&a.open().unwrap(), one);
                prop_assert_eq!(&b.open().unwrap(), other);
            }
        }

        #[test]
        fn a_packed_chunk_shares_no_key_with_any_plain_one(plain in contents()) {
            let mut sealer = sealer(1);
            let packed = seal(&mut sealer, &plain, Form::Compressed);
            let as_is = seal(&mut sealer, &plain, Form::Plain);
            prop_assert_eq!(packed.flags == 0, packed == as_is);
            if packed.flags == COMPRESSED {
                prop_assert!(packed.bytes.len() < as_is.bytes.len() && packed.key != as_is.key);
                // Not even with a file whose contents are the packed bytes.
                let message = sealer.compress.shorter(&plain).unwrap().to_vec();
                let nested = seal(&mut sealer, &message, Form::Plain);
                prop_assert!(nested.key != packed.key && nested.cid != packed.cid);
            }
        }

        #[test]
        fn the_plain_form_is_what_sealing_one_chunk_gives(plain in contents()) {
            let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]).chunks();
            let one = seal_chunk(&secret, &plain);
            let ours = seal(&mut sealer(1), &plain, Form::Plain);
            prop_assert_eq!((one.cid, one.key, one.bytes), (ours.cid, ours.key, ours.bytes));
        }

        #[test]
        fn a_flipped_bit_or_a_wrong_key_opens_nothing_in_either_form(
            plain in contents(), form in form(), bit in any::<prop::sample::Index>(),
        ) {
            let mut chunk = seal(&mut sealer(1), &plain, form);
            let stranger = seal(&mut sealer(2), &plain, form);
            prop_assert!(stranger.cid != chunk.cid && stranger.key != chunk.key);
            let wrong_key = Kept { key: stranger.key, ..chunk.clone() };
            prop_assert_eq!(wrong_key.open(), Err(OpenError::WrongKey(chunk.cid)));
            let bit = bit.index(chunk.bytes.len() * 8);
            chunk.bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(chunk.open(), Err(OpenError::WrongAddress(chunk.cid)));
        }
    }

    #[test]
    fn a_form_or_length_that_the_manifest_has_wrong_is_refused() {
        let chunk = seal(&mut sealer(1), &[7; 5000], Form::Compressed);
        assert_eq!(chunk.flags, COMPRESSED);
        let refused = |flags, len| Kept { flags, len, ..chunk.clone() }.open().unwrap_err();
        assert_eq!(refused(COMPRESSED, 4999), OpenError::WrongKey(chunk.cid));
        assert_eq!(refused(COMPRESSED, u32::MAX), OpenError::BadLength(u32::MAX as usize));
        assert_eq!(refused(0, 5000), OpenError::WrongKey(chunk.cid));
        assert_eq!(refused(2, 5000), OpenError::UnknownForm(2));
        let as_is = open_chunk(&chunk.cid, &chunk.key, &chunk.bytes);
        assert_eq!(as_is, Err(OpenError::WrongKey(chunk.cid)));
        let plain = seal(&mut sealer(1), &[7; 5000], Form::Plain);
        let longer = Kept { len: 5001, ..plain.clone() };
        assert_eq!(longer.open(), Err(OpenError::BadLength(5001)));
        let packed = Kept { flags: COMPRESSED, ..plain };
        assert_eq!(packed.open(), Err(OpenError::WrongKey(packed.cid)));
    }

    #[test]
    fn what_is_packed_wrongly_is_refused_though_its_writer_had_the_secret() {
        let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]).chunks();
        let bomb = zstd::bulk::compress(&vec![0; 4 << 20], 1).unwrap();
        let header = header(COMPRESSED, 2000);
        let key = key_of(&secret, &header, &bomb);
        let mut bytes = vec![0; bomb.len() + SEAL_OVERHEAD];
        encrypt(&key, &header, &bomb, &mut bytes);
        let cid = chunk_id(&bytes);
        let opened = open_form(&cid, &key, (COMPRESSED, 2000), &bytes);
        assert_eq!(opened, Err(OpenError::Unpacks(cid)));
    }
}
