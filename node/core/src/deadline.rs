//! Deadlines: when a job is expected to end, whether that is in time, and what is done where it is not sure.
//!
//! A job in danger comes first among those of its priority, the one with the least time to spare before all others, as
//! long as it can still make it: what is lost anyway takes nothing from others. (Jackson 1955, the earliest due date;
//! Dertouzos 1974, least laxity.) It goes on after its deadline.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{JobId, Millis, SiteId, StepNo};

use crate::borrow::State;
use crate::door::{Event, Output};
use crate::job::{Job, JobPhase};
use crate::place::{self, ASSUMED_TASK};
use crate::site::Site;

/// How often the end of jobs with a deadline is estimated anew.
const LOOK_EVERY: Millis = Millis::seconds(5);

/// Never: no job has a deadline.
const NEVER: Millis = Millis(u64::MAX);

/// A job that could do with an eighth more time than it needs is not in danger yet.
const SPARE: u64 = 8;

/// What people were told of a job's deadline; each is told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warned {
    /// Nothing.
    #[default]
    Not,
    /// That it is in danger.
    AtRisk,
    /// That it was missed.
    Missed,
}

impl Warned {
    /// Whether nobody was told anything.
    #[must_use]
    pub fn is_not(&self) -> bool {
        *self == Self::Not
    }
}

/// When a job with a deadline is expected to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outlook {
    /// With the slots that it has now; while it has none, with all that it could have. None: nothing is known yet.
    pub(crate) expected: Option<Millis>,
    /// It is in danger and can make it: so long before it must have all slots that it could have.
    pub(crate) slack: Option<Millis>,
    risk: bool,
}

/// A job's deadline as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadlineView {
    /// The deadline, in milliseconds since 1970.
    pub at: Millis,
    /// When the job is expected to end; none when that is not known, or it has ended.
    pub expected: Option<Millis>,
    /// How it stands.
    pub state: DeadlineState,
}

/// How a job stands to its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadlineState {
    /// Nothing can be said yet, or the job was stopped before.
    Open,
    /// The job is expected to end in time.
    InTime,
    /// In time only if nothing goes wrong: the job comes first among those of its priority.
    AtRisk,
    /// It is expected to end too late.
    WillMiss,
    /// It was not done in time.
    Missed,
    /// It was done in time.
    Met,
}

/// Slots, and how long a task runs there in milliseconds.
#[derive(Clone, Debug, Default)]
struct Force(Vec<(u64, u64)>);

impl Force {
    fn add(&mut self, slots: u32, each: Millis) {
        if slots > 0 {
            self.0.push((slots.into(), each.0.max(1)));
        }
    }

    /// How long it takes for so many tasks, when whoever would be done with one first gets it. None without a slot.
    fn takes(&self, tasks: u64) -> Option<u64> {
        let alone = |(slots, each): &(u64, u64)| each.saturating_mul(tasks.div_ceil(*slots));
        let done = |by: u64| {
            let each = self.0.iter().map(|(slots, each)| slots.saturating_mul(by / each));
            each.fold(0, u64::saturating_add)
        };
        let (mut least, mut most) = (0, self.0.iter().map(alone).min()?);
        while least < most {
            let by = least + (most - least) / 2;
            (least, most) = if done(by) < tasks { (by + 1, most) } else { (least, by) };
        }
        Some(most)
    }
}

/// What is left of a job, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// With the slots that it has. None: it has none.
    pace: Option<u64>,
    /// With all that it could have. None: nobody could run it.
    best: Option<u64>,
    /// One task of its slowest step.
    longest: u64,
}

impl Outlook {
    /// `known`: whether any task of the job has shown how long it takes.
    fn new(job: &Job, (deadline, known): (Millis, bool), left: Left, now: Millis) -> Self {
        let time = deadline.since(now);
        let all = deadline.since(job.record.submitted);
        if !known {
            // Of a job of which half the time is gone and nothing is done, nobody can say that it will be in time.
            let risk = time.0 <= all.0 / 2;
            let slack = (risk && now < deadline).then_some(time);
            return Self { expected: None, slack, risk };
        }
        let expected = left.pace.or(left.best).map(|ms| now.plus(Millis(ms)));
        let slack = left.best.and_then(|best| time.0.checked_sub(best));
        let enough = match job.outlook.slack {
            // It was in danger: precedence does not come and go.
            Some(_) => time.0 / 2,
            None => left.longest.max(left.best.unwrap_or_default() / SPARE),
        };
        let late = expected.is_none_or(|expected| expected > deadline);
        let risk = late || slack.is_none_or(|slack| slack < enough);
        let slack = slack.filter(|_| risk && now < deadline).map(Millis);
        Self { expected, slack, risk }
    }
}

impl Job {
    /// When it shall be done.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.spec.policy.deadline
    }

    /// Who comes first: less does. A job in danger of missing its deadline comes before others of its priority.
    pub(crate) fn class(&self) -> (u8, bool) {
        (u8::MAX - self.priority(), self.outlook.slack.is_none())
    }

    /// How long is left until the deadline, of a job in danger that can make it.
    pub(crate) fn hurry(&self, now: Millis) -> Option<Millis> {
        self.outlook.slack?;
        Some(self.deadline()?.since(now))
    }

    /// How it stands to its deadline, as people see it.
    pub(crate) fn deadline_view(&self) -> Option<DeadlineView> {
        let at = self.deadline()?;
        let Outlook { expected, slack, risk } = self.outlook;
        let (expected, state) = match (&self.record.phase, self.record.ended) {
            (JobPhase::Done, Some(ended)) if ended <= at => (None, DeadlineState::Met),
            (_, Some(ended)) if ended > at => (None, DeadlineState::Missed),
            (JobPhase::Done | JobPhase::Failed(_) | JobPhase::Canceled, _) => {
                (None, DeadlineState::Open)
            }
            (JobPhase::Active, _) if self.record.warned == Warned::Missed => {
                (expected, DeadlineState::Missed)
            }
            (JobPhase::Active, _) => match expected {
                Some(end) if end > at => (expected, DeadlineState::WillMiss),
                _ if risk || slack.is_some() => (expected, DeadlineState::AtRisk),
                Some(_) => (expected, DeadlineState::InTime),
                None => (None, DeadlineState::Open),
            },
        };
        Some(DeadlineView { at, expected, state })
    }
}

impl Site {
    /// Estimate anew, where that is due, when jobs with a deadline will end, and tell of those in danger.
    pub(crate) fn look_at_deadlines(&mut self, now: Millis, out: &mut Vec<Output>) {
        if now < self.look_at {
            return;
        }
        self.look_at = NEVER;
        for (id, deadline) in self.jobs.deadlines() {
            let Some(job) = self.jobs.get(id) else { continue };
            let outlook = self.outlook(job, deadline, now);
            let late = Some(deadline).filter(|at| *at > now);
            self.look_at = self.look_at.min(now.plus(LOOK_EVERY)).min(late.unwrap_or(NEVER));
            let (warned, event) = if now >= deadline {
                (Warned::Missed, Event::DeadlineMissed { job: id, deadline })
            } else if outlook.risk {
                let expected = outlook.expected;
                (Warned::AtRisk, Event::DeadlineAtRisk { job: id, deadline, expected })
            } else {
                (Warned::Not, Event::JobSubmitted { job: id })
            };
            self.jobs.look(id, outlook, (warned, event), out);
        }
    }

    /// When to look again.
    pub(crate) fn deadline_look(&self) -> Option<Millis> {
        Some(self.look_at).filter(|at| *at != NEVER)
    }

    fn outlook(&self, job: &Job, deadline: Millis, now: Millis) -> Outlook {
        let known: Vec<_> = job.step_numbers().filter_map(|step| job.task_time(step)).collect();
        let n = known.len() as u64;
        let mean = known.iter().map(|time| time.0).sum::<u64>().checked_div(n).map(Millis);
        let mut left = Left { pace: Some(0), best: Some(0), longest: 0 };
        let all = self.held_slots(job, None);
        for step in job.step_numbers() {
            let Some(run) = job.step(step).filter(|run| !run.is_done()) else { continue };
            let time = job.task_time(step).or(mean).unwrap_or(ASSUMED_TASK);
            let (running, sum, most) = self.under_way(job, (step, time), now);
            let open = run.counts().open.saturating_sub(run.n_held()) as u64;
            let waiting = open.saturating_sub(running);
            let rest = if waiting > 0 { sum / running.max(1) } else { most };
            let mut force = Force::default();
            let mine = self.held_slots(job, Some(step));
            for (lender, slots) in if mine.is_empty() { &all } else { &mine } {
                force.add(*slots, self.runs_for(*lender, time));
            }
            let mut whole = Force::default();
            for (lender, slots) in self.reach(job, step, &mine, now) {
                whole.add(slots, self.runs_for(lender, time));
            }
            let sum = |of: Option<u64>, force: &Force| {
                let takes = if waiting == 0 { 0 } else { force.takes(waiting)? };
                Some(of?.saturating_add(rest).saturating_add(takes))
            };
            (left.pace, left.best) = (sum(left.pace, &force), sum(left.best, &whole));
            left.longest = left.longest.max(time.0);
        }
        Outlook::new(job, (deadline, n > 0), left, now)
    }

    /// Who has how many slots for a job, or for one step of it.
    fn held_slots(&self, job: &Job, step: Option<StepNo>) -> Vec<(SiteId, u32)> {
        let steps = job.step_numbers().filter(|of| step.is_none_or(|step| step == *of));
        let leases = steps.flat_map(|step| self.borrow.of_step(job.record.job, step));
        let held = leases.filter_map(|(_, borrowed)| match &borrowed.state {
            State::Held(held) if held.slots > 0 => Some((borrowed.lender, held.slots)),
            State::Held(_) | State::Offered { .. } => None,
        });
        held.collect()
    }

    /// How many tasks of a step run, and how long they will: in all, and the longest.
    fn under_way(&self, job: &Job, (step, time): (StepNo, Millis), now: Millis) -> (u64, u64, u64) {
        let (mut n, mut sum, mut most) = (0, 0u64, 0);
        for (_, borrowed) in self.borrow.of_step(job.record.job, step) {
            let State::Held(held) = &borrowed.state else { continue };
            let each = self.runs_for(borrowed.lender, time);
            for (attempt, since) in &held.begun {
                if !self.borrow.seconds.contains_key(attempt) {
                    let rest = each.since(now.since(*since)).0;
                    (n, sum, most) = (n + 1, sum.saturating_add(rest), most.max(rest));
                }
            }
        }
        (n, sum, most)
    }

    /// Every machine that a step could have, with its slots: ours whole, others' as far as they are free or its own.
    fn reach(
        &self,
        job: &Job,
        step: StepNo,
        held: &[(SiteId, u32)],
        now: Millis,
    ) -> Vec<(SiteId, u32)> {
        let none = BTreeSet::new();
        let spec = job.step_spec(step);
        let share = spec.map(|spec| self.lend.share(&spec.requirement)).unwrap_or_default();
        let supply = self.supply(&none, (0, self.lend.at_once(&share)));
        let mut reach = place::reach((job, step), &supply, now);
        for (lender, slots) in held.iter().filter(|(lender, _)| !self.owns(*lender)) {
            reach.push((*lender, *slots));
        }
        let licences = self.lend.capacity().licences(&share);
        let mut licensed = self.lend.capacity().whole().beside_slots(&licences);
        for (_, slots) in reach.iter_mut().filter(|(lender, _)| self.owns(*lender)) {
            *slots = licensed.min(*slots);
            licensed -= *slots;
        }
        reach
    }

    /// Machines where a task of a job in danger would end too late, when another one would do it in time.
    pub(crate) fn too_slow(&self, job: &Job, step: StepNo, now: Millis) -> BTreeSet<SiteId> {
        let none = BTreeSet::new();
        let Some(left) = job.hurry(now) else {
            return none;
        };
        let time = job.task_time(step).unwrap_or(ASSUMED_TASK);
        let fitting = place::fitting(job, step, &self.supply(&none, (0, 0)), now);
        let late = |site: &SiteId| self.runs_for(*site, time) > left;
        let slow: BTreeSet<SiteId> = fitting.iter().copied().filter(late).collect();
        if slow.len() < fitting.len() { slow } else { none }
    }

    /// Jobs with a deadline are looked at now.
    pub(crate) const fn look_soon(&mut self) {
        self.look_at = Millis(0);
    }
}

/// A job with a deadline, and when that is.
pub(crate) type Due = (JobId, Millis);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_machines_help_and_never_hinder() {
        let takes = |machines: &[(u32, u64)], tasks| {
            let mut force = Force::default();
            machines.iter().for_each(|(slots, each)| force.add(*slots, Millis(*each)));
            force.takes(tasks)
        };
        assert_eq!(takes(&[(2, 10)], 5), Some(30));
        assert_eq!(takes(&[(1, 10), (2, 100)], 3), Some(30));
        assert_eq!(takes(&[(1, 10), (2, 25)], 4), Some(25));
        assert_eq!(
            (takes(&[(1, 10)], 0), takes(&[(0, 10)], 1), takes(&[], 0)),
            (Some(0), None, None)
        );
        assert!(takes(&[(u32::MAX, u64::MAX)], u64::MAX).is_some());
    }
}
