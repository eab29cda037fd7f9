//! The manifest walker: nodes that a hostile tenant sealed as it should be, whose contents are anything.
#![no_main]

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use meshfarm_protocol::codec::encode;
use meshfarm_protocol::id::{ChunkId, TenantId};
use meshfarm_protocol::manifest::{
    Body, Entry, File, Limits, Meter, Node, NodeRef, Reader, Root, RootLink,
};
use meshfarm_protocol::seal::{self, ChunkKey, ChunkSecret, SealedChunk, TenantSecret};
use serde::Serialize;

const LIMITS: Limits =
    Limits { files: 40, entries: 200, manifest_bytes: 32 * 1024, bytes: 1024 * 1024 };

/// No node is shorter than this when sealed, so this bounds how many are fetched.
const SHORTEST: u64 = 17;

#[derive(Arbitrary, Debug)]
struct Plan {
    nodes: Vec<NodePlan>,
    root: RootPlan,
}

/// A node; links lead to nodes before it, so that the same one may be reached in many ways.
#[derive(Arbitrary, Debug)]
enum NodePlan {
    Files(Vec<FilePlan>),
    Chunks(Vec<(u8, u16, u8)>),
    Links { level: Option<u8>, to: Vec<LinkPlan> },
    Raw(Vec<u8>),
    Spoiled { like: u8, at: u16, value: u8 },
}

#[derive(Arbitrary, Debug)]
struct FilePlan {
    path: String,
    executable: u8,
    modified: u64,
    body: BodyPlan,
}

#[derive(Arbitrary, Debug)]
enum BodyPlan {
    Inline(Vec<u8>),
    Chunks { size: u32, chunks: u8 },
    Lie { size: u64, chunks: u64, inline: Option<Vec<u8>> },
}

#[derive(Arbitrary, Debug)]
struct LinkPlan {
    to: u8,
    lie: Option<(u64, u64)>,
}

#[derive(Arbitrary, Debug)]
struct RootPlan {
    files: LinkPlan,
    tree: LinkPlan,
    version: Option<u64>,
    sums: Option<(u64, u64)>,
    raw: Option<Vec<u8>>,
}

type Link = (ChunkId, ChunkKey, u64, u64);

#[derive(Serialize)]
struct NodeRow {
    l: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    f: Option<Vec<FileRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<Vec<(ChunkId, ChunkKey, u32, u8)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<Vec<Link>>,
}

#[derive(Serialize)]
struct FileRow {
    p: String,
    s: u64,
    m: u8,
    t: u64,
    cn: u64,
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    inline: Option<bytes::Bytes>,
}

#[derive(Serialize)]
struct RootRow {
    v: u64,
    tenant: TenantId,
    epoch: u64,
    files: Link,
    tree: Link,
    n: u64,
    bytes: u64,
    created: u64,
}

mod bytes {
    //! A byte string for serde.

    pub(super) struct Bytes(pub(super) Vec<u8>);

    impl serde::Serialize for Bytes {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_bytes(&self.0)
        }
    }
}

/// A sealed node, and what an honest parent would say about it.
struct Made {
    chunk: SealedChunk,
    plain: Vec<u8>,
    level: u8,
    count: u64,
    bytes: u64,
}

fuzz_target!(|plan: Plan| {
    let secret = TenantSecret::new(TenantId([5; 16]), 7, [6; 32]).nodes();
    let mut made: Vec<Made> = Vec::new();
    for node in plan.nodes.into_iter().take(64) {
        let next = make(&secret, node, &made);
        made.push(next);
    }
    let (root, sums) = root(&plan.root, &made);
    let root = seal::seal_chunk(&secret, &root);
    let link = RootLink { cid: root.cid, key: root.key.clone() };
    let mut store: HashMap<ChunkId, Vec<u8>> =
        made.into_iter().map(|made| (made.chunk.cid, made.chunk.bytes)).collect();
    store.insert(root.cid, root.bytes);
    read(&link, &store, sums);
    plan_like(&link, &store);
});

fn make(secret: &ChunkSecret, plan: NodePlan, made: &[Made]) -> Made {
    let seal = |row: &NodeRow, count, bytes| {
        let plain = encode(row);
        let chunk = seal::seal_chunk(secret, &plain[..plain.len().min(seal::MAX_PLAIN)]);
        Made { chunk, plain, level: row.l, count, bytes }
    };
    match plan {
        NodePlan::Files(files) => {
            let rows: Vec<_> = files.into_iter().map(file_row).collect();
            let bytes = rows.iter().fold(0_u64, |sum, row| sum.wrapping_add(row.s));
            let count = rows.len() as u64;
            seal(&NodeRow { l: 0, f: Some(rows), e: None, k: None }, count, bytes)
        }
        NodePlan::Chunks(chunks) => {
            let rows: Vec<_> = chunks
                .into_iter()
                .map(|(cid, len, flags)| {
                    let len = u32::from(len).saturating_mul(if flags & 0x80 == 0 { 1 } else { 64 });
                    (ChunkId([cid; 32]), ChunkKey([cid; 32]), len, flags & 0x0f)
                })
                .collect();
            let bytes = rows.iter().map(|row| u64::from(row.2)).sum();
            let count = rows.len() as u64;
            seal(&NodeRow { l: 0, f: None, e: Some(rows), k: None }, count, bytes)
        }
        NodePlan::Links { level, to } => {
            let below = to.iter().filter_map(|link| made.get(usize::from(link.to))).next_back();
            let level = level.or(below.map(|below| below.level.wrapping_add(1))).unwrap_or(1);
            let links: Vec<_> = to.iter().filter_map(|link| to_link(link, made)).collect();
            let (count, bytes) = links.iter().fold((0_u64, 0_u64), |sum, link| {
                (sum.0.wrapping_add(link.2), sum.1.wrapping_add(link.3))
            });
            seal(&NodeRow { l: level, f: None, e: None, k: Some(links) }, count, bytes)
        }
        NodePlan::Raw(plain) => {
            let chunk = seal::seal_chunk(secret, &plain);
            Made { chunk, plain, level: 0, count: 1, bytes: 1 }
        }
        NodePlan::Spoiled { like, at, value } => {
            let other = made.get(usize::from(like));
            let mut plain = other.map(|other| other.plain.clone()).unwrap_or_default();
            plain.truncate(seal::MAX_PLAIN);
            let len = plain.len().max(1);
            if let Some(byte) = plain.get_mut(usize::from(at) % len) {
                *byte = value;
            }
            let (level, count, bytes) =
                other.map_or((0, 0, 0), |other| (other.level, other.count, other.bytes));
            Made { chunk: seal::seal_chunk(secret, &plain), plain, level, count, bytes }
        }
    }
}

fn file_row(plan: FilePlan) -> FileRow {
    let (s, cn, inline) = match plan.body {
        BodyPlan::Inline(bytes) => (bytes.len() as u64, 0, Some(bytes)),
        BodyPlan::Chunks { size, chunks } => (u64::from(size), u64::from(chunks), None),
        BodyPlan::Lie { size, chunks, inline } => (size, chunks, inline),
    };
    let inline = inline.map(bytes::Bytes);
    FileRow { p: plan.path, s, m: plan.executable & 3, t: plan.modified, cn, inline }
}

fn to_link(plan: &LinkPlan, made: &[Made]) -> Option<Link> {
    let to = made.get(usize::from(plan.to))?;
    let (count, bytes) = plan.lie.unwrap_or((to.count, to.bytes));
    Some((to.chunk.cid, to.chunk.key.clone(), count, bytes))
}

fn root(plan: &RootPlan, made: &[Made]) -> (Vec<u8>, Option<(u64, u64)>) {
    let nowhere = || (ChunkId([9; 32]), ChunkKey([9; 32]), 0, 0);
    let files = to_link(&plan.files, made).unwrap_or_else(nowhere);
    let tree = to_link(&plan.tree, made).unwrap_or_else(nowhere);
    let sums = (files.2, files.3);
    let (n, bytes) = plan.sums.unwrap_or(sums);
    let v = plan.version.unwrap_or(1);
    let row = RootRow { v, tenant: TenantId([5; 16]), epoch: 7, files, tree, n, bytes, created: 0 };
    match &plan.raw {
        Some(raw) => (raw[..raw.len().min(seal::MAX_PLAIN)].to_vec(), None),
        None => (encode(&row), Some((n, bytes))),
    }
}

/// A node that is nowhere.
#[derive(Debug)]
struct Absent;

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("absent")
    }
}

impl std::error::Error for Absent {}

/// Reads all of it as whoever writes the files does, and believes nothing.
fn read(link: &RootLink, store: &HashMap<ChunkId, Vec<u8>>, sums: Option<(u64, u64)>) {
    let fetched = std::cell::Cell::new(0_u64);
    let fetch = |cid: &ChunkId| {
        fetched.set(fetched.get() + 1);
        assert!(fetched.get() <= LIMITS.manifest_bytes / SHORTEST + 1, "it fetches without end");
        store.get(cid).cloned().ok_or(Absent)
    };
    let Ok(mut reader) = Reader::new(link, LIMITS, fetch) else {
        return;
    };
    let (mut n_files, mut n_entries, mut bytes) = (0_u64, 0_u64, 0_u64);
    let mut keys = BTreeSet::new();
    loop {
        let file = match reader.next_file() {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
            Ok(None) => break,
            Ok(Some(file)) => file,
        };
        n_files += 1;
        bytes += file.size;
        assert!(n_files <= LIMITS.files && bytes <= LIMITS.bytes);
        safe(&file);
        assert!(keys.insert(file.path.to_lowercase()), "{:?} differs only in case", file.path);
        if let Some((entries, len)) = entries(&mut reader) {
            n_entries += entries;
            assert!(n_entries <= LIMITS.entries);
            let inline = if let Body::Inline(inline) = &file.body { inline.len() } else { 0 };
            assert_eq!(len + inline as u64, file.size);
        } else {
            return;
        }
    }
    let root = reader.root();
    assert_eq!((root.n_files, root.bytes, root.n_chunks), (n_files, bytes, n_entries));
    if let Some(sums) = sums {
        assert_eq!(sums, (n_files, bytes));
    }
    below_files(&keys);
}

fn entries<F>(reader: &mut Reader<F>) -> Option<(u64, u64)>
where
    F: FnMut(&ChunkId) -> Result<Vec<u8>, Absent>,
{
    let (mut count, mut bytes) = (0, 0);
    loop {
        match reader.next_entry() {
            Err(_) => return None,
            Ok(None) => return Some((count, bytes)),
            Ok(Some(Entry { len, flags, .. })) => {
                assert!((1..=seal::MAX_PLAIN as u32).contains(&len) && flags & !1 == 0);
                count += 1;
                bytes += u64::from(len);
            }
        }
    }
}

fn safe(file: &File) {
    let path = &file.path;
    assert!(!path.is_empty() && path.len() <= 1024, "{path:?}");
    assert!(!path.chars().any(char::is_control), "{path:?}");
    let parts: Vec<_> = Path::new(path).components().collect();
    assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    assert_eq!(parts.len(), path.split('/').count(), "{path:?}");
    assert!(parts.len() <= 64);
}

/// No file is a folder of another.
fn below_files(keys: &BTreeSet<String>) {
    for key in keys {
        for (at, _) in key.match_indices('/') {
            assert!(!keys.contains(&key[..at]), "{key:?} lies below a file");
        }
    }
}

/// Walks both trees breadth-first, as whoever plans a transfer does.
fn plan_like(link: &RootLink, store: &HashMap<ChunkId, Vec<u8>>) {
    let mut meter = Meter::new(LIMITS);
    let sealed = &store[&link.cid];
    if meter.count(sealed.len()).is_err() {
        return;
    }
    let Ok(Root { files, tree, .. }) = link.open(sealed, &LIMITS) else {
        return;
    };
    let mut waiting: Vec<NodeRef> = vec![files, tree];
    let mut steps = 0;
    while let Some(node) = waiting.pop() {
        steps += 1;
        assert!(steps <= LIMITS.manifest_bytes / SHORTEST + 1, "it walks without end");
        let Some(sealed) = store.get(&node.cid) else {
            continue;
        };
        if meter.count(sealed.len()).is_err() {
            return;
        }
        if let Ok(Node::Nodes(below)) = node.open(sealed) {
            waiting.extend(below);
        }
    }
}
