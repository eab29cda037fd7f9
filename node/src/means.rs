//! What lending and returning both work with: keys, store, chunks, network, and how chunks are fetched.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use meshfarm_core::Input;
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{ChunkId, JobId, LeaseId, Millis, SiteId};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::message::LaneRequest;
use meshfarm_protocol::seal::{
    self, Address, ChunkKey, Envelope, EnvelopeError, EnvelopeSeed, SealingKey, SealingSecret,
    SigningKey,
};

use crate::chunks::{ChunkError, Chunks};
use crate::content::ContentError;
use crate::content::plan::Plan;
use crate::machine::Machine;
use crate::meter::Meter;
use crate::net::{LaneError, Net, NetError};
use crate::pins::Pins;
use crate::store::{Batch, Family, Store, StoreError};

/// How long an envelope can be opened.
const ENVELOPE_LIFE: Millis = Millis::seconds(24 * 3600);

/// So many chunks are asked for on one lane.
const WANTED: usize = 1024;

/// A longer list of kept inputs was not written by us.
const MAX_KEPT: usize = 256 << 20;

/// So many bytes of pieces are gathered before they are written together.
const GATHER: usize = 8 << 20;

/// Why content did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source is not connected, or the line broke. What has come is kept.
    #[error("the source cannot be reached")]
    Unreachable(#[source] NetError),
    /// The line broke.
    #[error("the line to the source broke")]
    Broken(#[source] LaneError),
    /// The source does not have a chunk that its manifest names.
    #[error("the source does not have chunk {}", .0.short())]
    Missing(ChunkId),
    /// The source was silent, or sent what was not asked for.
    #[error("the source does not keep to the protocol")]
    Nonsense,
    /// A chunk is not what it should be, or cannot be written.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The manifest is not what it should be.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A thread of this node panicked.
    #[error("a thread of this node ended unexpectedly")]
    Thread,
}

/// What the data rooms work with. Shared by all of them.
#[derive(Debug)]
pub struct Means {
    /// Who we are.
    pub me: SiteId,
    /// The key that says so.
    pub key: SigningKey,
    /// What envelopes to us are opened with.
    pub sealing: SealingSecret,
    /// Time, entropy, threads.
    pub machine: Machine,
    /// The database.
    pub store: Arc<Store>,
    /// Chunk bytes.
    pub chunks: Arc<Chunks>,
    /// Which content is in use.
    pub pins: Arc<Pins>,
    /// The most bytes of content that a tenant of another site may bring.
    pub quota: u64,
    /// The network.
    pub net: Net,
    /// Bytes moved.
    pub meter: Arc<Meter>,
    /// Where the loop hears what has come of its outputs.
    pub input_tx: mpsc::Sender<Input>,
}

impl Means {
    /// Tell the loop. It may be gone, when the node stops.
    pub async fn tell(&self, input: Input) {
        drop(self.input_tx.send(input).await);
    }

    /// Seal `contents` to another site, or to ourselves.
    ///
    /// # Errors
    /// When they are too long or the key is degenerate.
    pub fn seal(
        &self,
        (to, key): (SiteId, SealingKey),
        (job, root): (JobId, ChunkId),
        contents: &[u8],
    ) -> Result<Envelope, EnvelopeError> {
        let expires = self.machine.clock.now().plus(ENVELOPE_LIFE);
        let address = Address { from: self.me, to, key, job, root, expires };
        let seed = EnvelopeSeed { ephemeral: self.machine.random(), nonce: self.machine.random() };
        seal::seal_envelope(&self.key, address, contents, seed)
    }

    /// Open an envelope that `from` has sealed to us about `root`.
    ///
    /// # Errors
    /// When anything about it does not hold, in words.
    pub fn open<T: serde::de::DeserializeOwned>(
        &self,
        envelope: &Envelope,
        from: SiteId,
        root: ChunkId,
    ) -> Result<T, String> {
        let address = &envelope.address;
        if address.from != from || address.to != self.me || address.root != root {
            return Err("the envelope is about something else".to_owned());
        }
        let now = self.machine.clock.now();
        let opened = seal::open_envelope(envelope, &self.sealing, now);
        let contents = opened.map_err(|error| error.to_string())?;
        codec::decode(&contents, seal::MAX_CONTENTS).map_err(|error| error.to_string())
    }

    /// Add the key of a root of ours to a batch.
    pub fn keep_root(batch: &mut Batch, link: &RootLink) {
        batch.put(Family::Output, root_key(link.cid), codec::encode(&link.key));
    }

    /// The key of a root that we have kept.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn root(&self, cid: ChunkId) -> Result<Option<RootLink>, StoreError> {
        kept_root(&self.store, cid)
    }

    /// Add the inputs that outputs of the job with this content must not replace to a batch.
    pub fn keep_inputs(batch: &mut Batch, root: ChunkId, paths: &BTreeSet<String>) {
        if !paths.is_empty() {
            batch.put(Family::Output, inputs_key(root), codec::encode(paths));
        }
    }

    /// The inputs that outputs of the job with this content must not replace.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn kept_inputs(&self, root: ChunkId) -> Result<BTreeSet<String>, StoreError> {
        let bytes = self.store.get(Family::Output, &inputs_key(root))?;
        let paths = bytes.and_then(|bytes| codec::decode(&bytes, MAX_KEPT).ok());
        Ok(paths.unwrap_or_default())
    }

    /// Fetch what is missing of some content from `source`. What has come is durable when this returns.
    /// Dropping it midway is safe: what has come is not fetched again.
    ///
    /// # Errors
    /// When the source or the content fails, or the disk is full.
    pub async fn fetch(
        &self,
        link: &RootLink,
        limits: Limits,
        (source, lease, job): (SiteId, LeaseId, Option<JobId>),
    ) -> Result<(), FetchError> {
        let mut plan = Plan::new(link.clone(), limits);
        loop {
            let chunks = Arc::clone(&self.chunks);
            let next = move || {
                let wanted = plan.next(&chunks, WANTED);
                (plan, wanted)
            };
            let (same, wanted) = self.machine.block(next).await.ok_or(FetchError::Thread)?;
            plan = same;
            let wanted = wanted?;
            if wanted.is_empty() {
                let chunks = Arc::clone(&self.chunks);
                let flushed = self.machine.block(move || chunks.flush()).await;
                return Ok(flushed.ok_or(FetchError::Thread)??);
            }
            self.fetch_some(&wanted, (source, lease, job)).await?;
            wanted.iter().for_each(|cid| plan.stored(cid));
        }
    }

    /// Write down what fetched content uses, so that it stays for as long as it is pinned.
    ///
    /// # Errors
    /// When the manifest cannot be read or the store refuses.
    pub async fn learn(
        &self,
        link: &RootLink,
        limits: Limits,
        whose: (SiteId, bool),
    ) -> Result<(), FetchError> {
        let (pins, link, now) = (Arc::clone(&self.pins), link.clone(), self.machine.clock.now());
        let learned = self.machine.block(move || pins.learn(&link, limits, whose, now)).await;
        Ok(learned.ok_or(FetchError::Thread)??)
    }

    async fn fetch_some(
        &self,
        wanted: &[ChunkId],
        (source, lease, job): (SiteId, LeaseId, Option<JobId>),
    ) -> Result<(), FetchError> {
        let request = LaneRequest { lease, chunks: wanted.to_vec() };
        let lane = self.net.lane(source, request).await;
        let mut lane = lane.map_err(FetchError::Unreachable)?;
        let mut gathered = Vec::new();
        let mut size = 0;
        loop {
            let piece = lane.next().await.map_err(FetchError::Broken)?;
            let over = piece.is_none();
            if let Some(piece) = piece {
                let index = usize::try_from(piece.index).unwrap_or(usize::MAX);
                let cid = *wanted.get(index).ok_or(FetchError::Nonsense)?;
                let bytes = piece.bytes.ok_or(FetchError::Missing(cid))?;
                size += bytes.len();
                self.meter.received(source, job, bytes.len() as u64);
                gathered.push((cid, bytes));
            }
            if size >= GATHER || over {
                let (chunks, pieces) = (Arc::clone(&self.chunks), std::mem::take(&mut gathered));
                size = 0;
                let write =
                    move || pieces.iter().try_for_each(|(cid, b)| chunks.put(cid, b).map(drop));
                self.machine.block(write).await.ok_or(FetchError::Thread)??;
            }
            if over {
                return Ok(());
            }
        }
    }
}

/// A root of ours with the key that was kept of it.
///
/// # Errors
/// When the store refuses.
pub(crate) fn kept_root(store: &Store, cid: ChunkId) -> Result<Option<RootLink>, StoreError> {
    let bytes = store.get(Family::Output, &root_key(cid))?;
    let key = bytes.and_then(|bytes| codec::decode::<ChunkKey>(&bytes, 64).ok());
    Ok(key.map(|key| RootLink { cid, key }))
}

fn inputs_key(root: ChunkId) -> Vec<u8> {
    [b"p".as_slice(), &root.0].concat()
}

fn root_key(cid: ChunkId) -> Vec<u8> {
    [b"k".as_slice(), &cid.0].concat()
}
