//! What of a manifest is still to be fetched: first its nodes, then the chunks of its files.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::manifest::{Entry, Limits, Meter, Node, NodeRef, Root, RootLink};

use super::ContentError;
use crate::chunks::Chunks;

/// The fetching of one manifest. It holds nothing that the chunk store does not, so after a restart a
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
    leaves: Vec<(u64, NodeRef)>,
    /// Whether the leaves stand in order and their chunks are being asked for.
    sorted: bool,
    /// Leaves whose chunks are asked for next: of each, those in some ranges, or all.
    steps: VecDeque<(usize, Option<Range<u64>>)>,
    entries: std::vec::IntoIter<Entry>,
    /// Everything that was asked for and not stored yet.
    asked: HashSet<ChunkId>,
    /// To be asked for once more.
    again: VecDeque<ChunkId>,
    /// Chunks that come before the others, as ranges in the flattened list.
    first: Vec<Range<u64>>,
    only_nodes: bool,
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
            leaves: Vec::new(),
            sorted: false,
            steps: VecDeque::new(),
            entries: Vec::new().into_iter(),
            asked: HashSet::new(),
            again: VecDeque::new(),
            first: Vec::new(),
            only_nodes: false,
        }
    }

    /// The same without the chunks of files.
    #[must_use]
    pub const fn only_nodes(mut self) -> Self {
        self.only_nodes = true;
        self
    }

    /// The same with some chunks before all others: ranges in the manifest's flattened list of chunks.
    #[must_use]
    pub fn preferring(mut self, first: Vec<Range<u64>>) -> Self {
        self.first = first;
        self
    }

    /// At most `max` chunks to be fetched now, none of them twice. An empty answer means that those
    /// asked for must be stored first, or that the plan [is done](Plan::is_done).
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
        self.next_nodes(chunks, max, &mut wanted)?;
        // Chunks wait until all nodes are here: a manifest that is refused costs no more than itself.
        if self.nodes.is_empty() && self.waiting.is_empty() && !self.only_nodes {
            self.sort();
            self.next_chunks(chunks, max, &mut wanted)?;
        }
        Ok(wanted)
    }

    /// A chunk that was asked for is in the store now.
    pub fn stored(&mut self, cid: &ChunkId) {
        self.asked.remove(cid);
        if let Some(wants) = self.waiting.remove(cid) {
            self.nodes.extend(wants);
        }
    }

    /// A chunk that was asked for did not arrive: it is asked for again, perhaps elsewhere.
    pub fn retry(&mut self, cid: &ChunkId) {
        if self.asked.contains(cid) && !self.again.contains(cid) {
            self.again.push_back(*cid);
        }
    }

    /// The head of the manifest, as soon as it is here.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// How many chunks were asked for and not stored yet.
    #[must_use]
    pub fn n_asked(&self) -> usize {
        self.asked.len()
    }

    /// Whether everything is in the store, as far as it was looked at: call [`Plan::next`] first.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.root.is_some()
            && self.nodes.is_empty()
            && (self.only_nodes || (self.sorted && self.steps.is_empty()))
            && self.entries.as_slice().is_empty()
            && self.asked.is_empty()
    }

    fn next_nodes(
        &mut self,
        chunks: &Chunks,
        max: usize,
        wanted: &mut Vec<ChunkId>,
    ) -> Result<(), ContentError> {
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
        Ok(())
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
            Want::Node(start, node) => match node.open(sealed)? {
                Node::Nodes(below) => {
                    let mut start = start;
                    for node in below {
                        let count = node.count();
                        self.nodes.push_back(Want::Node(start, node));
                        // The parent's sums were checked, so this cannot overflow.
                        start += count;
                    }
                }
                Node::Files(_) => {}
                Node::Chunks(_) => self.leaves.push((start, node)),
            },
        }
        Ok(())
    }

    /// Puts the leaves in order, once all of them are known, and says in which order they are used.
    fn sort(&mut self) {
        if self.sorted {
            return;
        }
        self.sorted = true;
        self.leaves.sort_by_key(|(start, _)| *start);
        self.leaves.dedup_by_key(|(start, leaf)| (*start, leaf.cid));
        self.steps.clear();
        for range in self.first.iter().filter(|range| !range.is_empty()) {
            let from =
                self.leaves.partition_point(|(start, leaf)| start + leaf.count() <= range.start);
            let to = self.leaves.partition_point(|(start, _)| *start < range.end);
            self.steps.extend((from..to).map(|leaf| (leaf, Some(range.clone()))));
        }
        self.steps.extend((0..self.leaves.len()).map(|leaf| (leaf, None)));
    }

    fn next_chunks(
        &mut self,
        chunks: &Chunks,
        max: usize,
        wanted: &mut Vec<ChunkId>,
    ) -> Result<(), ContentError> {
        while wanted.len() < max {
            if let Some(entry) = self.entries.next() {
                if !self.asked.contains(&entry.cid) && !chunks.has(&entry.cid)? {
                    self.asked.insert(entry.cid);
                    wanted.push(entry.cid);
                }
                continue;
            }
            let Some((leaf, range)) = self.steps.pop_front() else {
                break;
            };
            let (start, leaf) = self.leaves[leaf].clone();
            let Some(sealed) = chunks.get(&leaf.cid)? else {
                // It was read before and is damaged now.
                self.nodes.push_back(Want::Node(start, leaf));
                self.sorted = false;
                return self.next_nodes(chunks, max, wanted);
            };
            if let Node::Chunks(mut entries) = leaf.open(&sealed)? {
                if let Some(range) = range {
                    let within = |at: u64| {
                        usize::try_from(at.saturating_sub(start))
                            .map_or(entries.len(), |at| at.min(entries.len()))
                    };
                    entries = entries[within(range.start)..within(range.end)].to_vec();
                }
                self.entries = entries.into_iter();
            }
        }
        Ok(())
    }
}
