//! Opening the chunks of files, in the form and with the length that the manifest says.

use chacha20poly1305::aead::{AeadInOut, inout::InOutBuf};
use chacha20poly1305::{Tag, XNonce};

use super::{COMPRESSED, ChunkKey, MAX_PLAIN, OpenError, SEAL_OVERHEAD};
use super::{check_chunk, cipher, decrypt, header, open_chunk};
use crate::compress;
use crate::id::ChunkId;

/// Opens a chunk of a file, after its address was checked: in the form and with the length that its
/// entry in the manifest says. See [`Entry::open`](crate::manifest::Entry::open).
///
/// # Errors
/// When the bytes are not those of `cid`, or `key` is not theirs, or the entry has it wrong.
pub fn open_form(
    cid: &ChunkId,
    key: &ChunkKey,
    (flags, len): (u8, u32),
    bytes: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let len = len as usize;
    match flags {
        0 => {
            let plain = open_chunk(cid, key, bytes)?;
            if plain.len() == len { Ok(plain) } else { Err(OpenError::BadLength(len)) }
        }
        COMPRESSED if len > MAX_PLAIN => Err(OpenError::BadLength(len)),
        COMPRESSED => {
            check_chunk(cid, bytes)?;
            let header = header(COMPRESSED, len);
            let packed = decrypt(&key.0, &[0; 24], &header, bytes);
            let packed = packed.ok_or(OpenError::WrongKey(*cid))?;
            compress::unpack(&packed, len).ok_or(OpenError::Unpacks(*cid))
        }
        _ => Err(OpenError::UnknownForm(flags)),
    }
}

/// Opens a chunk of a file whose address was checked when it was stored, as [`open_form`] does, without hashing it
/// once more: what was damaged since does not authenticate. The sealed `bytes` become the plain ones where they lie.
///
/// # Errors
/// When `key` is not theirs or they are damaged, which leaves them as they were, or the entry has it wrong.
pub fn open_stored(
    cid: &ChunkId,
    key: &ChunkKey,
    (flags, len): (u8, u32),
    bytes: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let len = len as usize;
    let sealed = bytes.len();
    let body = sealed.checked_sub(SEAL_OVERHEAD).ok_or(OpenError::BadLength(sealed))?;
    match flags {
        0 if len != body => return Err(OpenError::BadLength(len)),
        COMPRESSED if len > MAX_PLAIN => return Err(OpenError::BadLength(len)),
        0 | COMPRESSED => {}
        _ => return Err(OpenError::UnknownForm(flags)),
    }
    let (message, tag) = bytes.split_at_mut(body);
    let tag = Tag::try_from(&*tag).map_err(|_short| OpenError::BadLength(sealed))?;
    let nonce = XNonce::from([0; 24]);
    let opened = cipher(&key.0).decrypt_inout_detached(
        &nonce,
        &header(flags, len),
        InOutBuf::from(message),
        &tag,
    );
    opened.map_err(|_forged| OpenError::WrongKey(*cid))?;
    bytes.truncate(body);
    if flags == COMPRESSED {
        *bytes = compress::unpack(bytes, len).ok_or(OpenError::Unpacks(*cid))?;
    }
    Ok(())
}
