//! Every wire message, as pairs of request and answer, and the history of the wire version.

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::id::{AttemptId, ChunkId, LeaseId, Millis, SiteId};
use crate::lease::{Commit, Declined, Done, Grant, Offer, Status, Want};
use crate::membership::{Certificate, Role};
use crate::profile::Profile;
use crate::receipt::Entry;
use crate::seal::{self, Signature, SigningKey};

/// Wire versions. A change of any byte in `tests/wire_golden.rs` needs a new one.
///
/// 1: the first.
///
/// 2: a lane carries many requests and says what its source has; lenders of one job serve each other by passes.
///
/// 3: what kind of program a session runs travels with its keys; chunks are asked for by the first 12 bytes of their
/// addresses; grants state terms, profiles prices, and leases end in receipts that both sides sign; an offer says how often
/// the work may be passed on.
pub const WIRE_VERSION: u16 = 3;

/// Control protocol: one request and one answer on a stream, each CBOR after a big-endian `u32` length.
pub const CONTROL_PROTOCOL: &str = "/meshfarm/ctl/1";

/// Bulk protocol: one [`LaneHello`] and then [`Ask`]s one way, pieces the other way.
pub const LANE_PROTOCOL: &str = "/meshfarm/lane/3";

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
        /// Whether it counts: its result was taken, or its failure. It is in no receipt otherwise.
        counts: bool,
    },
    /// Lender: sign this receipt. Borrower: here is my word to it. Either: you have lost this one.
    Receipt(Box<Entry>),
    /// I lack receipts of this lender from this place on.
    Behind {
        /// Who lent: the sender or the receiver.
        lender: SiteId,
        /// The place of the first that is lacking.
        next: u64,
    },
    /// Borrower: I need the lease no more.
    Close {
        /// The lease.
        lease: LeaseId,
    },
    /// Borrower: another lender has some of this lease's content, and here is your right to ask it.
    Source {
        /// The lease that the content is for.
        lease: LeaseId,
        /// Who has some of it.
        source: SiteId,
        /// What to show there.
        pass: Box<Pass>,
    },
}

/// A piece of a task's log, in order. One without bytes says that the log ends where it begins.
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
    pub fn sign(profile: &Profile, certificate: Certificate, key: &SigningKey) -> Self {
        let body = codec::encode(profile);
        let signature = seal::sign(key, PROFILE_CONTEXT, &body);
        Self { certificate, body, signature }
    }
}

/// A borrower's word that one of its lenders may take the content of a job from another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    /// An encoded [`PassBody`].
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
    /// By the borrower's key, over `body`.
    pub signature: Signature,
}

/// What a [`Pass`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassBody {
    /// The borrower who gives it.
    pub borrower: SiteId,
    /// The lease that the source has from it.
    pub lease: LeaseId,
    /// Who may ask.
    pub to: SiteId,
    /// Root of the content.
    pub root: ChunkId,
    /// From when on it is worthless.
    pub expires: Millis,
}

/// Signing context of passes.
pub const PASS_CONTEXT: &str = "meshfarm v1 pass";

/// A longer encoded pass body is refused.
const MAX_PASS_BYTES: usize = 512;

impl Pass {
    /// Sign `body` with the borrower's key.
    #[must_use]
    pub fn sign(body: &PassBody, key: &SigningKey) -> Self {
        let body = codec::encode(body);
        let signature = seal::sign(key, PASS_CONTEXT, &body);
        Self { body, signature }
    }

    /// What it says to `to` at `now`; none when it is somebody else's, too old, or not signed by its borrower.
    #[must_use]
    pub fn open(&self, to: SiteId, now: Millis) -> Option<PassBody> {
        let body: PassBody = codec::decode(&self.body, MAX_PASS_BYTES).ok()?;
        let signed = seal::verify(&body.borrower.0, PASS_CONTEXT, &self.body, &self.signature);
        (signed.is_ok() && body.to == to && now < body.expires).then_some(body)
    }
}

/// Opens a lane: who asks with which right, and about what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneHello {
    /// The lease that gives the right to the chunks: one between the two ends, unless there is a pass.
    pub lease: LeaseId,
    /// Root of the content that is asked for.
    pub root: ChunkId,
    /// The right of a lender to ask another one.
    pub pass: Option<Pass>,
}

/// The longest encoded [`LaneHello`].
pub const MAX_LANE_HELLO_BYTES: usize = 1024;

/// Asks for chunks on a lane. They come as pieces in this order; each lane counts its chunks from zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The first [`ASKED_ID_BYTES`] of each chunk's address, at most [`MAX_ASKED`] of them.
    ///
    /// That is enough to find a chunk among any number that grew by themselves, and too much for anybody to hit one of
    /// another's. The receiver checks the whole address; who has two chunks of its own made that begin alike gets the
    /// wrong one of them, for which no source is to blame.
    #[serde(with = "serde_bytes")]
    pub chunks: Vec<u8>,
    /// About how many bytes of this content the receiver still lacks, for people to look at.
    pub left: u64,
}

/// Bytes of an address by which a chunk is asked for.
pub const ASKED_ID_BYTES: usize = 12;

/// How a chunk is asked for.
#[must_use]
pub fn asked_id(chunk: &ChunkId) -> [u8; ASKED_ID_BYTES] {
    let mut id = [0; ASKED_ID_BYTES];
    id.copy_from_slice(&chunk.0[..ASKED_ID_BYTES]);
    id
}

/// More chunks than this in one [`Ask`] are refused.
pub const MAX_ASKED: usize = 4096;

/// The longest encoded [`Ask`].
pub const MAX_ASK_BYTES: usize = MAX_ASKED * ASKED_ID_BYTES + 64;

/// More chunks than this may not be asked for on one lane before the first of them has come.
pub const MAX_UNDER_WAY: usize = 2 * MAX_ASKED;

impl Ask {
    /// Asks for these chunks.
    #[must_use]
    pub fn of(chunks: &[ChunkId], left: u64) -> Self {
        let chunks = chunks.iter().flat_map(asked_id).collect();
        Self { chunks, left }
    }

    /// The beginnings of the addresses; none when they are too many or not whole.
    #[must_use]
    pub fn ids(&self) -> Option<impl ExactSizeIterator<Item = [u8; ASKED_ID_BYTES]> + '_> {
        let (ids, rest) = self.chunks.as_chunks::<ASKED_ID_BYTES>();
        (rest.is_empty() && (1..=MAX_ASKED).contains(&ids.len())).then(|| ids.iter().copied())
    }
}

/// The longest bitmap in which a source says what it has: 4 million chunks.
pub const MAX_HAVE_BYTES: usize = 16 * 1024;

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
    /// Number of the chunk among those that were asked for on this lane.
    pub index: u32,
}

/// What the body of a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// The chunk's ciphertext.
    Chunk,
    /// Nothing: the source does not have the chunk.
    Missing,
    /// A bitmap of the runs of the content that the source has, at most [`MAX_HAVE_BYTES`]. It answers no ask.
    Have,
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
            PieceKind::Have => 3,
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
            2 => PieceKind::Missing,
            3 => PieceKind::Have,
            _ => return None,
        };
        let most = match kind {
            PieceKind::Chunk => MAX_PIECE_BYTES,
            PieceKind::Missing => 0,
            PieceKind::Have => MAX_HAVE_BYTES,
        };
        let fits = usize::try_from(len).is_ok_and(|len| len <= most);
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
