//! Records that a site keeps about its own files, unreadable without the tenant's secret.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{ChunkSecret, SEAL_OVERHEAD, TenantSecret, decrypt, encrypt_under};

/// What precedes the ciphertext, in bytes: its nonce.
const NONCE: usize = 24;

/// Names and seals the records of one tenant and epoch.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RecordSecret {
    names: ChunkSecret,
    nonces: ChunkSecret,
    contents: ChunkSecret,
}

impl fmt::Debug for RecordSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordSecret(..)")
    }
}

impl TenantSecret {
    /// The secret that hides what this site remembers of the tenant's files.
    #[must_use]
    pub fn records(&self) -> RecordSecret {
        RecordSecret {
            names: self.derive("meshfarm v1 record name"),
            nonces: self.derive("meshfarm v1 record nonce"),
            contents: self.derive("meshfarm v1 record"),
        }
    }
}

impl RecordSecret {
    /// What something is called in the key of a record. Whoever lacks the secret cannot even test
    /// a guess.
    #[must_use]
    pub fn name(&self, parts: &[&[u8]]) -> [u8; 16] {
        let hash = keyed_hash(&self.names, parts);
        let mut name = [0; 16];
        name.copy_from_slice(&hash[..16]);
        name
    }

    /// Seals the contents of the record whose key is `place`.
    ///
    /// The nonce is a keyed hash of all that is sealed, so it repeats only where everything does,
    /// and needs no randomness.
    #[must_use]
    pub fn seal(&self, place: &[u8], contents: &[u8]) -> Vec<u8> {
        let hash = keyed_hash(&self.nonces, &[place, contents]);
        let mut sealed = vec![0; NONCE + contents.len() + SEAL_OVERHEAD];
        let (nonce, body) = sealed.split_at_mut(NONCE);
        nonce.copy_from_slice(&hash[..NONCE]);
        encrypt_under(&self.contents.0, nonce, place, contents, body);
        sealed
    }

    /// The contents of the record at `place`, if they were sealed there under this secret.
    #[must_use]
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_at_checked(NONCE)?;
        decrypt(&self.contents.0, nonce, place, body)
    }
}

/// Every part is preceded by its length, so that no two lists of parts are one.
fn keyed_hash(secret: &ChunkSecret, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::TenantId;

    fn records(byte: u8, epoch: u64) -> RecordSecret {
        TenantSecret::new(TenantId([1; 16]), epoch, [byte; 32]).records()
    }

    proptest! {
        #[test]
        fn a_record_opens_in_its_place_under_its_secret_and_unchanged_only(
            place in prop::collection::vec(any::<u8>(), 0..40),
            contents in prop::collection::vec(any::<u8>(), 0..300),
            bit in any::<prop::sample::Index>(),
        ) {
            let ours = records(1, 1);
            let mut sealed = ours.seal(&place, &contents);
            prop_assert_eq!(ours.open(&place, &sealed), Some(contents));
            prop_assert_eq!(records(1, 2).open(&place, &sealed), None);
            prop_assert_eq!(records(2, 1).open(&place, &sealed), None);
            prop_assert_eq!(ours.open(&[&place[..], &[0]].concat(), &sealed), None);
            let bit = bit.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(ours.open(&place, &sealed), None);
            prop_assert_eq!(ours.open(&place, &sealed[..sealed.len().min(39)]), None);
        }
    }

    #[test]
    fn names_depend_on_the_secret_and_on_where_a_part_ends() {
        let ours = records(1, 1);
        assert_eq!(ours.name(&[b"ab", b"c"]), ours.name(&[b"ab", b"c"]));
        let others = [
            ours.name(&[b"a", b"bc"]),
            ours.name(&[b"abc"]),
            records(1, 2).name(&[b"ab", b"c"]),
            records(2, 1).name(&[b"ab", b"c"]),
        ];
        assert!(!others.contains(&ours.name(&[b"ab", b"c"])));
    }
}
