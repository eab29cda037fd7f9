//! What of a manifest is still to be fetched: first its nodes, then the chunks of its files.

use std::collections::{HashMap, HashSet, VecDeque};

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
    /// Nodes that were read and list chunks.
    leaves: VecDeque<NodeRef>,
    entries: std::vec::IntoIter<Entry>,
    /// Everything that was asked for and not stored yet.
    asked: HashSet<ChunkId>,
    /// To be asked for once more.
    again: VecDeque<ChunkId>,
}

#[derive(Clone, Debug)]
enum Want {
    Root(RootLink),
    Node(NodeRef),
}

impl Want {
    fn cid(&self) -> ChunkId {
        match self {
            Self::Root(link) => link.cid,
            Self::Node(node) => node.cid,
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
            leaves: VecDeque::new(),
            entries: Vec::new().into_iter(),
            asked: HashSet::new(),
            again: VecDeque::new(),
        }
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
        if self.nodes.is_empty() && self.waiting.is_empty() {
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
            && self.leaves.is_empty()
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
                self.nodes.extend([&root.files, &root.tree].map(|node| Want::Node(node.clone())));
                self.root = Some(root);
            }
            Want::Node(node) => match node.open(sealed)? {
                Node::Nodes(below) => self.nodes.extend(below.into_iter().map(Want::Node)),
                Node::Files(_) => {}
                Node::Chunks(_) => self.leaves.push_back(node),
            },
        }
        Ok(())
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
            let Some(leaf) = self.leaves.pop_front() else {
                break;
            };
            let Some(sealed) = chunks.get(&leaf.cid)? else {
                // It was read before and is damaged now.
                self.nodes.push_back(Want::Node(leaf));
                return self.next_nodes(chunks, max, wanted);
            };
            if let Node::Chunks(entries) = leaf.open(&sealed)? {
                self.entries = entries.into_iter();
            }
        }
        Ok(())
    }
}
