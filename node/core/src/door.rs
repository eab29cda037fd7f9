//! The door of a site: everything that can come in, and everything that can come out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{
    AttemptId, ChunkId, JobId, LeaseId, MeshId, Millis, SiteId, StepNo, TaskNo,
};
use meshfarm_protocol::job::{JobSpec, SessionSpec};
use meshfarm_protocol::lease::{Assignment, Outcome, Outputs, Usage, Want};
use meshfarm_protocol::membership::{CertificateBody, Role};
use meshfarm_protocol::message::{Message, Pass, PassBody};
use meshfarm_protocol::profile::{Amount, HostClass, Level, Profile};
use meshfarm_protocol::receipt::Entry;
use meshfarm_protocol::seal::{Envelope, SealingKey};

pub use crate::event::Event;
use crate::ledger::{ChainId, EntryRecord};
use crate::opening::Owner;
use crate::operate::{Operation, SiteOperation};
use crate::record::{Change, HostMode};

/// Number of a question that a person or a peer asked; its answer carries the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request(pub u64);

/// Number of a session on this site, unique while the node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Session(pub u64);

/// One task of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskRef {
    /// The job.
    pub job: JobId,
    /// The step.
    pub step: StepNo,
    /// The task in the step.
    pub task: TaskNo,
}

/// Something has happened. Peers' messages arrive authenticated and decoded within limits.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed: [`crate::Site::wake_at`] has come.
    Tick,
    /// A person of this site asks for something.
    Asked(Request, Ask),
    /// A member of the mesh says something.
    Heard {
        /// Who, known from the connection.
        from: SiteId,
        /// What.
        message: Message,
    },
    /// A member is connected now.
    PeerUp {
        /// Who.
        site: SiteId,
        /// Its name, from its certificate.
        name: String,
        /// What its certificates let it do, whatever its profile says.
        role: Role,
        /// The meshes that we are both in.
        meshes: BTreeSet<MeshId>,
    },
    /// The last connection to a member is gone.
    PeerDown {
        /// Who.
        site: SiteId,
    },
    /// A member's profile, its signature checked.
    Profile(Profile),
    /// A stranger with a ticket asks to join.
    JoinAsked {
        /// To be repeated in the answer.
        request: Request,
        /// The stranger.
        peer: SiteId,
        /// Hash of the secret that it showed.
        secret_hash: [u8; 32],
        /// The name that it wants.
        name: String,
        /// The role that its ticket gives.
        role: Role,
    },
    /// A lent lease's content is in place, or enough of it to begin, or will not be. After enough, the whole
    /// follows, or an error.
    Prepared {
        /// The lease.
        lease: LeaseId,
        /// How far it is.
        result: Result<Ready, PrepareError>,
    },
    /// The content of a lease that runs on another machine is here, with what the keys of its outputs are sealed to,
    /// or will not be.
    Fetched {
        /// The lease that we gave.
        lease: LeaseId,
        /// What came of it.
        result: Result<SealingKey, PrepareError>,
    },
    /// What another machine has made for a lease of ours is here, durable and sealed to the borrower, or is not.
    TakenIn {
        /// The lease that we gave.
        lease: LeaseId,
        /// The attempt.
        attempt: AttemptId,
        /// What the borrower is told of.
        result: Result<Outputs, CollectError>,
    },
    /// A session is over, its jail is dead, its outputs are sealed and durable.
    SessionEnded {
        /// Which.
        session: Session,
        /// How each of its attempts ended.
        results: Vec<Ended>,
    },
    /// A session is over, its jail is dead, and it has opened a file of its content before that file was in
    /// place: nothing that it made counts, and it shall run again when the whole content is there.
    SessionSpoiled {
        /// Which.
        session: Session,
    },
    /// The runner in the jail has begun with an attempt.
    AttemptStarted {
        /// Which.
        attempt: AttemptId,
    },
    /// An attempt's outputs were fetched and stand where the job named them, or do not.
    Collected {
        /// Which.
        attempt: AttemptId,
        /// What was placed.
        result: Result<Landed, CollectError>,
    },
    /// The content of a step with predecessors was assembled, or was not.
    InputsReady {
        /// The job.
        job: JobId,
        /// The step.
        step: StepNo,
        /// Root and bytes of the content.
        result: Result<(ChunkId, u64), String>,
    },
    /// Our machine offers something else than before.
    Host(Box<HostClass>),
    /// A source has sent bytes that are not those of the chunk that it was asked for. Their hash was checked.
    WrongChunk {
        /// Who.
        site: SiteId,
        /// Under which lease it was asked.
        lease: LeaseId,
        /// For which chunk.
        chunk: ChunkId,
        /// The address that what came has.
        came: ChunkId,
    },
    /// In our store stands another receipt in the place of this one, which its lender has signed too.
    Forked {
        /// Who sent it.
        site: SiteId,
        /// The receipt.
        entry: Box<Entry>,
    },
    /// Somebody has looked at the machine's owner.
    Owner(Owner),
    /// The store has room again, or none.
    Disk {
        /// Whether it is full.
        full: bool,
    },
}

/// What a person asks for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Render this. Its content is stored.
    Submit {
        /// The job.
        spec: Box<JobSpec>,
        /// Root of its content.
        root: ChunkId,
        /// Bytes of its content.
        bytes: u64,
    },
    /// Do something to a job or to tasks of it.
    Operate {
        /// The job.
        job: JobId,
        /// What.
        operation: Operation,
    },
    /// Do something to the site itself.
    OperateSite(SiteOperation),
    /// Let somebody join, once or several times.
    Invite {
        /// The mesh, of which this site holds the root.
        mesh: MeshId,
        /// Its name.
        mesh_name: String,
        /// Hash of the ticket's secret.
        secret_hash: [u8; 32],
        /// What the invited may do.
        role: Role,
        /// How many sites may use it.
        uses: u32,
        /// From when on it is worthless.
        expires: Millis,
    },
    /// Stop, start or remove a host of this site.
    Host(SiteId, HostMode),
    /// This machine has become a host of that site.
    Serve(SiteId),
    /// This site's certificates have changed: whether they let it borrow only.
    Submitter(bool),
}

/// A selection of tasks of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tasks {
    /// Those that failed; of a job that has ended, also those that were stopped with it.
    Failed,
    /// Every one.
    All,
    /// Every one of the step.
    Step(StepNo),
    /// These of the step.
    These(StepNo, Vec<TaskNo>),
}

/// What a person is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The job is on disk and queued.
    Submitted(JobId),
    /// Done; so many tasks were touched.
    Changed(u32),
    /// No, and why.
    Refused(String),
}

/// How far the content of a lent lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Whether its tasks share a session.
    pub shared_sessions: bool,
    /// Whether everything is in place, and not only what earlier versions of these tasks have opened.
    pub whole: bool,
}

/// Why a lent lease's content is not in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepareError {
    /// The borrower cannot be reached.
    Unreachable,
    /// This site's disk is full.
    Full,
    /// The envelope, the manifest or a chunk is not what it should be.
    Bad(String),
    /// Something of this site is broken.
    Broken(String),
}

/// Outputs that stand where they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landed {
    /// How many files.
    pub files: u32,
    /// Their bytes together.
    pub bytes: u64,
}

/// Why an attempt's outputs do not stand where they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CollectError {
    /// The lender cannot be reached, or has not got them now. It will be asked again.
    Unreachable,
    /// The outputs are not what they should be: the attempt counts as failed.
    Bad(String),
    /// They cannot be written here: disk full, folder gone. It will be tried again.
    Unwritable(String),
}

/// How one attempt of a session ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Which.
    pub attempt: AttemptId,
    /// How.
    pub outcome: Outcome,
    /// What it made.
    pub outputs: Option<Outputs>,
    /// What it used.
    pub usage: Usage,
}

/// Where a lent lease's keys come from.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few exist at a time, and the larger kind is the usual one"
)]
pub enum Content {
    /// From another site, sealed to us.
    Sealed(Envelope),
    /// It is our own job.
    Own(JobId, SessionSpec),
}

/// What of the machine is a session's own while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Amounts by name, in lower case: what its step asks for, and its share of the processors.
    pub amounts: BTreeMap<String, Amount>,
    /// Graphics cards by their numbers from zero, in the order in which the machine's profile counts them.
    pub gpus: Vec<u32>,
}

/// Something must happen. Outputs are performed in order; what a [`Output::Persist`] says is on disk
/// before anything after it is performed.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make it durable.
    Persist(Change),
    /// Say it to another site. It may get lost.
    Send {
        /// To whom.
        to: SiteId,
        /// What.
        message: Message,
    },
    /// Seal the keys of `root` to the lender and send it as a commit.
    Commit {
        /// The lender.
        to: SiteId,
        /// The key to seal to.
        sealing_key: SealingKey,
        /// The job that the keys belong to.
        job: JobId,
        /// Root of the content.
        root: ChunkId,
        /// What shall run first.
        want: Want,
        /// What the jail is built from.
        session: SessionSpec,
    },
    /// Sign this pass and send it: another lender of ours has content of this lease.
    Introduce {
        /// The lender that still fetches.
        to: SiteId,
        /// Its lease.
        lease: LeaseId,
        /// The lender that has some of it.
        source: SiteId,
        /// What the pass says.
        pass: PassBody,
    },
    /// Another lender has content of a lent lease: fetch from it too.
    Share {
        /// The lease.
        lease: LeaseId,
        /// Who has some of its content.
        source: SiteId,
        /// What to show there.
        pass: Pass,
    },
    /// Fetch and lay out the content of a lent lease; answered by [`Input::Prepared`].
    Prepare {
        /// The lease.
        lease: LeaseId,
        /// Who has the content.
        borrower: SiteId,
        /// Its root.
        root: ChunkId,
        /// Where its keys come from.
        content: Content,
    },
    /// Fetch the content of a lease that will run on another machine, as ciphertext, and keep its keys until they are
    /// handed on; answered by [`Input::Fetched`].
    Fetch {
        /// The lease that we gave.
        lease: LeaseId,
        /// Who has the content.
        borrower: SiteId,
        /// Its root.
        root: ChunkId,
        /// Where its keys come from.
        envelope: Envelope,
    },
    /// Seal the keys of a lease that we gave to the machine that it runs on, and send them as a commit.
    HandOn {
        /// The lease that we gave.
        lease: LeaseId,
        /// The machine.
        to: SiteId,
        /// The key to seal to.
        sealing_key: SealingKey,
        /// The borrower's job.
        job: JobId,
        /// Root of the content.
        root: ChunkId,
        /// What shall run first, under the lease that the machine gave.
        want: Want,
    },
    /// Fetch what another machine has made for a lease of ours, make it durable and seal its key to the borrower;
    /// answered by [`Input::TakenIn`].
    TakeIn {
        /// The lease that we gave.
        lease: LeaseId,
        /// The attempt.
        attempt: AttemptId,
        /// Who gets it.
        to: (SiteId, SealingKey),
        /// The borrower's job.
        job: JobId,
        /// The lease that gives the right to fetch, and who has the outputs.
        from: (LeaseId, SiteId),
        /// What there is.
        outputs: Outputs,
    },
    /// Start a session in a jail; answered by [`Input::SessionEnded`].
    Start {
        /// Its number.
        session: Session,
        /// The lease that it belongs to.
        lease: LeaseId,
        /// Who gets the outputs and the logs.
        borrower: SiteId,
        /// What was promised: the jail has at least this, or does not start.
        isolation: Level,
        /// What of the machine is its own while it runs.
        holds: Hold,
        /// What it runs, in order.
        run: Vec<Assignment>,
    },
    /// End a session now.
    Stop(Session),
    /// A lent lease is over: drop its keys and its folder.
    Release(LeaseId),
    /// The borrower has what an attempt made, or nobody will ever fetch it: drop it.
    Forget {
        /// The attempt.
        attempt: AttemptId,
        /// Root of its outputs, when it made any.
        root: Option<ChunkId>,
    },
    /// Jobs were forgotten: drop the logs of these attempts, and all that nobody wrote to since `before`.
    Purge {
        /// The last tries of their tasks.
        attempts: Vec<AttemptId>,
        /// When the oldest job that is left was submitted.
        before: Millis,
    },
    /// Fetch an attempt's outputs and put them where the job named them; answered by [`Input::Collected`].
    Collect {
        /// The attempt.
        attempt: AttemptId,
        /// The task that it was for.
        task: TaskRef,
        /// The lease that gives the right to fetch.
        lease: LeaseId,
        /// Who has them.
        lender: SiteId,
        /// What there is.
        outputs: Outputs,
    },
    /// Assemble the content of a step from the job's and its predecessors' outputs; answered by
    /// [`Input::InputsReady`].
    BuildInputs {
        /// The job.
        job: JobId,
        /// The step.
        step: StepNo,
        /// The steps whose outputs it reads.
        needs: Vec<StepNo>,
        /// Root of the job's own content.
        root: ChunkId,
    },
    /// Sign what is ours to sign of this receipt and its answer, and send both.
    SendReceipt {
        /// The other side of its chain.
        to: SiteId,
        /// The receipt.
        entry: Box<EntryRecord>,
    },
    /// Send the receipt that stands in the store, if one does. When it is another one than `against`: answered by
    /// [`Input::Forked`].
    ShowReceipt {
        /// The other side of the chain.
        to: SiteId,
        /// The chain.
        chain: ChainId,
        /// The place in it.
        sequence: u64,
        /// What was said to stand there.
        against: Option<Box<Entry>>,
    },
    /// Sign this profile and tell the mesh.
    Publish(Profile),
    /// Sign this certificate and hand it to the stranger who asked.
    Admit(Request, CertificateBody),
    /// Tell the stranger why not.
    Refuse(Request, String),
    /// Answer the person who asked.
    Answer(Request, Reply),
    /// Tell people, live.
    Tell(Event),
}
