//! Jobs as the core sees them, and the values that stand for content, envelopes and usage.

use std::collections::BTreeMap;

use meshfarm_protocol::id::{ChunkId, JobId, Millis, SiteId, StepNo, TenantId};
use meshfarm_protocol::job::{JobSpec, Layout, MeshPolicy, StepSpec};
use meshfarm_protocol::lease::{Outputs, Usage};
use meshfarm_protocol::profile::{Amount, AmountNeed, Requirement};
use meshfarm_protocol::seal::{Address, Envelope, SealingKey, Signature};

use crate::plan::PlanJob;
use crate::streams::{Streams, number_of};
use crate::world::node::amount_name;

/// Root of the content of a plan's job: the steps after the first read others.
pub(crate) fn root(job: u32, step: StepNo) -> ChunkId {
    ChunkId(Streams::new(0).bytes("content", u64::from(job), u64::from(step.0)))
}

/// What is submitted.
pub(crate) fn spec(job: &PlanJob) -> JobSpec {
    let need = |(name, need): (&String, &u64)| {
        (amount_name(name), AmountNeed { min: Amount::whole(*need), max: None })
    };
    let requirement =
        Requirement { amounts: job.needs.iter().map(need).collect(), attributes: BTreeMap::new() };
    let steps = (0u32..).zip(&job.steps).map(|(step, frames)| StepSpec {
        name: format!("step {step}"),
        requirement: requirement.clone(),
        labels: (1..=frames.len()).map(|frame| format!("Frame={frame}")).collect(),
        needs: step.checked_sub(1).map(StepNo).into_iter().collect(),
        environments: job.environments,
        session: None,
    });
    let mut tenant = [0; 16];
    tenant.copy_from_slice(&Streams::new(0).bytes("tenant", number_of(&job.tenant), 0)[..16]);
    JobSpec {
        name: job.id.to_string(),
        user: "simulated".to_owned(),
        project: job.tenant.clone(),
        tenant: TenantId(tenant),
        policy: MeshPolicy {
            place: job.place.clone(),
            priority: job.priority,
            retries: job.retries,
            ..MeshPolicy::default()
        },
        steps: steps.collect(),
        layout: Layout::default(),
    }
}

pub(crate) fn usage(wall: u64, bytes: u64) -> Usage {
    Usage { wall: Millis(wall), cpu: Millis(wall), peak_memory: 1 << 28, output_bytes: bytes }
}

pub(crate) fn outputs(from: SiteId, to: SiteId, root: ChunkId) -> Outputs {
    Outputs { root, envelope: envelope((from, to), (JobId([0; 16]), root), Vec::new()) }
}

/// An envelope in shape only: what is sealed is readable, for nobody here peeks.
pub(crate) fn envelope(
    (from, to): (SiteId, SiteId),
    (job, root): (JobId, ChunkId),
    sealed: Vec<u8>,
) -> Envelope {
    Envelope {
        address: Address {
            from,
            to,
            key: SealingKey([1; 32]),
            job,
            root,
            expires: Millis(u64::MAX),
        },
        ephemeral: [0; 32],
        nonce: [0; 24],
        sealed,
        signature: Signature([0; 64]),
    }
}
