//! What each site's driver does with the core's outputs: disk, transfers, sessions, messages.

use meshfarm_core::{
    ChainId, Change, CollectError, Content, Ended, EntryRecord, Input, Key, Landed, Output,
    PrepareError, Ready, Record, Reply, Session, TaskRef,
};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::SessionSpec;
use meshfarm_protocol::lease::{Assignment, Commit, Outcome, Want};
use meshfarm_protocol::message::{Message, Pass};
use meshfarm_protocol::receipt::{Entry, SignedVerdict};
use meshfarm_protocol::seal::Signature;

use crate::workload;
use crate::world::{Event, World};

/// How long a session needs to start and to be stopped, in milliseconds.
const SESSION_START: u64 = 50;

/// How long a driver tries to reach a site before it says that it cannot, in milliseconds.
const FETCH_TIMEOUT: u64 = 10_000;

/// How long the content of a step with predecessors takes to assemble, in milliseconds.
const ASSEMBLE: u64 = 300;

/// An encoded session spec is shorter than this.
const MAX_SESSION_BYTES: usize = 1 << 16;

/// The content of a lent lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Laid {
    root: ChunkId,
    shared_sessions: bool,
}

/// A session that runs.
#[derive(Debug)]
pub(crate) struct Running {
    borrower: SiteId,
    /// Each attempt with the moment and the way in which it ends.
    attempts: Vec<(AttemptId, Millis, u64, Outcome)>,
    stopped: Option<Millis>,
}

impl World<'_> {
    /// Do what the core of a site says.
    pub(crate) fn perform(&mut self, at: usize, output: Output) {
        match output {
            Output::Persist(change) => self.persist(at, change),
            Output::Send { to, message } => self.send(at, to, message),
            Output::Commit { to, root, want, session, .. } => {
                self.commit(at, (to, root), want, &session);
            }
            Output::SendReceipt { to, entry } => {
                self.send(at, to, Message::Receipt(Box::new(unsigned(&entry))));
            }
            Output::ShowReceipt { to, chain, sequence, against } => {
                self.show_receipt(at, to, (chain, sequence), against);
            }
            Output::Introduce { to, lease, source, pass } => {
                let (body, signature) = (codec::encode(&pass), Signature([0; 64]));
                let pass = Box::new(Pass { body, signature });
                self.send(at, to, Message::Source { lease, source, pass });
            }
            Output::Prepare { lease, borrower, root, content } => {
                self.prepare(at, (lease, borrower), root, content);
            }
            Output::Start { session, lease, borrower, run, .. } => {
                self.start(at, session, (lease, borrower), &run);
            }
            Output::Stop(session) => self.stop(at, session),
            Output::Release(lease) => drop(self.nodes[at].laid.remove(&lease)),
            Output::Forget { attempt, .. } => drop(self.nodes[at].kept.remove(&attempt)),
            Output::Collect { attempt, task, lease, lender, .. } => {
                self.collect(at, (task, attempt), lease, lender);
            }
            Output::BuildInputs { job, step, root, .. } => self.build_inputs(at, (job, step), root),
            Output::Publish(profile) => {
                for to in 0..self.nodes.len() {
                    let told = self.links.told.contains(&(at, to));
                    let copies =
                        if told { self.links.send(self.streams, at, to) } else { Vec::new() };
                    for ms in copies {
                        let profile = profile.clone();
                        self.after(ms, Event::Gossip { from: at, to, profile });
                    }
                }
            }
            Output::Answer(request, Reply::Submitted(job)) => self.submitted(request, job),
            Output::Fetch { .. } | Output::HandOn { .. } | Output::TakeIn { .. } => {
                self.oracle.blame("a site passed work on that has no hosts".to_owned());
            }
            // Content comes from the borrower alone here.
            Output::Share { .. }
            | Output::Purge { .. }
            | Output::Answer(..)
            | Output::Tell(_)
            | Output::Admit(..)
            | Output::Refuse(..) => {}
        }
    }

    fn persist(&mut self, at: usize, change: Change) {
        self.oracle.persisted(&change, self.now);
        let disk = &mut self.nodes[at].disk;
        match change {
            Change::Put(record) => drop(disk.insert(record.key(), *record)),
            Change::Delete(key) => drop(disk.remove(&key)),
        }
    }

    fn send(&mut self, from: usize, to: SiteId, message: Message) {
        self.messages += 1;
        let Some(to) = self.by_id.get(&to).copied() else {
            return;
        };
        if from == to {
            self.oracle.blame("a message to oneself reached the driver".to_owned());
            return;
        }
        for ms in self.links.send(self.streams, from, to) {
            let message = message.clone();
            self.after(ms, Event::Message { from, to, message });
        }
    }

    fn commit(
        &mut self,
        at: usize,
        (to, root): (SiteId, ChunkId),
        want: Want,
        session: &SessionSpec,
    ) {
        let from = self.nodes[at].id;
        let envelope = workload::envelope((from, to), root, codec::encode(session));
        let commit = Commit { want, root, envelope };
        self.send(at, to, Message::Commit(Box::new(commit)));
    }

    fn prepare(
        &mut self,
        at: usize,
        (lease, borrower): (LeaseId, SiteId),
        root: ChunkId,
        content: Content,
    ) {
        let session = match content {
            Content::Own(_, session) => session,
            Content::Sealed(envelope) => codec::decode(&envelope.sealed, MAX_SESSION_BYTES)
                .expect("the simulated borrower sealed a session"),
        };
        let shared_sessions = session.environments;
        let bytes = self.roots.get(&root).map_or(0, |(job, _)| self.scenario.job[*job].bytes);
        let node = &mut self.nodes[at];
        let warm = node.id == borrower || node.cached.contains(&root);
        node.laid.insert(lease, Laid { root, shared_sessions });
        let ms = if warm { SESSION_START } else { self.links.transfer(bytes) };
        self.after(ms, Event::Fetched { site: at, lease, borrower });
    }

    /// Whether `at` can read from `source` now, and `source` lets it.
    fn reads(&self, at: usize, source: SiteId, lease: LeaseId) -> bool {
        let Some(from) = self.by_id.get(&source).copied() else {
            return false;
        };
        let me = self.nodes[at].id;
        let allows = self.nodes[from].site.as_ref().is_some_and(|site| site.may_read(me, lease));
        self.links.is_whole(at, from) && (at == from || allows)
    }

    pub(crate) fn fetched(&mut self, at: usize, lease: LeaseId, borrower: SiteId) {
        let Some(laid) = self.nodes[at].laid.get(&lease).copied() else {
            return;
        };
        if self.reads(at, borrower, lease) {
            self.nodes[at].cached.insert(laid.root);
            let ready = Ready { shared_sessions: laid.shared_sessions, whole: true };
            let result = Ok(ready);
            self.hear(at, Input::Prepared { lease, result });
        } else {
            let result = Err(PrepareError::Unreachable);
            self.after(FETCH_TIMEOUT, Event::Input(at, Input::Prepared { lease, result }));
        }
    }

    fn start(
        &mut self,
        at: usize,
        session: Session,
        (lease, borrower): (LeaseId, SiteId),
        run: &[Assignment],
    ) {
        let laid = self.nodes[at].laid.get(&lease).copied();
        let place = laid.and_then(|laid| self.roots.get(&laid.root).copied());
        let Some((n, step)) = place else {
            self.oracle.blame(format!("{lease:?} starts without its content"));
            return;
        };
        let mut moment = self.now.plus(Millis(SESSION_START));
        let mut attempts = Vec::new();
        for Assignment { attempt, task } in run.iter().copied() {
            let node = &mut self.nodes[at];
            node.draws += 1;
            let draw = (at as u64) << 32 | node.draws;
            let job = (n, &self.scenario.job[n]);
            let (wall, outcome) =
                workload::cost(self.streams, job, &node.entry, (step, task), draw);
            let begins = Event::AttemptBegin(at, session, attempt);
            self.after(moment.since(self.now).0, begins);
            moment = moment.plus(Millis(wall));
            attempts.push((attempt, moment, wall, outcome));
        }
        let node = &mut self.nodes[at];
        let stopped = None;
        node.sessions.insert(session, Running { borrower, attempts, stopped });
        let (running, slots) = (node.sessions.len(), node.entry.slots);
        let name = node.name.clone();
        self.oracle.running(&name, running, slots);
        self.after(moment.since(self.now).0, Event::SessionEnd(at, session));
    }

    /// A session gets to one of its attempts, unless it has been stopped or killed.
    pub(crate) fn attempt_begins(&mut self, at: usize, session: Session, attempt: AttemptId) {
        let running = self.nodes[at].sessions.get(&session);
        let begins = running.is_some_and(|running| {
            let mut attempts = running.attempts.iter();
            running.stopped.is_none() && attempts.any(|(known, ..)| *known == attempt)
        });
        if begins {
            self.oracle.started(attempt);
            self.hear(at, Input::AttemptStarted { attempt });
        }
    }

    fn show_receipt(
        &mut self,
        at: usize,
        to: SiteId,
        (chain, sequence): (ChainId, u64),
        against: Option<Box<Entry>>,
    ) {
        let stored = self.nodes[at].disk.get(&Key::Entry(chain, sequence));
        let Some(Record::Entry(stored)) = stored else { return };
        let entry = unsigned(stored);
        if let Some(other) = against.filter(|other| other.receipt != entry.receipt) {
            self.after(0, Event::Input(at, Input::Forked { site: to, entry: other }));
        }
        self.send(at, to, Message::Receipt(Box::new(entry)));
    }

    fn stop(&mut self, at: usize, session: Session) {
        let now = self.now;
        if let Some(running) = self.nodes[at].sessions.get_mut(&session) {
            running.stopped.get_or_insert(now);
            self.after(SESSION_START, Event::SessionEnd(at, session));
        }
    }

    pub(crate) fn session_ended(&mut self, at: usize, session: Session) {
        let node = &mut self.nodes[at];
        let Some(running) = node.sessions.remove(&session) else {
            return;
        };
        let (me, until) = (node.id, running.stopped.unwrap_or(self.now));
        let mut results = Vec::new();
        for (attempt, end, wall, outcome) in running.attempts {
            let outcome =
                if end <= until { outcome } else { Outcome::Failed("stopped".to_owned()) };
            let made = outcome == Outcome::Done;
            if made {
                self.nodes[at].kept.insert(attempt);
            }
            let outputs = made.then(|| workload::outputs(me, running.borrower, &attempt.0));
            let usage = workload::usage(wall, 0);
            results.push(Ended { attempt, outcome, outputs, usage });
        }
        self.hear(at, Input::SessionEnded { session, results });
    }

    fn collect(
        &mut self,
        at: usize,
        (task, attempt): (TaskRef, AttemptId),
        lease: LeaseId,
        lender: SiteId,
    ) {
        let known = self.nodes[at].disk.get(&Key::Job(task.job));
        let root = match known {
            Some(Record::Job(record)) => self.roots.get(&record.root),
            Some(_) | None => None,
        };
        let bytes = root.map_or(0, |(n, _)| self.scenario.job[*n].output_bytes);
        let ms =
            if self.reads(at, lender, lease) { self.links.transfer(bytes) } else { FETCH_TIMEOUT };
        self.after(ms, Event::Arrived { site: at, task, attempt, lender, lease });
    }

    pub(crate) fn arrived(
        &mut self,
        at: usize,
        (task, attempt): (TaskRef, AttemptId),
        lender: SiteId,
        lease: LeaseId,
    ) {
        let from = self.by_id.get(&lender).copied();
        let there = from.is_some_and(|from| self.nodes[from].kept.contains(&attempt));
        let node = &mut self.nodes[at];
        node.draws += 1;
        let key = (workload::number(task), (at as u64) << 32 | node.draws);
        let percent = self.scenario.job.iter().map(|job| job.unwritable_percent).max();
        let result = if !there || !self.reads(at, lender, lease) {
            Err(CollectError::Unreachable)
        } else if self.streams.chance("unwritable", key, percent.unwrap_or(0)) {
            Err(CollectError::Unwritable("the folder is gone".to_owned()))
        } else {
            self.oracle.placed(task, attempt);
            Ok(Landed { files: 1, bytes: u64::MAX })
        };
        self.hear(at, Input::Collected { attempt, result });
    }

    fn build_inputs(&mut self, at: usize, (job, step): (JobId, StepNo), root: ChunkId) {
        let result = match self.roots.get(&root) {
            Some((n, _)) => Ok((workload::root(*n, step), self.scenario.job[*n].bytes)),
            None => Err("the content is of no job".to_owned()),
        };
        self.after(ASSEMBLE, Event::Input(at, Input::InputsReady { job, step, result }));
    }
}

/// A receipt as it is sent. The core looks at no signature: who sends what is known here.
fn unsigned(record: &EntryRecord) -> Entry {
    let signature = Signature([0; 64]);
    let body = record.verdict.clone();
    let verdict = (!body.is_empty()).then_some(SignedVerdict { body, signature });
    Entry { receipt: record.receipt.clone(), lender: signature, verdict }
}
