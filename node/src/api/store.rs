//! What goes over the local API about the store of chunks.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{ChunkId, JobId, Millis, SiteId, TenantId};

use super::{Problem, Progress};

/// What is in the store of chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStat {
    /// Chunks.
    pub chunks: u64,
    /// Their encrypted bytes, with what stands before each.
    pub bytes: u64,
    /// Of them, those of content in use.
    pub pinned: u64,
    /// Of them, those that no known content uses, such as of transfers that broke off.
    pub strays: u64,
    /// What a collection would remove now.
    pub collectable: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes that they take on the disk.
    pub disk: u64,
    /// Of them, those of removed chunks: they come back with the next compaction.
    pub reclaimable: u64,
    /// Segments whose index was lost and that are being read again.
    pub unread: u64,
    /// Bytes free on the disk.
    pub free: u64,
    /// Other sites' work is not taken when less is free.
    pub keep_free: u64,
    /// Damaged chunks that were ever found.
    pub damaged: u64,
    /// When every chunk had been verified the last time.
    pub verified: Option<Millis>,
    /// By whose content it is.
    pub tenants: Vec<TenantBytes>,
}

/// What a tenant has in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantBytes {
    /// The site that brought it.
    pub site: SiteId,
    /// The site's name.
    pub name: String,
    /// The tenant. None: results of tasks.
    pub tenant: Option<TenantId>,
    /// Encrypted bytes.
    pub bytes: u64,
    /// Of them, those in use.
    pub pinned: u64,
    /// The most that it may have. None: no limit.
    pub quota: Option<u64>,
}

/// What to verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Read the segments without their index first, and index again what is found.
    #[serde(default)]
    pub rebuild: bool,
}

/// One line of the answer to a verification; the last is not a progress line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyLine {
    /// It goes on.
    Progress(Progress),
    /// Every chunk was looked at.
    Verified(StoreVerified),
    /// It broke off.
    Problem(Problem),
}

/// What looking at every chunk found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreVerified {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// Their encrypted bytes.
    pub bytes: u64,
    /// Chunks that the index had lost.
    pub found: u64,
    /// How many are damaged; they were forgotten and are fetched again when they are needed.
    pub n_damaged: u64,
    /// The first of them.
    pub damaged: Vec<ChunkId>,
    /// Jobs of this site, not ended, that need one of them: they are to be submitted again.
    pub jobs: Vec<JobId>,
}

/// How to collect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collect {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
    /// Make so many bytes free, also from content that is not old yet.
    #[serde(default)]
    pub wanted: u64,
}

/// What a collection removed, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCollected {
    /// Nothing was removed: this is what would go.
    pub dry_run: bool,
    /// Contents that are no longer kept.
    pub contents: u64,
    /// Chunks that went with them.
    pub chunks: u64,
    /// Their encrypted bytes.
    pub bytes: u64,
    /// Segments that were compacted.
    pub segments: u64,
    /// Why nothing was removed although something might be.
    pub blocked: Option<String>,
}
