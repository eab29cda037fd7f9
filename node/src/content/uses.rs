//! Which chunks a manifest uses, itself included: what must stay in the store for as long as it is in use.

use meshfarm_protocol::id::{ChunkId, TenantId};
use meshfarm_protocol::manifest::{Limits, Meter, Node, NodeRef, RootLink};

use super::ContentError;
use crate::chunks::Chunks;

/// What a manifest uses, and whose it says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uses {
    /// The tenant that the manifest names.
    pub tenant: TenantId,
    /// Its own nodes and its files' chunks; one that is used twice may stand twice.
    pub cids: Vec<ChunkId>,
}

/// Reads the nodes of a manifest that is here whole, and says what it uses.
///
/// # Errors
/// When a node is missing, the manifest is refused, or the store fails.
pub fn uses(chunks: &Chunks, link: &RootLink, limits: Limits) -> Result<Uses, ContentError> {
    let mut meter = Meter::new(limits);
    let mut sealed = |cid: &ChunkId| -> Result<Vec<u8>, ContentError> {
        let sealed = chunks.get(cid)?.ok_or(ContentError::Missing(*cid))?;
        meter.count(sealed.len())?;
        Ok(sealed)
    };
    let root = link.open(&sealed(&link.cid)?, &limits)?;
    let mut cids = vec![link.cid];
    let mut nodes: Vec<NodeRef> = vec![root.files, root.tree];
    while let Some(node) = nodes.pop() {
        cids.push(node.cid);
        match node.open(&sealed(&node.cid)?)? {
            Node::Nodes(below) => nodes.extend(below),
            Node::Files(_) => {}
            Node::Chunks(entries) => cids.extend(entries.iter().map(|entry| entry.cid)),
        }
    }
    Ok(Uses { tenant: root.tenant, cids })
}
