//! Chunk keys and addresses, sealing and opening, envelopes, and signatures.
//!
//! A chunk's key is a keyed hash of the exact bytes that are encrypted under it. That makes sealing
//! deterministic inside a tenant, so equal bytes share one address there, and it makes the fixed
//! nonce safe: one key never meets two messages.

mod form;
mod record;
mod sealer;

use std::fmt;

use chacha20poly1305::{
    Key, KeyInit, Tag, XChaCha20Poly1305, XNonce,
    aead::{Aead, AeadInOut, Payload, inout::InOutBuf},
};
use ed25519_dalek::{Signer, VerifyingKey};
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::{ChunkId, JobId, MeshId, Millis, SiteId, TenantId};

pub use form::{open_form, open_stored};
pub use record::RecordSecret;
pub use sealer::{Form, Fresh, Keyed, Sealer};

/// The most plaintext that one chunk holds, in bytes: the largest cut of every chunker.
pub const MAX_PLAIN: usize = 1 << 20;

/// What sealing adds to the plaintext, in bytes: the authentication tag.
pub const SEAL_OVERHEAD: usize = 16;

/// The longest sealed chunk, in bytes.
pub const MAX_SEALED: usize = MAX_PLAIN + SEAL_OVERHEAD;

/// The longest contents of an envelope, in bytes: a few keys and limits.
pub const MAX_CONTENTS: usize = 64 * 1024;

const VERSION: u8 = 1;
/// XChaCha20-Poly1305 under a key that hashes the message. Other values are reserved and refused.
const ALGORITHM: u8 = 1;

/// The flag of a chunk whose bytes were compressed before they were sealed. No other exists.
pub const COMPRESSED: u8 = 1;

/// The secret under which a tenant's content is deterministic, with the epoch that restarts it.
///
/// It stays on the submitter's sites: a lender gets the keys of a job's chunks, never this.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TenantSecret {
    #[zeroize(skip)]
    tenant: TenantId,
    #[zeroize(skip)]
    epoch: u64,
    secret: [u8; 32],
}

impl TenantSecret {
    /// The secret of `tenant`. A new `epoch` unlinks all later chunks from the earlier ones.
    #[must_use]
    pub fn new(tenant: TenantId, epoch: u64, secret: [u8; 32]) -> Self {
        Self { tenant, epoch, secret }
    }

    /// Whose secret this is.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Which epoch of the tenant's secrets this is.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The secret that keys the chunks of files.
    #[must_use]
    pub fn chunks(&self) -> ChunkSecret {
        self.derive("meshfarm v1 chunk")
    }

    /// The secret that keys the nodes of manifests, so that no file can pass for a node.
    #[must_use]
    pub fn nodes(&self) -> ChunkSecret {
        self.derive("meshfarm v1 manifest")
    }

    fn derive(&self, purpose: &str) -> ChunkSecret {
        let mut material = Zeroizing::new([0; 40]);
        material[..32].copy_from_slice(&self.secret);
        material[32..].copy_from_slice(&self.epoch.to_le_bytes());
        ChunkSecret(blake3::derive_key(purpose, material.as_slice()))
    }
}

impl fmt::Debug for TenantSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantSecret({} epoch {})", self.tenant.short(), self.epoch)
    }
}

/// Keys the chunks of one tenant, epoch and purpose.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ChunkSecret([u8; 32]);

impl fmt::Debug for ChunkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkSecret(..)")
    }
}

/// The key of one chunk. Whoever has it can read that chunk and no other.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkKey(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkKey(..)")
    }
}

/// A chunk as it is stored and sent, with what its owner must remember to read it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedChunk {
    /// Where to find it: the hash of `bytes`.
    pub cid: ChunkId,
    /// What opens it.
    pub key: ChunkKey,
    /// Ciphertext and tag.
    pub bytes: Vec<u8>,
}

/// Why a chunk stays closed. Only [`OpenError::Unpacks`] has decrypted anything.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// Longer than any chunk, or shorter than a tag. Blame the sender.
    #[error("no chunk has {0} bytes")]
    BadLength(usize),
    /// The bytes are not those of this address. Blame the sender and fetch from another.
    #[error("the bytes do not belong to chunk {0}")]
    WrongAddress(ChunkId),
    /// The bytes are those of the address, but the key is not theirs. Blame who wrote the manifest.
    #[error("the key does not open chunk {0}")]
    WrongKey(ChunkId),
    /// The manifest names a form that this version does not know. Blame who wrote it.
    #[error("a chunk has the form {0}, which this site does not know")]
    UnknownForm(u8),
    /// It opens, but does not unpack to as many bytes as it says. Blame who wrote the manifest.
    #[error("chunk {0} does not unpack to the length that it says")]
    Unpacks(ChunkId),
}

/// Seals `plain` under the tenant's secret: equal bytes give the same chunk, every time.
///
/// # Panics
/// When `plain` is longer than [`MAX_PLAIN`]: chunkers never cut so long.
#[must_use]
pub fn seal_chunk(secret: &ChunkSecret, plain: &[u8]) -> SealedChunk {
    assert!(plain.len() <= MAX_PLAIN, "a chunk holds at most {MAX_PLAIN} bytes");
    let header = header(0, plain.len());
    let key = key_of(secret, &header, plain);
    let mut bytes = vec![0; plain.len() + SEAL_OVERHEAD];
    encrypt(&key, &header, plain, &mut bytes);
    SealedChunk { cid: chunk_id(&bytes), key, bytes }
}

/// Opens a chunk that was sealed as it is, after its address was checked.
///
/// # Errors
/// When the bytes are not those of `cid`, or `key` is not theirs.
pub fn open_chunk(cid: &ChunkId, key: &ChunkKey, bytes: &[u8]) -> Result<Vec<u8>, OpenError> {
    check_chunk(cid, bytes)?;
    let header = header(0, bytes.len() - SEAL_OVERHEAD);
    decrypt(&key.0, &[0; 24], &header, bytes).ok_or(OpenError::WrongKey(*cid))
}

/// Checks that `bytes` are those of `cid`. Needs no key, so caches and relays can do it.
///
/// # Errors
/// When they are not, or no chunk has such a length.
pub fn check_chunk(cid: &ChunkId, bytes: &[u8]) -> Result<(), OpenError> {
    if !(SEAL_OVERHEAD..=MAX_SEALED).contains(&bytes.len()) {
        return Err(OpenError::BadLength(bytes.len()));
    }
    if chunk_id(bytes) == *cid { Ok(()) } else { Err(OpenError::WrongAddress(*cid)) }
}

/// The address of sealed bytes.
#[must_use]
pub fn chunk_id(sealed: &[u8]) -> ChunkId {
    ChunkId(content_hash(sealed))
}

/// BLAKE3 of `bytes`.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// Version, algorithm, flags and plain length: hashed into the key and authenticated, never sent.
fn header(flags: u8, plain_len: usize) -> [u8; 7] {
    let len = u32::try_from(plain_len).expect("a chunk's length was checked above").to_le_bytes();
    [VERSION, ALGORITHM, flags, len[0], len[1], len[2], len[3]]
}

/// The key of the exact bytes that are encrypted under it, and of how they are to be read.
fn key_of(secret: &ChunkSecret, header: &[u8; 7], message: &[u8]) -> ChunkKey {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    hasher.update(header).update(message);
    ChunkKey(*hasher.finalize().as_bytes())
}

/// Encrypts into `sealed`, which is longer than `message` by [`SEAL_OVERHEAD`]. The nonce is fixed,
/// so `key` must be the one of exactly this message: [`key_of`] it.
fn encrypt(key: &ChunkKey, header: &[u8; 7], message: &[u8], sealed: &mut [u8]) {
    encrypt_under(&key.0, &[0; 24], header, message, sealed);
}

fn encrypt_under(key: &[u8; 32], nonce: &[u8], aad: &[u8], message: &[u8], sealed: &mut [u8]) {
    let nonce = XNonce::try_from(nonce).expect("all nonces here have 24 bytes");
    let (body, tag) = sealed.split_at_mut(message.len());
    let both = InOutBuf::new(message, body).expect("the body is as long as the message");
    let made = cipher(key)
        .encrypt_inout_detached(&nonce, aad, both)
        .expect("a chunk is far shorter than the cipher's limit");
    tag.copy_from_slice(&made);
}

/// Nothing when the bytes do not authenticate, and then nothing was decrypted.
fn decrypt(key: &[u8; 32], nonce: &[u8], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (body, tag) = sealed.split_at_checked(sealed.len().checked_sub(SEAL_OVERHEAD)?)?;
    let (nonce, tag) = (XNonce::try_from(nonce).ok()?, Tag::try_from(tag).ok()?);
    let mut plain = vec![0; body.len()];
    let both = InOutBuf::new(body, &mut plain).ok()?;
    cipher(key).decrypt_inout_detached(&nonce, aad, both, &tag).ok()?;
    Some(plain)
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(<&Key>::from(key))
}

/// The key with which a site or a mesh signs. It is wiped when dropped.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key that grows from 32 secret random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The secret bytes, to be kept in a file that only its owner reads.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public key as the name of a site.
    #[must_use]
    pub fn site(&self) -> SiteId {
        SiteId(self.0.verifying_key().to_bytes())
    }

    /// The public key as the name of a mesh.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        MeshId(self.0.verifying_key().to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.site().short())
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signature(#[serde(with = "serde_bytes")] pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", crate::id::hex(&self.0[..4]))
    }
}

/// A signature that does not hold: the bytes, the context or the signer is another. Nothing in the
/// bytes may be believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the signature does not hold")]
pub struct BadSignature;

/// Signs `bytes` as a statement of kind `context`, for example `"receipt"`. A signature made in one
/// context never holds in another.
#[must_use]
pub fn sign(key: &SigningKey, context: &str, bytes: &[u8]) -> Signature {
    Signature(key.0.sign(&statement(context, bytes)).to_bytes())
}

/// Checks that the owner of `public` (the bytes of a [`SiteId`] or [`MeshId`]) signed `bytes` in
/// this context. Weak keys and ambiguous signatures are refused.
///
/// # Errors
/// When the signature does not hold.
pub fn verify(
    public: &[u8; 32],
    context: &str,
    bytes: &[u8],
    signature: &Signature,
) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(public).ok().ok_or(BadSignature)?;
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(&statement(context, bytes), &signature).ok().ok_or(BadSignature)
}

/// A zero byte ends the context, so that no context is the beginning of another.
fn statement(context: &str, bytes: &[u8]) -> Vec<u8> {
    debug_assert!(!context.contains('\0'), "a context has no zero byte");
    [b"meshfarm v1 ", context.as_bytes(), &[0], bytes].concat()
}

/// The public half of a peer's sealing key, published in its profile and changed daily.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealingKey(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", crate::id::hex(&self.0[..4]))
    }
}

/// The secret half of a sealing key. Dropping the last copy makes its envelopes unreadable.
#[derive(Clone)]
pub struct SealingSecret(StaticSecret);

impl SealingSecret {
    /// The secret that grows from 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(StaticSecret::from(seed))
    }

    /// The secret bytes, for the owner's key file.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The key to publish.
    #[must_use]
    pub fn public(&self) -> SealingKey {
        SealingKey(PublicKey::from(&self.0).to_bytes())
    }
}

impl fmt::Debug for SealingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingSecret({:?})", self.public())
    }
}

/// What an envelope is about. All of it is authenticated, none of it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Who sealed and signed it.
    pub from: SiteId,
    /// Who may open it.
    pub to: SiteId,
    /// The key it is sealed to: one that `to` published.
    pub key: SealingKey,
    /// The job whose keys these are.
    pub job: JobId,
    /// The manifest whose key is inside.
    pub root: ChunkId,
    /// When it stops being valid.
    pub expires: Millis,
}

/// Keys of a job, sealed to one peer and signed by who sent them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// What it is about.
    pub address: Address,
    /// The sender's one-time public key.
    #[serde(with = "serde_bytes")]
    pub ephemeral: [u8; 32],
    /// The nonce of the sealed contents.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 24],
    /// The contents, encrypted.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
    /// The sender's signature over all of the above.
    pub signature: Signature,
}

/// Fresh randomness for one envelope. Using it twice would reveal the contents.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct EnvelopeSeed {
    /// Becomes the sender's one-time secret key.
    pub ephemeral: [u8; 32],
    /// Becomes the nonce.
    pub nonce: [u8; 24],
}

impl fmt::Debug for EnvelopeSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvelopeSeed(..)")
    }
}

/// Why an envelope was not sealed or not opened. Nothing was decrypted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvelopeError {
    /// The contents do not fit. A defect of the caller, or a hostile sender.
    #[error("an envelope holds at most {MAX_CONTENTS} bytes")]
    TooLong,
    /// It is sealed to a key that we do not hold, or no longer. Ask for a fresh one.
    #[error("the envelope is sealed to another key")]
    OtherKey,
    /// Its time is over. Ask for a fresh one.
    #[error("the envelope has expired")]
    Expired,
    /// The signer is not the sender that it names. Blame who delivered it.
    #[error("the envelope is not signed by site {}", .0.short())]
    Unsigned(SiteId),
    /// A key that gives everyone the same secret. Blame who published or sent it.
    #[error("the envelope uses a degenerate key")]
    WeakKey,
    /// Signed, but its contents do not authenticate. Blame the sender.
    #[error("the envelope's contents do not authenticate")]
    Forged,
}

/// Seals `contents` to the peer and job in `address`, and signs the whole. `signer` must be the key
/// of `address.from`.
///
/// # Errors
/// When the contents are too long or the recipient's key is degenerate.
pub fn seal_envelope(
    signer: &SigningKey,
    address: Address,
    contents: &[u8],
    seed: EnvelopeSeed,
) -> Result<Envelope, EnvelopeError> {
    if contents.len() > MAX_CONTENTS {
        return Err(EnvelopeError::TooLong);
    }
    debug_assert_eq!(signer.site(), address.from, "an envelope is signed by its sender");
    let secret = StaticSecret::from(seed.ephemeral);
    let ephemeral = PublicKey::from(&secret).to_bytes();
    let key = envelope_key(&secret, &address.key.0, &ephemeral, &address)?;
    let payload = Payload { msg: contents, aad: &address_aad(&address) };
    let sealed = cipher(&key)
        .encrypt(<&XNonce>::from(&seed.nonce), payload)
        .expect("an envelope is far shorter than the cipher's limit");
    let mut envelope =
        Envelope { address, ephemeral, nonce: seed.nonce, sealed, signature: Signature([0; 64]) };
    envelope.signature = sign(signer, "offer", &envelope_statement(&envelope));
    Ok(envelope)
}

/// Opens an envelope that was sealed to `secret`, after checking its length, time and signature.
/// The caller checks that the address names the job and sites it expects.
///
/// # Errors
/// When anything about it does not hold.
pub fn open_envelope(
    envelope: &Envelope,
    secret: &SealingSecret,
    now: Millis,
) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
    let address = &envelope.address;
    if envelope.sealed.len() > MAX_CONTENTS + SEAL_OVERHEAD {
        return Err(EnvelopeError::TooLong);
    }
    if address.key != secret.public() {
        return Err(EnvelopeError::OtherKey);
    }
    verify(&address.from.0, "offer", &envelope_statement(envelope), &envelope.signature)
        .map_err(|BadSignature| EnvelopeError::Unsigned(address.from))?;
    if now >= address.expires {
        return Err(EnvelopeError::Expired);
    }
    let key = envelope_key(&secret.0, &envelope.ephemeral, &envelope.ephemeral, address)?;
    let payload = Payload { msg: envelope.sealed.as_slice(), aad: &address_aad(address) };
    let contents = cipher(&key)
        .decrypt(<&XNonce>::from(&envelope.nonce), payload)
        .ok()
        .ok_or(EnvelopeError::Forged)?;
    Ok(Zeroizing::new(contents))
}

/// The key between `ours` and `theirs`. Both public keys and both sites go in, so that an envelope
/// cannot be moved to another pair.
fn envelope_key(
    ours: &StaticSecret,
    theirs: &[u8; 32],
    ephemeral: &[u8; 32],
    address: &Address,
) -> Result<Zeroizing<[u8; 32]>, EnvelopeError> {
    let shared = ours.diffie_hellman(&PublicKey::from(*theirs));
    if !shared.was_contributory() {
        return Err(EnvelopeError::WeakKey);
    }
    let mut material = Zeroizing::new([0; 160]);
    let parts = [shared.as_bytes(), ephemeral, &address.key.0, &address.from.0, &address.to.0];
    for (place, part) in material.chunks_exact_mut(32).zip(parts) {
        place.copy_from_slice(part);
    }
    Ok(Zeroizing::new(blake3::derive_key("meshfarm v1 seal", material.as_slice())))
}

fn address_aad(address: &Address) -> Vec<u8> {
    [&address.job.0[..], &address.root.0, &address.expires.0.to_le_bytes()].concat()
}

/// Every field has a fixed length but the last, so the concatenation reads back in one way only.
fn envelope_statement(envelope: &Envelope) -> Vec<u8> {
    let address = &envelope.address;
    [
        &envelope.ephemeral[..],
        &address.key.0,
        &address.from.0,
        &address.to.0,
        &address_aad(address),
        &envelope.nonce,
        &envelope.sealed,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    fn secret(byte: u8) -> TenantSecret {
        TenantSecret::new(TenantId([byte; 16]), 1, [byte; 32])
    }

    fn envelope_for(to: &SealingSecret) -> (SigningKey, Envelope) {
        let signer = SigningKey::from_seed(&[3; 32]);
        let address = Address {
            from: signer.site(),
            to: SiteId([4; 32]),
            key: to.public(),
            job: JobId([5; 16]),
            root: ChunkId([6; 32]),
            expires: Millis(1000),
        };
        let seed = EnvelopeSeed { ephemeral: [7; 32], nonce: [8; 24] };
        let envelope = seal_envelope(&signer, address, b"the keys", seed).unwrap();
        (signer, envelope)
    }

    proptest! {
        #[test]
        fn a_key_belongs_to_exactly_one_message(
            one in prop::collection::vec(any::<u8>(), 0..200),
            other in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let secret = secret(1).chunks();
            let (a, b) = (seal_chunk(&secret, &one), seal_chunk(&secret, &other));
            prop_assert_eq!(a.key == b.key, one == other);
            prop_assert_eq!(a.cid == b.cid, one == other);
            prop_assert_eq!(&a, &seal_chunk(&secret, &one));
            prop_assert_eq!(open_chunk(&a.cid, &a.key, &a.bytes).unwrap(), one);
        }

        #[test]
        fn two_tenants_epochs_or_purposes_share_no_chunk(
            plain in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let next = TenantSecret::new(TenantId([1; 16]), 2, [1; 32]);
            let sealed = [secret(1).chunks(), secret(1).nodes(), secret(2).chunks(), next.chunks()]
                .map(|secret| seal_chunk(&secret, &plain));
            for (i, a) in sealed.iter().enumerate() {
                for b in &sealed[i + 1..] {
                    prop_assert!(a.cid != b.cid && a.key != b.key && a.bytes != b.bytes);
                }
            }
        }

        #[test]
        fn a_flipped_bit_is_found_before_anything_is_decrypted(
            plain in prop::collection::vec(any::<u8>(), 0..200),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut chunk = seal_chunk(&secret(1).chunks(), &plain);
            let bit = bit.index(chunk.bytes.len() * 8);
            chunk.bytes[bit / 8] ^= 1 << (bit % 8);
            let wrong = Err(OpenError::WrongAddress(chunk.cid));
            prop_assert_eq!(open_chunk(&chunk.cid, &chunk.key, &chunk.bytes), wrong);
            // Even under the address of the changed bytes, the key refuses them.
            let cid = chunk_id(&chunk.bytes);
            let opened = open_chunk(&cid, &chunk.key, &chunk.bytes);
            prop_assert_eq!(opened, Err(OpenError::WrongKey(cid)));
        }

        #[test]
        fn an_envelope_with_any_bit_flipped_stays_closed(bit in any::<prop::sample::Index>()) {
            let to = SealingSecret::from_seed([9; 32]);
            let (_, envelope) = envelope_for(&to);
            let mut bytes = codec::encode(&envelope);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(changed) = codec::decode::<Envelope>(&bytes, 1 << 16) {
                prop_assert!(changed == envelope || open_envelope(&changed, &to, Millis(0)).is_err());
            }
        }
    }

    // Computed by other implementations: blake3 and libsodium.
    const GOLDEN_KEY: &str = "1a4ab7bcc66b1c5785f973d16567b74dd397706e3e3e529817ac8bd6caebf217";
    const GOLDEN_CID: &str = "24de1333d96995815e6e3d5b1a620d733d8c6c80b650eee795f6371fcbed1480";

    #[test]
    fn chunk_bytes_never_drift() {
        let chunk = seal_chunk(&secret(1).chunks(), b"meshfarm");
        let hex = crate::id::hex;
        assert_eq!(chunk.bytes.len(), 8 + SEAL_OVERHEAD);
        assert_eq!(hex(&chunk.key.0), GOLDEN_KEY);
        assert_eq!(chunk.cid.to_string(), GOLDEN_CID);
    }

    #[test]
    fn lengths_that_no_chunk_has_are_refused() {
        for len in [0, SEAL_OVERHEAD - 1, MAX_SEALED + 1] {
            let bytes = vec![0; len];
            let opened = open_chunk(&chunk_id(&bytes), &ChunkKey([0; 32]), &bytes);
            assert_eq!(opened, Err(OpenError::BadLength(len)));
        }
        let largest = seal_chunk(&secret(1).chunks(), &vec![7; MAX_PLAIN]);
        assert_eq!(
            open_chunk(&largest.cid, &largest.key, &largest.bytes).unwrap().len(),
            MAX_PLAIN
        );
    }

    #[test]
    fn an_envelope_opens_for_its_peer_in_its_time_only() {
        let to = SealingSecret::from_seed([9; 32]);
        let (_, envelope) = envelope_for(&to);
        let wire: Envelope = codec::decode(&codec::encode(&envelope), 1 << 16).unwrap();
        assert_eq!(open_envelope(&wire, &to, Millis(999)).unwrap().as_slice(), b"the keys");
        assert_eq!(open_envelope(&wire, &to, Millis(1000)), Err(EnvelopeError::Expired));
        let other = SealingSecret::from_seed([10; 32]);
        assert_eq!(open_envelope(&wire, &other, Millis(0)), Err(EnvelopeError::OtherKey));
    }

    #[test]
    fn an_envelope_signed_anew_for_another_job_does_not_authenticate() {
        let to = SealingSecret::from_seed([9; 32]);
        let (signer, mut envelope) = envelope_for(&to);
        envelope.address.job = JobId([99; 16]);
        let unsigned = EnvelopeError::Unsigned(signer.site());
        assert_eq!(open_envelope(&envelope, &to, Millis(0)), Err(unsigned));
        envelope.signature = sign(&signer, "offer", &envelope_statement(&envelope));
        assert_eq!(open_envelope(&envelope, &to, Millis(0)), Err(EnvelopeError::Forged));
    }

    #[test]
    fn a_degenerate_key_is_refused_by_both_ends() {
        let to = SealingSecret::from_seed([9; 32]);
        let (signer, mut envelope) = envelope_for(&to);
        envelope.ephemeral = [0; 32];
        envelope.signature = sign(&signer, "offer", &envelope_statement(&envelope));
        assert_eq!(open_envelope(&envelope, &to, Millis(0)), Err(EnvelopeError::WeakKey));
        let address = Address { key: SealingKey([0; 32]), ..envelope.address };
        let seed = EnvelopeSeed { ephemeral: [7; 32], nonce: [8; 24] };
        let sealed = seal_envelope(&signer, address, b"", seed);
        assert_eq!(sealed, Err(EnvelopeError::WeakKey));
    }

    #[test]
    fn a_signature_holds_for_its_signer_context_and_bytes_only() {
        let key = SigningKey::from_seed(&[1; 32]);
        let other = SigningKey::from_seed(&[2; 32]);
        let signature = sign(&key, "receipt", b"ten hours");
        let holds = |public: &[u8; 32], context, bytes: &[u8]| {
            verify(public, context, bytes, &signature).is_ok()
        };
        assert!(holds(&key.site().0, "receipt", b"ten hours"));
        assert!(holds(&key.mesh().0, "receipt", b"ten hours"));
        assert!(!holds(&other.site().0, "receipt", b"ten hours"));
        assert!(!holds(&key.site().0, "profile", b"ten hours"));
        assert!(!holds(&key.site().0, "receipt", b"one hour"));
        assert!(!holds(&key.site().0, "receip", b"t\0ten hours"));
        assert!(!holds(&[0; 32], "receipt", b"ten hours"));
        assert_eq!(SigningKey::from_seed(&key.seed()).site(), key.site());
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let shown = format!(
            "{:?} {:?} {:?} {:?}",
            TenantSecret::new(TenantId([0; 16]), 1, [0xab; 32]),
            secret(1).chunks(),
            ChunkKey([0xab; 32]),
            EnvelopeSeed { ephemeral: [0xab; 32], nonce: [0; 24] },
        );
        assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
    }
}
