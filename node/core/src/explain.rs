//! Why tasks of a job wait: what each step asks, what every site has of it, and what stands in the way.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{JobId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::matching::{Look, look};
use meshfarm_protocol::profile::{HostClass, Level};

use crate::deadline::DeadlineView;
use crate::job::{Job, JobPhase, Task};
use crate::licences;
use crate::place;
use crate::site::Site;
use crate::sites::Known;
use crate::step::{Counts, Inputs};

/// Said of our machines when the site has licences that a step needs, and each is in use.
const NO_LICENCE: &str = "every licence that it needs is in use on this site";

/// Why a job, or one task of it, waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub phase: JobPhase,
    /// By when it shall be done, and whether it will, if it has a deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DeadlineView>,
    /// Its steps, or only that of the task which was asked for.
    pub steps: Vec<ExplainedStep>,
    /// The task which was asked for.
    pub task: Option<ExplainedTask>,
}

/// Why a step's tasks wait.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainedStep {
    /// Its name.
    pub name: String,
    /// Tasks that nobody has.
    pub waiting: usize,
    /// Why they wait, in words, whoever could run them.
    pub waits: Vec<String>,
    /// Every site that we know of, our own first.
    pub sites: Vec<ExplainedSite>,
}

/// What a site has of what a step asks, and what keeps the step's tasks from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainedSite {
    /// The site's name.
    pub site: String,
    /// Whether it is our own.
    pub own: bool,
    /// What was asked and what is there, of the kind of hosts that lacks least; empty when the site has not said
    /// what it has.
    pub looks: Vec<Look>,
    /// Everything that stands in the way, in words; empty when it will be asked.
    pub blocks: Vec<String>,
}

/// Why one task waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainedTask {
    /// Its number.
    pub task: TaskNo,
    /// Its parameters.
    pub label: String,
    /// `waiting`, `leased`, `done`, `failed` or `canceled`.
    pub state: String,
    /// What is to be said of it.
    pub waits: Vec<String>,
}

impl Site {
    /// Why the tasks of a job wait, or one of them. None when there is no such job or task.
    #[must_use]
    pub fn explain(
        &self,
        id: JobId,
        task: Option<(StepNo, TaskNo)>,
        now: Millis,
    ) -> Option<Explained> {
        let job = self.jobs.get(id)?;
        let one = match task {
            Some((step, task)) => Some(self.explain_task(job, (step, task), now)?),
            None => None,
        };
        let steps = job.step_numbers().filter(|step| task.is_none_or(|(of, _)| of == *step));
        let steps = steps.filter_map(|step| self.explain_step(job, step, task, now)).collect();
        let (name, phase) = (job.spec.name.clone(), job.record.phase.clone());
        let deadline = job.deadline_view();
        Some(Explained { job: id, name, phase, deadline, steps, task: one })
    }

    fn explain_step(
        &self,
        job: &Job,
        step: StepNo,
        task: Option<(StepNo, TaskNo)>,
        now: Millis,
    ) -> Option<ExplainedStep> {
        let (spec, run) = (job.step_spec(step)?, job.step(step)?);
        let waits = |task: &&Task| matches!(task, Task::Waiting { .. });
        let waiting = run.tasks().iter().filter(waits).count();
        let failed_on = match task.and_then(|(_, task)| run.tasks().get(task.0 as usize)) {
            Some(Task::Waiting { failed_on, .. } | Task::Leased { failed_on, .. }) => {
                &failed_on[..]
            }
            Some(Task::Done { .. } | Task::Failed { .. } | Task::Canceled) | None => &[],
        };
        let mut sites = vec![self.explain_own(job, step, failed_on, now)];
        for (site, known) in self.sites.all() {
            sites.push(self.explain_other(job, step, (site, known, failed_on), now));
        }
        let waits = if waiting > 0 { self.explain_waits(job, step, now) } else { Vec::new() };
        Some(ExplainedStep { name: spec.name.clone(), waiting, waits, sites })
    }

    /// What keeps all waiting tasks of a step, whoever could run them.
    fn explain_waits(&self, job: &Job, step: StepNo, now: Millis) -> Vec<String> {
        let (Some(spec), Some(run)) = (job.step_spec(step), job.step(step)) else {
            return Vec::new();
        };
        let mut waits = Vec::new();
        for need in &spec.needs {
            if !job.step_done(*need) {
                let name = job.step_spec(*need).map_or("", |spec| &spec.name);
                let counts = job.step(*need).map(|step| step.counts()).unwrap_or_default();
                let Counts { open, done, failed, canceled } = counts;
                let all = open + done + failed + canceled;
                waits.push(format!("step {name} comes first: {done} of its {all} tasks are done"));
            }
        }
        match run.n_held() {
            0 => {}
            n => waits.push(format!("{n} tasks are held until somebody releases them")),
        }
        if run.inputs == Inputs::Building {
            waits.push("its inputs are being assembled from the steps before it".to_owned());
        }
        if let Some(until) = run.wake_at(now) {
            let left = seconds(until.since(now));
            waits.push(format!("tasks that have failed are tried again in {left}"));
        }
        waits.extend(self.budget_reached(job, step, now));
        let first =
            self.jobs.by_urgency().into_iter().take_while(|rank| rank.job != job.record.job);
        let waiting = |id: JobId| {
            let job = self.jobs.get(id);
            job.is_some_and(|job| job.step_numbers().any(|s| job.waiting(s, now).next().is_some()))
        };
        match first.filter(|rank| waiting(rank.job)).count() {
            0 => {}
            1 => waits.push("one job with waiting tasks comes first".to_owned()),
            n => waits.push(format!("{n} jobs with waiting tasks come first")),
        }
        waits
    }

    fn explain_task(
        &self,
        job: &Job,
        (step, task): (StepNo, TaskNo),
        now: Millis,
    ) -> Option<ExplainedTask> {
        let label = job.step_spec(step)?.labels.get(task.0 as usize)?.clone();
        let mut waits = Vec::new();
        let mut tried = |failed_on: &[SiteId]| {
            for site in failed_on {
                waits.push(format!("failed at {}", self.name_of(*site)));
            }
        };
        let state = match job.tasks(step).get(task.0 as usize)? {
            Task::Waiting { failed_on, last, after, .. } => {
                tried(failed_on);
                waits.extend(last.as_ref().map(|last| format!("the last try said: {last}")));
                if *after > now {
                    let left = seconds(after.since(now));
                    waits.push(format!("is tried again in {left}"));
                }
                "waiting"
            }
            Task::Leased { lender, failed_on, since, .. } => {
                tried(failed_on);
                let (name, ago) = (self.name_of(*lender), seconds(now.since(*since)));
                waits.push(format!("{name} has it since {ago}"));
                "leased"
            }
            Task::Done { by, .. } => {
                waits.push(format!("{} has rendered it", self.name_of(*by)));
                "done"
            }
            Task::Failed { failed_on, reason, .. } => {
                tried(failed_on);
                waits.push(format!("the last try said: {reason}"));
                "failed"
            }
            Task::Canceled => "canceled",
        };
        Some(ExplainedTask { task, label, state: state.to_owned(), waits })
    }

    fn explain_own(
        &self,
        job: &Job,
        step: StepNo,
        failed_on: &[SiteId],
        now: Millis,
    ) -> ExplainedSite {
        let host = self.lend.host();
        let looks = looks(job, step, true, std::slice::from_ref(host));
        let mut blocks = Vec::new();
        if !job.allows(&self.config.name, true) {
            blocks.push("the job's policy does not allow this site".to_owned());
        }
        if host.slots == 0 {
            blocks.push("it has no slots".to_owned());
        }
        if !self.told.own.is_open() {
            blocks.push("it is paused".to_owned());
        }
        let share = job.step_spec(step).map(|spec| self.lend.share(&spec.requirement));
        let share = share.unwrap_or_default();
        let licensed = self.licensed(job.record.job, step) > 0;
        if !licensed && self.lend.at_once(&share) > 0 {
            blocks.push(NO_LICENCE.to_owned());
        } else if host.slots > 0
            && self.lend.at_once(&share) > 0
            && self.lend.left().room(&share) == 0
        {
            let free = self.lend.free();
            blocks.push(match free {
                0 => "every slot is taken".to_owned(),
                free => format!(
                    "what is left of the machine is too little, though {free} slots are free"
                ),
            });
        }
        if let Some(kept) = &self.lend.reserved {
            let when = seconds(kept.at.since(now));
            if kept.of == (job.record.job, step) {
                blocks.push(format!("room is kept for it, expected in {when}"));
            } else if self.yields.contains(&(job.record.job, step)) {
                let first = self.jobs.get(kept.of.0).map_or("", |job| &job.spec.name);
                blocks.push(format!(
                    "room is kept for {first}, expected in {when}, which its tasks would delay"
                ));
            }
        }
        if self.own_pause > now {
            let left = seconds(self.own_pause.since(now));
            blocks.push(format!("the content could not be put in place; tried again in {left}"));
        }
        if failed_on.contains(&self.config.me) {
            blocks.push("the task failed there before".to_owned());
        }
        ExplainedSite { site: self.config.name.clone(), own: true, looks, blocks }
    }

    fn explain_other(
        &self,
        job: &Job,
        step: StepNo,
        (site, known, failed_on): (SiteId, &Known, &[SiteId]),
        now: Millis,
    ) -> ExplainedSite {
        let mut blocks = Vec::new();
        let mut block = |holds: bool, what: &str| {
            if holds {
                blocks.push(what.to_owned());
            }
        };
        let profile = known.profile.as_ref();
        let own = self.hosts.contains(site);
        block(own && self.licensed(job.record.job, step) == 0, NO_LICENCE);
        let allowed = place::allows(job, (site, &known.name), &self.hosts);
        block(!allowed, "the job's policy does not allow this site");
        block(own && !self.hosts.is_open(site), "it was stopped");
        block(!known.lends(), "its certificate lets it submit only");
        block(known.shut, "it is paused for our tasks");
        block(profile.is_none(), "it has not said what it offers yet");
        block(!known.connected, "it is not connected");
        block(profile.is_some_and(|p| !p.lending), "it does not lend now");
        let full = profile.is_some_and(|p| p.lending && p.free == 0);
        block(full && !place::passes_on(job, known), "it has no slot free now");
        block(self.sites.is_blamed(site), "it has sent wrong chunks before");
        block(failed_on.contains(&site), "the task failed there before");
        if let Some(n) = known.failing() {
            blocks.push(format!("{n} tasks in a row have failed there"));
        }
        if let Some(profile) = profile.filter(|_| !own) {
            blocks.extend(Self::asks_too_much(job, &profile.price));
            let each = self.about((job, step), (site, known));
            if let Some(purse) = self.purse(job, now).filter(|purse| purse.affords(each) == 0) {
                let left = purse.left();
                blocks.push(format!(
                    "a task costs about {} there, and {left} of the budget is left",
                    each.amount
                ));
            }
        }
        if known.ask_after > now {
            let why = known.declined.map_or_else(
                || "was silent or gave tasks back".to_owned(),
                |why| format!("declined: {why}"),
            );
            let left = seconds(known.ask_after.since(now));
            blocks.push(format!("it {why}; it is asked again in {left}"));
        }
        let mut hosts = profile.map_or_else(Vec::new, |profile| profile.hosts.clone());
        if own {
            let ours = |host| licences::with_ours(host, self.lend.host());
            hosts = hosts.into_iter().map(ours).collect();
        }
        let looks = looks(job, step, own, &hosts);
        ExplainedSite { site: known.name.clone(), own, looks, blocks }
    }
}

/// What a step asks against the kind of hosts that lacks least.
fn looks(job: &Job, step: StepNo, own: bool, hosts: &[HostClass]) -> Vec<Look> {
    let Some(spec) = job.step_spec(step) else {
        return Vec::new();
    };
    let level: Level = place::floor(job, own);
    let each = hosts.iter().map(|host| look(&spec.requirement, level, host));
    each.min_by_key(|looks| looks.iter().filter(|look| !look.fits).count()).unwrap_or_default()
}

/// A span in words.
fn seconds(span: Millis) -> String {
    match span.0 {
        ms @ 0..1000 => format!("{ms} ms"),
        ms @ 1000..120_000 => format!("{} s", ms / 1000),
        ms => format!("{} min", ms / 60_000),
    }
}
