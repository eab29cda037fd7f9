//! One job of this site and how its tasks stand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::job::{JobSpec, Place, StepSpec};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{Exact, Money, Price, Used};

use crate::deadline::Outlook;
use crate::door::TaskRef;
use crate::fair::Account;
use crate::reasons;
use crate::record::JobRecord;
use crate::step::{Counts, Inputs, Step};

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
        /// So many of the entries of `failed_on` are sites where a person stopped it: no failed tries.
        #[serde(default, skip_serializing_if = "is_zero")]
        spared: u32,
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
        /// The isolation that the lender promised; none in records of before it was kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        isolation: Option<Level>,
        /// So many of the entries of `failed_on` are sites where a person stopped it: no failed tries.
        #[serde(default, skip_serializing_if = "is_zero")]
        spared: u32,
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
        /// The isolation that its lender promised, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        isolation: Option<Level>,
        /// What is owed for it.
        #[serde(default, skip_serializing_if = "Exact::is_zero")]
        cost: Exact,
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Task {
    pub(crate) const fn new() -> Self {
        Self::Waiting { failed_on: Vec::new(), last: None, after: Millis(0), spared: 0 }
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
    pub(crate) steps: Vec<Step>,
    /// Who pays for it.
    pub(crate) account: Account,
    /// When it is expected to end, if it has a deadline.
    pub(crate) outlook: Outlook,
    /// What it owes for tasks that are done, and for those that are rendered again.
    pub(crate) spent: Exact,
    /// What tasks of its steps have used, as far as it is known since the start.
    pub(crate) used: BTreeMap<StepNo, Used>,
    /// Of steps of which a task was stopped because it cost too much: more than this one costs.
    pub(crate) costs_more: BTreeMap<StepNo, Money>,
}

impl Job {
    pub(crate) fn new(spec: JobSpec, record: JobRecord, account: Account) -> Self {
        let steps = spec.steps.iter().map(|step| Step::new(step, spec.policy.order)).collect();
        let (spent, used, costs_more) = (record.spent, BTreeMap::new(), BTreeMap::new());
        let (spec, outlook) = (Arc::new(spec), Outlook::default());
        let mut job = Self { spec, record, steps, account, outlook, spent, used, costs_more };
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
        for (step, first, last) in job.record.steering.held.clone() {
            if let Some(step) = job.steps.get_mut(step.0 as usize) {
                for task in (first.0..=last.0).map(TaskNo).take(step.tasks().len()) {
                    step.hold(task, true);
                }
            }
        }
        job
    }

    /// 0 to 100; 100 is most urgent.
    pub(crate) fn priority(&self) -> u8 {
        self.record.steering.priority.unwrap_or(self.spec.policy.priority)
    }

    /// Where its tasks may run.
    pub(crate) fn place(&self) -> &Place {
        self.record.steering.place.as_ref().unwrap_or(&self.spec.policy.place)
    }

    /// What it may owe other sites. None: any sum.
    pub(crate) fn budget(&self) -> Option<Money> {
        self.record.steering.budget.or(self.spec.policy.budget)
    }

    /// Whether its policy lets a site render its tasks that asks this price.
    pub(crate) fn pays(&self, price: &Price) -> bool {
        self.spec.policy.max_price.is_none_or(|most| price.core_hour <= most)
    }

    /// What is owed for a task.
    pub(crate) fn cost_of(&self, at: TaskRef) -> Exact {
        match self.tasks(at.step).get(at.task.0 as usize) {
            Some(Task::Done { cost, .. }) => *cost,
            Some(
                Task::Waiting { .. } | Task::Leased { .. } | Task::Failed { .. } | Task::Canceled,
            )
            | None => Exact(0),
        }
    }

    /// How many of its tasks are held.
    pub(crate) fn n_held(&self) -> usize {
        self.steps.iter().map(Step::n_held).sum()
    }

    /// Write into the record which tasks are held.
    pub(crate) fn record_held(&mut self) {
        let steps = self.step_numbers().zip(&self.steps);
        let held = steps.flat_map(|(n, step)| {
            step.held_ranges().into_iter().map(move |(first, last)| (n, first, last))
        });
        self.record.steering.held = held.collect();
    }

    pub(crate) fn is_active(&self) -> bool {
        self.record.phase == JobPhase::Active
    }

    /// Whether the job's policy lets the site of this name run its tasks.
    pub(crate) fn allows(&self, site_name: &str, own: bool) -> bool {
        match self.place() {
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

    /// How long a task of the step runs on the reference core: the mean of the done ones.
    pub(crate) fn task_time(&self, step: StepNo) -> Option<Millis> {
        self.step(step)?.task_time()
    }

    /// The next moment at which a task that pauses after a failure may start.
    pub(crate) fn wake_at(&self, now: Millis) -> Option<Millis> {
        let steps = self.steps.iter().filter_map(|step| step.wake_at(now));
        steps.min()
    }

    pub(crate) fn has_done_some(&self) -> bool {
        self.counts().done > 0
    }

    pub(crate) fn step_done(&self, step: StepNo) -> bool {
        self.step(step).is_none_or(Step::is_done)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for counts in self.steps.iter().map(Step::counts) {
            all.open += counts.open;
            all.done += counts.done;
            all.failed += counts.failed;
            all.canceled += counts.canceled;
        }
        all
    }

    /// Of the reasons why tasks have failed for good, the most common one and how many share it.
    pub(crate) fn common_reason(&self) -> Option<(String, usize)> {
        let tasks = self.steps.iter().flat_map(Step::tasks);
        reasons::most_common(tasks.filter_map(|task| match task {
            Task::Failed { reason, .. } => Some(reason.as_str()),
            Task::Waiting { .. } | Task::Leased { .. } | Task::Done { .. } | Task::Canceled => None,
        }))
    }

    /// Active again, for these tasks in their order. Steps that read the outputs of a repeated step get new content when it is done
    /// again.
    pub(crate) fn reopen(&mut self, again: &[TaskRef]) {
        let repeated: BTreeSet<StepNo> = again.iter().map(|at| at.step).collect();
        self.record.canceled.clear();
        for (step, run) in self.step_numbers().zip(&self.steps) {
            let not = again.iter().filter(|at| at.step == step).map(|at| at.task);
            let canceled = run.canceled(not).into_iter();
            self.record.canceled.extend(canceled.map(|(first, last)| (step, first, last)));
        }
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
    pub(crate) fn can_go_on(&self) -> bool {
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
