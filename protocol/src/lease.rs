//! Lease terms: what a borrower asks, what a lender promises, and what it answers instead.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, ChunkId, LeaseId, Millis, TaskNo, TenantId};
use crate::job::SessionSpec;
use crate::profile::{Level, Requirement};
use crate::receipt::Terms;
use crate::seal::{ChunkKey, Envelope, SealingKey};

/// How often a borrower says that it still wants a lease, when nothing else changes.
pub const RENEW_EVERY: Millis = Millis::seconds(5);

/// How long a lender waits for a silent borrower before it takes its slots back.
///
/// Twelve renewals: a node that is restarted, or a laptop whose line drops, is back within a minute, and the
/// frames that it has running are worth more than the slots' idle minute.
pub const BORROWER_GRACE: Millis = RENEW_EVERY.times(12);

/// How long a borrower waits for a silent lender before it gives the tasks to somebody else.
///
/// Six renewals: one can be lost, two can be a busy link, five are a restart with a large database.
pub const LENDER_GRACE: Millis = RENEW_EVERY.times(6);

/// How long reserved slots wait for the commit.
pub const RESERVATION: Millis = Millis::seconds(10);

/// How long a lender keeps finished work for a borrower that does not fetch it.
pub const KEEP_FINISHED: Millis = Millis::seconds(24 * 3600);

/// Work is handed on from site to site at most so often: each hop is a copy of the scene, and somebody more who can read it.
pub const MAX_HOPS: u8 = 4;

/// More attempts than this in one lease are refused.
pub const MAX_ATTEMPTS: usize = 1024;

/// Asks for slots. It names no key and no file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Chosen by the borrower.
    pub lease: LeaseId,
    /// Whose job it is.
    pub tenant: TenantId,
    /// What each host must offer.
    pub requirement: Requirement,
    /// The weakest isolation that will do.
    pub isolation: Level,
    /// Slots that the borrower could use now.
    pub slots: u32,
    /// Tasks that are waiting behind them.
    pub tasks: u32,
    /// Root of the content that the tasks read.
    pub root: ChunkId,
    /// Bytes of that content.
    pub bytes: u64,
    /// 0 to 100; the lender's policy caps it.
    pub priority: u8,
    /// How many sites the lender's may hand the tasks on through, at most [`MAX_HOPS`]. Its own hosts are no other site.
    pub hops: u8,
}

/// Promises slots until `until`, unless a commit follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The offer that it answers.
    pub lease: LeaseId,
    /// How many, at least one and at most what was asked.
    pub slots: u32,
    /// How long they are reserved, counted from receipt.
    pub reserved: Millis,
    /// X25519 key that the commit's envelope is sealed to.
    pub sealing_key: SealingKey,
    /// The isolation that the jail will have.
    pub isolation: Level,
    /// What it costs.
    pub terms: Terms,
}

/// Why a lender does not lend. The class is all that a borrower learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Declined {
    /// Every slot is taken.
    Busy,
    /// No host of the site fits the requirement.
    Misfit,
    /// The site's policy does not lend to this tenant, or not now.
    Policy,
    /// The store is full.
    Full,
    /// The offer itself was not understood.
    Malformed,
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "every slot is taken",
            Self::Misfit => "no host fits the requirement",
            Self::Policy => "the site's policy does not lend now",
            Self::Full => "the site's disk is full",
            Self::Malformed => "the offer was not understood",
        })
    }
}

/// One try of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The fence: a result is accepted for this try only.
    pub attempt: AttemptId,
    /// The task within the leased step.
    pub task: TaskNo,
}

/// Everything that the borrower wants of a lease at this moment; the lender makes it so.
///
/// Assigning, renewing and stopping are one statement, because a statement of the whole can be lost,
/// repeated and overtaken without harm: the highest `version` counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Want {
    /// The lease.
    pub lease: LeaseId,
    /// Grows with every change.
    pub version: u64,
    /// The attempts that shall run or wait, oldest first. What is missing here is stopped.
    pub attempts: Vec<Assignment>,
    /// Whether more may follow. When not, slots that nothing waits for return to the lender.
    pub more: bool,
}

/// Turns reserved slots into a lease, and hands over the keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// What shall run first.
    pub want: Want,
    /// Root of the content.
    pub root: ChunkId,
    /// [`LeaseSecrets`], sealed to the lender.
    pub envelope: Envelope,
}

/// What only the lender may read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseSecrets {
    /// Key of the manifest root.
    pub root_key: ChunkKey,
    /// What the keys of the outputs are sealed to.
    pub outputs_to: SealingKey,
    /// What the jail is built from.
    pub session: SessionSpec,
}

impl fmt::Debug for LeaseSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseSecrets(step {})", self.session.step)
    }
}

/// What a lender says of a lease, in answer to every [`Want`] and when something changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The lease.
    pub lease: LeaseId,
    /// How far it is.
    pub phase: Phase,
    /// Attempts that are running now.
    pub running: Vec<AttemptId>,
    /// Attempts that have ended and whose [`Done`] is on its way.
    pub finished: Vec<AttemptId>,
}

/// How far a lender is with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Content is on its way.
    Preparing,
    /// Slots render.
    Active,
    /// What runs goes on to its end; everything else goes back, and nothing more is taken.
    Draining,
    /// The lender gives back everything that is not in `finished`, or never had it.
    Gone,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The task's action ended well.
    Done,
    /// It did not: why, in the renderer's or the lender's words, at most [`MAX_REASON`] bytes.
    Failed(String),
}

/// Longest reason of a failure, in bytes.
pub const MAX_REASON: usize = 2048;

/// What an attempt used, measured outside the jail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// From start to end of the attempt.
    pub wall: Millis,
    /// Processor time of all its processes.
    pub cpu: Millis,
    /// Peak memory in bytes.
    pub peak_memory: u64,
    /// Bytes of its outputs.
    pub output_bytes: u64,
}

/// Where an attempt's outputs are: a manifest whose root key is sealed to the borrower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// Root of the manifest.
    pub root: ChunkId,
    /// Its key, sealed.
    pub envelope: Envelope,
}

/// An attempt has ended. Repeated until the borrower says that it has everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// The lease.
    pub lease: LeaseId,
    /// The attempt.
    pub attempt: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// What it made; none when it made nothing.
    pub outputs: Option<Outputs>,
    /// What it used.
    pub usage: Usage,
}
