//! What people see of a site: jobs, tasks, sites and slots as plain data, made from the state on demand.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{
    AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo, TaskNo, TenantId,
};
use meshfarm_protocol::job::{Layout, Place};
use meshfarm_protocol::lease::Declined;
use meshfarm_protocol::matching::Misfit;
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::profile::{Amount, HostClass, Level, Profile};
use meshfarm_protocol::receipt::Money;

use crate::borrow::State;
use crate::deadline::DeadlineView;
use crate::door::TaskRef;
use crate::job::{Job, JobPhase, Task};
use crate::lent::Lent;
use crate::licences;
use crate::opening::Shut;
use crate::place;
use crate::record::Intake;
use crate::site::Site;

/// Where a job stands among all, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Queue {
    /// Nothing of it was started yet.
    New,
    /// Tasks of it run here, or have run.
    Active,
    /// Another site has tasks of it.
    Outsourced,
    /// Every task that is left is held.
    Held,
    /// It is over.
    Done,
}
mod hosts;

pub use hosts::{HostLease, HostState, HostView};

/// A job as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Who submitted it.
    pub user: String,
    /// What it is charged to.
    pub project: String,
    /// 0 to 100.
    pub priority: u8,
    /// Where its tasks may run.
    #[serde(rename = "where")]
    pub place: Place,
    /// How it stands.
    pub phase: JobPhase,
    /// Where it stands among all jobs.
    pub queue: Queue,
    /// When it was submitted, in milliseconds since 1970.
    pub submitted: Millis,
    /// When it ended.
    pub ended: Option<Millis>,
    /// By when it shall be done, and whether it will, if it has a deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DeadlineView>,
    /// Bytes of its content.
    pub bytes: u64,
    /// All its tasks.
    pub tasks: usize,
    /// Tasks that are done.
    pub done: usize,
    /// Tasks that run now.
    pub running: usize,
    /// Tasks that a lender has, running or not.
    pub leased: usize,
    /// Tasks that have failed for good.
    pub failed: usize,
    /// Tasks that were canceled.
    pub canceled: usize,
    /// Tasks that wait until they are released.
    pub held: usize,
    /// What it owes other sites for tasks that are done.
    #[serde(default)]
    pub spent: Money,
    /// What it may owe.
    #[serde(default)]
    pub budget: Option<Money>,
    /// Its steps; empty in a list of jobs.
    pub steps: Vec<StepView>,
}

/// A step as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// Its tasks, in order.
    pub tasks: Vec<TaskView>,
    /// Why its waiting tasks do not run, site by site; empty when none waits.
    pub why: Vec<Why>,
}

/// A task as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskView {
    /// Its number.
    pub task: TaskNo,
    /// Its parameters.
    pub label: String,
    /// `waiting`, `held`, `leased`, `running`, `returning`, `done`, `failed` or `canceled`.
    pub state: String,
    /// Name of the site that has or had it.
    pub site: Option<String>,
    /// The try whose log tells more.
    pub attempt: Option<AttemptId>,
    /// The isolation that its lender promised for that try.
    #[serde(default)]
    pub isolation: Option<Level>,
    /// How long it ran.
    pub wall: Option<Millis>,
    /// When it was accepted.
    pub at: Option<Millis>,
    /// How often it has failed.
    pub failures: usize,
    /// What went wrong last, or what keeps its outputs from their place.
    pub reason: Option<String>,
}

/// Why a site does not run the waiting tasks of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// The site's name.
    pub site: String,
    /// What it lacks; empty when it fits.
    pub misfits: Vec<Misfit>,
    /// What else stands in the way, in words; none when it will be asked.
    pub reason: Option<String>,
}

/// Another site, or our own, as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteView {
    /// Its id.
    pub site: SiteId,
    /// Its name.
    pub name: String,
    /// Whether it is our own.
    pub own: bool,
    /// What its certificates let it do, as far as it has shown them.
    #[serde(default = "site_role")]
    pub role: Role,
    /// Whether a connection is open.
    pub connected: bool,
    /// When it was last heard of.
    pub heard: Millis,
    /// What it offers, once it has said so.
    pub profile: Option<Profile>,
    /// Why it declined last.
    pub declined: Option<Declined>,
    /// Whether a person wants none of our tasks sent there.
    pub shut: bool,
}

const fn site_role() -> Role {
    Role::Site
}

/// Our slots as people see them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SlotsView {
    /// What our machine offers.
    pub host: HostClass,
    /// Slots that a task which asks for nothing could have now.
    pub free: u32,
    /// What is left of the machine's amounts beside what leases hold.
    #[serde(default)]
    pub left: BTreeMap<String, Amount>,
    /// Whether we take tasks of other sites.
    pub lending: bool,
    /// Why hours or owner do not let us take tasks of other sites, if they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut: Option<Shut>,
    /// What a person has said of other sites' tasks.
    pub foreign: Intake,
    /// What a person has said of our own tasks.
    pub own: Intake,
    /// Leases that hold slots.
    pub leases: Vec<LeaseView>,
    /// What our own jobs have of the slots of our hosts.
    #[serde(default)]
    pub hosts: Vec<HostLease>,
}

/// A lease that we gave, as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseView {
    /// The lease.
    pub lease: LeaseId,
    /// Name of the site that borrowed.
    pub borrower: String,
    /// Whether that is our own site.
    pub own: bool,
    /// Whose job it is.
    pub tenant: TenantId,
    /// Slots that it holds.
    pub slots: u32,
    /// What it holds with each of them.
    #[serde(default)]
    pub each: BTreeMap<String, Amount>,
    /// Sessions that run.
    pub running: usize,
    /// Tasks that wait.
    pub queued: usize,
    /// Name of the host, or the site, on which it runs instead of here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs_on: Option<String>,
}

impl Site {
    /// Every job, the newest first, without its steps.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobView> {
        let mut jobs: Vec<_> = self.jobs.all().map(|job| self.job_head(job)).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse((job.submitted, job.job)));
        jobs
    }

    /// One job with its steps and tasks.
    #[must_use]
    pub fn job(&self, id: JobId, now: Millis) -> Option<JobView> {
        let job = self.jobs.get(id)?;
        let steps = job.step_numbers().map(|step| self.step_view(job, step, now));
        Some(JobView { steps: steps.collect(), ..self.job_head(job) })
    }

    fn job_head(&self, job: &Job) -> JobView {
        let (running, id) = (self.borrow.running(), job.record.job);
        let mut away = false;
        let mut view = JobView {
            job: id,
            name: job.spec.name.clone(),
            user: job.spec.user.clone(),
            project: job.spec.project.clone(),
            priority: job.priority(),
            place: job.place().clone(),
            phase: job.record.phase.clone(),
            queue: Queue::New,
            submitted: job.record.submitted,
            ended: job.record.ended,
            deadline: job.deadline_view(),
            bytes: job.record.bytes,
            tasks: 0,
            done: 0,
            running: 0,
            leased: 0,
            failed: 0,
            canceled: 0,
            held: 0,
            spent: job.spent.money(),
            budget: job.budget(),
            steps: Vec::new(),
        };
        for (step, (n, task)) in job.steps.iter().flat_map(|step| {
            let tasks = (0..).map(TaskNo).zip(step.tasks());
            tasks.map(move |task| (step, task))
        }) {
            view.tasks += 1;
            match task {
                Task::Waiting { .. } => view.held += usize::from(step.is_held(n)),
                Task::Canceled => view.canceled += 1,
                Task::Leased { attempt, lender, .. } => {
                    away |= !self.owns(*lender);
                    view.leased += 1;
                    view.running += usize::from(running.contains(attempt));
                }
                Task::Done { .. } => view.done += 1,
                Task::Failed { .. } => view.failed += 1,
            }
        }
        let open = job.counts().open;
        view.queue = match () {
            () if !job.is_active() => Queue::Done,
            () if job.n_held() == open => Queue::Held,
            () if away => Queue::Outsourced,
            () if view.leased + view.done + view.failed > 0 => Queue::Active,
            () => Queue::New,
        };
        view
    }

    fn step_view(&self, job: &Job, step: StepNo, now: Millis) -> StepView {
        let spec = &job.spec.steps[step.0 as usize];
        let running = self.borrow.running();
        let numbered = (0..).map(TaskNo).zip(job.tasks(step)).zip(&spec.labels);
        let tasks = numbered.map(|((task, state), label)| {
            let at = TaskRef { job: job.record.job, step, task };
            self.task_view(at, state, label, &running)
        });
        let waits = job.is_active() && job.waiting(step, now).next().is_some();
        let why = if waits { self.why(job, step, now) } else { Vec::new() };
        StepView { name: spec.name.clone(), tasks: tasks.collect(), why }
    }

    fn task_view(
        &self,
        at: TaskRef,
        task: &Task,
        label: &str,
        running: &BTreeSet<AttemptId>,
    ) -> TaskView {
        let mut view = TaskView {
            task: at.task,
            label: label.to_owned(),
            state: String::new(),
            site: None,
            attempt: task.attempt(),
            isolation: None,
            wall: None,
            at: None,
            failures: 0,
            reason: None,
        };
        let state = match task {
            Task::Waiting { failed_on, last, spared, .. } => {
                view.failures = failed_on.len().saturating_sub(*spared as usize);
                view.reason.clone_from(last);
                let job = self.jobs.get(at.job);
                let step = job.and_then(|job| job.step(at.step));
                if step.is_some_and(|step| step.is_held(at.task)) { "held" } else { "waiting" }
            }
            Task::Leased { attempt, lender, failed_on, isolation, spared, .. } => {
                view.isolation = *isolation;
                view.failures = failed_on.len().saturating_sub(*spared as usize);
                view.site = Some(self.name_of(*lender));
                let landing = self.borrow.landing_of(*attempt);
                view.reason = landing.and_then(|landing| landing.blocked.clone());
                match landing {
                    Some(_) => "returning",
                    None if running.contains(attempt) => "running",
                    None => "leased",
                }
            }
            Task::Done { by, wall, at, isolation, .. } => {
                view.isolation = *isolation;
                view.site = Some(self.name_of(*by));
                view.wall = Some(*wall);
                view.at = Some(*at);
                "done"
            }
            Task::Failed { failed_on, reason, .. } => {
                view.failures = failed_on.len();
                view.site = failed_on.last().map(|site| self.name_of(*site));
                view.reason = Some(reason.clone());
                "failed"
            }
            Task::Canceled => "canceled",
        };
        state.clone_into(&mut view.state);
        view
    }

    /// The name of a site, or the beginning of its id.
    #[must_use]
    pub fn name_of(&self, site: SiteId) -> String {
        if site == self.config.me {
            return self.config.name.clone();
        }
        self.hosts.name(site).map_or_else(|| self.sites.name(site), str::to_owned)
    }

    /// Why each site does not run a step's waiting tasks.
    fn why(&self, job: &Job, step: StepNo, now: Millis) -> Vec<Why> {
        let need = &job.spec.steps[step.0 as usize].requirement;
        let forbidden = || Some("the job's policy does not allow this site".to_owned());
        let mut why = Vec::new();
        let own_misfits =
            place::misfits(need, place::floor(job, true), std::slice::from_ref(self.lend.host()));
        let own_reason = match (job.allows(&self.config.name, true), self.lend.host().slots) {
            (false, _) => forbidden(),
            (true, 0) => Some("has no slots".to_owned()),
            (true, _) if !self.told.own.is_open() => Some("is paused".to_owned()),
            (true, _) if self.lend.free() == 0 => Some("every slot is taken".to_owned()),
            (true, _) => None,
        };
        let site = self.config.name.clone();
        why.push(Why { site, misfits: own_misfits, reason: own_reason });
        let dear = self.too_dear((job.record.job, step), now);
        for (site, known) in self.sites.all() {
            let profile = known.profile.as_ref();
            let floor = place::floor(job, self.owns(site));
            let own = self.hosts.contains(site);
            let need = if own { &licences::of_host(need, self.lend.host()) } else { need };
            let misfits = profile.map_or_else(Vec::new, |p| place::misfits(need, floor, &p.hosts));
            let reason = match profile {
                _ if !place::allows(job, (site, &known.name), &self.hosts) => forbidden(),
                _ if self.hosts.contains(site) && !self.hosts.is_open(site) => {
                    Some("was stopped".to_owned())
                }
                _ if !known.lends() => Some("may submit only".to_owned()),
                None => Some("has not said what it offers yet".to_owned()),
                Some(_) if !known.connected => Some("not connected".to_owned()),
                Some(_) if known.shut => Some("is paused for our tasks".to_owned()),
                Some(profile) if !profile.lending => Some("does not lend now".to_owned()),
                Some(profile) if profile.free == 0 && !place::passes_on(job, known) => {
                    Some("every slot is taken".to_owned())
                }
                Some(profile) if !self.owns(site) && !job.pays(&profile.price) => {
                    Self::asks_too_much(job, &profile.price)
                }
                Some(_) if dear.contains(&site) => self.budget_reached(job, step, now),
                Some(_) if known.ask_after > now => {
                    let declined = known.declined.map(|reason| reason.to_string());
                    Some(declined.unwrap_or_else(|| "has been failing or silent".to_owned()))
                }
                Some(_) => None,
            };
            why.push(Why { site: known.name.clone(), misfits, reason });
        }
        why
    }

    /// Our own site and every other that we know of.
    #[must_use]
    pub fn sites(&self, now: Millis) -> Vec<SiteView> {
        let own = SiteView {
            site: self.config.me,
            name: self.config.name.clone(),
            own: true,
            role: if self.config.submitter { Role::Submitter } else { Role::Site },
            connected: true,
            heard: now,
            profile: Some(self.own_profile(now)),
            declined: None,
            shut: false,
        };
        let others = self.sites.all().filter(|(site, _)| !self.hosts.contains(*site));
        let others = others.map(|(site, known)| SiteView {
            site,
            name: known.name.clone(),
            own: false,
            role: known.role,
            connected: known.connected,
            heard: known.heard,
            profile: known.profile.clone(),
            declined: known.declined,
            shut: known.shut,
        });
        std::iter::once(own).chain(others).collect()
    }

    /// Our slots and who holds them.
    #[must_use]
    pub fn slots(&self) -> SlotsView {
        let begun = |lent: &Lent| if lent.away { lent.started.len() } else { 0 };
        let leases = self.lend.all().map(|(lease, lent)| LeaseView {
            lease,
            borrower: self.name_of(lent.borrower),
            own: lent.borrower == self.config.me,
            tenant: lent.tenant,
            slots: if lent.away { lent.slots } else { lent.held() },
            each: self.lend.capacity().of_share(&lent.share),
            running: lent.running.len() + begun(lent),
            queued: lent.queue.len().saturating_sub(begun(lent)),
            runs_on: self.relays.machine_of(lease).map(|machine| self.name_of(machine)),
        });
        SlotsView {
            host: self.lend.host().clone(),
            free: self.lend.free(),
            left: self.lend.capacity().of_budget(&self.lend.left()),
            lending: self.lend.lending,
            shut: self.opened.shut(),
            foreign: self.told.foreign,
            own: self.told.own,
            leases: leases.collect(),
            hosts: self.host_leases(),
        }
    }

    /// Where the files of a job belong.
    #[must_use]
    pub fn layout(&self, job: JobId) -> Option<Layout> {
        self.jobs.get(job).map(|job| job.spec.layout.clone())
    }

    /// Root of a job's own content.
    #[must_use]
    pub fn content(&self, job: JobId) -> Option<ChunkId> {
        self.jobs.get(job).map(|job| job.record.root)
    }

    /// Whether `from` has an attempt of ours, or ended a task of ours with it, so that its log may come from
    /// there. The last lines of a log often arrive after the result was accepted.
    #[must_use]
    pub fn may_log(&self, from: SiteId, attempt: AttemptId) -> bool {
        let landing = self.borrow.landing_of(attempt).is_some_and(|l| l.lender == from);
        let holds = |state: &State| match state {
            State::Held(held) => held.attempts.iter().any(|a| a.attempt == attempt),
            State::Offered { .. } => false,
        };
        landing
            || self.jobs.was_ended(attempt, from)
            || self.borrow.all().any(|(_, b)| b.lender == from && holds(&b.state))
    }

    /// The job that a lease of ours serves.
    #[must_use]
    pub fn job_of(&self, lease: LeaseId) -> Option<JobId> {
        self.borrow.all().find(|(id, _)| *id == lease).map(|(_, borrowed)| borrowed.job)
    }
}
