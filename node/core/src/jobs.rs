//! Jobs, steps and tasks of this site: their states, what waits, what is done, what is tried again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::job::{JobSpec, Order, Place, StepSpec};

use crate::door::{Event, Output, TaskRef};
use crate::record::{Change, JobRecord, Key, Record};

/// How long a task that has failed waits before its second try; doubled with each further one.
const RETRY_PAUSE: Millis = Millis::seconds(1);

/// A job none of whose tasks succeeds stops after so many have failed for good: the scene is broken.
const HOPELESS: usize = 10;

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobPhase {
    /// It has tasks to run.
    Active,
    /// Every task is done.
    Done,
    /// It stopped with failed tasks: why.
    Failed(String),
    /// A person stopped it.
    Canceled,
}

/// How a task stands. The illegal combinations have no spelling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Nobody has it.
    Waiting {
        /// Where it failed before; one entry for each failed try.
        failed_on: Vec<SiteId>,
        /// What the last failed try said.
        last: Option<String>,
        /// Not before this moment.
        after: Millis,
    },
    /// A lender has it.
    Leased {
        /// The try: results of any other are not accepted while this one lives.
        attempt: AttemptId,
        /// Under which lease.
        lease: LeaseId,
        /// Who has it.
        lender: SiteId,
        /// Since when.
        since: Millis,
        /// Where it failed before.
        failed_on: Vec<SiteId>,
    },
    /// Its outputs stand in their place.
    Done {
        /// The try that was accepted.
        attempt: AttemptId,
        /// Who rendered it.
        by: SiteId,
        /// When it was accepted.
        at: Millis,
        /// How long it ran.
        wall: Millis,
    },
    /// It failed too often.
    Failed {
        /// Where.
        failed_on: Vec<SiteId>,
        /// What the last try said.
        reason: String,
        /// The last try, whose log tells more.
        attempt: AttemptId,
    },
    /// The job was stopped before it was done.
    Canceled,
}

impl Task {
    const fn new() -> Self {
        Self::Waiting {
            failed_on: Vec::new(),
            last: None,
            after: Millis(0),
        }
    }

    /// The try that it is about or that ended it.
    #[must_use]
    pub const fn attempt(&self) -> Option<AttemptId> {
        match self {
            Self::Leased { attempt, .. }
            | Self::Done { attempt, .. }
            | Self::Failed { attempt, .. } => Some(*attempt),
            Self::Waiting { .. } | Self::Canceled => None,
        }
    }
}

/// The content of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inputs {
    /// Its predecessors are not done, or are done and nobody has begun to assemble it.
    NotYet,
    /// It is being assembled.
    Building,
    /// It is there.
    Ready { root: ChunkId, bytes: u64 },
}

/// A step at work.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    inputs: Inputs,
    tasks: Vec<Task>,
    /// Task numbers in the order in which they start.
    order: Vec<TaskNo>,
    /// Sum and count of the wall times of done tasks, to learn how long one takes.
    wall: (u64, u64),
}

/// A job at work.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) record: JobRecord,
    steps: Vec<Step>,
}

/// What a failed try does to its task.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) by: SiteId,
    pub(crate) reason: String,
    /// Whether it counts against the task's retries. A lost lease is nobody's fault.
    pub(crate) counts: bool,
}

impl Step {
    fn new(spec: &StepSpec, order: Order) -> Self {
        let n = spec.n_tasks();
        Self {
            inputs: Inputs::NotYet,
            tasks: vec![Task::new(); spec.labels.len()],
            order: start_order(n, order),
            wall: (0, 0),
        }
    }

    fn waits(&self, task: TaskNo, now: Millis) -> Option<&[SiteId]> {
        match self.tasks.get(index(task))? {
            Task::Waiting {
                failed_on, after, ..
            } if *after <= now => Some(failed_on),
            Task::Waiting { .. }
            | Task::Leased { .. }
            | Task::Done { .. }
            | Task::Failed { .. }
            | Task::Canceled => None,
        }
    }
}

impl Job {
    fn new(spec: JobSpec, record: JobRecord) -> Self {
        let steps = spec
            .steps
            .iter()
            .map(|step| Step::new(step, spec.policy.order))
            .collect();
        let mut job = Self {
            spec: Arc::new(spec),
            record,
            steps,
        };
        for n in 0..job.steps.len() {
            if job.spec.steps[n].needs.is_empty() {
                let (root, bytes) = (job.record.root, job.record.bytes);
                job.steps[n].inputs = Inputs::Ready { root, bytes };
            }
        }
        for (step, root, bytes) in job.record.inputs.clone() {
            if let Some(step) = job.steps.get_mut(step.0 as usize) {
                step.inputs = Inputs::Ready { root, bytes };
            }
        }
        job
    }

    pub(crate) fn is_active(&self) -> bool {
        self.record.phase == JobPhase::Active
    }

    /// Whether the job's policy lets the site of this name run its tasks.
    pub(crate) fn allows(&self, site_name: &str, own: bool) -> bool {
        match &self.spec.policy.place {
            Place::Local => own,
            Place::Auto => true,
            Place::Remote => !own,
            Place::Site(name) => name == site_name,
        }
    }

    pub(crate) fn step_numbers(&self) -> impl Iterator<Item = StepNo> + use<> {
        (0..u32::try_from(self.steps.len()).unwrap_or(u32::MAX)).map(StepNo)
    }

    pub(crate) fn step_spec(&self, step: StepNo) -> Option<&StepSpec> {
        self.spec.steps.get(step.0 as usize)
    }

    fn step(&self, step: StepNo) -> Option<&Step> {
        self.steps.get(step.0 as usize)
    }

    pub(crate) fn tasks(&self, step: StepNo) -> &[Task] {
        self.step(step).map_or(&[], |step| &step.tasks)
    }

    /// Root and bytes of a step's content, once it is there.
    pub(crate) fn content(&self, step: StepNo) -> Option<(ChunkId, u64)> {
        match self.step(step)?.inputs {
            Inputs::Ready { root, bytes } => Some((root, bytes)),
            Inputs::NotYet | Inputs::Building => None,
        }
    }

    /// Tasks of a step that could start now, in their order, with the sites where they failed.
    pub(crate) fn waiting(
        &self,
        step: StepNo,
        now: Millis,
    ) -> impl Iterator<Item = (TaskNo, &[SiteId])> {
        let step = self.step(step).filter(|_| self.is_active());
        let step = step.filter(|step| matches!(step.inputs, Inputs::Ready { .. }));
        step.into_iter().flat_map(move |step| {
            step.order
                .iter()
                .filter_map(move |task| Some((*task, step.waits(*task, now)?)))
        })
    }

    /// Mean wall time of the step's done tasks.
    pub(crate) fn task_time(&self, step: StepNo) -> Option<Millis> {
        let (sum, n) = self.step(step)?.wall;
        sum.checked_div(n).map(Millis)
    }

    /// The next moment at which a task that pauses after a failure may start.
    fn wake_at(&self, now: Millis) -> Option<Millis> {
        let tasks = self.steps.iter().flat_map(|step| &step.tasks);
        let after = tasks.filter_map(|task| match task {
            Task::Waiting { after, .. } if *after > now => Some(*after),
            Task::Waiting { .. }
            | Task::Leased { .. }
            | Task::Done { .. }
            | Task::Failed { .. }
            | Task::Canceled => None,
        });
        after.min()
    }

    fn step_done(&self, step: StepNo) -> bool {
        self.tasks(step)
            .iter()
            .all(|task| matches!(task, Task::Done { .. }))
    }

    fn count(&self, what: impl Fn(&Task) -> bool) -> usize {
        self.steps
            .iter()
            .flat_map(|step| &step.tasks)
            .filter(|task| what(task))
            .count()
    }
}

/// All jobs of this site.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jobs {
    jobs: BTreeMap<JobId, Job>,
}

impl Jobs {
    pub(crate) fn get(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Active jobs, the most urgent first, then the oldest.
    pub(crate) fn by_urgency(&self) -> Vec<JobId> {
        let mut jobs: Vec<_> = self.jobs.values().filter(|job| job.is_active()).collect();
        jobs.sort_by_key(|job| {
            let priority = job.spec.policy.priority;
            (u8::MAX - priority, job.record.submitted, job.record.job)
        });
        jobs.into_iter().map(|job| job.record.job).collect()
    }

    pub(crate) fn wake_at(&self, now: Millis) -> Option<Millis> {
        self.jobs
            .values()
            .filter(|job| job.is_active())
            .filter_map(|job| job.wake_at(now))
            .min()
    }

    pub(crate) fn submit(&mut self, spec: JobSpec, record: JobRecord, out: &mut Vec<Output>) {
        let id = record.job;
        put(out, Record::Spec(id, Box::new(spec.clone())));
        put(out, Record::Job(record.clone()));
        out.push(Output::Tell(Event::JobSubmitted { job: id }));
        self.jobs.insert(id, Job::new(spec, record));
    }

    pub(crate) fn restore(&mut self, spec: JobSpec, record: JobRecord) {
        self.jobs.insert(record.job, Job::new(spec, record));
    }

    pub(crate) fn restore_task(&mut self, at: TaskRef, task: Task) {
        if let Some(slot) = self.slot(at) {
            *slot = task.clone();
        }
        if let Task::Done { wall, .. } = task {
            self.learn(at, wall);
        }
    }

    pub(crate) fn task(&self, at: TaskRef) -> Option<&Task> {
        self.jobs.get(&at.job)?.tasks(at.step).get(index(at.task))
    }

    fn slot(&mut self, at: TaskRef) -> Option<&mut Task> {
        let step = self
            .jobs
            .get_mut(&at.job)?
            .steps
            .get_mut(at.step.0 as usize)?;
        step.tasks.get_mut(index(at.task))
    }

    fn set(&mut self, at: TaskRef, task: Task, out: &mut Vec<Output>) {
        put(out, Record::Task(at, task.clone()));
        if let Some(slot) = self.slot(at) {
            *slot = task;
        }
    }

    fn learn(&mut self, at: TaskRef, wall: Millis) {
        let step = self
            .jobs
            .get_mut(&at.job)
            .and_then(|job| job.steps.get_mut(at.step.0 as usize));
        if let Some(step) = step {
            step.wall = (step.wall.0.saturating_add(wall.0), step.wall.1 + 1);
        }
    }

    /// Hand a waiting task to a lender.
    pub(crate) fn lease(
        &mut self,
        at: TaskRef,
        attempt: AttemptId,
        (lease, lender): (LeaseId, SiteId),
        since: Millis,
        out: &mut Vec<Output>,
    ) {
        let failed_on = match self.task(at) {
            Some(Task::Waiting { failed_on, .. }) => failed_on.clone(),
            Some(
                Task::Leased { .. } | Task::Done { .. } | Task::Failed { .. } | Task::Canceled,
            )
            | None => Vec::new(),
        };
        self.set(
            at,
            Task::Leased {
                attempt,
                lease,
                lender,
                since,
                failed_on,
            },
            out,
        );
        out.push(Output::Tell(Event::TaskLeased { task: at, lender }));
    }

    /// Accept a task's result. Returns false, and changes nothing, when it needs none.
    pub(crate) fn accept(
        &mut self,
        at: TaskRef,
        attempt: AttemptId,
        by: SiteId,
        (now, wall): (Millis, Millis),
        out: &mut Vec<Output>,
    ) -> bool {
        if !self.wants_result(at) {
            return false;
        }
        self.set(
            at,
            Task::Done {
                attempt,
                by,
                at: now,
                wall,
            },
            out,
        );
        self.learn(at, wall);
        out.push(Output::Tell(Event::TaskDone {
            task: at,
            lender: by,
        }));
        self.settle(at.job, now, out);
        true
    }

    /// Whether a result of this task would be accepted.
    pub(crate) fn wants_result(&self, at: TaskRef) -> bool {
        match self.task(at) {
            Some(Task::Waiting { .. } | Task::Leased { .. }) => true,
            Some(Task::Done { .. } | Task::Failed { .. } | Task::Canceled) | None => false,
        }
    }

    /// A try has ended without a result.
    pub(crate) fn fail(
        &mut self,
        at: TaskRef,
        attempt: AttemptId,
        failure: Failure,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(Task::Leased {
            attempt: current,
            failed_on,
            ..
        }) = self.task(at)
        else {
            return;
        };
        if *current != attempt {
            return;
        }
        let retries = self.jobs[&at.job].spec.policy.retries as usize;
        let mut failed_on = failed_on.clone();
        if !failure.counts {
            let last = Some(failure.reason);
            self.set(
                at,
                Task::Waiting {
                    failed_on,
                    last,
                    after: Millis(0),
                },
                out,
            );
            return;
        }
        failed_on.push(failure.by);
        let again = failed_on.len() <= retries;
        let (lender, reason) = (failure.by, failure.reason);
        let told = Event::TaskFailed {
            task: at,
            lender,
            reason: reason.clone(),
            again,
        };
        if again {
            let pause = RETRY_PAUSE.times(1 << failed_on.len().min(8));
            let after = now.plus(pause);
            self.set(
                at,
                Task::Waiting {
                    failed_on,
                    last: Some(reason),
                    after,
                },
                out,
            );
        } else {
            self.set(
                at,
                Task::Failed {
                    failed_on,
                    reason,
                    attempt,
                },
                out,
            );
        }
        out.push(Output::Tell(told));
        self.settle(at.job, now, out);
    }

    /// Start assembling the content of steps whose predecessors are done, and end jobs that are over.
    pub(crate) fn settle(&mut self, id: JobId, now: Millis, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.is_active()) else {
            return;
        };
        for step in job.step_numbers() {
            let needs = job.spec.steps[step.0 as usize].needs.clone();
            let ready = needs.iter().all(|need| job.step_done(*need));
            let run = &mut job.steps[step.0 as usize];
            if ready && run.inputs == Inputs::NotYet {
                run.inputs = Inputs::Building;
                let root = job.record.root;
                out.push(Output::BuildInputs {
                    job: id,
                    step,
                    needs,
                    root,
                });
            }
        }
        let (done, failed) = (
            job.count(|task| matches!(task, Task::Done { .. })),
            job.count(|task| matches!(task, Task::Failed { .. })),
        );
        let all = job.count(|_| true);
        let open = job.steps.iter().enumerate().any(|(n, step)| {
            let reachable = job.spec.steps[n].needs.iter().all(|need| {
                let failed = |task: &Task| matches!(task, Task::Failed { .. });
                !job.tasks(*need).iter().any(failed)
            });
            reachable && step.tasks.iter().any(is_open)
        });
        let most = job
            .spec
            .policy
            .max_failed_tasks
            .map_or(usize::MAX, |most| most as usize);
        let hopeless = done == 0 && failed >= HOPELESS;
        if done == all {
            self.end(id, JobPhase::Done, now, out);
        } else if failed > 0 && (!open || failed > most || hopeless) {
            let reason = format!("{failed} of {all} tasks failed, {done} are done");
            self.end(id, JobPhase::Failed(reason), now, out);
        }
    }

    /// End a job. What is not done is canceled.
    pub(crate) fn end(&mut self, id: JobId, phase: JobPhase, now: Millis, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.is_active()) else {
            return;
        };
        job.record.phase = phase.clone();
        job.record.ended = Some(now);
        put(out, Record::Job(job.record.clone()));
        for (at, open) in refs(id, job) {
            if open {
                self.set(at, Task::Canceled, out);
            }
        }
        out.push(Output::Tell(Event::JobEnded { job: id, phase }));
    }

    /// The content of a step is there, or cannot be made.
    pub(crate) fn inputs_ready(
        &mut self,
        (id, step): (JobId, StepNo),
        result: Result<(ChunkId, u64), String>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.is_active()) else {
            return;
        };
        let Some(run) = job.steps.get_mut(step.0 as usize) else {
            return;
        };
        if run.inputs != Inputs::Building {
            return;
        }
        match result {
            Ok((root, bytes)) => {
                run.inputs = Inputs::Ready { root, bytes };
                job.record.inputs.push((step, root, bytes));
                put(out, Record::Job(job.record.clone()));
            }
            Err(reason) => {
                let name = &job.spec.steps[step.0 as usize].name;
                let reason = format!("the inputs of step {name} cannot be assembled: {reason}");
                self.end(id, JobPhase::Failed(reason), now, out);
            }
        }
    }

    /// Render tasks again. Returns how many wait now.
    pub(crate) fn retry(
        &mut self,
        id: JobId,
        wanted: impl Fn(TaskRef, &Task) -> bool,
        out: &mut Vec<Output>,
    ) -> u32 {
        let Some(job) = self.jobs.get(&id) else {
            return 0;
        };
        let again: Vec<_> = refs(id, job)
            .into_iter()
            .map(|(at, _)| at)
            .filter(|at| self.task(*at).is_some_and(|task| wanted(*at, task)))
            .collect();
        for at in &again {
            put_delete(out, Key::Task(*at));
            if let Some(slot) = self.slot(*at) {
                *slot = Task::new();
            }
        }
        if let Some(job) = self.jobs.get_mut(&id).filter(|_| !again.is_empty()) {
            // Steps that read the outputs of a repeated step get new content when it is done again.
            let redone: Vec<_> = again.iter().map(|at| at.step).collect();
            for n in 0..job.steps.len() {
                if job.spec.steps[n]
                    .needs
                    .iter()
                    .any(|need| redone.contains(need))
                {
                    job.steps[n].inputs = Inputs::NotYet;
                    job.record.inputs.retain(|(step, ..)| step.0 as usize != n);
                }
            }
            job.record.phase = JobPhase::Active;
            job.record.ended = None;
            put(out, Record::Job(job.record.clone()));
        }
        u32::try_from(again.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn check(&self) {
        for job in self.jobs.values() {
            let open = job.count(is_open);
            if !job.is_active() {
                assert_eq!(open, 0, "an ended job has open tasks");
            }
            for (step, spec) in job.steps.iter().zip(&job.spec.steps) {
                assert_eq!(step.tasks.len(), spec.labels.len(), "a step lost tasks");
                assert_eq!(
                    step.order.len(),
                    step.tasks.len(),
                    "a task would never start"
                );
            }
        }
    }
}

fn is_open(task: &Task) -> bool {
    matches!(task, Task::Waiting { .. } | Task::Leased { .. })
}

fn refs(id: JobId, job: &Job) -> Vec<(TaskRef, bool)> {
    let mut refs = Vec::new();
    for step in job.step_numbers() {
        for (task, state) in (0..).map(TaskNo).zip(job.tasks(step)) {
            refs.push((
                TaskRef {
                    job: id,
                    step,
                    task,
                },
                is_open(state),
            ));
        }
    }
    refs
}

const fn index(task: TaskNo) -> usize {
    task.0 as usize
}

/// Task numbers from zero to `n` in the order in which they start.
fn start_order(n: u32, order: Order) -> Vec<TaskNo> {
    let given = (0..n).map(TaskNo);
    match order {
        Order::Given => given.collect(),
        Order::FirstLastMiddle => {
            let mut early = vec![0, n.saturating_sub(1), n / 2];
            early.dedup();
            let rest = given.filter(|task| !early.contains(&task.0));
            early.iter().copied().map(TaskNo).chain(rest).collect()
        }
    }
}

pub(crate) fn put(out: &mut Vec<Output>, record: Record) {
    out.push(Output::Persist(Change::Put(Box::new(record))));
}

pub(crate) fn put_delete(out: &mut Vec<Output>, key: Key) {
    out.push(Output::Persist(Change::Delete(key)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_look_is_first_last_middle_and_every_task_once() {
        for n in 1..9 {
            let mut order = start_order(n, Order::FirstLastMiddle);
            assert_eq!(order[0], TaskNo(0));
            if n > 2 {
                assert_eq!(order[1..3], [TaskNo(n - 1), TaskNo(n / 2)]);
            }
            order.sort();
            assert_eq!(order, (0..n).map(TaskNo).collect::<Vec<_>>());
        }
    }
}
