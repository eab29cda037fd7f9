//! Questions of people about the store of chunks, and its care on demand.

use std::sync::Arc;

use tokio::sync::mpsc;

use meshfarm_protocol::id::{JobId, Millis};

use crate::api::{
    Collect, Phase, Problem, Progress, StoreCollected, StoreStat, StoreVerified, TenantBytes,
    Verify, causes,
};
use crate::pins::Owner;
use crate::sweep::{SweepError, Sweeper};

use super::{NodeBackend, panicked};

/// So many bytes are verified between two lines of progress.
const TELL_EVERY: u64 = 16 << 20;

impl NodeBackend {
    /// Ask the sweeper on a thread that may wait.
    async fn sweep<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Sweeper, Millis) -> Result<T, SweepError> + Send + 'static,
    ) -> Result<T, Problem> {
        let (sweeper, now) = (Arc::clone(&self.sweeper), self.means.machine.clock.now());
        let answer = self.means.machine.block(move || ask(&sweeper, now)).await;
        answer.ok_or_else(panicked)?.map_err(|error| Problem::broken(&error))
    }

    pub(super) async fn store_stat(&self) -> Result<StoreStat, Problem> {
        let stock = self.sweep(|sweeper, _| sweeper.stock()).await?;
        let dry = self.sweep(|sweeper, now| sweeper.collect(now, 0, true)).await?;
        let owners: Vec<_> = stock.owners.iter().map(|(owner, ..)| owner.site).collect();
        let names = self
            .gate
            .look(move |core, _| owners.iter().map(|site| core.name_of(*site)).collect::<Vec<_>>())
            .await?;
        let (me, settings) = (self.means.me, self.sweeper.settings());
        let quota =
            |owner: &Owner| (owner.site != me && owner.tenant.is_some()).then_some(settings.tenant);
        let tenants = stock.owners.iter().zip(names).map(|((owner, bytes, pinned), name)| {
            let (bytes, pinned, quota) = (*bytes, *pinned, quota(owner));
            TenantBytes { site: owner.site, name, tenant: owner.tenant, bytes, pinned, quota }
        });
        let segments = stock.segments;
        Ok(StoreStat {
            chunks: stock.chunks,
            bytes: segments.live,
            pinned: stock.pinned,
            strays: stock.strays,
            collectable: dry.bytes,
            segments: segments.segments,
            disk: segments.disk,
            reclaimable: segments.disk.saturating_sub(segments.live),
            unread: segments.unread,
            free: stock.free,
            keep_free: settings.keep_free,
            damaged: stock.damaged,
            verified: stock.verified,
            tenants: tenants.collect(),
        })
    }

    pub(super) async fn verify(
        &self,
        verify: Verify,
        progress: mpsc::Sender<Progress>,
    ) -> Result<StoreVerified, Problem> {
        let mut told = 0;
        let tell = move |done: u64, total: u64| {
            if done >= told + TELL_EVERY {
                told = done;
                let total = Some(total);
                drop(progress.try_send(Progress { phase: Phase::Verifying, done, total }));
            }
            !progress.is_closed()
        };
        let ask = move |sweeper: &Sweeper, now| sweeper.verify(now, verify.rebuild, tell);
        let verified = self.sweep(ask).await?;
        Ok(StoreVerified {
            chunks: verified.chunks,
            bytes: verified.bytes,
            found: verified.found,
            n_damaged: verified.n_damaged,
            damaged: verified.damaged,
            jobs: verified.jobs,
        })
    }

    pub(super) async fn collect(&self, collect: Collect) -> Result<StoreCollected, Problem> {
        let Collect { dry_run, wanted } = collect;
        let done = self.sweep(move |sweeper, now| sweeper.collect(now, wanted, dry_run)).await?;
        let blocked = done.blocked.map(|root| {
            format!(
                "content {} is in use, and which chunks it uses is not known until its job or its \
                 delivery has ended",
                root.short()
            )
        });
        Ok(StoreCollected {
            dry_run,
            contents: done.roots,
            chunks: done.chunks,
            bytes: done.bytes,
            segments: done.segments,
            blocked,
        })
    }

    /// Content of a job that ended goes in time. Whoever renders it again is told so before it is tried.
    pub(super) async fn check_content(&self, job: JobId) -> Result<(), Problem> {
        let Some(root) = self.gate.look(move |site, _| site.content(job)).await? else {
            return Ok(());
        };
        let means = Arc::clone(&self.means);
        let look = move || {
            match means.root(root).map_err(|error| Problem::broken(&error))? {
                None => Err("its key is gone".to_owned()),
                Some(link) => {
                    let (me, now) = (means.me, means.machine.clock.now());
                    means.pins.check_whole(&link, me, now).map_err(|error| causes(&error))
                }
            }
            .map_err(|why| {
                Problem::refused(format!(
                    "the content of job {} is not here any more: {why}",
                    job.short()
                ))
                .with_help("submit the job again: only what is missing is read and stored")
            })
        };
        self.means.machine.block(look).await.ok_or_else(panicked)?
    }
}
