//! Building a manifest: files in order go in, sealed nodes come out.

use serde::Serialize;

use super::path::Order;
use super::rows::{FileRow, Link, NodeRow, RootRow};
use super::{
    Body, Entry, File, INLINE_BELOW, Limits, ManifestError, RootLink, at_most, contradiction,
};
use crate::codec;
use crate::id::{Millis, TenantId};
use crate::seal::{self, ChunkSecret, SealedChunk, TenantSecret};

/// A node may grow to this many rows or links.
const MAX_ROWS: usize = 2048;

/// A node ends before its rows pass this many bytes, far from the longest chunk.
const MAX_NODE: usize = 512 << 10;

/// A node of chunks or links ends, on average, after 512.
const CHUNK_MASK: u16 = 0x1ff;

/// A node of files ends, on average, after 256: their rows are longer.
const FILE_MASK: u16 = 0xff;

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// What finds and opens the manifest.
    pub link: RootLink,
    /// How many files it has.
    pub n_files: u64,
    /// How many chunks they have, repeated ones counted each time.
    pub n_chunks: u64,
    /// How long all files are together, in bytes.
    pub bytes: u64,
}

/// Builds one manifest. Memory stays small whatever is added: full nodes wait only until
/// [`Builder::take_nodes`] is called.
#[derive(Debug)]
pub struct Builder {
    tenant: TenantId,
    epoch: u64,
    created: Millis,
    limits: Limits,
    order: Order,
    files: Growing<FileRow>,
    entries: Growing<Entry>,
    nodes: Nodes,
}

impl Builder {
    /// A manifest of no files. `limits` are those of its readers.
    #[must_use]
    pub fn new(secret: &TenantSecret, created: Millis, limits: Limits) -> Self {
        Self {
            tenant: secret.tenant(),
            epoch: secret.epoch(),
            created,
            limits,
            order: Order::default(),
            files: Growing::default(),
            entries: Growing::default(),
            nodes: Nodes { secret: secret.nodes(), sealed: Vec::new(), bytes: 0 },
        }
    }

    /// Adds a file and its chunks. Files must come in the order of
    /// [`sort_key`](super::path::sort_key).
    ///
    /// # Errors
    /// When a reader would refuse the manifest. It cannot be finished after that.
    pub fn add(&mut self, file: File, entries: &[Entry]) -> Result<(), ManifestError> {
        self.order.accept(&file.path)?;
        let chunked: u64 = entries.iter().map(|entry| u64::from(entry.len)).sum();
        let fits = match &file.body {
            Body::Inline(bytes) => {
                bytes.len() as u64 == file.size && file.size < INLINE_BELOW && entries.is_empty()
            }
            Body::Chunks(count) => {
                *count == entries.len() as u64 && chunked == file.size && chunked >= INLINE_BELOW
            }
        };
        contradiction(fits, "a file's length is not that of its body")?;
        at_most("files", self.files.total.0 + 1, self.limits.files)?;
        let count = self.entries.total.0 + entries.len() as u64;
        at_most("chunks", count, self.limits.entries)?;
        let bytes = self.files.total.1.saturating_add(file.size);
        at_most("bytes of files", bytes, self.limits.bytes)?;
        self.files.push(FileRow::from(file), &mut self.nodes);
        for entry in entries {
            self.entries.push(entry.clone(), &mut self.nodes);
        }
        at_most("bytes of its own", self.nodes.bytes, self.limits.manifest_bytes)
    }

    /// The nodes that are complete, for the store. Call it now and then.
    pub fn take_nodes(&mut self) -> Vec<SealedChunk> {
        std::mem::take(&mut self.nodes.sealed)
    }

    /// Seals what is left and the root. Returns the last nodes, the root among them.
    ///
    /// # Errors
    /// When the manifest is longer than its readers accept.
    pub fn finish(mut self) -> Result<(Built, Vec<SealedChunk>), ManifestError> {
        let files = self.files.finish(&mut self.nodes);
        let tree = self.entries.finish(&mut self.nodes);
        let (n, n_chunks, bytes) = (files.count, tree.count, files.bytes);
        let (tenant, epoch, created) = (self.tenant, self.epoch, self.created.0);
        let row = RootRow { v: 1, tenant, epoch, files, tree, n, bytes, created };
        let (cid, key) = self.nodes.seal(&row);
        at_most("bytes of its own", self.nodes.bytes, self.limits.manifest_bytes)?;
        let built = Built { link: RootLink { cid, key }, n_files: n, n_chunks, bytes };
        Ok((built, self.nodes.sealed))
    }
}

/// Sealed nodes on their way to the store.
#[derive(Debug)]
struct Nodes {
    secret: ChunkSecret,
    sealed: Vec<SealedChunk>,
    bytes: u64,
}

impl Nodes {
    fn seal<T: Serialize>(&mut self, row: &T) -> (crate::id::ChunkId, seal::ChunkKey) {
        let chunk = seal::seal_chunk(&self.secret, &codec::encode(row));
        let found = (chunk.cid, chunk.key.clone());
        self.bytes += chunk.bytes.len() as u64;
        self.sealed.push(chunk);
        found
    }
}

/// What stands in the nodes of level 0.
trait Row: Sized {
    /// About how long the row is when encoded, never less.
    fn encoded_len(&self) -> usize;
    /// Length of the file or chunk, in bytes.
    fn bytes(&self) -> u64;
    /// Whether a node ends after this row. Depends on nothing else, so that equal neighbourhoods
    /// of two manifests fall into equal nodes.
    fn ends_node(&self) -> bool;
    fn node(rows: Vec<Self>) -> NodeRow;
}

impl Row for Entry {
    fn encoded_len(&self) -> usize {
        80
    }

    fn bytes(&self) -> u64 {
        self.len.into()
    }

    fn ends_node(&self) -> bool {
        ends(&self.cid.0, CHUNK_MASK)
    }

    fn node(rows: Vec<Self>) -> NodeRow {
        NodeRow { l: 0, f: None, e: Some(rows), k: None }
    }
}

impl Row for FileRow {
    fn encoded_len(&self) -> usize {
        64 + self.p.len() + self.inline.as_ref().map_or(0, Vec::len)
    }

    fn bytes(&self) -> u64 {
        self.s
    }

    fn ends_node(&self) -> bool {
        ends(&seal::content_hash(self.p.as_bytes()), FILE_MASK)
    }

    fn node(rows: Vec<Self>) -> NodeRow {
        NodeRow { l: 0, f: Some(rows), e: None, k: None }
    }
}

fn ends(hash: &[u8; 32], mask: u16) -> bool {
    u16::from_be_bytes([hash[0], hash[1]]) & mask == 0
}

/// One tree that grows at its right edge.
#[derive(Debug)]
struct Growing<T> {
    rows: Vec<T>,
    len: usize,
    links: Vec<Vec<Link>>,
    total: (u64, u64),
}

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), len: 0, links: Vec::new(), total: (0, 0) }
    }
}

impl<T: Row> Growing<T> {
    fn push(&mut self, row: T, nodes: &mut Nodes) {
        let len = row.encoded_len();
        if self.len + len > MAX_NODE {
            self.end_rows(nodes);
        }
        self.total = (self.total.0 + 1, self.total.1 + row.bytes());
        self.len += len;
        let ends = row.ends_node();
        self.rows.push(row);
        if ends || self.rows.len() == MAX_ROWS {
            self.end_rows(nodes);
        }
    }

    fn end_rows(&mut self, nodes: &mut Nodes) {
        let rows = std::mem::take(&mut self.rows);
        self.len = 0;
        let bytes = rows.iter().map(Row::bytes).sum();
        let count = rows.len() as u64;
        let (cid, key) = nodes.seal(&T::node(rows));
        self.link(0, Link { cid, key, count, bytes }, nodes);
    }

    /// Adds a link to the nodes of level `depth + 1`. A node that ends must hold two links, or a
    /// tree could grow higher without growing wider.
    fn link(&mut self, depth: usize, link: Link, nodes: &mut Nodes) {
        if self.links.len() == depth {
            self.links.push(Vec::new());
        }
        let ends = ends(&link.cid.0, CHUNK_MASK);
        let links = &mut self.links[depth];
        links.push(link);
        if (ends && links.len() > 1) || links.len() == MAX_ROWS {
            self.end_links(depth, nodes);
        }
    }

    fn end_links(&mut self, depth: usize, nodes: &mut Nodes) {
        let links = std::mem::take(&mut self.links[depth]);
        let level = u8::try_from(depth + 1).expect("2 million rows make no tree of 255 levels");
        let count = links.iter().map(|link| link.count).sum();
        let bytes = links.iter().map(|link| link.bytes).sum();
        let (cid, key) = nodes.seal(&NodeRow { l: level, f: None, e: None, k: Some(links) });
        self.link(depth + 1, Link { cid, key, count, bytes }, nodes);
    }

    /// Ends every open node from the bottom up, until one link is left at the top.
    fn finish(mut self, nodes: &mut Nodes) -> Link {
        if !self.rows.is_empty() || self.links.is_empty() {
            self.end_rows(nodes);
        }
        let mut depth = 0;
        loop {
            if depth + 1 == self.links.len() && self.links[depth].len() == 1 {
                return self.links[depth].remove(0);
            }
            if !self.links[depth].is_empty() {
                self.end_links(depth, nodes);
            }
            depth += 1;
        }
    }
}
