//! What people are told while it happens.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{JobId, LeaseId, Millis, SiteId};
use meshfarm_protocol::receipt::Money;

use crate::door::TaskRef;

/// What people are told while it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A job was accepted.
    JobSubmitted {
        /// The job.
        job: JobId,
    },
    /// A job has ended.
    JobEnded {
        /// The job.
        job: JobId,
        /// How.
        phase: crate::JobPhase,
    },
    /// A job may not be done by its deadline. Told once.
    DeadlineAtRisk {
        /// The job.
        job: JobId,
        /// Its deadline.
        deadline: Millis,
        /// When it is expected to end, as far as that is known.
        expected: Option<Millis>,
    },
    /// A job was not done by its deadline, and goes on. Told once.
    DeadlineMissed {
        /// The job.
        job: JobId,
        /// Its deadline.
        deadline: Millis,
    },
    /// A task was handed to a site.
    TaskLeased {
        /// The task.
        task: TaskRef,
        /// Who renders it.
        lender: SiteId,
    },
    /// A task has begun to run.
    TaskStarted {
        /// The task.
        task: TaskRef,
        /// Who renders it.
        lender: SiteId,
    },
    /// A task's outputs are in place.
    TaskDone {
        /// The task.
        task: TaskRef,
        /// Who rendered it.
        lender: SiteId,
    },
    /// A try of a task has failed.
    TaskFailed {
        /// The task.
        task: TaskRef,
        /// Where.
        lender: SiteId,
        /// Why.
        reason: String,
        /// Whether it will be tried again.
        again: bool,
    },
    /// A lender fell silent, gave a lease back or lost it; its open tasks wait again.
    LeaseLost {
        /// The lease.
        lease: LeaseId,
        /// Who had lent.
        lender: SiteId,
        /// How many tasks wait again.
        tasks: u32,
        /// Why.
        reason: String,
    },
    /// A lender has declined.
    Declined {
        /// Who.
        lender: SiteId,
        /// Why.
        reason: meshfarm_protocol::lease::Declined,
    },
    /// A site was heard of for the first time, or again.
    SiteFound {
        /// Who.
        site: SiteId,
        /// Its name.
        name: String,
    },
    /// A site has not been heard of for long.
    SiteLost {
        /// Who.
        site: SiteId,
        /// Its name.
        name: String,
    },
    /// A site was admitted to the mesh.
    Joined {
        /// Who.
        site: SiteId,
        /// Its name.
        name: String,
    },
    /// A peer did something that an honest one does not do.
    Blame {
        /// Who.
        site: SiteId,
        /// What.
        what: String,
    },
    /// A receipt is contested: its borrower knows of less than its lender claims.
    Disputed {
        /// The other site.
        site: SiteId,
        /// What the lender claims.
        claimed: Money,
        /// What the borrower grants.
        granted: Money,
        /// What the borrower does not agree with.
        why: String,
    },
    /// Receipts of a lender are lacking between those that we have and the one that it sent; it is asked for them.
    ReceiptsLacking {
        /// The lender.
        site: SiteId,
        /// The place of the first.
        next: u64,
    },
    /// Outputs cannot be written to their place.
    OutputBlocked {
        /// The task.
        task: TaskRef,
        /// Why.
        reason: String,
    },
}
