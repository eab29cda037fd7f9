//! Jobs as the core sees them, and what a task costs where it runs.

use meshfarm_core::TaskRef;
use meshfarm_protocol::id::{ChunkId, Millis, SiteId, StepNo, TaskNo, TenantId};
use meshfarm_protocol::job::{JobSpec, Layout, MeshPolicy, StepSpec};
use meshfarm_protocol::lease::{Outcome, Outputs, Usage};
use meshfarm_protocol::profile::{HostClass, Level, Requirement};
use meshfarm_protocol::seal::{Address, Envelope, SealingKey, Signature, content_hash};

use crate::scenario::{JobEntry, SiteEntry};
use crate::streams::Streams;

/// What a scenario's site has, as its profile says it.
pub(crate) fn host(entry: &SiteEntry) -> HostClass {
    HostClass {
        count: 1,
        description: "simulated".to_owned(),
        amounts: std::collections::BTreeMap::new(),
        attributes: Default::default(),
        software: std::collections::BTreeMap::new(),
        slots: entry.slots,
        speed: entry.speed,
        level: Level::S2,
    }
}

/// Root of the content of a scenario's job: the steps after the first read others.
pub(crate) fn root(job: usize, step: StepNo) -> ChunkId {
    ChunkId(content_hash(format!("job {job} step {step}").as_bytes()))
}

pub(crate) fn spec(n: usize, entry: &JobEntry) -> JobSpec {
    let steps = (0u32..).zip(&entry.frames).map(|(step, frames)| StepSpec {
        name: format!("step {step}"),
        requirement: Requirement::default(),
        labels: (1..=*frames).map(|frame| format!("Frame={frame}")).collect(),
        needs: step.checked_sub(1).map(StepNo).into_iter().collect(),
        environments: entry.environments,
        session: None,
    });
    JobSpec {
        name: format!("job {n}"),
        user: "simulated".to_owned(),
        project: "simulated".to_owned(),
        tenant: TenantId([7; 16]),
        policy: MeshPolicy {
            place: entry.place.clone(),
            priority: entry.priority,
            retries: entry.retries,
            ..MeshPolicy::default()
        },
        steps: steps.collect(),
        layout: Layout::default(),
    }
}

/// How long a task runs at a site, and how it ends. The length is the task's; failing is the attempt's.
pub(crate) fn cost(
    streams: Streams,
    (n, job): (usize, &JobEntry),
    site: &SiteEntry,
    (step, task): (StepNo, TaskNo),
    attempt_n: u64,
) -> (u64, Outcome) {
    let at = (((n as u64) << 32) | u64::from(step.0), u64::from(task.0));
    let reference = streams.between("frame", at, job.frame_ms);
    let wall = reference.saturating_mul(1000) / u64::from(site.speed.max(1));
    let percent = job.fail_percent.max(site.fail_percent);
    let outcome = if streams.chance("fail", (n as u64, attempt_n), percent) {
        Outcome::Failed("the renderer ended with 1".to_owned())
    } else {
        Outcome::Done
    };
    (wall.max(1), outcome)
}

pub(crate) fn usage(wall: u64, bytes: u64) -> Usage {
    Usage { wall: Millis(wall), cpu: Millis(wall), peak_memory: 1 << 28, output_bytes: bytes }
}

pub(crate) fn outputs(from: SiteId, to: SiteId, name: &[u8]) -> Outputs {
    let root = ChunkId(content_hash(name));
    Outputs { root, envelope: envelope((from, to), root, Vec::new()) }
}

/// An envelope in shape only: what is sealed is readable, for nobody here peeks.
pub(crate) fn envelope((from, to): (SiteId, SiteId), root: ChunkId, sealed: Vec<u8>) -> Envelope {
    Envelope {
        address: Address {
            from,
            to,
            key: SealingKey([1; 32]),
            job: meshfarm_protocol::id::JobId([0; 16]),
            root,
            expires: Millis(u64::MAX),
        },
        ephemeral: [0; 32],
        nonce: [0; 24],
        sealed,
        signature: Signature([0; 64]),
    }
}

/// Number of a task over all steps of its job, for draws.
pub(crate) fn number(at: TaskRef) -> u64 {
    (u64::from(at.step.0) << 32) | u64::from(at.task.0)
}
