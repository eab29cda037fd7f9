//! Names of things: ids, times and sizes as newtypes, so that none is mistaken for another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares a fixed-size byte id that is written as hex for people and JSON, and as bytes in CBOR.
macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The first eight hex digits: enough for a person to tell two apart.
            #[must_use]
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let mut bytes = [0; $len];
                unhex(text, &mut bytes).ok_or(BadId { want: $len * 2 })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                if out.is_human_readable() {
                    out.serialize_str(&hex(&self.0))
                } else {
                    out.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                deserialize_bytes(from).map(Self)
            }
        }
    };
}

byte_id!(
    /// A site of the mesh: the Ed25519 public key of its peer.
    SiteId,
    32
);
byte_id!(
    /// A mesh: the Ed25519 public key of its root authority.
    MeshId,
    32
);
byte_id!(
    /// Who owns a job and its keys: a project of a site.
    TenantId,
    16
);
byte_id!(
    /// A job, unique over the whole mesh.
    JobId,
    16
);
byte_id!(
    /// A lease between a borrower and a lender, chosen by the borrower.
    LeaseId,
    16
);
byte_id!(
    /// One try to run one task, chosen by the borrower: the fence between an old try and a new one.
    AttemptId,
    16
);
byte_id!(
    /// Address of a chunk: BLAKE3 of its ciphertext, which anybody who holds the ciphertext can check.
    ChunkId,
    32
);

/// Index of a step within its job, in the order of the template.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepNo(pub u32);

/// Index of a task within its step's parameter space, counted from zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskNo(pub u32);

impl fmt::Display for StepNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TaskNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment or a span in milliseconds. A moment counts from the Unix epoch in the daemon and from zero in the simulator.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// So many whole seconds.
    #[must_use]
    pub const fn seconds(n: u64) -> Self {
        Self(n * 1000)
    }

    /// This span `n` times over, saturating.
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }

    /// The moment `span` later, saturating.
    #[must_use]
    pub const fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The span since `earlier`, zero when that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// A text that is no id of the wanted kind. Nothing was changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an id: {want} hexadecimal digits are wanted")]
pub struct BadId {
    want: usize,
}

/// Lower-case hex of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

fn unhex(text: &str, into: &mut [u8]) -> Option<()> {
    if text.len() != into.len() * 2 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in into.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        if pair.starts_with('+') {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(())
}

fn deserialize_bytes<'de, const N: usize, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<[u8; N], D::Error> {
    struct Visitor<const N: usize>;
    impl<const N: usize> serde::de::Visitor<'_> for Visitor<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes, or their hexadecimal digits")
        }

        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<[u8; N], E> {
            let wrong = || E::invalid_length(bytes.len(), &self);
            bytes.try_into().ok().ok_or_else(wrong)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<[u8; N], E> {
            let mut bytes = [0; N];
            let wrong = || E::invalid_value(serde::de::Unexpected::Str(text), &self);
            unhex(text, &mut bytes).map(|()| bytes).ok_or_else(wrong)
        }
    }
    if from.is_human_readable() {
        from.deserialize_str(Visitor)
    } else {
        from.deserialize_bytes(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_refuses_other_text() {
        let id = LeaseId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", "zz", &"g".repeat(32), &"+1".repeat(16), &"é".repeat(16)] {
            assert!(bad.parse::<LeaseId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn time_never_wraps() {
        assert_eq!(Millis(3).since(Millis(5)), Millis(0));
        assert_eq!(Millis(u64::MAX).plus(Millis(1)), Millis(u64::MAX));
        assert_eq!(Millis(u64::MAX).times(2), Millis(u64::MAX));
    }
}
