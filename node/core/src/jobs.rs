//! Jobs, steps and tasks of this site: their states, what waits, what is done, what is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::job::{JobSpec, Place, StepSpec};

use crate::door::{Event, Output, TaskRef};
use crate::record::{Change, JobRecord, Key, Record};
use crate::step::{Counts, Inputs, Step};

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
    pub(crate) const fn new() -> Self {
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

    pub(crate) fn step(&self, step: StepNo) -> Option<&Step> {
        self.steps.get(step.0 as usize)
    }

    pub(crate) fn tasks(&self, step: StepNo) -> &[Task] {
        self.step(step).map_or(&[], Step::tasks)
    }

    /// Root and bytes of a step's content, once it is there.
    pub(crate) fn content(&self, step: StepNo) -> Option<(ChunkId, u64)> {
        match self.step(step)?.inputs {
            Inputs::Ready { root, bytes } => Some((root, bytes)),
            Inputs::NotYet | Inputs::Building => None,
        }
    }

    /// A step whose tasks can start: the job is active and the step's content is there.
    pub(crate) fn ready(&self, step: StepNo) -> Option<&Step> {
        let step = self.step(step).filter(|_| self.is_active())?;
        matches!(step.inputs, Inputs::Ready { .. }).then_some(step)
    }

    /// Tasks of a step that could start now, in their order, with the sites where they failed.
    pub(crate) fn waiting(
        &self,
        step: StepNo,
        now: Millis,
    ) -> impl Iterator<Item = (TaskNo, &[SiteId])> {
        let step = self.ready(step).into_iter();
        step.flat_map(move |step| step.waiting(now))
    }

    /// Mean wall time of the step's done tasks.
    pub(crate) fn task_time(&self, step: StepNo) -> Option<Millis> {
        self.step(step)?.task_time()
    }

    /// The next moment at which a task that pauses after a failure may start.
    fn wake_at(&self, now: Millis) -> Option<Millis> {
        let steps = self.steps.iter().filter_map(|step| step.wake_at(now));
        steps.min()
    }

    fn step_done(&self, step: StepNo) -> bool {
        self.step(step).is_none_or(Step::is_done)
    }

    fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for counts in self.steps.iter().map(Step::counts) {
            all.open += counts.open;
            all.done += counts.done;
            all.failed += counts.failed;
            all.canceled += counts.canceled;
        }
        all
    }

    /// Active again. Steps that read the outputs of a repeated step get new content when it is done again.
    fn reopen(&mut self, repeated: &BTreeSet<StepNo>) {
        for n in 0..self.steps.len() {
            let needs = &self.spec.steps[n].needs;
            if needs.iter().any(|need| repeated.contains(need)) {
                self.steps[n].inputs = Inputs::NotYet;
                self.record.inputs.retain(|(step, ..)| step.0 as usize != n);
            }
        }
        self.record.phase = JobPhase::Active;
        self.record.ended = None;
    }

    /// Whether a task can still run: one is open in a step of which no predecessor, however early, has a
    /// task that failed or was canceled.
    fn can_go_on(&self) -> bool {
        let mut blocked = vec![false; self.steps.len()];
        loop {
            let mut grown = false;
            for (n, spec) in self.spec.steps.iter().enumerate() {
                let blocks = |need: &StepNo| {
                    let counts = self.step(*need).map(Step::counts).unwrap_or_default();
                    let before = blocked.get(need.0 as usize).copied().unwrap_or_default();
                    before || counts.failed + counts.canceled > 0
                };
                if !blocked[n] && spec.needs.iter().any(blocks) {
                    blocked[n] = true;
                    grown = true;
                }
            }
            if !grown {
                break;
            }
        }
        let mut steps = self.steps.iter().zip(blocked);
        steps.any(|(step, blocked)| !blocked && step.counts().open > 0)
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

    /// How a task stood. A job that had ended has no open tasks, even if the node died while it said so.
    pub(crate) fn restore_task(&mut self, at: TaskRef, task: Task) {
        if let Task::Done { wall, .. } = task {
            self.learn(at, wall);
        }
        if let Some(step) = self.step_mut(at) {
            step.set(at.task, task);
        }
    }

    /// Every record was restored: what an ended job had left open is canceled.
    pub(crate) fn restored(&mut self) {
        for (id, job) in &mut self.jobs {
            if job.is_active() || job.counts().open == 0 {
                continue;
            }
            for at in refs(*id, job, is_open) {
                job.steps[at.step.0 as usize].set(at.task, Task::Canceled);
            }
        }
    }

    pub(crate) fn is_active(&self, job: JobId) -> bool {
        self.get(job).is_some_and(Job::is_active)
    }

    pub(crate) fn task(&self, at: TaskRef) -> Option<&Task> {
        self.jobs
            .get(&at.job)?
            .tasks(at.step)
            .get(at.task.0 as usize)
    }

    fn step_mut(&mut self, at: TaskRef) -> Option<&mut Step> {
        let job = self.jobs.get_mut(&at.job)?;
        job.steps.get_mut(at.step.0 as usize)
    }

    fn set(&mut self, at: TaskRef, task: Task, out: &mut Vec<Output>) {
        put(out, Record::Task(at, task.clone()));
        if let Some(step) = self.step_mut(at) {
            step.set(at.task, task);
        }
    }

    fn learn(&mut self, at: TaskRef, wall: Millis) {
        if let Some(step) = self.step_mut(at) {
            step.learn(wall);
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
            let needs = &job.spec.steps[step.0 as usize].needs;
            let waits = job.steps[step.0 as usize].inputs == Inputs::NotYet;
            if waits && needs.iter().all(|need| job.step_done(*need)) {
                let needs = needs.clone();
                let run = &mut job.steps[step.0 as usize];
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
        let Counts {
            open,
            done,
            failed,
            canceled,
        } = job.counts();
        let all = open + done + failed + canceled;
        let most = job.spec.policy.max_failed_tasks;
        let too_many = most.is_some_and(|most| failed > most as usize);
        let hopeless = done == 0 && failed >= HOPELESS;
        // Without failed or canceled tasks every open one can run sooner or later.
        let stuck = failed + canceled > 0 && !job.can_go_on();
        if done == all {
            self.end(id, JobPhase::Done, now, out);
        } else if failed > 0 && (stuck || too_many || hopeless) {
            let reason = format!("{failed} of {all} tasks failed, {done} are done");
            self.end(id, JobPhase::Failed(reason), now, out);
        } else if stuck {
            self.end(id, JobPhase::Canceled, now, out);
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
        for at in refs(id, job, is_open) {
            self.set(at, Task::Canceled, out);
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
        let mut again = refs(id, job, |_| true);
        again.retain(|at| self.task(*at).is_some_and(|task| wanted(*at, task)));
        if let Some(job) = self.jobs.get_mut(&id).filter(|_| !again.is_empty()) {
            job.reopen(&again.iter().map(|at| at.step).collect());
            // First the job, then its tasks: an ended job with tasks that wait would never run them.
            put(out, Record::Job(job.record.clone()));
        }
        for at in &again {
            put_delete(out, Key::Task(*at));
            if let Some(step) = self.step_mut(*at) {
                step.set(at.task, Task::new());
            }
        }
        u32::try_from(again.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn check(&self) {
        for job in self.jobs.values() {
            let open = job.counts().open;
            assert!(job.is_active() || open == 0, "an ended job has open tasks");
            for (step, spec) in job.steps.iter().zip(&job.spec.steps) {
                assert_eq!(step.tasks().len(), spec.labels.len(), "a step lost tasks");
                step.check();
            }
        }
    }
}

fn is_open(task: &Task) -> bool {
    matches!(task, Task::Waiting { .. } | Task::Leased { .. })
}

/// The tasks of a job that stand so.
fn refs(job_id: JobId, job: &Job, how: impl Fn(&Task) -> bool) -> Vec<TaskRef> {
    let mut refs = Vec::new();
    for step in job.step_numbers() {
        let numbered = (0..).map(TaskNo).zip(job.tasks(step));
        refs.extend(
            numbered
                .filter(|(_, task)| how(task))
                .map(|(task, _)| TaskRef {
                    job: job_id,
                    step,
                    task,
                }),
        );
    }
    refs
}

pub(crate) fn put(out: &mut Vec<Output>, record: Record) {
    out.push(Output::Persist(Change::Put(Box::new(record))));
}

pub(crate) fn put_delete(out: &mut Vec<Output>, key: Key) {
    out.push(Output::Persist(Change::Delete(key)));
}
