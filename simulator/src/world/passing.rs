//! Leases of others that run on another machine: content and keys that go on to it, outputs that come back from it.

use std::rc::Rc;

use meshfarm_core::{CollectError, Input, PrepareError};
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, SiteId};
use meshfarm_protocol::lease::{Commit, Want};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::seal::{Envelope, SealingKey};

use crate::workload;
use crate::world::sessions::SESSION_START;
use crate::world::transfers::{AT_HOME, FETCH_TIMEOUT, GoalKind};
use crate::world::{Event, World};

/// What the keys of outputs are sealed to, of every site.
pub(super) const SEALED_TO: SealingKey = SealingKey([1; 32]);

impl World<'_> {
    /// Fetch the content of a lease that will run on another machine; its keys wait in memory.
    pub(crate) fn fetch_on(
        &mut self,
        at: usize,
        (lease, borrower): (LeaseId, SiteId),
        root: ChunkId,
        envelope: Envelope,
    ) {
        self.nodes[at].keys.insert(lease, envelope.sealed);
        let bytes = self.roots.get(&root).map_or(0, |(n, _)| self.plan.job[*n].bytes);
        let source = self.by_id.get(&borrower).copied().filter(|_| self.reads(at, borrower, lease));
        if self.nodes[at].disk_full > 0 {
            self.fetched_on(at, lease, (SESSION_START, Err(PrepareError::Full)));
        } else if self.nodes[at].cached.contains(&root) || bytes == 0 {
            self.fetched_on(at, lease, (AT_HOME, Ok(SEALED_TO)));
        } else if let Some(source) = source {
            self.fetch((source, at), bytes, GoalKind::Onward { lease, root });
        } else {
            self.fetched_on(at, lease, (FETCH_TIMEOUT, Err(PrepareError::Unreachable)));
        }
    }

    /// Say so to the core in `ms` milliseconds.
    pub(crate) fn fetched_on(
        &mut self,
        at: usize,
        lease: LeaseId,
        (ms, result): (u64, Result<SealingKey, PrepareError>),
    ) {
        let input = Rc::new(Input::Fetched { lease, result });
        self.after(ms, Event::Input(at, input));
    }

    /// Send the keys of a lease to the machine that it runs on.
    pub(crate) fn hand_on(
        &mut self,
        at: usize,
        (lease, to): (LeaseId, SiteId),
        (job, root): (JobId, ChunkId),
        want: Want,
    ) {
        let Some(sealed) = self.nodes[at].keys.get(&lease).cloned() else { return };
        let envelope = workload::envelope((self.nodes[at].id, to), (job, root), sealed);
        self.send(at, to, Message::Commit(Box::new(Commit { want, root, envelope })));
    }

    /// Fetch what another machine has made for a lease of ours.
    pub(crate) fn take_in(
        &mut self,
        at: usize,
        (lease, attempt): (LeaseId, AttemptId),
        from: From,
    ) {
        let bytes = self.jobs.get(&from.job).map_or(0, |n| self.plan.job[*n].output_bytes);
        let source = self.by_id.get(&from.machine).copied();
        match source.filter(|_| self.reads(at, from.machine, from.onward)) {
            Some(source) => {
                let kind = GoalKind::Taken { lease, attempt, from };
                self.fetch((source, at), bytes.max(1), kind);
            }
            None => {
                let result = Err(CollectError::Unreachable);
                let input = Rc::new(Input::TakenIn { lease, attempt, result });
                self.after(FETCH_TIMEOUT, Event::Input(at, input));
            }
        }
    }

    /// What another machine has made is here, or is not there any more.
    pub(crate) fn taken_in(
        &mut self,
        at: usize,
        (lease, attempt): (LeaseId, AttemptId),
        from: From,
    ) {
        let machine = self.by_id.get(&from.machine).copied();
        let kept = machine.and_then(|machine| self.nodes[machine].kept.get(&attempt).copied());
        let result = match kept.filter(|_| self.reads(at, from.machine, from.onward)) {
            None => Err(CollectError::Unreachable),
            Some(_) if self.nodes[at].disk_full > 0 => {
                Err(CollectError::Unwritable("no space is left".to_owned()))
            }
            Some(root) => {
                self.nodes[at].kept.insert(attempt, root);
                Ok(workload::outputs(self.nodes[at].id, from.to, root))
            }
        };
        self.hear(at, Input::TakenIn { lease, attempt, result });
    }
}

/// Where outputs come from that another machine has made, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From {
    /// The borrower's job.
    pub(crate) job: JobId,
    /// The lease that the machine gave.
    pub(crate) onward: LeaseId,
    pub(crate) machine: SiteId,
    /// The borrower.
    pub(crate) to: SiteId,
}
