//! Every wire message, as pairs of request and answer, and the history of the wire version.

use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, ChunkId, LeaseId, Millis};
use crate::lease::{Commit, Declined, Done, Grant, Offer, Status, Want};
use crate::membership::{Certificate, Role};
use crate::profile::Profile;
use crate::seal::Signature;

/// Wire versions. A change of any byte in `tests/wire_golden.rs` needs a new one.
///
/// 1: the first.
pub const WIRE_VERSION: u16 = 1;

/// Control protocol: one request and one answer on a stream, each CBOR after a big-endian `u32` length.
pub const CONTROL_PROTOCOL: &str = "/meshfarm/ctl/1";

/// Bulk protocol: one [`LaneRequest`] one way, pieces the other way.
pub const LANE_PROTOCOL: &str = "/meshfarm/lane/1";

/// A control message longer than this is refused before it is read.
pub const MAX_CONTROL_BYTES: usize = 1024 * 1024;

/// More certificates than this in one hello are refused: a site may belong to so many meshes.
pub const MAX_CERTIFICATES: usize = 16;

/// More bytes than this of a log in one message are refused.
pub const MAX_LOG_BYTES: usize = 64 * 1024;

/// What one node asks another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The first request on every connection: here is who I am.
    Hello(Hello),
    /// Let me in. The only thing that a stranger may ask.
    Join(Join),
    /// What one core says to another.
    Core(Message),
    /// More of a task's log.
    Log(LogPart),
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Here is who I am.
    Hello(Hello),
    /// Welcome.
    Joined(Certificate),
    /// No, and why, in words for a person.
    Refused(String),
    /// Heard; what it means is said in a message of its own.
    Heard,
    /// So many bytes of that log are here now.
    LogHave(u64),
}

/// Who a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Oldest and newest wire version that it speaks.
    pub versions: (u16, u16),
    /// Its membership certificates.
    pub certificates: Vec<Certificate>,
}

/// A request to be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The ticket's one-time secret.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; 32],
    /// The name that the site wants.
    pub name: String,
    /// The role that the ticket gives.
    pub role: Role,
}

/// What one site's core says to another's. The sender is known from the connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Borrower: may I have slots?
    Offer(Offer),
    /// Lender: yes.
    Grant(Grant),
    /// Lender: no.
    Decline {
        /// The offer that it answers.
        lease: LeaseId,
        /// Why.
        reason: Declined,
        /// When asking again makes sense.
        retry_after: Millis,
    },
    /// Borrower: take them, here are the keys.
    Commit(Box<Commit>),
    /// Borrower: this is what I want of the lease now.
    Want(Want),
    /// Lender: this is how it stands.
    Status(Status),
    /// Lender: an attempt has ended.
    Done(Box<Done>),
    /// Borrower: I have everything of this attempt, forget it.
    Accepted {
        /// The lease.
        lease: LeaseId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// Borrower: I need the lease no more.
    Close {
        /// The lease.
        lease: LeaseId,
    },
}

/// A piece of a task's log, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPart {
    /// Whose log.
    pub attempt: AttemptId,
    /// Where `bytes` begin in it.
    pub offset: u64,
    /// At most [`MAX_LOG_BYTES`].
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// A profile as it is gossiped: with the certificate that its site shows and its own signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedProfile {
    /// Membership of the site in the mesh of the topic.
    pub certificate: Certificate,
    /// An encoded [`Profile`].
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
    /// By the site's key, over `body`.
    pub signature: Signature,
}

/// Signing context of profiles.
pub const PROFILE_CONTEXT: &str = "meshfarm v1 profile";

impl SignedProfile {
    /// Sign `profile` with its site's key.
    #[must_use]
    pub fn sign(
        profile: &Profile,
        certificate: Certificate,
        key: &crate::seal::SigningKey,
    ) -> Self {
        let body = crate::codec::encode(profile);
        let signature = crate::seal::sign(key, PROFILE_CONTEXT, &body);
        Self { certificate, body, signature }
    }
}

/// Asks a source for chunks; it sends them as pieces in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneRequest {
    /// The lease that gives the right to them.
    pub lease: LeaseId,
    /// At most [`MAX_WANTED`].
    pub chunks: Vec<ChunkId>,
}

/// More chunks than this in one lane request are refused.
pub const MAX_WANTED: usize = 4096;

/// Longest body of a piece: a chunk is at most 1 MiB and its seal.
pub const MAX_PIECE_BYTES: usize = 4 * 1024 * 1024 + 64;

/// Length of a piece's header: `len: u32, type: u8, flags: u8, reserved: u16, idx: u32`, big-endian.
pub const PIECE_HEADER_BYTES: usize = 12;

/// Head of a piece on a bulk lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHeader {
    /// Length of the body in bytes.
    pub len: u32,
    /// What the body is.
    pub kind: PieceKind,
    /// Index of the chunk in the request.
    pub index: u32,
}

/// What the body of a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// The chunk's ciphertext.
    Chunk,
    /// Nothing: the source does not have the chunk.
    Missing,
}

impl PieceHeader {
    /// As it stands on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; PIECE_HEADER_BYTES] {
        let mut bytes = [0; PIECE_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.len.to_be_bytes());
        bytes[4] = match self.kind {
            PieceKind::Chunk => 1,
            PieceKind::Missing => 2,
        };
        bytes[8..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    /// The header in `bytes`; none when it is not one, or its body would be too long.
    #[must_use]
    pub fn from_bytes(bytes: [u8; PIECE_HEADER_BYTES]) -> Option<Self> {
        let [a, b, c, d, kind, flags, r0, r1, i, j, k, l] = bytes;
        let len = u32::from_be_bytes([a, b, c, d]);
        let kind = match kind {
            1 => PieceKind::Chunk,
            2 if len == 0 => PieceKind::Missing,
            _ => return None,
        };
        let fits = usize::try_from(len).is_ok_and(|len| len <= MAX_PIECE_BYTES);
        (fits && [flags, r0, r1] == [0; 3]).then_some(Self {
            len,
            kind,
            index: u32::from_be_bytes([i, j, k, l]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_header_survives_the_wire_and_refuses_what_is_none() {
        let header = PieceHeader { len: 70_000, kind: PieceKind::Chunk, index: 3 };
        assert_eq!(PieceHeader::from_bytes(header.to_bytes()), Some(header));
        let longest = u32::try_from(MAX_PIECE_BYTES).unwrap();
        for (len, fits) in [(longest, true), (longest + 1, false), (u32::MAX, false)] {
            let header = PieceHeader { len, ..header };
            assert_eq!(PieceHeader::from_bytes(header.to_bytes()).is_some(), fits, "{len}");
        }
        for (at, value) in [(0, 0xff), (4, 9), (5, 1), (7, 1)] {
            let mut bytes = header.to_bytes();
            bytes[at] = value;
            assert_eq!(PieceHeader::from_bytes(bytes), None);
        }
    }
}
