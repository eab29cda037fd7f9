//! Results of our tasks on their way home: keys handed out, outputs fetched and put where the job named them.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use meshfarm_core::{CollectError, Input, Landed, TaskRef};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, SiteId, StepNo};
use meshfarm_protocol::job::{Access, Layout, SessionSpec};
use meshfarm_protocol::lease::{Commit, LeaseSecrets, Outputs, Want};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::seal::{ChunkKey, SealingKey, TenantSecret};

use crate::content::ContentError;
use crate::content::merge::merge;
use crate::content::tree::Files;
use crate::means::{FetchError, From, Means};
use crate::store::{Batch, Family};

/// The most bytes that one task may return.
pub(crate) const MAX_OUTPUTS: u64 = 1 << 38;

/// A kept root is this long at most.
const MAX_LINK: usize = 256;

/// The borrower's hands.
#[derive(Debug)]
pub struct Returning {
    means: Arc<Means>,
    tenant: TenantSecret,
}

impl Returning {
    /// Hands that are empty.
    #[must_use]
    pub const fn new(means: Arc<Means>, tenant: TenantSecret) -> Self {
        Self { means, tenant }
    }

    /// The commit of a lease: the keys of its content, sealed to the lender.
    ///
    /// # Errors
    /// When the key of the content is gone or the lender's key is degenerate, in words for the log.
    pub fn commit(
        &self,
        to: (SiteId, SealingKey),
        job: JobId,
        root: ChunkId,
        (want, session): (Want, SessionSpec),
    ) -> Result<Message, String> {
        let link = self.means.root(root).map_err(|error| error.to_string())?;
        let root_key = link.ok_or("the key of its content is gone")?.key;
        let outputs_to = self.means.sealing.public();
        let secrets = codec::encode(&LeaseSecrets { root_key, outputs_to, session });
        let envelope = self.means.seal(to, (job, root), &secrets);
        let envelope = envelope.map_err(|error| error.to_string())?;
        Ok(Message::Commit(Box::new(Commit { want, root, envelope })))
    }

    /// Fetch an attempt's outputs, put them in their place, and say so to the loop.
    pub fn collect(
        self: Arc<Self>,
        attempt: AttemptId,
        task: TaskRef,
        layout: (Layout, Option<ChunkId>),
        (lease, lender, outputs): (LeaseId, SiteId, Outputs),
    ) {
        tokio::spawn(async move {
            let result = self.bring_home(task, layout, (lease, lender, outputs)).await;
            if let Err(error) = &result {
                tracing::warn!(?task, ?error, "outputs are not in their place");
            }
            self.means.tell(Input::Collected { attempt, result }).await;
        });
    }

    async fn bring_home(
        &self,
        task: TaskRef,
        (layout, content): (Layout, Option<ChunkId>),
        (lease, lender, outputs): (LeaseId, SiteId, Outputs),
    ) -> Result<Landed, CollectError> {
        let cid = outputs.root;
        let key: Result<ChunkKey, _> = self.means.open(&outputs.envelope, lender, cid);
        let link = RootLink { cid, key: key.map_err(CollectError::Bad)? };
        let limits = Limits::granting(MAX_OUTPUTS);
        let from = From { source: lender, lease, job: Some(task.job) };
        let _hold = self.means.chunks.hold();
        self.means.fetch(&link, limits, from).await.map_err(collect_error)?;
        let learned = self.means.learn(&link, limits, (self.means.me, true)).await;
        learned.map_err(collect_error)?;
        let roots = layout.roots.into_iter().filter(|root| root.access == Access::Out);
        let places = roots.map(|root| (root.id, PathBuf::from(root.source))).collect();
        let means = Arc::clone(&self.means);
        let landed = self.means.machine.block(move || {
            let files = Files { chunks: &means.chunks, link: link.clone(), limits };
            means.refuse_replaced(&files, content)?;
            let landed = files.land(&places);
            let landed = landed.map_err(|error| collect_error(FetchError::Content(error)))?;
            let mut batch = Batch::new();
            batch.put(Family::Output, output_key(task), codec::encode(&link));
            let kept = means.store.commit(batch);
            kept.map_err(|error| CollectError::Unwritable(error.to_string()))?;
            let placed = means.pins.place_outputs(task, cid);
            placed.map_err(|error| CollectError::Unwritable(error.to_string()))?;
            let files = u32::try_from(landed.len()).unwrap_or(u32::MAX);
            let bytes = landed.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
            Ok(Landed { files, bytes })
        });
        landed.await.unwrap_or(Err(CollectError::Unreachable))
    }

    /// Assemble the content of a step from the job's and its predecessors' outputs, and say so to the loop.
    pub fn build_inputs(
        self: Arc<Self>,
        (job, step): (JobId, StepNo),
        needs: Vec<StepNo>,
        root: ChunkId,
    ) {
        tokio::spawn(async move {
            let this = Arc::clone(&self);
            let built = self.means.machine.block(move || this.assemble(job, &needs, root)).await;
            let result = built.unwrap_or_else(|| Err("a thread ended unexpectedly".to_owned()));
            self.means.tell(Input::InputsReady { job, step, result }).await;
        });
    }

    fn assemble(
        &self,
        job: JobId,
        needs: &[StepNo],
        root: ChunkId,
    ) -> Result<(ChunkId, u64), String> {
        let means = &self.means;
        let _hold = means.chunks.hold();
        let base = means.root(root).map_err(|error| error.to_string())?;
        let mut links = vec![base.ok_or("the key of the job's content is gone")?];
        for step in needs {
            let prefix = [b"o".as_slice(), &job.0, &step.0.to_be_bytes()].concat();
            let scanned = means.store.scan(Family::Output, &prefix, |_, value| {
                links.extend(codec::decode::<RootLink>(value, MAX_LINK));
                ControlFlow::Continue(())
            });
            scanned.map_err(|error| error.to_string())?;
        }
        let now = means.machine.clock.now();
        let limits = Limits::granting(u64::MAX);
        let built = merge(&means.chunks, &self.tenant, (now, limits), &links);
        let built = built.map_err(|error| error.to_string())?;
        let mut batch = Batch::new();
        Means::keep_root(&mut batch, &built.link);
        means.store.commit(batch).map_err(|error| error.to_string())?;
        let learned = means.pins.learn(&built.link, limits, (means.me, false), now);
        learned.map_err(|error| error.to_string())?;
        let placed = means.pins.place_inputs(job, built.link.cid);
        placed.map_err(|error| error.to_string())?;
        Ok((built.link.cid, built.bytes))
    }
}

impl Means {
    /// A lender must not replace the artist's own files that merely lie in an output folder.
    fn refuse_replaced(
        &self,
        files: &Files<'_>,
        content: Option<ChunkId>,
    ) -> Result<(), CollectError> {
        let Some(root) = content else { return Ok(()) };
        let kept = self.kept_inputs(root);
        let kept = kept.map_err(|error| CollectError::Unwritable(error.to_string()))?;
        if kept.is_empty() {
            return Ok(());
        }
        let paths = files.paths();
        let paths = paths.map_err(|error| collect_error(FetchError::Content(error)))?;
        match paths.iter().find(|path| kept.contains(*path)) {
            Some(path) => Err(CollectError::Bad(format!("{path} would replace an input"))),
            None => Ok(()),
        }
    }
}

fn output_key(TaskRef { job, step, task }: TaskRef) -> Vec<u8> {
    [b"o".as_slice(), &job.0, &step.0.to_be_bytes(), &task.0.to_be_bytes()].concat()
}

pub(crate) fn collect_error(error: FetchError) -> CollectError {
    match error {
        FetchError::Unreachable(_) | FetchError::Broken(_) | FetchError::Thread => {
            CollectError::Unreachable
        }
        FetchError::Chunk(error) if error.is_full() => CollectError::Unwritable(error.to_string()),
        FetchError::Content(ref failed @ ContentError::Target { ref source, .. }) => {
            CollectError::Unwritable(format!("{failed}: {source}"))
        }
        FetchError::Content(error) if error.is_full() => {
            CollectError::Unwritable(error.to_string())
        }
        // A chunk that is damaged on our disk is fetched again.
        FetchError::Content(ContentError::Missing(_)) => CollectError::Unreachable,
        error @ (FetchError::Missing(_)
        | FetchError::Nonsense
        | FetchError::Chunk(_)
        | FetchError::Content(_)) => CollectError::Bad(error.to_string()),
    }
}
