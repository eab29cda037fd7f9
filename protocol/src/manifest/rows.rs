//! How manifests look on the wire: one-letter keys, and arrays where there are many.

use serde::{Deserialize, Serialize};

use super::{Body, Entry, File, INLINE_BELOW, ManifestError, NodeRef, Tree, contradiction};
use crate::id::{ChunkId, Millis, TenantId};
use crate::seal::ChunkKey;

#[derive(Deserialize)]
pub(super) struct Peek {
    pub(super) v: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootRow {
    pub(super) v: u64,
    pub(super) tenant: TenantId,
    pub(super) epoch: u64,
    pub(super) files: Link,
    pub(super) tree: Link,
    pub(super) n: u64,
    pub(super) bytes: u64,
    pub(super) created: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeRow {
    pub(super) l: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) f: Option<Vec<FileRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) e: Option<Vec<Entry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) k: Option<Vec<Link>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "(ChunkId, ChunkKey, u64, u64)", into = "(ChunkId, ChunkKey, u64, u64)")]
pub(super) struct Link {
    pub(super) cid: ChunkId,
    pub(super) key: ChunkKey,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

impl Link {
    pub(super) fn node(self, tree: Tree, level: Option<u8>) -> NodeRef {
        let Self { cid, key, count, bytes } = self;
        NodeRef { cid, key, tree, level, count, bytes }
    }
}

impl From<(ChunkId, ChunkKey, u64, u64)> for Link {
    fn from((cid, key, count, bytes): (ChunkId, ChunkKey, u64, u64)) -> Self {
        Self { cid, key, count, bytes }
    }
}

impl From<Link> for (ChunkId, ChunkKey, u64, u64) {
    fn from(link: Link) -> Self {
        (link.cid, link.key, link.count, link.bytes)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRow {
    pub(super) p: String,
    pub(super) s: u64,
    pub(super) m: u8,
    pub(super) t: u64,
    pub(super) cn: u64,
    #[serde(rename = "in", default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub(super) inline: Option<Vec<u8>>,
}

impl From<File> for FileRow {
    fn from(file: File) -> Self {
        let (cn, inline) = match file.body {
            Body::Inline(bytes) => (0, Some(bytes)),
            Body::Chunks(count) => (count, None),
        };
        let (s, t) = (file.size, file.modified.0);
        Self { p: file.path, s, m: file.executable.into(), t, cn, inline }
    }
}

impl TryFrom<FileRow> for File {
    type Error = ManifestError;

    fn try_from(row: FileRow) -> Result<Self, ManifestError> {
        contradiction(row.m <= 1, "a file has a mode that none has")?;
        let body = match row.inline {
            Some(bytes) => {
                let fits = bytes.len() as u64 == row.s && row.s < INLINE_BELOW && row.cn == 0;
                contradiction(fits, "an inline file has another length than it says")?;
                Body::Inline(bytes)
            }
            None => {
                let fits = row.s >= INLINE_BELOW && (1..=row.s).contains(&row.cn);
                contradiction(fits, "a file has a length that its chunks cannot have")?;
                Body::Chunks(row.cn)
            }
        };
        let modified = Millis(row.t);
        Ok(Self { path: row.p, size: row.s, executable: row.m == 1, modified, body })
    }
}

impl From<(ChunkId, ChunkKey, u32, u8)> for Entry {
    fn from((cid, key, len, flags): (ChunkId, ChunkKey, u32, u8)) -> Self {
        Self { cid, key, len, flags }
    }
}

impl From<Entry> for (ChunkId, ChunkKey, u32, u8) {
    fn from(entry: Entry) -> Self {
        (entry.cid, entry.key, entry.len, entry.flags)
    }
}
