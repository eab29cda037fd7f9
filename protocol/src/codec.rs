//! Bytes to meaning and back: CBOR with limits on size and depth, before anything is believed.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Deeper nesting than this is refused.
const MAX_DEPTH: usize = 16;

/// Why bytes have no meaning here. Nothing was changed; blame whoever sent them.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the receiver allows for this kind of message.
    #[error("{len} bytes where at most {max} are allowed")]
    TooLong {
        /// What came.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not CBOR, or not of the wanted shape.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Something follows the value.
    #[error("{0} bytes too many at the end")]
    Trailing(usize),
}

/// The bytes of `value`.
///
/// # Panics
/// Never for our own types: writing to memory cannot fail, and none of them refuses to be serialized.
#[must_use]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("our types always serialize into memory");
    bytes
}

/// The value in `bytes`, which must be all of them and at most `max`.
///
/// # Errors
/// When the bytes are too long, malformed or followed by more.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong { len: bytes.len(), max });
    }
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_allocates_nothing_and_is_refused() {
        // An array, a text and a byte string that each claim 2^62 elements.
        for head in [0x9b_u8, 0x7b, 0x5b] {
            let bytes = [head, 0x40, 0, 0, 0, 0, 0, 0, 0];
            assert!(decode::<Vec<u64>>(&bytes, 64).is_err());
            assert!(decode::<String>(&bytes, 64).is_err());
            assert!(decode::<serde_bytes::ByteBuf>(&bytes, 64).is_err());
        }
    }

    #[test]
    fn depth_length_and_rest_are_limited() {
        assert!(matches!(decode::<u8>(&[0; 65], 64), Err(DecodeError::TooLong { .. })));
        assert!(matches!(decode::<u8>(&[1, 1], 64), Err(DecodeError::Trailing(1))));
        let deep = [0x81; 63];
        assert!(decode::<ciborium::Value>(&deep, 64).is_err());
        assert_eq!(decode::<u8>(&[1], 64).unwrap(), 1);
    }
}
