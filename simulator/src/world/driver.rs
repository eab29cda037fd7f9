//! What each site's driver does with the core's outputs: disk, messages, and who hears of what.

use std::rc::Rc;

use meshfarm_core::{
    ChainId, Change, EntryRecord, Event as Told, Input, JobPhase, Key, Output, Record, Reply, Task,
};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{ChunkId, JobId, SiteId, StepNo};
use meshfarm_protocol::job::SessionSpec;
use meshfarm_protocol::lease::{Commit, Want};
use meshfarm_protocol::message::{Message, Pass};
use meshfarm_protocol::receipt::{Entry, SignedVerdict};
use meshfarm_protocol::seal::Signature;

use crate::bug::Bug;
use crate::seen::{TaskIs, What};
use crate::workload;
use crate::world::passing::From;
use crate::world::{Event, World};

/// How long the content of a step with predecessors takes to assemble, in milliseconds.
const ASSEMBLE: u64 = 300;

impl World<'_> {
    /// Do what the core of a site says, unless the node dies in between.
    pub(crate) fn perform_all(&mut self, at: usize, out: Vec<Output>) {
        for output in out {
            if let Some((left, until)) = self.nodes[at].kill_after {
                if left == 0 {
                    self.nodes[at].kill_after = None;
                    self.nodes[at].dead += 1;
                    self.kill(at);
                    self.after(until.since(self.now).0, Event::Boot(at));
                    return;
                }
                self.nodes[at].kill_after = Some((left - 1, until));
            }
            self.perform(at, output);
        }
    }

    fn perform(&mut self, at: usize, output: Output) {
        match output {
            Output::Persist(change) => self.persist(at, change),
            Output::Send { to, message } => self.send(at, to, message),
            Output::Commit { to, root, want, session, job, .. } => {
                self.commit(at, (to, job, root), want, &session);
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
            Output::Share { lease, source, pass } => self.share(at, (lease, source), &pass),
            Output::Prepare { lease, borrower, root, content } => {
                self.prepare(at, (lease, borrower), root, content);
            }
            Output::Fetch { lease, borrower, root, envelope } => {
                self.fetch_on(at, (lease, borrower), root, envelope);
            }
            Output::HandOn { lease, to, job, root, want, .. } => {
                self.hand_on(at, (lease, to), (job, root), want);
            }
            Output::TakeIn { lease, attempt, to, job, from: (onward, machine), .. } => {
                self.take_in(at, (lease, attempt), From { job, onward, machine, to: to.0 });
            }
            Output::Start { session, lease, borrower, run, holds, .. } => {
                self.start(at, session, (lease, borrower), (&run, holds.amounts));
            }
            Output::Stop(session) => self.stop(at, session),
            Output::Release(lease) => {
                if self.bug != Some(Bug::KeepContent) {
                    self.nodes[at].laid.remove(&lease);
                    self.nodes[at].keys.remove(&lease);
                }
            }
            Output::Forget { attempt, .. } => drop(self.nodes[at].kept.remove(&attempt)),
            Output::Collect { attempt, task, lease, lender, .. } => {
                self.collect(at, (task, attempt), lease, lender);
            }
            Output::BuildInputs { job, step, root, .. } => self.build_inputs(at, (job, step), root),
            Output::Publish(profile) => self.publish(at, profile),
            Output::Answer(request, Reply::Submitted(job)) => self.submitted(at, request, job),
            Output::Tell(told) => self.told(at, told),
            // No person asks for anything else, and nobody joins.
            Output::Purge { .. } | Output::Answer(..) | Output::Admit(..) | Output::Refuse(..) => {}
        }
    }

    fn told(&mut self, at: usize, told: Told) {
        match told {
            Told::LeaseLost { lender, tasks, reason, .. } => {
                if let Some(lender) = self.by_id.get(&lender).copied() {
                    self.see(at, What::Lost { lender, tasks, reason });
                }
            }
            Told::Blame { site, .. } => {
                if let Some(whom) = self.by_id.get(&site).copied() {
                    self.see(at, What::Blamed { whom });
                }
            }
            _ => {}
        }
    }

    fn persist(&mut self, at: usize, change: Change) {
        let is_lease =
            |key: &Key| matches!(key, Key::Borrowed(_) | Key::Lent(_) | Key::Finished(_));
        match change {
            Change::Put(record) => {
                self.recorded(at, &record);
                let (key, node) = (record.key(), &mut self.nodes[at]);
                if node.disk.insert(key, *record).is_none() && is_lease(&key) {
                    node.n_leases += 1;
                    let n = node.n_leases;
                    self.see(at, What::Records { n });
                }
            }
            Change::Delete(key) => {
                let node = &mut self.nodes[at];
                if node.disk.remove(&key).is_some() && is_lease(&key) {
                    node.n_leases -= 1;
                }
                match key {
                    Key::Task(task) => {
                        self.see(at, What::Dropped { job: task.job, task: Some(task) });
                    }
                    Key::Spec(job) | Key::Job(job) => {
                        self.see(at, What::Dropped { job, task: None });
                    }
                    Key::Borrowed(_)
                    | Key::Lent(_)
                    | Key::Finished(_)
                    | Key::Invite(_)
                    | Key::Evidence(_)
                    | Key::Site
                    | Key::Host(_)
                    | Key::Charge(_)
                    | Key::Chain(_)
                    | Key::Pending(..)
                    | Key::Entry(..)
                    | Key::Misdeed(..)
                    | Key::Tally(..)
                    | Key::Relay(_) => {}
                }
            }
        }
    }

    /// What an observer learns of a record.
    fn recorded(&mut self, at: usize, record: &Record) {
        match record {
            Record::Job(record) => {
                let (job, phase) = (record.job, record.phase.clone());
                self.queued(at, job);
                let node = &mut self.nodes[at];
                if phase == JobPhase::Active {
                    node.active.insert(job);
                } else if node.active.remove(&job) && node.active.is_empty() {
                    self.look_away(at);
                }
                self.see(at, What::Job { job, phase });
            }
            Record::Task(task, state) => {
                let is = match state {
                    Task::Waiting { .. } => TaskIs::Waiting,
                    Task::Leased { attempt, .. } => TaskIs::Leased { attempt: *attempt },
                    Task::Done { attempt, .. } => TaskIs::Done { attempt: *attempt },
                    Task::Failed { .. } => TaskIs::Failed,
                    Task::Canceled => TaskIs::Canceled,
                };
                self.see(at, What::Task { task: *task, is });
            }
            Record::Spec(..)
            | Record::Borrowed(_)
            | Record::Lent(_)
            | Record::Finished(_)
            | Record::Invite(_)
            | Record::Evidence(_)
            | Record::Site(_)
            | Record::Host(_)
            | Record::Charge(_)
            | Record::Chain(_)
            | Record::Pending(_)
            | Record::Entry(_)
            | Record::Misdeed(_)
            | Record::Tally(_)
            | Record::Relay(_) => {}
        }
    }

    /// A job is on the disk: its specification came before.
    fn queued(&mut self, at: usize, job: JobId) {
        let spec = match self.nodes[at].disk.get(&Key::Spec(job)) {
            Some(Record::Spec(_, spec)) if !self.jobs.contains_key(&job) => spec,
            Some(_) | None => return,
        };
        let number = spec.name.parse::<u32>().ok();
        let found =
            number.and_then(|id| self.plan.job.binary_search_by_key(&id, |job| job.id).ok());
        if let Some(n) = found {
            self.jobs.insert(job, n);
            self.see(at, What::Queued { job, number: self.plan.job[n].id });
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: SiteId, message: Message) {
        let Some(to) = self.by_id.get(&to).copied() else {
            return;
        };
        if from == to {
            let what = "a message to oneself reached the driver".to_owned();
            self.see(from, What::Broke { invariant: "I14", what });
            return;
        }
        self.counts.messages += 1;
        self.said(from, to, &message);
        let message = Rc::new(message);
        let times = if self.bug == Some(Bug::Storm) { 40 } else { 1 };
        for _ in 0..times {
            for ms in self.net.send(self.streams, from, to).into_iter().flatten() {
                let event = Event::Message { from, to, message: message.clone() };
                self.deliver((from, to), ms, event);
            }
        }
        if times > 1 {
            (1..times).for_each(|_| self.said(from, to, &message));
        }
    }

    /// What an observer of the line learns of a message.
    fn said(&mut self, from: usize, to: usize, message: &Message) {
        let kind = match message {
            Message::Offer(offer) => {
                let (lease, slots) = (offer.lease, offer.slots);
                self.see(from, What::Offered { lease, to, slots });
                "offer"
            }
            Message::Grant(grant) => {
                let (lease, slots) = (grant.lease, grant.slots);
                self.see(from, What::Granted { lease, to, slots });
                "grant"
            }
            Message::Decline { lease, reason, .. } => {
                self.see(from, What::Refused { lease: *lease, to, reason: *reason });
                "decline"
            }
            Message::Commit(commit) => {
                self.assigned(from, to, &commit.want);
                "commit"
            }
            Message::Want(want) => {
                self.assigned(from, to, want);
                "want"
            }
            Message::Status(_) => "status",
            Message::Done(_) => "done",
            Message::Accepted { .. } => "accepted",
            Message::Close { .. } => "close",
            Message::Source { .. } => "source",
            Message::Receipt(_) => "receipt",
            Message::Behind { .. } => "behind",
        };
        self.see(from, What::Said { to, kind });
    }

    fn assigned(&mut self, from: usize, to: usize, want: &Want) {
        let (lease, version, n) = (want.lease, want.version, want.attempts.len());
        for wanted in &want.attempts {
            let (task, attempt) = (wanted.task, wanted.attempt);
            self.see(from, What::Assigned { lease, to, task, attempt });
        }
        self.see(from, What::Wish { lease, version, n });
    }

    pub(crate) fn message_arrives(&mut self, (from, to): (usize, usize), message: Rc<Message>) {
        if !self.net.carries(from, to) || self.nodes[to].site.is_none() {
            return;
        }
        if self.plan.view.is_some() {
            self.connect(to, from);
        }
        let from = self.nodes[from].id;
        self.hear(to, Input::Heard { from, message: Rc::unwrap_or_clone(message) });
    }

    fn commit(
        &mut self,
        at: usize,
        (to, job, root): (SiteId, JobId, ChunkId),
        want: Want,
        session: &SessionSpec,
    ) {
        let from = self.nodes[at].id;
        if let Some(lender) = self.by_id.get(&to).copied() {
            let number = self.jobs.get(&job).map(|n| self.plan.job[*n].id);
            let (lease, step) = (want.lease, session.step);
            self.see(at, What::Trusted { lease, to: lender, number, step });
        }
        let envelope = workload::envelope((from, to), (job, root), codec::encode(session));
        let commit = Commit { want, root, envelope };
        self.send(at, to, Message::Commit(Box::new(commit)));
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
            let input = Input::Forked { site: to, entry: other };
            self.after(0, Event::Input(at, Rc::new(input)));
        }
        self.send(at, to, Message::Receipt(Box::new(entry)));
    }

    fn build_inputs(&mut self, at: usize, (job, step): (JobId, StepNo), root: ChunkId) {
        let result = match self.roots.get(&root) {
            Some((n, _)) => {
                Ok((workload::root(self.plan.job[*n].id, step), self.plan.job[*n].bytes))
            }
            None => Err("the content is of no job".to_owned()),
        };
        let input = Rc::new(Input::InputsReady { job, step, result });
        self.after(ASSEMBLE, Event::Input(at, input));
    }
}

/// A receipt as it is sent. The core looks at no signature: who sends what is known here.
fn unsigned(record: &EntryRecord) -> Entry {
    let signature = Signature([0; 64]);
    let body = record.verdict.clone();
    let verdict = (!body.is_empty()).then_some(SignedVerdict { body, signature });
    Entry { receipt: record.receipt.clone(), lender: signature, verdict }
}
