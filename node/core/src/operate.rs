//! What people do to jobs and to their site at any time: hold, release, cancel, retry, urge, send away, call home, pause.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{AttemptId, JobId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::Place;
use meshfarm_protocol::lease::{Assignment, Status};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::receipt::Money;

use crate::door::{Output, Reply, TaskRef, Tasks};
use crate::job::{Job, JobPhase, Task};
use crate::jobs::{Failure, Fault, put};
use crate::opening::Owner;
use crate::place;
use crate::record::{Intake, Record, SiteRecord};
use crate::site::Site;
use crate::step::is_open;

/// More sites than this are not shut off: a person who wants that lists the few that may be used.
const MAX_SHUT: usize = 1000;

/// What a person does to a job or to tasks of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Operation {
    /// Do not start these tasks until they are released.
    Hold {
        /// Which.
        tasks: Tasks,
        /// Whether those that run are stopped too; otherwise they go on.
        give_back: bool,
    },
    /// Held tasks may start again.
    Release {
        /// Which.
        tasks: Tasks,
    },
    /// Stop tasks for good. A job that goes on is done without them.
    Cancel {
        /// Which; all of them is the job itself.
        tasks: Tasks,
    },
    /// Render tasks again that are over.
    Retry {
        /// Which.
        tasks: Tasks,
    },
    /// Stop the tries that run; the tasks run again, elsewhere where another site fits.
    Kill {
        /// Which.
        tasks: Tasks,
        /// Whether each counts as a failed try.
        fail: bool,
    },
    /// Change how urgent the job is.
    Priority(u8),
    /// Change what the job may owe other sites.
    Budget(Money),
    /// Let other sites render what does not run yet: the one of this name, or whichever is best.
    Outsource(Option<String>),
    /// Take everything back that other sites have and have not finished, and render it here.
    Recall,
}

/// What a person does to the site itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SiteOperation {
    /// Take no more tasks of other sites.
    Pause {
        /// Whether our own jobs get no slots here either.
        own: bool,
        /// What still runs after so long goes back unfinished. None: it runs to its end.
        give_back: Option<Millis>,
    },
    /// Take tasks again, own ones and those of other sites, as the site's settings say.
    Resume,
    /// Send none of our tasks to the site of this name. What it has, it keeps.
    Shut(String),
    /// Send tasks to the site of this name again.
    Reopen(String),
}

/// A change, or why nothing was changed.
type Operated = Result<u32, String>;

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Site {
    pub(crate) fn on_operation(
        &mut self,
        job: JobId,
        operation: Operation,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Reply {
        match self.operate(job, operation, now, out) {
            Ok(n) => Reply::Changed(n),
            Err(reason) => Reply::Refused(reason),
        }
    }

    fn operate(
        &mut self,
        id: JobId,
        operation: Operation,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Operated {
        let over = match self.jobs.get(id).map(Job::is_active) {
            None => return Err(format!("no job {id}")),
            Some(active) => !active,
        };
        match operation {
            Operation::Retry { tasks } => {
                let mut again = self.jobs.select(id, &tasks)?;
                again.retain(|at| self.jobs.task(*at).is_some_and(|task| !is_open(task)));
                self.jobs.retry(&again, out);
                Ok(count(again.len()))
            }
            _ if over => Err(format!("job {id} has ended already; retry renders it again")),
            Operation::Hold { tasks, give_back } => self.hold(id, &tasks, give_back, (now, out)),
            Operation::Release { tasks } => {
                let tasks = self.open(id, &tasks)?;
                Ok(self.jobs.hold(&tasks, false, out))
            }
            Operation::Cancel { tasks } => {
                let open = self.open(id, &tasks)?;
                if tasks == Tasks::All {
                    self.jobs.end(id, JobPhase::Canceled, now, out);
                } else {
                    self.jobs.trim(id, &open, out);
                }
                Ok(count(open.len()))
            }
            Operation::Kill { tasks, fail } => self.kill(id, &tasks, fail, (now, out)),
            Operation::Priority(priority) if priority > 100 => {
                Err(format!("priority {priority}: it goes from 0 to 100, 100 is most urgent"))
            }
            Operation::Priority(priority) => {
                self.jobs.steer(id, |steering| steering.priority = Some(priority), out);
                Ok(1)
            }
            Operation::Budget(budget) => {
                self.jobs.steer(id, |steering| steering.budget = Some(budget), out);
                Ok(1)
            }
            Operation::Outsource(to) => self.send_away(id, to, now, out),
            Operation::Recall => self.recall(id, now, out),
        }
    }

    /// The open tasks of a selection.
    fn open(&self, id: JobId, tasks: &Tasks) -> Result<Vec<TaskRef>, String> {
        let mut open = self.jobs.select(id, tasks)?;
        open.retain(|at| self.jobs.task(*at).is_some_and(is_open));
        if open.is_empty() {
            return Err(format!("none of these tasks of job {id} is open: each is over already"));
        }
        Ok(open)
    }

    fn hold(
        &mut self,
        id: JobId,
        tasks: &Tasks,
        give_back: bool,
        (now, out): (Millis, &mut Vec<Output>),
    ) -> Operated {
        let open = self.open(id, tasks)?;
        let n = self.jobs.hold(&open, true, out);
        let running = self.borrow.running();
        let fault = Fault::Nobodys;
        let goes = |attempt, _| give_back || !running.contains(&attempt);
        let back = self.call_back(&open, goes, (fault, "held"), (now, out));
        Ok(if give_back { n.max(back) } else { n })
    }

    /// Held tasks that their lender has not begun with, whatever we believed of them when they were held, or that
    /// it has put back into its queue.
    pub(crate) fn take_held(
        &mut self,
        status: &Status,
        (job, step): (JobId, StepNo),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let run = self.jobs.get(job).and_then(|job| job.step(step));
        let (Some(run), Some(held)) =
            (run.filter(|run| run.n_held() > 0), self.borrow.held_mut(status.lease))
        else {
            return;
        };
        let begun = |a: &Assignment| {
            status.running.contains(&a.attempt) || status.finished.contains(&a.attempt)
        };
        let waits = held.attempts.iter().filter(|a| run.is_held(a.task) && !begun(a));
        let waits: Vec<_> = waits.map(|a| TaskRef { job, step, task: a.task }).collect();
        self.call_back(&waits, |_, _| true, (Fault::Nobodys, "held"), (now, out));
    }

    fn kill(
        &mut self,
        id: JobId,
        tasks: &Tasks,
        fail: bool,
        (now, out): (Millis, &mut Vec<Output>),
    ) -> Operated {
        let tasks = self.jobs.select(id, tasks)?;
        let running = self.borrow.running();
        let fault = if fail { Fault::Its } else { Fault::Persons };
        let runs = |attempt, _| running.contains(&attempt);
        match self.call_back(&tasks, runs, (fault, "stopped by a person"), (now, out)) {
            0 => Err(format!("none of these tasks of job {id} runs now")),
            n => Ok(n),
        }
    }

    fn send_away(
        &mut self,
        id: JobId,
        to: Option<String>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Operated {
        let place = match to {
            None => Place::Remote,
            Some(name) if name == self.config.name => {
                return Err(format!("{name} is this site; recall brings a job home"));
            }
            Some(name) => {
                self.find_site(&name)?;
                Place::Site(name)
            }
        };
        self.jobs.steer(id, |steering| steering.place = Some(place), out);
        let running = self.borrow.running();
        self.leave(id, |attempt| !running.contains(&attempt), "outsourced", (now, out))
    }

    fn recall(&mut self, id: JobId, now: Millis, out: &mut Vec<Output>) -> Operated {
        if self.lend.host().slots == 0 {
            let why =
                "this site has no slots: recalled tasks would wait for ever; hold them instead";
            return Err(why.to_owned());
        }
        self.jobs.steer(id, |steering| steering.place = Some(Place::Local), out);
        self.leave(id, |_| true, "recalled", (now, out))
    }

    /// Take from sites where the job may not run now what they have of it, if it `goes`. Returns how many
    /// tasks wait again.
    fn leave(
        &mut self,
        id: JobId,
        goes: impl Fn(AttemptId) -> bool,
        reason: &str,
        (now, out): (Millis, &mut Vec<Output>),
    ) -> Operated {
        for (lease, lender) in self.borrow.offers(id) {
            if !self.may_run(id, lender) {
                self.borrow.forget_offer(lease);
                out.push(Output::Send { to: lender, message: Message::Close { lease } });
            }
        }
        let tasks = self.jobs.select(id, &Tasks::All)?;
        let lenders = tasks.iter().filter_map(|at| match self.jobs.task(*at)? {
            Task::Leased { lender, .. } => Some(*lender),
            Task::Waiting { .. } | Task::Done { .. } | Task::Failed { .. } | Task::Canceled => None,
        });
        let mut left: Vec<SiteId> = lenders.collect();
        left.sort_unstable();
        left.dedup();
        left.retain(|lender| !self.may_run(id, *lender));
        let goes = |attempt, lender| left.contains(&lender) && goes(attempt);
        Ok(self.call_back(&tasks, goes, (Fault::Nobodys, reason), (now, out)))
    }

    fn may_run(&self, id: JobId, lender: SiteId) -> bool {
        let name = self.name_of(lender);
        self.jobs.get(id).is_some_and(|job| {
            if lender == self.config.me {
                job.allows(&name, true)
            } else {
                place::allows(job, (lender, &name), &self.hosts)
            }
        })
    }

    /// Take tasks from the lenders that have them, where `goes` says so of attempt and lender. Outputs that are
    /// on their way home still come. Returns how many were taken.
    pub(crate) fn call_back(
        &mut self,
        tasks: &[TaskRef],
        goes: impl Fn(AttemptId, SiteId) -> bool,
        (fault, reason): (Fault, &str),
        (now, out): (Millis, &mut Vec<Output>),
    ) -> u32 {
        let mut n = 0;
        for at in tasks {
            let Some(Task::Leased { attempt, lender, .. }) = self.jobs.task(*at) else {
                continue;
            };
            let (attempt, by) = (*attempt, *lender);
            if !goes(attempt, by) || self.borrow.landing_of(attempt).is_some() {
                continue;
            }
            if fault != Fault::Its {
                // It may have ended well before the lender hears of this.
                self.borrow.give_up(attempt, *at);
            }
            let failure = Failure { by, reason: reason.to_owned(), fault };
            self.jobs.fail((*at, attempt), failure, now, out);
            n += 1;
        }
        n
    }

    pub(crate) fn on_site_operation(
        &mut self,
        operation: SiteOperation,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Reply {
        let changed = match operation {
            SiteOperation::Pause { own, give_back } => {
                let closed = Intake::Closed { give_back: give_back.map(|grace| now.plus(grace)) };
                self.told.foreign = closed;
                if own {
                    self.told.own = closed;
                }
                Ok(())
            }
            SiteOperation::Resume => {
                (self.told.foreign, self.told.own) = (Intake::Open, Intake::Open);
                Ok(())
            }
            SiteOperation::Shut(name) if name == self.config.name => {
                Err(format!("{name} is this site; pause it without naming it"))
            }
            SiteOperation::Shut(_) if self.told.shut.len() >= MAX_SHUT => {
                Err(format!("{MAX_SHUT} sites are shut off already"))
            }
            SiteOperation::Shut(name) => self.find_site(&name).map(|site| {
                self.told.shut.insert(site, name);
            }),
            SiteOperation::Reopen(name) => {
                // It may be long gone: its name is kept with the order.
                let n = self.told.shut.len();
                self.told.shut.retain(|_, shut| *shut != name);
                match self.told.shut.len() < n {
                    true => Ok(()),
                    false => self
                        .find_site(&name)
                        .and_then(|_| Err(format!("{name} is not paused: tasks are sent there"))),
                }
            }
        };
        match changed {
            Ok(()) => {
                put(out, Record::Site(self.told.clone()));
                self.obey(out);
                Reply::Changed(1)
            }
            Err(reason) => Reply::Refused(reason),
        }
    }

    /// What a person had told the site before a restart.
    pub(crate) fn restore_told(&mut self, told: SiteRecord) {
        self.told = told;
        self.obey(&mut Vec::new());
    }

    /// Hours have come or gone, or the owner has.
    pub(crate) fn on_owner(&mut self, owner: &Owner, now: Millis, out: &mut Vec<Output>) {
        if self.opened.look(&self.config.opening, owner, now) {
            self.obey(out);
        }
    }

    /// Whether tasks of other sites are taken: what a person has said, and what hours and owner say.
    pub(crate) fn foreign(&self) -> Intake {
        match (self.told.foreign, self.opened.intake()) {
            (Intake::Open, intake) | (intake, Intake::Open) => intake,
            (Intake::Closed { give_back: a }, Intake::Closed { give_back: b }) => {
                Intake::Closed { give_back: a.into_iter().chain(b).min() }
            }
        }
    }

    /// Make it so.
    pub(crate) fn obey(&mut self, out: &mut Vec<Output>) {
        let foreign = self.foreign().is_open() && !self.config.submitter;
        let own = self.told.own.is_open();
        self.lend.lending = self.config.lending && foreign;
        let me = self.config.me;
        self.lend.drain(|site| if site == me { !own } else { !foreign }, out);
        self.sites.shut_off(self.told.shut.keys().copied().collect());
    }

    /// The grace of a pause is over: what still runs goes back.
    pub(crate) fn end_grace(&mut self, now: Millis, out: &mut Vec<Output>) {
        let over = |intake: Intake| intake.give_back().is_some_and(|at| at <= now);
        let (foreign, own) = (over(self.foreign()), over(self.told.own));
        if foreign || own {
            let me = self.config.me;
            self.lend.give_back(|site| if site == me { own } else { foreign }, out);
        }
    }

    /// The other site of this name.
    fn find_site(&self, name: &str) -> Result<SiteId, String> {
        let others = || self.sites.all().filter(|(site, _)| !self.hosts.contains(*site));
        let mut named = others().filter(|(_, known)| known.name == name);
        match (named.next(), named.next()) {
            (Some((site, _)), None) => Ok(site),
            (Some(_), Some(_)) => Err(format!("several sites have the name {name}")),
            (None, _) => {
                let mut names: Vec<_> = others().map(|(_, k)| k.name.as_str()).collect();
                names.sort_unstable();
                let known = match names.is_empty() {
                    true => "no other site is known yet".to_owned(),
                    false => format!("known are {}", names.join(", ")),
                };
                Err(format!("there is no site {name}; {known}"))
            }
        }
    }
}
