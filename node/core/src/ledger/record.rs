//! What the ledger makes durable: charges, chains and their receipts, what was refused, and what our own tasks used.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{AttemptId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{Entry, Money, Terms, Used};
use meshfarm_protocol::seal::{Signature, content_hash};

/// Names all receipts of one lender for one borrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChainId {
    /// Who lent, and makes the receipts.
    pub lender: SiteId,
    /// Who borrowed, and answers them.
    pub borrower: SiteId,
}

/// An attempt that counts and that no receipt names yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeRecord {
    /// The attempt.
    pub attempt: AttemptId,
    /// Under which lease.
    pub lease: LeaseId,
    /// Who lent to whom.
    pub chain: ChainId,
    /// Whose job it was.
    pub tenant: TenantId,
    /// On what terms.
    pub terms: Terms,
    /// How it was isolated.
    pub isolation: Level,
    /// What it used: the lender's figures at the lender, at the borrower what it believes of them.
    pub used: Used,
    /// When it was accepted.
    pub at: Millis,
}

/// How far a chain is: the sum of everything that both sides have signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRecord {
    /// Which.
    pub chain: ChainId,
    /// So many receipts are answered: the place of the next one.
    pub next: u64,
    /// Hash of the last of them; all zero before the first.
    #[serde(with = "serde_bytes")]
    pub head: [u8; 32],
    /// What they are over, as far as both sides agree.
    pub used: Used,
    /// What is owed, as far as both sides agree.
    pub owed: Money,
    /// What the lender asks beyond that.
    pub contested: Money,
    /// How many of them are contested.
    pub disputes: u64,
    /// When the last contested ones were answered, the newest last.
    pub recent: Vec<Millis>,
    /// The month of `waived`, counted from the year 0.
    pub month: u64,
    /// What the lender has waived in that month.
    pub waived: Money,
}

/// A receipt in its chain. Our own signature is not kept: whoever has the key makes the same one again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRecord {
    /// The chain.
    pub chain: ChainId,
    /// Its place there.
    pub sequence: u64,
    /// An encoded [`meshfarm_protocol::receipt::Receipt`].
    #[serde(with = "serde_bytes")]
    pub receipt: Vec<u8>,
    /// The other site's signature; none while we are the lender and there is no answer.
    pub signature: Option<Signature>,
    /// An encoded [`meshfarm_protocol::receipt::Verdict`]; empty before there is an answer.
    #[serde(with = "serde_bytes")]
    pub verdict: Vec<u8>,
}

/// Why a receipt was not even answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misdeed {
    /// There is another one of its place, which both sides have signed, or it follows another one than the last.
    Forked,
    /// Those before it are lacking, and its lender does not send them.
    Skipped,
    /// It counts in another mesh than the lease was granted in.
    OtherMesh,
    /// Too many of its lender's were contested lately.
    TooManyDisputes,
}

impl std::fmt::Display for Misdeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Forked => "it takes the place of another one",
            Self::Skipped => "those before it are lacking",
            Self::OtherMesh => "it is of another mesh than its lease",
            Self::TooManyDisputes => "too many of that site's were contested today",
        })
    }
}

/// A receipt that was refused, with its lender's signature: whoever reads it can check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MisdeedRecord {
    /// Who sent it.
    pub site: SiteId,
    /// Its place among those of the site that are kept.
    pub n: u32,
    /// When it came.
    pub at: Millis,
    /// Why it was refused.
    pub misdeed: Misdeed,
    /// The receipt.
    pub entry: Entry,
}

/// What tasks of one project used on this site's own machines on one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyRecord {
    /// Days since 1970, in UTC.
    pub day: u64,
    /// The owner of their keys.
    pub tenant: TenantId,
    /// The project.
    pub project: String,
    /// The project's name in fixed length.
    #[serde(with = "serde_bytes")]
    pub name: [u8; 16],
    /// What they used.
    pub used: Used,
}

impl TallyRecord {
    /// A project's name in fixed length.
    pub(crate) fn name_of(project: &str) -> [u8; 16] {
        let hash = content_hash(project.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        key
    }
}
