//! Leases that run on another machine: their content comes here as ciphertext, their keys are handed on, and what is
//! made of them is taken in and sealed to whoever borrowed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::task::AbortHandle;

use meshfarm_core::{CollectError, Input, PrepareError};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, SiteId};
use meshfarm_protocol::lease::{Commit, LeaseSecrets, Outputs, Want};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::seal::{ChunkKey, Envelope, SealingKey};

use crate::laid_out::{MAX_CONTENT, prepare_error};
use crate::means::{From, Means};
use crate::pins::Why;
use crate::returning::{MAX_OUTPUTS, collect_error};

/// The hands of a site between a borrower and the machine that renders.
#[derive(Debug)]
pub struct Passing {
    means: Arc<Means>,
    leases: Mutex<BTreeMap<LeaseId, Entered>>,
    /// Content that somebody fetches. Leases of one job come together, and its content shall come once.
    turns: Mutex<BTreeMap<ChunkId, Weak<Turn>>>,
}

/// Whoever holds it fetches some content.
type Turn = tokio::sync::Mutex<()>;

/// A lease whose keys have not been handed on.
#[derive(Debug)]
struct Entered {
    fetching: AbortHandle,
    /// As soon as they are known.
    secrets: Option<LeaseSecrets>,
}

/// What a machine has made, and for whom.
#[derive(Debug)]
pub struct Made {
    /// The lease that we gave.
    pub lease: LeaseId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Who gets it.
    pub to: (SiteId, SealingKey),
    /// The borrower's job.
    pub job: JobId,
    /// The lease that gives the right to fetch, and who has the outputs.
    pub from: (LeaseId, SiteId),
    /// What there is.
    pub outputs: Outputs,
}

impl Passing {
    /// Hands that are empty.
    #[must_use]
    pub fn new(means: Arc<Means>) -> Self {
        Self { means, leases: Mutex::default(), turns: Mutex::default() }
    }

    /// Fetch the content of a lease, and say so to the loop.
    pub fn fetch(
        self: Arc<Self>,
        lease: LeaseId,
        borrower: SiteId,
        root: ChunkId,
        envelope: Envelope,
    ) {
        // Held until the lease is entered, so that its own task finds it.
        let mut leases = self.lock();
        let this = Arc::clone(&self);
        let fetching = tokio::spawn(async move {
            let result = this.bring(lease, borrower, root, &envelope).await;
            if let Err(error) = &result {
                tracing::warn!(%lease, ?error, "the content of a lease that is passed on is not here");
            }
            this.means.tell(Input::Fetched { lease, result }).await;
        });
        let fetching = fetching.abort_handle();
        leases.insert(lease, Entered { fetching, secrets: None });
    }

    /// Dropping it midway is safe: what has come is not fetched again.
    async fn bring(
        &self,
        lease: LeaseId,
        borrower: SiteId,
        root: ChunkId,
        envelope: &Envelope,
    ) -> Result<SealingKey, PrepareError> {
        let means = &self.means;
        let secrets: Result<LeaseSecrets, _> = means.open(envelope, borrower, root);
        let secrets = secrets.map_err(PrepareError::Bad)?;
        secrets.session.layout.check().map_err(PrepareError::Bad)?;
        let link = RootLink { cid: root, key: secrets.root_key.clone() };
        let limits = Limits::granting(MAX_CONTENT.min(means.quota));
        let from = From { source: borrower, lease, job: None };
        let turn = self.turn_of(root);
        let _turn = turn.lock().await;
        means.fetch_manifest(&link, limits, from).await.map_err(prepare_error)?;
        means.learn(&link, limits, (borrower, false)).await.map_err(prepare_error)?;
        means.fetch(&link, limits, from).await.map_err(prepare_error)?;
        let outputs_to = secrets.outputs_to;
        if let Some(entered) = self.lock().get_mut(&lease) {
            entered.secrets = Some(secrets);
        }
        Ok(outputs_to)
    }

    /// The turn to fetch this content: who comes later finds it here.
    fn turn_of(&self, root: ChunkId) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&root).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(root, Arc::downgrade(&turn));
        turn
    }

    /// The commit of a lease that another machine gave for one of ours: its keys, sealed to that machine. Outputs come
    /// back to us. The keys are not kept.
    ///
    /// # Errors
    /// When the lease is over or the machine's key is degenerate, in words for the log.
    pub fn hand_on(
        &self,
        lease: LeaseId,
        to: (SiteId, SealingKey),
        of: (JobId, ChunkId),
        want: Want,
    ) -> Result<Message, String> {
        let entered = self.lock().remove(&lease);
        let secrets = entered.and_then(|entered| entered.secrets).ok_or("the lease is over")?;
        let outputs_to = self.means.sealing.public();
        let secrets = codec::encode(&LeaseSecrets { outputs_to, ..secrets });
        let envelope = self.means.seal(to, of, &secrets).map_err(|error| error.to_string())?;
        Ok(Message::Commit(Box::new(Commit { want, root: of.1, envelope })))
    }

    /// Fetch what a machine has made, make it durable, seal its key to the borrower, and say so to the loop.
    pub fn take_in(self: Arc<Self>, made: Made) {
        tokio::spawn(async move {
            let (lease, attempt) = (made.lease, made.attempt);
            let result = self.bring_in(made).await;
            if let Err(error) = &result {
                tracing::warn!(%lease, %attempt, ?error, "what another machine has made is not here");
            }
            self.means.tell(Input::TakenIn { lease, attempt, result }).await;
        });
    }

    async fn bring_in(&self, made: Made) -> Result<Outputs, CollectError> {
        let Made { attempt, to, job, from: (onward, machine), outputs, .. } = made;
        let means = &self.means;
        let cid = outputs.root;
        let key: Result<ChunkKey, _> = means.open(&outputs.envelope, machine, cid);
        let link = RootLink { cid, key: key.map_err(CollectError::Bad)? };
        let limits = Limits::granting(MAX_OUTPUTS);
        let from = From { source: machine, lease: onward, job: None };
        let _hold = means.chunks.hold();
        let fetched = means.fetch(&link, limits, from).await;
        // Outputs come from their machine alone; nobody else is a source of them.
        means.sharing.forget(onward);
        fetched.map_err(collect_error)?;
        means.learn(&link, limits, (to.0, true)).await.map_err(collect_error)?;
        let placed = means.pins.place(Why::Attempt(attempt), cid);
        placed.map_err(|error| CollectError::Unwritable(error.to_string()))?;
        let envelope = means.seal(to, (job, cid), &codec::encode::<ChunkKey>(&link.key));
        let envelope = envelope.map_err(|error| CollectError::Bad(error.to_string()))?;
        Ok(Outputs { root: cid, envelope })
    }

    /// A lease is over: drop its keys.
    pub fn release(&self, lease: LeaseId) {
        if let Some(entered) = self.lock().remove(&lease) {
            entered.fetching.abort();
        }
    }

    /// A panic elsewhere leaves a map that is whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Entered>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
