//! What a site makes durable: records by key, and changes to them. A site restored from them goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{
    AttemptId, ChunkId, JobId, LeaseId, MeshId, Millis, SiteId, StepNo, TaskNo, TenantId,
};
use meshfarm_protocol::job::{JobSpec, Place};
use meshfarm_protocol::lease::Done;
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{Exact, Money, Terms};
use meshfarm_protocol::seal::SealingKey;

use crate::deadline::Warned;
use crate::door::TaskRef;
use crate::job::{JobPhase, Task};
use crate::ledger::{ChainId, ChainRecord, ChargeRecord, EntryRecord, MisdeedRecord, TallyRecord};

/// A change to the durable state.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Write or overwrite a record.
    Put(Box<Record>),
    /// Remove a record, if it is there.
    Delete(Key),
}

/// One durable record. Each kind has a column family of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "a record lives in a box from where it is made to where it is written"
)]
pub enum Record {
    /// What a job is; written once.
    Spec(JobId, Box<JobSpec>),
    /// How a job stands.
    Job(JobRecord),
    /// How a task stands. A task without a record waits and has never been tried, unless its job says that it is canceled.
    Task(TaskRef, Task),
    /// A lease that we hold.
    Borrowed(BorrowedRecord),
    /// A lease that we gave.
    Lent(LentRecord),
    /// An attempt that has ended here and that its borrower has not accepted yet.
    Finished(FinishedRecord),
    /// An invitation that we gave.
    Invite(InviteRecord),
    /// What a site has sent that it should not have.
    Evidence(EvidenceRecord),
    /// What a person has told the site itself.
    Site(SiteRecord),
    /// A machine of ours that has joined.
    Host(HostRecord),
    /// An attempt that counts and that no receipt names yet.
    Charge(ChargeRecord),
    /// How far a chain of receipts is.
    Chain(ChainRecord),
    /// A receipt of ours that has no answer.
    Pending(EntryRecord),
    /// A receipt that both sides have signed. It is never deleted, and a site is not told of it when it starts.
    Entry(EntryRecord),
    /// A receipt that was refused.
    Misdeed(MisdeedRecord),
    /// What our own tasks used on our own machines.
    Tally(TallyRecord),
    /// Where a lease that we gave runs, when that is another machine.
    Relay(RelayRecord),
}

/// Names a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// Of [`Record::Spec`].
    Spec(JobId),
    /// Of [`Record::Job`].
    Job(JobId),
    /// Of [`Record::Task`].
    Task(TaskRef),
    /// Of [`Record::Borrowed`].
    Borrowed(LeaseId),
    /// Of [`Record::Lent`].
    Lent(LeaseId),
    /// Of [`Record::Finished`].
    Finished(AttemptId),
    /// Of [`Record::Invite`]: the hash of its secret.
    Invite([u8; 32]),
    /// Of [`Record::Evidence`].
    Evidence(SiteId),
    /// Of [`Record::Site`]: there is one.
    Site,
    /// Of [`Record::Host`].
    Host(SiteId),
    /// Of [`Record::Charge`].
    Charge(AttemptId),
    /// Of [`Record::Chain`].
    Chain(ChainId),
    /// Of [`Record::Pending`].
    Pending(ChainId, u64),
    /// Of [`Record::Entry`].
    Entry(ChainId, u64),
    /// Of [`Record::Misdeed`].
    Misdeed(SiteId, u32),
    /// Of [`Record::Tally`]: its day, its tenant, and a hash of its project.
    Tally(u64, TenantId, [u8; 16]),
    /// Of [`Record::Relay`]: the lease that we gave.
    Relay(LeaseId),
}

impl Record {
    /// The record's name.
    #[must_use]
    pub const fn key(&self) -> Key {
        match self {
            Self::Spec(job, _) => Key::Spec(*job),
            Self::Job(record) => Key::Job(record.job),
            Self::Task(task, _) => Key::Task(*task),
            Self::Borrowed(record) => Key::Borrowed(record.lease),
            Self::Lent(record) => Key::Lent(record.lease),
            Self::Finished(record) => Key::Finished(record.done.attempt),
            Self::Invite(record) => Key::Invite(record.secret_hash),
            Self::Evidence(record) => Key::Evidence(record.site),
            Self::Site(_) => Key::Site,
            Self::Host(record) => Key::Host(record.host),
            Self::Charge(record) => Key::Charge(record.attempt),
            Self::Chain(record) => Key::Chain(record.chain),
            Self::Pending(record) => Key::Pending(record.chain, record.sequence),
            Self::Entry(record) => Key::Entry(record.chain, record.sequence),
            Self::Misdeed(record) => Key::Misdeed(record.site, record.n),
            Self::Tally(record) => Key::Tally(record.day, record.tenant, record.name),
            Self::Relay(record) => Key::Relay(record.lease),
        }
    }
}

impl Key {
    /// The key's bytes within its column family. Tasks of one job stand together and in order.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Spec(job) | Self::Job(job) => job.0.to_vec(),
            Self::Task(TaskRef { job, step: StepNo(step), task: TaskNo(task) }) => {
                [&job.0[..], &step.to_be_bytes(), &task.to_be_bytes()].concat()
            }
            Self::Borrowed(lease) | Self::Lent(lease) | Self::Relay(lease) => lease.0.to_vec(),
            Self::Finished(attempt) | Self::Charge(attempt) => attempt.0.to_vec(),
            Self::Chain(chain) => [chain.lender.0, chain.borrower.0].concat(),
            Self::Pending(chain, sequence) | Self::Entry(chain, sequence) => {
                [&chain.lender.0[..], &chain.borrower.0, &sequence.to_be_bytes()].concat()
            }
            Self::Misdeed(site, n) => [&site.0[..], &n.to_be_bytes()].concat(),
            Self::Tally(day, tenant, project) => {
                [&day.to_be_bytes()[..], &tenant.0, &project].concat()
            }
            Self::Invite(hash) => hash.to_vec(),
            Self::Evidence(site) | Self::Host(site) => site.0.to_vec(),
            Self::Site => Vec::new(),
        }
    }
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub job: JobId,
    /// When it was submitted.
    pub submitted: Millis,
    /// When it ended.
    pub ended: Option<Millis>,
    /// How it stands.
    pub phase: JobPhase,
    /// Root of its own content.
    pub root: ChunkId,
    /// Bytes of that content.
    pub bytes: u64,
    /// Content of the steps that read outputs of others, once assembled.
    pub inputs: Vec<(StepNo, ChunkId, u64)>,
    /// What a person has changed of it since.
    #[serde(default, skip_serializing_if = "Steering::is_plain")]
    pub steering: Steering,
    /// Tasks that stay canceled, from the first to the last of each run, in a job that was canceled and of which a part
    /// is rendered after all. In a job that has ended every open task is canceled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canceled: Vec<(StepNo, TaskNo, TaskNo)>,
    /// What people were told of its deadline.
    #[serde(default, skip_serializing_if = "Warned::is_not")]
    pub warned: Warned,
    /// What tasks have cost that are rendered again.
    #[serde(default, skip_serializing_if = "Exact::is_zero")]
    pub spent: Exact,
}

/// What a person has changed of a job since it was submitted. What the job is, is written once; this overrides it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// In place of the policy's priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// In place of the policy's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// In place of the policy's budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Money>,
    /// Tasks that are not to be started: of each step ranges, from the first task to the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<(StepNo, TaskNo, TaskNo)>,
    /// Some of its tasks were canceled while the job went on: it is done without them.
    #[serde(default)]
    pub trimmed: bool,
}

impl Steering {
    /// Whether nothing was changed.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// What a person has told the site itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// Whether tasks of other sites are taken.
    pub foreign: Intake,
    /// Whether our own tasks are taken.
    pub own: Intake,
    /// Sites that get none of our tasks, with the names that a person knew them by.
    pub shut: BTreeMap<SiteId, String>,
}

/// Whether our slots take tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intake {
    /// They do.
    #[default]
    Open,
    /// They take nothing new.
    Closed {
        /// What still runs at this moment goes back unfinished. None: it runs to its end.
        give_back: Option<Millis>,
    },
}

impl Intake {
    /// Whether tasks are taken.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open)
    }

    /// When what runs goes back.
    #[must_use]
    pub const fn give_back(self) -> Option<Millis> {
        match self {
            Self::Open => None,
            Self::Closed { give_back } => give_back,
        }
    }
}

/// A lease that we hold. Its attempts stand in the task records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BorrowedRecord {
    /// The lease.
    pub lease: LeaseId,
    /// The job that it serves.
    pub job: JobId,
    /// The step that it serves.
    pub step: StepNo,
    /// Who lent.
    pub lender: SiteId,
    /// How many slots.
    pub slots: u32,
    /// The isolation that was promised; none in records of before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Level>,
    /// What it costs.
    #[serde(default)]
    pub terms: Terms,
}

/// A lease that we gave. Its sessions do not survive a restart; its finished attempts do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentRecord {
    /// The lease.
    pub lease: LeaseId,
    /// Who borrowed.
    pub borrower: SiteId,
    /// Whose job it is.
    pub tenant: TenantId,
    /// What it costs.
    #[serde(default)]
    pub terms: Terms,
    /// The isolation that its jails have.
    #[serde(default)]
    pub isolation: Level,
    /// Bytes of its content, as the offer said; none once they were counted.
    #[serde(default)]
    pub content: u64,
}

/// The lease of another machine under which a lease that we gave runs: a host of ours, or a site to which the work was
/// passed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRecord {
    /// The lease that we gave.
    pub lease: LeaseId,
    /// The lease that the machine gave us.
    pub onward: LeaseId,
    /// The machine.
    pub lender: SiteId,
    /// How many slots it gave.
    pub slots: u32,
    /// The isolation that was promised.
    pub isolation: Level,
    /// The borrower's job, as its envelopes name it.
    pub job: JobId,
    /// Root of the content.
    pub root: ChunkId,
    /// What the borrower wants the keys of outputs to be sealed to.
    pub outputs_to: SealingKey,
}

/// An attempt that has ended here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedRecord {
    /// Who wants to know.
    pub borrower: SiteId,
    /// When it ended.
    pub at: Millis,
    /// What the borrower is told.
    pub done: Done,
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRecord {
    /// BLAKE3 of the ticket's secret; the secret itself is kept nowhere.
    pub secret_hash: [u8; 32],
    /// The mesh that it leads to.
    pub mesh: MeshId,
    /// Its name.
    pub mesh_name: String,
    /// What the invited may do.
    pub role: Role,
    /// From when on it is worthless.
    pub expires: Millis,
    /// How many sites may still use it.
    pub uses_left: u32,
    /// Who has used it: asking again after a lost answer costs no further use.
    pub used_by: Vec<(SiteId, String)>,
}

/// Whether a host takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostMode {
    /// It does.
    Open,
    /// A person has stopped it: what it runs may end, nothing new begins.
    Stopped,
    /// A person has removed it. It is remembered so that its certificate, which still holds, is worth nothing.
    Removed,
}

/// A host of this site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Which.
    pub host: SiteId,
    /// Its name.
    pub name: String,
    /// When it joined last.
    pub joined: Millis,
    /// Whether it takes tasks.
    pub mode: HostMode,
}

/// Chunks that a site has sent in place of others: the last one, and how many there were. Whoever has the bytes can
/// hash them again; that they came from this site is our word, because pieces are not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceRecord {
    /// Who sent them.
    pub site: SiteId,
    /// How often.
    pub n: u32,
    /// When the last one came.
    pub at: Millis,
    /// Under which lease it was asked for.
    pub lease: LeaseId,
    /// The chunk that was asked for.
    pub chunk: ChunkId,
    /// The address that what came has.
    pub came: ChunkId,
}
