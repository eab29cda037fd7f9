//! The observer that sees all sites: what must hold after every step, whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_core::{Change, JobPhase, Key, Record, Task, TaskRef};
use meshfarm_protocol::id::{AttemptId, JobId, Millis};

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Jobs whose submission was acknowledged, and how many tasks each has.
    jobs: BTreeMap<JobId, u64>,
    ended: BTreeMap<JobId, (JobPhase, Millis)>,
    accepted: BTreeMap<TaskRef, AttemptId>,
    placed: BTreeMap<TaskRef, AttemptId>,
    started: BTreeSet<AttemptId>,
    broken: Option<String>,
    pub(crate) n_started: u64,
}

impl Oracle {
    /// The first invariant that was broken.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Remember that an invariant is broken; the first one counts.
    pub(crate) fn blame(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// A site was told that its job is queued.
    pub(crate) fn submitted(&mut self, job: JobId, tasks: u64) {
        self.jobs.insert(job, tasks);
    }

    /// A record changes on a site's disk.
    pub(crate) fn persisted(&mut self, change: &Change, now: Millis) {
        match change {
            Change::Put(record) => match &**record {
                Record::Task(at, task) => self.task(*at, task),
                Record::Job(record) if record.phase != JobPhase::Active => {
                    self.ended.insert(record.job, (record.phase.clone(), now));
                }
                Record::Job(record) => drop(self.ended.remove(&record.job)),
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
            },
            Change::Delete(Key::Task(at)) if self.accepted.contains_key(at) => {
                self.blame(format!("the accepted result of {at:?} was dropped"));
            }
            Change::Delete(Key::Spec(job) | Key::Job(job)) => {
                self.blame(format!("job {job} was dropped"));
            }
            Change::Delete(_) => {}
        }
    }

    fn task(&mut self, at: TaskRef, task: &Task) {
        let before = self.accepted.get(&at).copied();
        match (before, task) {
            (Some(before), Task::Done { attempt, .. }) if before != *attempt => {
                self.blame(format!("a second result of {at:?} was accepted"));
            }
            (None, Task::Done { attempt, .. }) => {
                self.accepted.insert(at, *attempt);
                if self.placed.get(&at) != Some(attempt) {
                    self.blame(format!("{at:?} is done, but other files stand in its place"));
                }
            }
            (Some(_), Task::Done { .. }) => {}
            (Some(_), other) => self.blame(format!("{at:?} was done and is {other:?} now")),
            (None, _) => {}
        }
    }

    /// A lender begins with an attempt.
    pub(crate) fn started(&mut self, attempt: AttemptId) {
        self.n_started += 1;
        if !self.started.insert(attempt) {
            self.blame(format!("{attempt:?} was started a second time"));
        }
    }

    /// Outputs were written to where the job named them.
    pub(crate) fn placed(&mut self, at: TaskRef, attempt: AttemptId) {
        if self.accepted.contains_key(&at) {
            self.blame(format!("the accepted files of {at:?} were overwritten"));
        }
        self.placed.insert(at, attempt);
    }

    /// Sessions that run on a site at a time.
    pub(crate) fn running(&mut self, name: &str, sessions: usize, slots: u32) {
        if sessions > slots as usize {
            self.blame(format!("{name} runs {sessions} sessions on {slots} slots"));
        }
    }

    pub(crate) fn n_accepted(&self) -> u64 {
        self.accepted.len() as u64
    }

    /// When the last of `n` jobs had ended; none while one runs.
    pub(crate) fn all_ended(&self, n: usize) -> Option<Millis> {
        let all = self.jobs.len() >= n && self.jobs.keys().all(|job| self.ended.contains_key(job));
        all.then(|| self.ended.values().map(|(_, at)| *at).max().unwrap_or_default())
    }

    /// The first job that did not end as `wanted` says.
    pub(crate) fn misses(&self, wanted: impl Fn(&JobPhase) -> bool) -> Option<String> {
        let mut ended = self.ended.iter();
        let (job, (phase, _)) = ended.find(|(_, (phase, _))| !wanted(phase))?;
        Some(format!("job {} ended as {phase:?}", job.short()))
    }

    /// A done job has every one of its results.
    pub(crate) fn complete(&mut self) {
        let mut lacking = Vec::new();
        for (job, (phase, _)) in &self.ended {
            let have = self.accepted.keys().filter(|at| at.job == *job).count() as u64;
            if *phase == JobPhase::Done && self.jobs.get(job).is_some_and(|tasks| *tasks != have) {
                lacking.push(format!("job {} is done with {have} results", job.short()));
            }
        }
        lacking.into_iter().for_each(|what| self.blame(what));
    }
}
