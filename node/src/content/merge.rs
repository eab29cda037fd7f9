//! Several manifests become one: a job's own content and the outputs of its earlier steps.

use std::collections::BTreeMap;

use meshfarm_protocol::id::{ChunkId, Millis};
use meshfarm_protocol::manifest::build::{Builder, Built};
use meshfarm_protocol::manifest::path::sort_key;
use meshfarm_protocol::manifest::{Body, Entry, File, Limits, Reader, RootLink};
use meshfarm_protocol::seal::TenantSecret;

use super::ContentError;
use crate::chunks::Chunks;

/// Put the files of all `links` into one manifest; where two have the same path, the later one counts.
///
/// Chunks stay as they are, under whatever secret they were sealed: only nodes are new. The rows of all
/// files are in memory meanwhile.
///
/// # Errors
/// When a manifest or one of its nodes is not here, or the result is beyond `limits`.
pub fn merge(
    chunks: &Chunks,
    secret: &TenantSecret,
    (created, limits): (Millis, Limits),
    links: &[RootLink],
) -> Result<Built, ContentError> {
    let mut files: BTreeMap<String, (File, Vec<Entry>)> = BTreeMap::new();
    for link in links {
        let fetch = |cid: &ChunkId| chunks.get(cid)?.ok_or(ContentError::Missing(*cid));
        let mut reader = Reader::new(link, limits, fetch)?;
        while let Some(file) = reader.next_file()? {
            let mut entries = Vec::new();
            if let Body::Chunks(_) = file.body {
                while let Some(entry) = reader.next_entry()? {
                    entries.push(entry);
                }
            }
            files.insert(sort_key(&file.path), (file, entries));
        }
    }
    let mut builder = Builder::new(secret, created, limits);
    for (file, entries) in files.into_values() {
        builder.add(file, &entries)?;
        for node in builder.take_nodes() {
            chunks.put(&node.cid, &node.bytes)?;
        }
    }
    let (built, nodes) = builder.finish()?;
    for node in nodes {
        chunks.put(&node.cid, &node.bytes)?;
    }
    chunks.flush()?;
    Ok(built)
}
