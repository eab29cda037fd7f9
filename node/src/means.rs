//! What lending and returning both work with: keys, store, chunks, network, and how chunks are fetched.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use meshfarm_core::Input;
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{ChunkId, JobId, LeaseId, Millis, SiteId};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::seal::{
    self, Address, ChunkKey, Envelope, EnvelopeError, EnvelopeSeed, SealingKey, SealingSecret,
    SigningKey,
};

use crate::arrivals::Arrivals;
use crate::chunks::{ChunkError, Chunks};
use crate::content::ContentError;
use crate::machine::Machine;
use crate::meter::Meter;
use crate::net::{LaneError, Net, NetError};
use crate::pace::Pace;
use crate::pins::Pins;
use crate::sharing::Sharing;
use crate::store::{Batch, Family, Store, StoreError};
use crate::transfer::{self, Fetch};

/// How long an envelope can be opened.
const ENVELOPE_LIFE: Millis = Millis::seconds(24 * 3600);

/// Bytes that one permit of [`Means::received`] stands for.
const UNIT: usize = 16 << 10;

/// The permits of all pieces together: 64 MiB of them may wait to be written.
pub const MAX_UNITS: u32 = 4096;

/// A longer list of kept inputs was not written by us.
const MAX_KEPT: usize = 256 << 20;

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

/// Where content is fetched from.
#[derive(Clone, Copy, Debug)]
pub struct From {
    /// Who has it.
    pub source: SiteId,
    /// The lease that gives the right to it.
    pub lease: LeaseId,
    /// The job of ours that it belongs to, when it is one.
    pub job: Option<JobId>,
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
    /// Lenders of one job as sources for each other.
    pub sharing: Sharing,
    /// How fast content may go.
    pub pace: Pace,
    /// Bounds the bytes of pieces that have come and are not written yet.
    pub received: Arc<Semaphore>,
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
        self: &Arc<Self>,
        link: &RootLink,
        limits: Limits,
        from: From,
    ) -> Result<(), FetchError> {
        self.fetch_chunks(link, limits, from, (Vec::new(), Arc::default())).await?;
        self.flush().await
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

    /// Fetch the nodes of a manifest. What has come is in the store when this returns, perhaps not durable.
    /// Dropping it midway is safe.
    ///
    /// # Errors
    /// As [`Means::fetch`].
    pub async fn fetch_manifest(
        self: &Arc<Self>,
        link: &RootLink,
        limits: Limits,
        from: From,
    ) -> Result<(), FetchError> {
        Fetch { means: self, link, limits, from }.nodes().await.map(drop)
    }

    /// Fetch what is missing of some content from `source`: the chunks of `first`, which are ranges in the
    /// manifest's flattened list of chunks, before all others. `arrivals` is told of what is
    /// in the store, and that nothing more will come, however this ends. What has come is durable after
    /// [`Means::flush`]. Dropping it midway is safe.
    ///
    /// # Errors
    /// As [`Means::fetch`].
    pub async fn fetch_chunks(
        self: &Arc<Self>,
        link: &RootLink,
        limits: Limits,
        from: From,
        (first, arrivals): (Vec<Range<u64>>, Arc<Arrivals>),
    ) -> Result<(), FetchError> {
        let _ends = Ends(&arrivals);
        let fetch = Fetch { means: self, link, limits, from };
        let mut fetched = Err(FetchError::Nonsense);
        // A node that rotted on our disk was forgotten when it was read, and a second plan fetches it again.
        for _ in 0..2 {
            let contents = fetch.nodes().await?;
            fetched = fetch.chunks(contents, &first, &arrivals).await;
            if !fetched.as_ref().is_err_and(transfer::is_damage) {
                break;
            }
        }
        fetched
    }

    /// Make everything durable that has come.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn flush(&self) -> Result<(), FetchError> {
        let chunks = Arc::clone(&self.chunks);
        let flushed = self.machine.block(move || chunks.flush()).await;
        Ok(flushed.ok_or(FetchError::Thread)??)
    }

    /// Waits until so many bytes of pieces may be held in memory.
    pub(crate) async fn receiving(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(MAX_UNITS);
        Arc::clone(&self.received).acquire_many_owned(units).await.ok()
    }
}

/// Tells that nothing more comes, also when the fetch is dropped.
struct Ends<'a>(&'a Arrivals);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
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
