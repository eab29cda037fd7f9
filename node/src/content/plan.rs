//! What of a manifest is still to be fetched: first its nodes, then the chunks of its files, run by run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use meshfarm_core::transfer::{RUN, Run};
use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::manifest::{Entry, Limits, Meter, Node, NodeRef, Root, RootLink};
use meshfarm_protocol::seal::SEAL_OVERHEAD;

use super::ContentError;
use crate::chunks::Chunks;

/// Lists of chunks that are kept decoded: lanes work in neighbouring ones.
const OPEN_LISTS: usize = 4;

/// The fetching of one manifest's nodes. It holds nothing that the chunk store does not, so after a restart a
/// new plan for the same link goes on where the old one was.
#[derive(Debug)]
pub struct Plan {
    limits: Limits,
    meter: Meter,
    root: Option<Root>,
    /// Nodes to be read, in the order of their levels.
    nodes: VecDeque<Want>,
    /// Nodes that were asked for, with every place that wants them.
    waiting: HashMap<ChunkId, Vec<Want>>,
    /// Nodes that were read and list chunks, with the place of their first chunk in the flattened list.
    lists: Vec<(u64, NodeRef)>,
    /// Everything that was asked for and not stored yet.
    asked: HashSet<ChunkId>,
    /// To be asked for once more.
    again: VecDeque<ChunkId>,
}

#[derive(Clone, Debug)]
enum Want {
    Root(RootLink),
    /// With the place of its first file or chunk.
    Node(u64, NodeRef),
}

impl Want {
    fn cid(&self) -> ChunkId {
        match self {
            Self::Root(link) => link.cid,
            Self::Node(_, node) => node.cid,
        }
    }
}

impl Plan {
    /// A plan for everything beneath `link`, within `limits`.
    #[must_use]
    pub fn new(link: RootLink, limits: Limits) -> Self {
        Self {
            limits,
            meter: Meter::new(limits),
            root: None,
            nodes: VecDeque::from([Want::Root(link)]),
            waiting: HashMap::new(),
            lists: Vec::new(),
            asked: HashSet::new(),
            again: VecDeque::new(),
        }
    }

    /// At most `max` nodes to be fetched now, none of them twice. An empty answer means that those asked for must
    /// be stored first, or that the plan [is done](Plan::is_done).
    ///
    /// # Errors
    /// When the manifest is refused or the store fails. A refused manifest ends the plan.
    pub fn next(&mut self, chunks: &Chunks, max: usize) -> Result<Vec<ChunkId>, ContentError> {
        let mut wanted = Vec::new();
        while wanted.len() < max {
            let Some(cid) = self.again.pop_front() else {
                break;
            };
            if !chunks.has(&cid)? {
                wanted.push(cid);
            } else {
                self.stored(&cid);
            }
        }
        while wanted.len() < max {
            let Some(want) = self.nodes.pop_front() else {
                break;
            };
            let cid = want.cid();
            if let Some(wants) = self.waiting.get_mut(&cid) {
                wants.push(want);
                continue;
            }
            if let Some(sealed) = chunks.get(&cid)? {
                self.read(want, &sealed)?;
            } else {
                self.waiting.insert(cid, vec![want]);
                self.asked.insert(cid);
                wanted.push(cid);
            }
        }
        Ok(wanted)
    }

    /// A node that was asked for is in the store now.
    pub fn stored(&mut self, cid: &ChunkId) {
        self.asked.remove(cid);
        if let Some(wants) = self.waiting.remove(cid) {
            self.nodes.extend(wants);
        }
    }

    /// A node that was asked for did not arrive: it is asked for again, perhaps elsewhere.
    pub fn retry(&mut self, cid: &ChunkId) {
        if self.asked.contains(cid) && !self.again.contains(cid) {
            self.again.push_back(*cid);
        }
    }

    /// Nothing that was asked for will arrive: all of it is asked for again.
    pub fn retry_all(&mut self) {
        self.again = self.asked.iter().copied().collect();
    }

    /// How many nodes were asked for and not stored yet.
    #[must_use]
    pub fn n_asked(&self) -> usize {
        self.asked.len()
    }

    /// Whether every node is in the store and was read: call [`Plan::next`] first.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.root.is_some() && self.nodes.is_empty() && self.asked.is_empty()
    }

    /// The chunks that the manifest lists. None while nodes are missing.
    #[must_use]
    pub fn contents(mut self) -> Option<Contents> {
        if !self.is_done() {
            return None;
        }
        let root = self.root?;
        self.lists.sort_by_key(|(start, _)| *start);
        let (n_chunks, bytes) = (root.n_chunks, root.bytes);
        Some(Contents { lists: self.lists, n_chunks, bytes, open: Mutex::default() })
    }

    fn read(&mut self, want: Want, sealed: &[u8]) -> Result<(), ContentError> {
        self.meter.count(sealed.len())?;
        match want {
            Want::Root(link) => {
                let root = link.open(sealed, &self.limits)?;
                let tops = [&root.files, &root.tree];
                self.nodes.extend(tops.map(|node| Want::Node(0, node.clone())));
                self.root = Some(root);
            }
            Want::Node(mut start, node) => match node.open(sealed)? {
                Node::Nodes(below) => {
                    for node in below {
                        let count = node.count();
                        self.nodes.push_back(Want::Node(start, node));
                        // The parent's sums were checked, so this does not overflow.
                        start += count;
                    }
                }
                Node::Files(_) => {}
                Node::Chunks(_) => self.lists.push((start, node)),
            },
        }
        Ok(())
    }
}

/// The chunks of a manifest whose nodes are all here. Only a few lists of them are in memory at a time.
#[derive(Debug)]
pub struct Contents {
    /// In order, with the place of the first chunk of each.
    lists: Vec<(u64, NodeRef)>,
    n_chunks: u64,
    bytes: u64,
    open: Mutex<VecDeque<(usize, Arc<[Entry]>)>>,
}

/// A chunk that is to be fetched, and how long it is when sealed.
pub type Lacking = (ChunkId, u32);

impl Contents {
    /// How many runs there are.
    #[must_use]
    pub fn n_runs(&self) -> u32 {
        u32::try_from(self.n_chunks.div_ceil(RUN)).unwrap_or(u32::MAX)
    }

    /// Bytes of all files together.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The runs in which some ranges of the flattened list lie, in the order of the ranges, each once.
    #[must_use]
    pub fn runs_of(&self, ranges: &[Range<u64>]) -> Vec<Run> {
        let mut seen = HashSet::new();
        let mut runs = Vec::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let end = range.end.min(self.n_chunks);
            for at in range.start / RUN..end.div_ceil(RUN) {
                let run = Run(u32::try_from(at).unwrap_or(u32::MAX));
                if seen.insert(run) {
                    runs.push(run);
                }
            }
        }
        runs
    }

    /// The chunks of a run that are not in the store, each once.
    ///
    /// # Errors
    /// When the store fails, or a node is missing that was here before.
    pub fn lacking(&self, chunks: &Chunks, run: Run) -> Result<Vec<Lacking>, ContentError> {
        let wanted = run.chunks(self.n_chunks);
        let mut lacking: Vec<Lacking> = Vec::new();
        let mut list =
            self.lists.partition_point(|(start, node)| start + node.count() <= wanted.start);
        while let Some((start, _)) = self.lists.get(list)
            && *start < wanted.end
        {
            let entries = self.list(chunks, list)?;
            let within = |at: u64| {
                usize::try_from(at.saturating_sub(*start)).unwrap_or(usize::MAX).min(entries.len())
            };
            for entry in &entries[within(wanted.start)..within(wanted.end)] {
                let known = lacking.iter().any(|(cid, _)| *cid == entry.cid);
                if !known && !chunks.has(&entry.cid)? {
                    let overhead = u32::try_from(SEAL_OVERHEAD).unwrap_or(0);
                    lacking.push((entry.cid, entry.len.saturating_add(overhead)));
                }
            }
            list += 1;
        }
        Ok(lacking)
    }

    fn list(&self, chunks: &Chunks, list: usize) -> Result<Arc<[Entry]>, ContentError> {
        // A panic elsewhere leaves whole lists, which are good.
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, entries)) = lock().iter().find(|(known, _)| *known == list) {
            return Ok(Arc::clone(entries));
        }
        let node = &self.lists[list].1;
        let sealed = chunks.get(&node.cid)?.ok_or(ContentError::Missing(node.cid))?;
        let Node::Chunks(entries) = node.open(&sealed)? else {
            return Err(ContentError::Missing(node.cid));
        };
        let entries: Arc<[Entry]> = entries.into();
        let mut open = lock();
        open.push_back((list, Arc::clone(&entries)));
        if open.len() > OPEN_LISTS {
            open.pop_front();
        }
        Ok(entries)
    }
}
