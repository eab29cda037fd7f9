//! All jobs of this site: what their tasks go through, when they are tried again, when a job is over.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::job::JobSpec;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::Exact;

use crate::deadline::{Due, Outlook, Warned};
use crate::door::{Event, Output, TaskRef};
use crate::fair::{Account, Fair};
use crate::job::{Job, JobPhase, Task};
use crate::record::{Change, JobRecord, Key, Record, Steering};
use crate::step::{Counts, Inputs, Step, is_open};

mod check;
mod costs;
mod ended;
mod select;

use ended::ended_by;

/// How long a task that has failed waits before its second try; doubled with each further one.
const RETRY_PAUSE: Millis = Millis::seconds(1);

/// A job none of whose tasks succeeds stops after so many have failed for good: the scene is broken.
const HOPELESS: usize = 10;

/// What a failed try does to its task.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) by: SiteId,
    pub(crate) reason: String,
    pub(crate) fault: Fault,
}

/// Whose fault it is that a try has ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody's: a lease was lost. The task may go back to the same site.
    Nobodys,
    /// Nobody's, but a person stopped it there: it goes elsewhere when another site fits.
    Persons,
    /// The site's or the task's own: it counts against the task's retries.
    Its,
}

/// All jobs of this site.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jobs {
    jobs: BTreeMap<JobId, Job>,
    /// Those that have tasks to run, so that no decision walks through those that have ended.
    active: BTreeSet<JobId>,
    /// The tasks that each try has ended, so that the rest of its log is known when it comes.
    ended_by: BTreeMap<AttemptId, TaskRef>,
    fair: Fair,
}

/// How urgent a job is: its priority, how near its deadline is, what its project has used lately, how old it is. Less
/// comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// By priority, and whether it is in danger of missing its deadline; see [`Job::class`].
    pub(crate) class: (u8, bool),
    /// How long before it must have all slots, in milliseconds, of a job in danger.
    pub(crate) slack: u64,
    /// Core-milliseconds that count against the project.
    pub(crate) used: u64,
    pub(crate) submitted: Millis,
    pub(crate) job: JobId,
}

impl Jobs {
    pub(crate) fn get(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Active jobs in the order in which they get slots.
    pub(crate) fn by_urgency(&self) -> Vec<Rank> {
        let mut used: BTreeMap<Account, u64> = BTreeMap::new();
        let mut ranks: Vec<_> = self
            .active()
            .map(|job| Rank {
                class: job.class(),
                slack: job.outlook.slack.map_or(u64::MAX, |slack| slack.0),
                used: *used.entry(job.account).or_insert_with(|| self.fair.used(job.account)),
                submitted: job.record.submitted,
                job: job.record.job,
            })
            .collect();
        ranks.sort_unstable();
        ranks
    }

    fn active(&self) -> impl Iterator<Item = &Job> {
        self.active.iter().filter_map(|job| self.jobs.get(job))
    }

    /// Active jobs that have a deadline.
    pub(crate) fn deadlines(&self) -> Vec<Due> {
        let due = self.active().filter_map(|job| Some((job.record.job, job.deadline()?)));
        due.collect()
    }

    /// A job is expected to end otherwise than before. What is to be told of that is told once, also after a restart.
    pub(crate) fn look(
        &mut self,
        id: JobId,
        outlook: Outlook,
        (warned, event): (Warned, Event),
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.outlook = outlook;
        if warned > job.record.warned {
            job.record.warned = warned;
            put(out, Record::Job(job.record.clone()));
            out.push(Output::Tell(event));
        }
    }

    /// Time passes.
    pub(crate) fn set_now(&mut self, now: Millis) {
        self.fair.set_now(now);
    }

    pub(crate) fn wake_at(&self, now: Millis) -> Option<Millis> {
        self.active().filter_map(|job| job.wake_at(now)).min()
    }

    /// Forget jobs that ended `keep` ago or longer, unless `busy` says that something of one is still under way.
    pub(crate) fn purge(
        &mut self,
        (now, keep): (Millis, Millis),
        busy: impl Fn(JobId) -> bool,
        out: &mut Vec<Output>,
    ) {
        let over = |job: &&Job| job.record.ended.is_some_and(|ended| now.since(ended) >= keep);
        let old: Vec<JobId> = self.jobs.values().filter(over).map(|job| job.record.job).collect();
        let mut attempts = Vec::new();
        let kept = self.jobs.len();
        for id in old.into_iter().filter(|id| !busy(*id)) {
            let Some(job) = self.jobs.remove(&id) else {
                continue;
            };
            for at in refs(id, &job, |_| true) {
                let attempt = job.tasks(at.step)[at.task.0 as usize].attempt();
                attempt.map(|attempt| self.ended_by.remove(&attempt));
                attempts.extend(attempt);
                put_delete(out, Key::Task(at));
            }
            put_delete(out, Key::Job(id));
            put_delete(out, Key::Spec(id));
        }
        if self.jobs.len() < kept {
            // A log is younger than the job that it belongs to.
            let oldest = self.jobs.values().map(|job| job.record.submitted).min();
            out.push(Output::Purge { attempts, before: oldest.unwrap_or(now) });
        }
    }

    /// When the next job has been kept long enough.
    pub(crate) fn purge_at(&self, keep: Millis) -> Option<Millis> {
        let ended = self.jobs.values().filter_map(|job| job.record.ended);
        ended.min().map(|ended| ended.plus(keep))
    }

    pub(crate) fn submit(&mut self, spec: JobSpec, record: JobRecord, out: &mut Vec<Output>) {
        let id = record.job;
        put(out, Record::Spec(id, Box::new(spec.clone())));
        let held = spec.policy.held;
        let job = self.add(spec, record);
        if held {
            for at in refs(id, job, is_open) {
                job.steps[at.step.0 as usize].hold(at.task, true);
            }
            job.record_held();
        }
        put(out, Record::Job(job.record.clone()));
        out.push(Output::Tell(Event::JobSubmitted { job: id }));
    }

    pub(crate) fn restore(&mut self, spec: JobSpec, record: JobRecord) {
        self.add(spec, record);
    }

    fn add(&mut self, spec: JobSpec, record: JobRecord) -> &mut Job {
        let account = self.fair.account(spec.tenant, &spec.project);
        let job = Job::new(spec, record, account);
        if job.is_active() {
            self.active.insert(job.record.job);
        }
        match self.jobs.entry(job.record.job) {
            Entry::Occupied(mut known) => {
                known.insert(job);
                known.into_mut()
            }
            Entry::Vacant(place) => place.insert(job),
        }
    }

    /// How a task stood. A job that had ended has no open tasks, even if the node died while it said so.
    pub(crate) fn restore_task(&mut self, at: TaskRef, task: Task) {
        if let Task::Done { wall, at: when, .. } = task {
            self.learn(at, wall);
            if let Some((account, cores)) = self.pays(at) {
                self.fair.recall(account, cores, (when, wall));
            }
        }
        self.change(at, task);
    }

    /// Every record was restored: what an ended job had left open is canceled, and what its record says.
    pub(crate) fn restored(&mut self) {
        for job in self.jobs.values_mut() {
            if !job.is_active() {
                job.steps.iter_mut().for_each(|step| step.cancel_waiting(None));
            }
            for (step, first, last) in &job.record.canceled {
                if let Some(step) = job.steps.get_mut(step.0 as usize) {
                    step.cancel_waiting(Some((*first, *last)));
                }
            }
        }
    }

    pub(crate) fn is_active(&self, job: JobId) -> bool {
        self.get(job).is_some_and(Job::is_active)
    }

    pub(crate) fn task(&self, at: TaskRef) -> Option<&Task> {
        self.jobs.get(&at.job)?.tasks(at.step).get(at.task.0 as usize)
    }

    fn step_mut(&mut self, at: TaskRef) -> Option<&mut Step> {
        let job = self.jobs.get_mut(&at.job)?;
        job.steps.get_mut(at.step.0 as usize)
    }

    fn set(&mut self, at: TaskRef, task: Task, out: &mut Vec<Output>) {
        put(out, Record::Task(at, task.clone()));
        self.change(at, task);
    }

    /// A task stands otherwise than before. Whoever has tasks under way pays for them.
    fn change(&mut self, at: TaskRef, task: Task) {
        let leased = |task: Option<&Task>| matches!(task, Some(Task::Leased { .. }));
        let (was, is) = (leased(self.task(at)), leased(Some(&task)));
        if let Some((account, cores)) = self.pays(at).filter(|_| was != is) {
            if is { self.fair.begin(account, cores) } else { self.fair.end(account, cores) }
        }
        self.index(at, &task);
        if let Task::Done { cost, .. } = &task
            && let Some(job) = self.jobs.get_mut(&at.job)
        {
            job.spent = job.spent.plus(*cost);
        }
        if let Some(step) = self.step_mut(at) {
            step.set(at.task, task);
        }
    }

    /// Who pays for a task, and for how many cores in thousandths; none when there is no such task.
    fn pays(&self, at: TaskRef) -> Option<(Account, u64)> {
        self.task(at)?;
        let job = self.get(at.job)?;
        Some((job.account, job.step(at.step)?.cores))
    }

    /// A task has run; on the reference core it would have run so long.
    pub(crate) fn learn(&mut self, at: TaskRef, reference: Millis) {
        if let Some(step) = self.step_mut(at) {
            step.learn(reference);
        }
    }

    /// Hand a waiting task to a lender.
    pub(crate) fn lease(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (lease, lender, isolation): (LeaseId, SiteId, Option<Level>),
        since: Millis,
        out: &mut Vec<Output>,
    ) {
        let (failed_on, spared) = match self.task(at) {
            Some(Task::Waiting { failed_on, spared, .. }) => (failed_on.clone(), *spared),
            Some(
                Task::Leased { .. } | Task::Done { .. } | Task::Failed { .. } | Task::Canceled,
            )
            | None => (Vec::new(), 0),
        };
        let leased = Task::Leased { attempt, lease, lender, since, failed_on, isolation, spared };
        self.set(at, leased, out);
        out.push(Output::Tell(Event::TaskLeased { task: at, lender }));
    }

    /// Accept a task's result. Returns false, and changes nothing, when it needs none.
    pub(crate) fn accept(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (by, promised): (SiteId, Option<Level>),
        (now, wall, cost): (Millis, Millis, Exact),
        out: &mut Vec<Output>,
    ) -> bool {
        if !self.wants_result(at) {
            return false;
        }
        let isolation = match self.task(at) {
            Some(Task::Leased { attempt: ours, isolation, .. }) if *ours == attempt => *isolation,
            // A second try, or the late result of one that was given up.
            Some(
                Task::Leased { .. }
                | Task::Waiting { .. }
                | Task::Done { .. }
                | Task::Failed { .. }
                | Task::Canceled,
            )
            | None => promised,
        };
        self.set(at, Task::Done { attempt, by, at: now, wall, isolation, cost }, out);
        out.push(Output::Tell(Event::TaskDone { task: at, lender: by }));
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

    /// Another try of a task takes the place of one that has come to nothing, at `failed` if it has failed there.
    /// Returns false, and changes nothing, when the task is not about that one.
    pub(crate) fn replace(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (other, lease, lender, isolation): (AttemptId, LeaseId, SiteId, Option<Level>),
        (failed, since): (Option<SiteId>, Millis),
        out: &mut Vec<Output>,
    ) -> bool {
        let (mut failed_on, spared) = match self.task(at) {
            Some(Task::Leased { attempt: ours, failed_on, spared, .. }) if *ours == attempt => {
                (failed_on.clone(), *spared)
            }
            Some(
                Task::Leased { .. }
                | Task::Waiting { .. }
                | Task::Done { .. }
                | Task::Failed { .. }
                | Task::Canceled,
            )
            | None => return false,
        };
        failed_on.extend(failed);
        let attempt = other;
        let leased = Task::Leased { attempt, lease, lender, since, failed_on, isolation, spared };
        self.set(at, leased, out);
        true
    }

    /// A try has ended without a result.
    pub(crate) fn fail(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        failure: Failure,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(Task::Leased { attempt: current, failed_on, spared, .. }) = self.task(at) else {
            return;
        };
        if *current != attempt {
            return;
        }
        let retries = self.jobs[&at.job].spec.policy.retries;
        let (mut failed_on, mut spared) = (failed_on.clone(), *spared);
        if failure.fault != Fault::Its {
            if failure.fault == Fault::Persons && !failed_on.contains(&failure.by) {
                failed_on.push(failure.by);
                spared += 1;
            }
            let last = Some(failure.reason);
            self.set(at, Task::Waiting { failed_on, last, after: Millis(0), spared }, out);
            return;
        }
        failed_on.push(failure.by);
        let tries = u32::try_from(failed_on.len()).unwrap_or(u32::MAX).saturating_sub(spared);
        let again = tries <= retries;
        let (lender, reason) = (failure.by, failure.reason);
        let told = Event::TaskFailed { task: at, lender, reason: reason.clone(), again };
        if again {
            let pause = RETRY_PAUSE.times(1 << tries.min(8));
            let after = now.plus(pause);
            self.set(at, Task::Waiting { failed_on, last: Some(reason), after, spared }, out);
        } else {
            self.set(at, Task::Failed { failed_on, reason, attempt }, out);
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
                out.push(Output::BuildInputs { job: id, step, needs, root });
            }
        }
        let Counts { open, done, failed, canceled } = job.counts();
        let all = open + done + failed + canceled;
        let most = job.spec.policy.max_failed_tasks;
        let too_many = most.is_some_and(|most| failed > most as usize);
        let hopeless = done == 0 && failed >= HOPELESS;
        // Without failed or canceled tasks every open one can run sooner or later.
        let stuck = failed + canceled > 0 && !job.can_go_on();
        // What a person took out of a job that went on is not missed.
        let trimmed = job.record.steering.trimmed && open + failed == 0 && done > 0;
        if done == all || trimmed {
            self.end(id, JobPhase::Done, now, out);
        } else if failed > 0 && (stuck || too_many || hopeless) {
            let mut reason = format!("{failed} of {all} tasks failed, {done} are done");
            if let Some((most, n)) = job.common_reason() {
                reason = if n == failed {
                    format!("{most}: {reason}")
                } else {
                    format!("{most} ({n} times): {reason}")
                };
            }
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
        job.outlook = Outlook::default();
        job.record.steering.held.clear();
        job.record.steering.trimmed &= phase == JobPhase::Done;
        self.active.remove(&id);
        put(out, Record::Job(job.record.clone()));
        // Its record says that what waits is canceled: a record of each of a million tasks would say no more.
        job.steps.iter_mut().for_each(|step| step.cancel_waiting(None));
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

    /// Change what a person may change of a job at any time.
    pub(crate) fn steer(
        &mut self,
        id: JobId,
        change: impl FnOnce(&mut Steering),
        out: &mut Vec<Output>,
    ) {
        if let Some(job) = self.jobs.get_mut(&id) {
            change(&mut job.record.steering);
            put(out, Record::Job(job.record.clone()));
        }
    }

    /// Hold or release tasks of one job. Returns how many that changed.
    pub(crate) fn hold(&mut self, tasks: &[TaskRef], held: bool, out: &mut Vec<Output>) -> u32 {
        let mut n = 0;
        for at in tasks {
            let step = self.step_mut(*at);
            n += u32::from(step.is_some_and(|step| step.hold(at.task, held)));
        }
        let first = tasks.first().filter(|_| n > 0);
        if let Some(job) = first.and_then(|at| self.jobs.get_mut(&at.job)) {
            job.record_held();
            put(out, Record::Job(job.record.clone()));
        }
        n
    }

    /// Take open tasks out of a job that goes on without them.
    pub(crate) fn trim(&mut self, id: JobId, tasks: &[TaskRef], out: &mut Vec<Output>) {
        self.steer(id, |steering| steering.trimmed = true, out);
        for at in tasks {
            self.set(*at, Task::Canceled, out);
        }
    }

    /// Render tasks of one job again, from the start.
    pub(crate) fn retry(&mut self, again: &[TaskRef], out: &mut Vec<Output>) {
        let Some(job) = again.first().and_then(|at| self.jobs.get_mut(&at.job)) else {
            return;
        };
        job.reopen(again);
        let costs = again.iter().map(|at| job.cost_of(*at));
        job.record.spent = costs.fold(job.record.spent, Exact::plus);
        job.record_held();
        self.active.insert(job.record.job);
        // First the job, then its tasks: an ended job with tasks that wait would never run them.
        put(out, Record::Job(job.record.clone()));
        out.reserve(again.len());
        for at in again {
            let Some(step) = job.steps.get_mut(at.step.0 as usize) else {
                continue;
            };
            if step.has_record(at.task) {
                put_delete(out, Key::Task(*at));
            }
            let task = step.tasks().get(at.task.0 as usize);
            if let Some(Task::Leased { .. }) = task {
                self.fair.end(job.account, step.cores);
            }
            task.and_then(ended_by).map(|attempt| self.ended_by.remove(&attempt));
            step.set(at.task, Task::new());
        }
    }
}

/// The tasks of a job that stand so.
fn refs(job_id: JobId, job: &Job, how: impl Fn(&Task) -> bool) -> Vec<TaskRef> {
    let mut refs = Vec::new();
    for step in job.step_numbers() {
        let numbered = (0..).map(TaskNo).zip(job.tasks(step));
        refs.extend(numbered.filter(|(_, task)| how(task)).map(|(task, _)| TaskRef {
            job: job_id,
            step,
            task,
        }));
    }
    refs
}

pub(crate) fn put(out: &mut Vec<Output>, record: Record) {
    out.push(Output::Persist(Change::Put(Box::new(record))));
}

pub(crate) fn put_delete(out: &mut Vec<Output>, key: Key) {
    out.push(Output::Persist(Change::Delete(key)));
}
