//! A file tree as chunks: its format, and reading it from hostile bytes.
//!
//! A manifest is two trees of sealed nodes under one sealed root: the files in order of their paths,
//! and the chunks of all files, flattened in the same order. Nodes end where their content says so,
//! so a small edit changes few of them. The files have a tree of their own because a million rows in
//! the root would pass the longest chunk, and every edit would send them all again.
//!
//! ```cddl
//! root  = { v:1, tenant:bstr .size 16, epoch:uint, files:link, tree:link, n:uint, bytes:uint, created:uint }
//! node  = { l:0, f:[*file] } / { l:0, e:[*entry] } / { l:uint, k:[*link] }
//! file  = { p:tstr, s:uint, m:0/1, t:uint, cn:uint, ?in:bstr }   ; m: executable, t: ms, cn: chunks
//! entry = [ cid:bstr .size 32, kc:bstr .size 32, len:uint, fl:0/1 ]           ; fl: 1 when compressed
//! link  = [ cid:bstr .size 32, kc:bstr .size 32, count:uint, bytes:uint ]
//! ```

pub mod build;
pub mod path;
mod rows;

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::id::{ChunkId, Millis, TenantId};
use crate::seal::{self, ChunkKey, Fresh, MAX_PLAIN, OpenError};

use path::{BadPath, Order};
use rows::{Link, NodeRow, Peek, RootRow};

/// Contents shorter than this, in bytes, stand in the manifest itself.
pub const INLINE_BELOW: u64 = 1024;

/// No honest tree is higher: 512 to the power of 8 is beyond every limit.
const MAX_LEVEL: u8 = 8;

/// What finds and opens a manifest. Whoever has it can read all its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootLink {
    /// Address of the root.
    pub cid: ChunkId,
    /// Key of the root.
    pub key: ChunkKey,
}

/// What a reader accepts from a manifest that it does not trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most files.
    pub files: u64,
    /// The most chunks, repeated ones counted each time.
    pub entries: u64,
    /// The most bytes of root and nodes together.
    pub manifest_bytes: u64,
    /// The most bytes of all files together: what the lender granted.
    pub bytes: u64,
}

impl Limits {
    /// The usual limits, for files of at most `bytes` together.
    #[must_use]
    pub const fn granting(bytes: u64) -> Self {
        Self { files: 1_000_000, entries: 2_000_000, manifest_bytes: 64 << 20, bytes }
    }

    /// Whether so many files of so many bytes together are allowed, before any of them is read.
    ///
    /// # Errors
    /// When they are too many or too long.
    pub fn check(&self, files: u64, bytes: u64) -> Result<(), ManifestError> {
        at_most("files", files, self.files)?;
        at_most("bytes of files", bytes, self.bytes)
    }
}

/// One file of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it lies: names with `/` between them, the first one a root of the job's layout.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it may be executed.
    pub executable: bool,
    /// When it was last changed.
    pub modified: Millis,
    /// Where its contents are.
    pub body: Body,
}

/// Where the contents of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Here. Always so below [`INLINE_BELOW`] bytes, never above.
    Inline(Vec<u8>),
    /// In so many of the manifest's chunks, after those of the files before it.
    Chunks(u64),
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(ChunkId, ChunkKey, u32, u8)", into = "(ChunkId, ChunkKey, u32, u8)")]
pub struct Entry {
    /// Its address.
    pub cid: ChunkId,
    /// Its key.
    pub key: ChunkKey,
    /// Its length when opened, in bytes.
    pub len: u32,
    /// How it was sealed: 0 as it is, or [`seal::COMPRESSED`].
    pub flags: u8,
}

/// The head of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Whose files these are.
    pub tenant: TenantId,
    /// The epoch of the tenant's secret.
    pub epoch: u64,
    /// When the manifest was made.
    pub created: Millis,
    /// How many files there are.
    pub n_files: u64,
    /// How many chunks they have, repeated ones counted each time.
    pub n_chunks: u64,
    /// How long all files are together, in bytes.
    pub bytes: u64,
    /// Top of the tree of files.
    pub files: NodeRef,
    /// Top of the tree of chunks.
    pub tree: NodeRef,
}

/// Which of the two trees a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// The files.
    Files,
    /// The chunks.
    Chunks,
}

/// A node that can be fetched, and what its parent says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRef {
    /// Its address.
    pub cid: ChunkId,
    key: ChunkKey,
    tree: Tree,
    /// Unknown for the top of a tree.
    level: Option<u8>,
    count: u64,
    bytes: u64,
}

/// What stands in a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Nodes one level below, at least one.
    Nodes(Vec<NodeRef>),
    /// Files in order.
    Files(Vec<File>),
    /// Chunks in order.
    Chunks(Vec<Entry>),
}

/// Why a manifest is refused. Whoever wrote it is at fault, not who sent it: addresses matched.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A node's bytes are not those of its address (blame the sender) or its key is wrong.
    #[error("a node of the manifest does not open")]
    Open(#[from] OpenError),
    /// A node is not written as the format says.
    #[error("a node of the manifest is malformed")]
    Decode(#[from] DecodeError),
    /// Written by a newer meshfarm. Update this site.
    #[error("the manifest has version {0}; this site reads version 1")]
    Version(u64),
    /// A path that could leave its folder or harm a file system.
    #[error("the path \"{path}\" is refused: {source}")]
    Path {
        /// The path, escaped.
        path: String,
        /// The rule it breaks.
        source: BadPath,
    },
    /// Two paths that are one on some file systems. Rename one.
    #[error(
        "\"{path}\" and \"{other}\" are the same path, or differ only in case or spelling: rename one"
    )]
    SamePath {
        /// The second path.
        path: String,
        /// The first path.
        other: String,
    },
    /// One name is a file and a folder at once. Rename one.
    #[error("\"{path}\" lies below \"{file}\", which is a file: rename one")]
    BelowFile {
        /// The path below.
        path: String,
        /// The file.
        file: String,
    },
    /// Files are not sorted by [`path::sort_key`].
    #[error("\"{path}\" stands after \"{other}\", out of order")]
    Unordered {
        /// The second path.
        path: String,
        /// The first path.
        other: String,
    },
    /// More than the reader accepts. Ask for a larger grant, or send less.
    #[error("the manifest has {is} {what} where at most {max} are allowed")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        is: u64,
        /// How much is accepted.
        max: u64,
    },
    /// Parts of the manifest contradict each other.
    #[error("the manifest contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// Why reading a manifest stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// A chunk could not be had.
    #[error(transparent)]
    Fetch(E),
    /// The manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl Entry {
    /// The plain bytes of the chunk, from its sealed ones: as many as the entry says.
    ///
    /// # Errors
    /// When the bytes are not those of the entry's address, or the entry has its key, form or
    /// length wrong.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        seal::open_form(&self.cid, &self.key, (self.flags, self.len), sealed)
    }

    /// The same where they lie, for bytes whose address was checked when they were stored.
    ///
    /// # Errors
    /// As [`Entry::open`]; damaged bytes are left as they were.
    pub fn open_stored(&self, bytes: &mut Vec<u8>) -> Result<(), OpenError> {
        seal::open_stored(&self.cid, &self.key, (self.flags, self.len), bytes)
    }
}

impl From<&Fresh<'_>> for Entry {
    fn from(chunk: &Fresh<'_>) -> Self {
        let (cid, key) = (*chunk.cid(), chunk.key().clone());
        Self { cid, key, len: chunk.plain_len(), flags: chunk.flags() }
    }
}

impl RootLink {
    /// Opens the root from its sealed bytes.
    ///
    /// # Errors
    /// When it is not the root of this link, contradicts itself or passes the limits.
    pub fn open(&self, sealed: &[u8], limits: &Limits) -> Result<Root, ManifestError> {
        let plain = seal::open_chunk(&self.cid, &self.key, sealed)?;
        let Peek { v } = codec::decode(&plain, MAX_PLAIN)?;
        if v != 1 {
            return Err(ManifestError::Version(v));
        }
        let row: RootRow = codec::decode(&plain, MAX_PLAIN)?;
        at_most("files", row.n, limits.files)?;
        at_most("chunks", row.tree.count, limits.entries)?;
        at_most("bytes of files", row.bytes, limits.bytes)?;
        let agree =
            row.files.count == row.n && row.files.bytes == row.bytes && row.tree.bytes <= row.bytes;
        contradiction(agree, "the root's sums differ from its trees'")?;
        Ok(Root {
            tenant: row.tenant,
            epoch: row.epoch,
            created: Millis(row.created),
            n_files: row.n,
            n_chunks: row.tree.count,
            bytes: row.bytes,
            files: row.files.node(Tree::Files, None),
            tree: row.tree.node(Tree::Chunks, None),
        })
    }
}

impl NodeRef {
    /// Files or chunks beneath it, as its parent says.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Which of the two trees it belongs to.
    #[must_use]
    pub const fn tree(&self) -> Tree {
        self.tree
    }

    /// Opens the node from its sealed bytes, and checks it against what its parent said. The order
    /// of paths, which spans nodes, is checked by [`Reader`].
    ///
    /// # Errors
    /// When it is another node, malformed, or contradicts its parent.
    pub fn open(&self, sealed: &[u8]) -> Result<Node, ManifestError> {
        let plain = seal::open_chunk(&self.cid, &self.key, sealed)?;
        let row: NodeRow = codec::decode(&plain, MAX_PLAIN)?;
        let level_fits = self.level.is_none_or(|level| level == row.l) && row.l <= MAX_LEVEL;
        contradiction(level_fits, "a node has another level than its parent says")?;
        let node = match (self.tree, row) {
            (_, NodeRow { l, f: None, e: None, k: Some(links) }) if l > 0 => {
                contradiction(!links.is_empty(), "an inner node is empty")?;
                let full = links.iter().all(|link| link.count > 0);
                contradiction(full, "an inner node links to nothing")?;
                let below = |link: Link| link.node(self.tree, Some(l - 1));
                Node::Nodes(links.into_iter().map(below).collect())
            }
            (Tree::Files, NodeRow { l: 0, f: Some(rows), e: None, k: None }) => {
                Node::Files(rows.into_iter().map(File::try_from).collect::<Result<_, _>>()?)
            }
            (Tree::Chunks, NodeRow { l: 0, f: None, e: Some(entries), k: None }) => {
                for entry in &entries {
                    let fits = (1..=MAX_PLAIN).contains(&(entry.len as usize))
                        && matches!(entry.flags, 0 | seal::COMPRESSED);
                    contradiction(fits, "a chunk has a length or a flag that none has")?;
                }
                Node::Chunks(entries)
            }
            _ => return Err(ManifestError::Contradiction("a node is of another kind")),
        };
        let sums = match &node {
            Node::Nodes(nodes) => sums(nodes.iter().map(|node| (node.count, node.bytes))),
            Node::Files(files) => sums(files.iter().map(|file| (1, file.size))),
            Node::Chunks(entries) => sums(entries.iter().map(|entry| (1, entry.len.into()))),
        };
        let agree = sums == Some((self.count, self.bytes));
        contradiction(agree, "a node's sums differ from its parent's")?;
        Ok(node)
    }
}

/// Reads the files of a manifest in order, and the chunks of each file, one node at a time.
#[derive(Debug)]
pub struct Reader<F> {
    root: Root,
    fetch: F,
    meter: Meter,
    files: Cursor<File>,
    entries: Cursor<Entry>,
    order: Order,
    chunks_left: u64,
    bytes_left: u64,
}

impl<E, F> Reader<F>
where
    E: std::error::Error + 'static,
    F: FnMut(&ChunkId) -> Result<Vec<u8>, E>,
{
    /// Opens the manifest of `link`. `fetch` returns the sealed bytes of a chunk.
    ///
    /// # Errors
    /// When `fetch` does, or the root is refused.
    pub fn new(link: &RootLink, limits: Limits, mut fetch: F) -> Result<Self, ReadError<E>> {
        let sealed = fetch(&link.cid).map_err(ReadError::Fetch)?;
        let mut meter = Meter::new(limits);
        meter.count(sealed.len())?;
        let root = link.open(&sealed, &limits)?;
        Ok(Self {
            files: Cursor::new(root.files.clone()),
            entries: Cursor::new(root.tree.clone()),
            root,
            fetch,
            meter,
            order: Order::default(),
            chunks_left: 0,
            bytes_left: 0,
        })
    }

    /// The head of the manifest.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The next file, whether or not the chunks of the last one were read. After `None` the whole
    /// manifest was seen and all its sums agree.
    ///
    /// # Errors
    /// When `fetch` does, or the manifest is refused. Reading cannot go on after that.
    pub fn next_file(&mut self) -> Result<Option<File>, ReadError<E>> {
        while self.next_entry()?.is_some() {}
        let node = |node: Node| {
            if let Node::Files(files) = node { Ok(files) } else { Err(node) }
        };
        let Some(file) = self.files.next(&mut self.fetch, &mut self.meter, node)? else {
            let rest = self.entry()?;
            contradiction(rest.is_none(), "there are chunks that belong to no file")?;
            return Ok(None);
        };
        self.order.accept(&file.path)?;
        if let Body::Chunks(count) = file.body {
            self.chunks_left = count;
            self.bytes_left = file.size;
        }
        Ok(Some(file))
    }

    /// The next chunk of the last file.
    ///
    /// # Errors
    /// As [`Reader::next_file`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError<E>> {
        if self.chunks_left == 0 {
            contradiction(self.bytes_left == 0, "a file is longer than its chunks")?;
            return Ok(None);
        }
        let missing = ManifestError::Contradiction("a file has more chunks than there are");
        let entry = self.entry()?.ok_or(missing)?;
        let short = ManifestError::Contradiction("a file is shorter than its chunks");
        self.bytes_left = self.bytes_left.checked_sub(entry.len.into()).ok_or(short)?;
        self.chunks_left -= 1;
        Ok(Some(entry))
    }

    fn entry(&mut self) -> Result<Option<Entry>, ReadError<E>> {
        let node = |node: Node| {
            if let Node::Chunks(e) = node { Ok(e) } else { Err(node) }
        };
        self.entries.next(&mut self.fetch, &mut self.meter, node)
    }
}

/// Counts the bytes of a manifest as they are read, repeated nodes each time.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    limits: Limits,
    spent: u64,
}

impl Meter {
    /// Nothing was read so far.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, spent: 0 }
    }

    /// Counts a node of `len` sealed bytes.
    ///
    /// # Errors
    /// When the manifest is now longer than allowed.
    pub fn count(&mut self, len: usize) -> Result<(), ManifestError> {
        self.spent = self.spent.saturating_add(len as u64);
        at_most("bytes of its own", self.spent, self.limits.manifest_bytes)
    }
}

/// Walks one tree in order. Holds one node of each level.
#[derive(Debug)]
struct Cursor<T> {
    nodes: Vec<std::vec::IntoIter<NodeRef>>,
    items: std::vec::IntoIter<T>,
}

impl<T> Cursor<T> {
    fn new(top: NodeRef) -> Self {
        Self { nodes: vec![vec![top].into_iter()], items: Vec::new().into_iter() }
    }

    fn next<E, F>(
        &mut self,
        fetch: &mut F,
        meter: &mut Meter,
        leaf: impl Fn(Node) -> Result<Vec<T>, Node>,
    ) -> Result<Option<T>, ReadError<E>>
    where
        E: std::error::Error + 'static,
        F: FnMut(&ChunkId) -> Result<Vec<u8>, E>,
    {
        loop {
            if let Some(item) = self.items.next() {
                return Ok(Some(item));
            }
            let Some(nodes) = self.nodes.last_mut() else {
                return Ok(None);
            };
            let Some(node) = nodes.next() else {
                self.nodes.pop();
                continue;
            };
            let sealed = fetch(&node.cid).map_err(ReadError::Fetch)?;
            meter.count(sealed.len())?;
            match leaf(node.open(&sealed)?) {
                Ok(items) => self.items = items.into_iter(),
                Err(Node::Nodes(below)) => self.nodes.push(below.into_iter()),
                Err(Node::Files(_) | Node::Chunks(_)) => {
                    return Err(ManifestError::Contradiction("a node is of another kind").into());
                }
            }
        }
    }
}

fn sums(mut parts: impl Iterator<Item = (u64, u64)>) -> Option<(u64, u64)> {
    parts.try_fold((0_u64, 0_u64), |(count, bytes), (more, longer)| {
        Some((count.checked_add(more)?, bytes.checked_add(longer)?))
    })
}

fn at_most(what: &'static str, is: u64, max: u64) -> Result<(), ManifestError> {
    if is <= max { Ok(()) } else { Err(ManifestError::Limit { what, is, max }) }
}

fn contradiction(agree: bool, what: &'static str) -> Result<(), ManifestError> {
    if agree { Ok(()) } else { Err(ManifestError::Contradiction(what)) }
}

#[cfg(test)]
mod tests;
