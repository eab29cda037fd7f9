//! Second tries: a task that runs much longer than others of its step is begun once more where a slot is free, and
//! whichever try is done first counts.
//!
//! Only when nothing of the step waits: then the last tasks alone keep the job from its end. (Dean and Ghemawat 2004,
//! "MapReduce", backup tasks; Zaharia et al. 2008, "Improving MapReduce Performance in Heterogeneous Environments".)

use std::collections::BTreeSet;

use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::lease::Assignment;

use crate::borrow::State;
use crate::door::{Event, Output, TaskRef};
use crate::job::Task;
use crate::place::{self, Demand, Supply};
use crate::queue::Turn;
use crate::site::Site;
use crate::sites::at_speed;

/// A task is slow when it has run so many times as long as one takes there.
const TIMES_AS_LONG: u64 = 3;

/// A task that has run less than this is not slow, however short others are.
const LEAST: Millis = Millis::seconds(30);

/// How long a task takes is known when so many have ended.
const KNOWN: u64 = 3;

/// Of each so many tasks of a step one may have a second try at a time, and always one.
const ONE_IN: usize = 10;

/// Tasks of a step that are slow and have one try only.
#[derive(Debug, Default)]
struct Slow {
    /// The longest runner first.
    tasks: Vec<TaskNo>,
    /// Who gets none of them: sites that have one, and where one has failed.
    not: BTreeSet<SiteId>,
}

impl Site {
    /// Ask for slots for second tries of the slow tasks of a step.
    pub(crate) fn ask_for_second(
        &mut self,
        (id, step): (JobId, StepNo),
        turn: Turn,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Slow { tasks, not: mut engaged } = self.slow((id, step), now);
        let mut asked_for = 0;
        for (_, borrowed) in self.borrow.of_step(id, step) {
            engaged.insert(borrowed.lender);
            if let State::Offered { slots, .. } = &borrowed.state {
                asked_for += *slots as usize;
            }
        }
        let n = tasks.len().saturating_sub(asked_for);
        if n == 0 {
            return;
        }
        engaged.extend(self.jobs.get(id).into_iter().flat_map(|job| self.yielded(job)));
        engaged.extend(self.jobs.get(id).into_iter().flat_map(|job| self.too_slow(job, step, now)));
        engaged.extend(self.too_dear((id, step), now));
        let uncovered = u32::try_from(n).unwrap_or(u32::MAX);
        let own = if engaged.contains(&self.config.me) { 0 } else { uncovered };
        let room = self.own_room((id, step), turn, own, now);
        let Some(job) = self.jobs.get(id) else { return };
        let Some((root, bytes)) = job.content(step) else { return };
        let mut rng = self.rng.clone();
        let demand = Demand { job, step, root, bytes, fresh: n, again: &[], uncovered };
        let licensed = self.licensed_with_hosts(id, step);
        let supply = Supply { licensed, ..self.supply(&engaged, room) };
        let chosen = place::place(&demand, &supply, now, &mut rng);
        if !chosen.is_empty() {
            self.rng = rng;
            self.offer((id, step), (chosen, uncovered), now, out);
        }
    }

    /// Give second tries to a lease that got nothing else.
    pub(crate) fn give_second(
        &mut self,
        (job, step): (JobId, StepNo),
        (lease, lender): (LeaseId, SiteId),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Slow { tasks, not } = self.slow((job, step), now);
        let held = self.borrow.held_mut(lease);
        let Some(held) = held.filter(|held| held.attempts.is_empty() && !not.contains(&lender))
        else {
            return;
        };
        let slots = held.slots as usize;
        held.set_more(false);
        let slots = self.affordable((job, step), (lease, lender), slots, now);
        for task in tasks.into_iter().take(slots) {
            let (attempt, at) = (AttemptId(self.random()), TaskRef { job, step, task });
            if let Some(held) = self.borrow.held_mut(lease) {
                held.attempts.push(Assignment { attempt, task });
                self.borrow.seconds.insert(attempt, at);
                out.push(Output::Tell(Event::TaskLeased { task: at, lender }));
            }
        }
    }

    fn slow(&self, (id, step): (JobId, StepNo), now: Millis) -> Slow {
        let mut slow = Slow::default();
        let Some(job) = self.jobs.get(id) else { return slow };
        let Some(ready) = job.ready(step).filter(|ready| ready.n_learned() >= KNOWN) else {
            return slow;
        };
        let (Some(reference), None) = (ready.task_time(), ready.waiting(now).next()) else {
            return slow;
        };
        let of_step = |at: &TaskRef| (at.job, at.step) == (id, step);
        let have: BTreeSet<TaskNo> =
            self.borrow.seconds.values().filter(|at| of_step(at)).map(|at| at.task).collect();
        let most = (ready.tasks().len() / ONE_IN).max(1).saturating_sub(have.len());
        let mut found = Vec::new();
        for (_, borrowed) in self.borrow.of_step(id, step) {
            let State::Held(held) = &borrowed.state else { continue };
            let takes = self.runs_for(borrowed.lender, reference).times(TIMES_AS_LONG).max(LEAST);
            for Assignment { attempt, task } in &held.attempts {
                let since = held.begun.get(attempt).copied();
                let Some(ran) = since.map(|since| now.since(since)).filter(|ran| *ran > takes)
                else {
                    continue;
                };
                let at = TaskRef { job: id, step, task: *task };
                let landing = self.borrow.is_landing(|landing| landing.task == at);
                let second = have.contains(task) || self.borrow.seconds.contains_key(attempt);
                if !second && !landing {
                    found.push((ran, *task, borrowed.lender));
                }
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        for (_, task, lender) in found.into_iter().take(most) {
            if let Some(Task::Leased { failed_on, .. }) = job.tasks(step).get(task.0 as usize) {
                slow.not.insert(lender);
                slow.not.extend(failed_on);
                slow.tasks.push(task);
            }
        }
        slow
    }

    /// How long a task runs at a lender that runs `reference` on the reference core.
    pub(crate) fn runs_for(&self, lender: SiteId, reference: Millis) -> Millis {
        if lender == self.config.me {
            return at_speed(reference, self.lend.host().speed);
        }
        self.sites.get(lender).map_or(reference, |known| {
            Millis(known.experience.run(at_speed(reference, known.speed()).0))
        })
    }

    /// A task's first try has come to nothing: its second one, if it has one, takes its place. Returns whether it does.
    pub(crate) fn second_goes_on(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        failed: Option<SiteId>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let mut seconds = self.borrow.seconds.iter();
        let Some((second, _)) = seconds.find(|(second, of)| **of == at && **second != attempt)
        else {
            return false;
        };
        let second = *second;
        let Some((lease, lender, isolation)) = self.borrow.holder(second) else {
            return false;
        };
        let goes_on = self.jobs.replace(
            (at, attempt),
            (second, lease, lender, isolation),
            (failed, now),
            out,
        );
        if goes_on {
            self.borrow.seconds.remove(&second);
        }
        goes_on
    }
}
