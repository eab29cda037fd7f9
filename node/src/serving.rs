//! Chunks on their way to others: what is read for them, how fast it may go, and what is counted.

use std::sync::Arc;

use meshfarm_protocol::id::{JobId, SiteId};

use crate::means::Means;
use crate::net::{self, AskedId, LaneStream, Shelf};
use crate::sharing::Here;

/// One lane to another site.
struct Serving {
    means: Arc<Means>,
    to: SiteId,
    /// The job of ours that it takes the content of, when it is one.
    job: Option<JobId>,
}

impl Shelf for Serving {
    fn get(&self, id: &AskedId, onto: &mut Vec<u8>) -> bool {
        let chunks = &self.means.chunks;
        let found = chunks.beginning(id).and_then(|cid| match cid {
            Some(cid) => chunks.get_onto(&cid, onto),
            None => Ok(false),
        });
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "a chunk cannot be read for another site");
            false
        })
    }

    async fn admit(&self, bytes: u64) {
        self.means.pace.send(self.to, bytes, &self.means.machine.clock).await;
        let now = self.means.machine.clock.now();
        self.means.meter.sent(now, (self.to, self.job), bytes);
    }

    fn left(&self, bytes: u64) {
        self.means.meter.left((self.to, self.job), bytes);
    }
}

impl Means {
    /// Send chunks to a site that has the right to them. `here` says what of the content is here, when that is
    /// not all of it.
    pub fn serve(
        self: &Arc<Self>,
        stream: LaneStream,
        (to, job): (SiteId, Option<JobId>),
        here: Option<Here>,
    ) {
        let shelf = Arc::new(Serving { means: Arc::clone(self), to, job });
        tokio::spawn(async move {
            if let Err(error) = net::serve(stream, shelf, here).await {
                tracing::debug!(to = %to.short(), %error, "a lane ended early");
            }
        });
    }
}
