//! Budgets: what a job owes and may come to owe, and what it can still afford.
//!
//! What runs counts at what tasks of its step have used on average, or at what it has cost by now where that is more.
//! While nothing is known of a step, one task of it is tried. A task that turns out to cost more than is left is stopped,
//! and a result that does is not taken: neither is paid for, and no budget is ever exceeded.

use meshfarm_protocol::id::{JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::lease::{Done, Outcome, Usage};
use meshfarm_protocol::profile::VCPU;
use meshfarm_protocol::receipt::{Exact, Money, Price, Terms, Used};

use crate::borrow::State;
use crate::door::{Output, TaskRef};
use crate::job::{Job, Task};
use crate::jobs::Fault;
use crate::place::ASSUMED_TASK;
use crate::site::Site;
use crate::sites::Known;

/// How often it is looked whether something costs more than was expected.
const MIND_EVERY: Millis = Millis::seconds(2);

/// What a job owes, and what it can still afford.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purse {
    /// What it may owe.
    pub(crate) budget: Money,
    /// What it owes, and what the results on their way cost.
    pub(crate) spent: Money,
    /// What its tries that run or wait elsewhere are expected to cost.
    pub(crate) running: Money,
}

impl Purse {
    pub(crate) fn left(&self) -> Money {
        self.budget.less(self.spent).less(self.running)
    }

    /// How many tasks of this cost it can afford; of a cost that nobody knows, one at least while something is left.
    pub(crate) fn affords(&self, each: Cost) -> u32 {
        let left = self.left();
        let n = left.0.checked_div(each.amount.0);
        let n = n.map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        if each.known || left.is_zero() { n } else { n.max(1) }
    }

    /// Why it takes no lease that costs so much a task.
    pub(crate) fn reached(&self, each: Cost) -> String {
        let (Self { budget, spent, running }, each) = (*self, each.amount);
        let under_way = match running {
            Money(0) => String::new(),
            running => format!(", about {running} under way"),
        };
        format!(
            "budget of {budget} reached: {spent} used{under_way}, the next task costs about {each}"
        )
    }
}

/// What a task is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost {
    pub(crate) amount: Money,
    /// Whether a task of the step has ended, or was stopped for its cost. Otherwise it is the most that it might cost.
    pub(crate) known: bool,
}

impl Cost {
    const NOTHING: Self = Self { amount: Money(0), known: true };
}

/// What a task of a step has cost that has run so long, as far as we know how busy such a task is: one processor, as
/// long as we know nothing.
fn cost_by_now((job, step): (&Job, StepNo), ran: Millis, terms: &Terms) -> Money {
    let learned = job.used.get(&step).filter(|used| used.wall > Millis(0));
    let all = u128::from(ran.0);
    let cpu = learned.map_or(all, |used| all * u128::from(used.core.0) / u128::from(used.wall.0));
    let cpu = Millis(u64::try_from(cpu).unwrap_or(u64::MAX));
    terms.price.of(&Used::of(&Usage { wall: ran, cpu, ..Usage::default() }, terms))
}

impl Site {
    /// What a job with a budget can afford; none without one.
    pub(crate) fn purse(&self, job: &Job, now: Millis) -> Option<Purse> {
        let budget = job.budget()?;
        let id = job.record.job;
        let (mut exactly, mut running) = (job.spent, Money(0));
        for landing in self.borrow.landings(id) {
            let (_, cost) =
                self.cost((landing.lender, landing.lease), (&landing.usage, landing.seen));
            exactly = exactly.plus(cost);
        }
        let spent = exactly.money();
        for step in job.step_numbers() {
            for (_, borrowed) in self.borrow.of_step(id, step) {
                let State::Held(held) = &borrowed.state else { continue };
                if held.terms.price.is_free() {
                    continue;
                }
                let each = self.expected((job, step), borrowed.lender, &held.terms);
                for a in &held.attempts {
                    let by_now = held.begun.get(&a.attempt).map(|_| held.earliest(a.attempt));
                    let by_now = by_now.filter(|since| *since > Millis(0));
                    let by_now = by_now.map_or(Money(0), |from| {
                        cost_by_now((job, step), now.since(from), &held.terms)
                    });
                    let left = budget.less(spent).less(running);
                    let each = if each.known { each.amount } else { each.amount.min(left) };
                    running = running.plus(each.max(by_now));
                }
            }
        }
        Some(Purse { budget, spent, running })
    }

    /// What a task of a step is expected to cost at a lender on these terms.
    fn expected(&self, (job, step): (&Job, StepNo), lender: SiteId, terms: &Terms) -> Cost {
        if terms.price.is_free() {
            return Cost::NOTHING;
        }
        let stopped = job.costs_more.get(&step).copied();
        let learned = job.used.get(&step).filter(|used| used.done > 0);
        let usage = match learned {
            Some(used) => {
                let n = u64::from(used.done);
                let (wall, cpu) = (Millis(used.wall.0 / n), Millis(used.core.0 / n));
                Usage { wall, cpu, ..Usage::default() }
            }
            None => {
                let wall = self.runs_for(lender, job.task_time(step).unwrap_or(ASSUMED_TASK));
                Usage { wall, cpu: Millis(u64::MAX), ..Usage::default() }
            }
        };
        let most = terms.price.of(&Used::of(&usage, terms));
        match (learned, stopped) {
            (None, None) => Cost { amount: most, known: false },
            (None, Some(stopped)) => Cost { amount: stopped, known: true },
            (Some(_), stopped) => {
                Cost { amount: most.max(stopped.unwrap_or_default()), known: true }
            }
        }
    }

    /// What a task of a step would cost about at a site that asks this price and has not been asked yet.
    pub(crate) fn about(
        &self,
        (job, step): (&Job, StepNo),
        (site, known): (SiteId, &Known),
    ) -> Cost {
        let Some(profile) = known.profile.as_ref().filter(|_| !self.hosts.contains(site)) else {
            return Cost::NOTHING;
        };
        let host = profile.hosts.first();
        let even = host.and_then(|host| {
            let whole = host.amounts.get(VCPU)?.0;
            Some(whole / u64::from(host.slots.max(1)))
        });
        let need = job.step_spec(step).and_then(|spec| {
            let mut needs = spec.requirement.amounts.iter();
            needs.find(|(name, _)| name.eq_ignore_ascii_case(VCPU)).map(|(_, need)| need.min.0)
        });
        let cores = need.filter(|need| *need > 0).or(even).unwrap_or(1000);
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let terms = Terms { price: profile.price, cores, ..Terms::default() };
        self.expected((job, step), site, &terms)
    }

    /// Sites whose tasks a job cannot afford now.
    pub(crate) fn too_dear(&self, (id, step): (JobId, StepNo), now: Millis) -> Vec<SiteId> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        let Some(purse) = self.purse(job, now) else { return Vec::new() };
        let dear = self
            .sites
            .all()
            .filter(|(site, known)| purse.affords(self.about((job, step), (*site, known))) == 0);
        dear.map(|(site, _)| site).collect()
    }

    /// Of the tasks that there is `room` for under a lease, how many the job can afford.
    pub(crate) fn affordable(
        &self,
        (id, step): (JobId, StepNo),
        (lease, lender): (LeaseId, SiteId),
        room: usize,
        now: Millis,
    ) -> usize {
        let terms = self.borrow.terms(lease, lender).map(|(terms, _)| terms).unwrap_or_default();
        let Some(job) = self.jobs.get(id).filter(|_| !terms.price.is_free()) else {
            return room;
        };
        let each = self.expected((job, step), lender, &terms);
        self.purse(job, now).map_or(room, |purse| room.min(purse.affords(each) as usize))
    }

    /// Why a job's budget keeps waiting tasks of a step from every site that asks for money.
    pub(crate) fn budget_reached(&self, job: &Job, step: StepNo, now: Millis) -> Option<String> {
        let purse = self.purse(job, now)?;
        let lends = |known: &Known| {
            known.profile.as_ref().is_some_and(|profile| {
                profile.lending && !profile.price.is_free() && job.pays(&profile.price)
            })
        };
        let others = self.sites.all().filter(|(_, known)| lends(known));
        let each = others.map(|other| self.about((job, step), other)).min()?;
        (purse.affords(each) == 0).then(|| purse.reached(each))
    }

    /// Whether a result costs more than the job's budget has left. It is not taken then, and not paid for.
    pub(crate) fn is_beyond_budget(
        &mut self,
        at: TaskRef,
        (by, done): (SiteId, &Done),
        seen: Millis,
    ) -> bool {
        let job = self.jobs.get(at.job).filter(|_| done.outcome == Outcome::Done);
        let Some((job, budget)) = job.and_then(|job| Some((job, job.budget()?))) else {
            return false;
        };
        let (_, cost) = self.cost((by, done.lease), (&done.usage, seen));
        if cost.is_zero() {
            return false;
        }
        let on_their_way = self.borrow.landings(at.job).map(|landing| {
            self.cost((landing.lender, landing.lease), (&landing.usage, landing.seen)).1
        });
        let spent = on_their_way.fold(job.spent, Exact::plus);
        let beyond = spent.plus(cost).money() > budget;
        if beyond {
            self.jobs.costs_more((at.job, at.step), cost.money());
        }
        beyond
    }

    /// Stop what has cost more by now than its job's budget has left.
    pub(crate) fn mind_budgets(&mut self, now: Millis, out: &mut Vec<Output>) {
        if now.since(self.minded) < MIND_EVERY {
            return;
        }
        self.minded = now;
        let jobs = self.jobs.all().filter(|job| job.is_active() && job.budget().is_some());
        let jobs: Vec<JobId> = jobs.map(|job| job.record.job).collect();
        for id in jobs {
            for (at, cost) in self.beyond(id, now) {
                self.jobs.costs_more((id, at.step), cost.plus(Money(1)));
                let why = (Fault::Nobodys, "the budget is reached");
                self.call_back(&[at], |_, _| true, why, (now, out));
            }
        }
    }

    /// Tasks of a job that cost more together than its budget has left, the dearest of them first, and their costs.
    fn beyond(&self, id: JobId, now: Millis) -> Vec<(TaskRef, Money)> {
        let Some(job) = self.jobs.get(id) else { return Vec::new() };
        let Some(purse) = self.purse(job, now) else { return Vec::new() };
        let mut running = Vec::new();
        for step in job.step_numbers() {
            for (_, borrowed) in self.borrow.of_step(id, step) {
                let State::Held(held) = &borrowed.state else { continue };
                for a in held.attempts.iter().filter(|a| held.begun.contains_key(&a.attempt)) {
                    let from = held.earliest(a.attempt);
                    let cost = if from > Millis(0) {
                        cost_by_now((job, step), now.since(from), &held.terms)
                    } else {
                        Money(0)
                    };
                    running.push((cost, TaskRef { job: id, step, task: a.task }));
                }
            }
        }
        running.sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = running.iter().fold(purse.spent, |sum, (cost, _)| sum.plus(*cost));
        let mut beyond = Vec::new();
        for (cost, at) in running {
            let first = matches!(self.jobs.task(at), Some(Task::Leased { .. }));
            if sum <= purse.budget || cost.is_zero() || !first {
                continue;
            }
            sum = sum.less(cost);
            beyond.push((at, cost));
        }
        beyond
    }

    /// The price that a site asks, in words, when a job does not pay it.
    pub(crate) fn asks_too_much(job: &Job, price: &Price) -> Option<String> {
        let most = job.spec.policy.max_price?;
        (!job.pays(price)).then(|| {
            format!("it asks {} for a core-hour, and the job pays {most} at most", price.core_hour)
        })
    }
}
