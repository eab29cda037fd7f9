//! What an observer sees of a mesh: one schema, whatever level of the simulator shows it.

use serde::Serialize;

use meshfarm_core::{JobPhase, TaskRef};
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, StepNo, TaskNo};
use meshfarm_protocol::lease::Declined;

/// Something was seen.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Seen {
    /// When.
    #[serde(rename = "ms")]
    pub(crate) at: Millis,
    /// At which site, by its number in the plan.
    pub(crate) site: usize,
    /// What.
    #[serde(flatten)]
    pub(crate) what: What,
}

/// How a task stands in its home's durable state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub(crate) enum TaskIs {
    Waiting,
    Leased { attempt: AttemptId },
    Done { attempt: AttemptId },
    Failed,
    Canceled,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fate {
    Made,
    Failed,
    Stopped,
    Died,
}

/// Why bytes went from one site to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    /// A scene, from its home.
    Scene,
    /// A scene, from another lender.
    Shared,
    /// Frames, on their way home.
    Output,
    /// What arrived of a transfer that came to nothing.
    Wasted,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "seen")]
pub(crate) enum What {
    /// A node is up, with what it found on its disk.
    Up { life: u64, jobs: Vec<JobId>, done: u64 },
    /// A node has died.
    Down,
    /// A job is on its home's disk.
    Queued { job: JobId, number: u32 },
    /// Its submitter was told so.
    Acknowledged { job: JobId, number: u32 },
    /// A job's durable state.
    Job { job: JobId, phase: JobPhase },
    /// A task's durable state.
    Task {
        task: TaskRef,
        #[serde(flatten)]
        is: TaskIs,
    },
    /// Something that was durable is gone.
    Dropped { job: JobId, task: Option<TaskRef> },
    /// A site was asked for slots.
    Offered { lease: LeaseId, to: usize, slots: u32 },
    /// It has promised some.
    Granted { lease: LeaseId, to: usize, slots: u32 },
    /// It has not.
    Refused { lease: LeaseId, to: usize, reason: Declined },
    /// A site gets the keys of a job.
    Trusted { lease: LeaseId, to: usize, number: Option<u32>, step: StepNo },
    /// A try of a task is a site's.
    Assigned { lease: LeaseId, to: usize, task: TaskNo, attempt: AttemptId },
    /// What is wanted of a lease.
    Wish { lease: LeaseId, version: u64, n: usize },
    /// A session starts: so many run now, and this is taken of each amount that is more than there is.
    Session { running: usize, slots: u32, over: Option<String> },
    /// A session gets to a try, in a lane of its own.
    Began {
        attempt: AttemptId,
        number: u32,
        step: StepNo,
        task: TaskNo,
        borrower: usize,
        lane: usize,
    },
    /// A try is over.
    Ended { attempt: AttemptId, fate: Fate, root: Option<ChunkId>, wrong: bool },
    /// Its outputs stand where the job named them.
    Placed { task: TaskRef, attempt: AttemptId, root: ChunkId },
    /// Content has come.
    Moved { from: usize, bytes: u64, class: Class, since: Millis },
    /// A lease was lost with its open tasks.
    Lost { lender: usize, tasks: u32, reason: String },
    /// A site was caught doing what an honest one does not do.
    Blamed { whom: usize },
    /// A message was sent.
    Said { to: usize, kind: &'static str },
    /// A profile was told, to so many.
    Profile { sequence: u64, to: usize },
    /// Records of leases and finished work on a disk.
    Records { n: usize },
    /// A fault begins or ends, by its number in the plan.
    Fault { n: usize, begins: bool },
    /// All is over, and this is still there.
    Left { what: String },
    /// What no honest program does.
    Broke { invariant: &'static str, what: String },
}
