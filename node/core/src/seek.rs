//! How waiting tasks find lenders: leases that we hold are filled, and slots are asked for where that is not enough.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::lease::{Assignment, Offer, Phase};
use meshfarm_protocol::message::Message;

use crate::borrow::State;
use crate::door::{Output, TaskRef};
use crate::job::Job;
use crate::place::{self, Demand, Supply};
use crate::site::Site;

/// A session whose environments cost something gets so much work: entering them is then a small part of it. What it
/// has made comes home when it is over, so more would keep an artist waiting and lose more with a lender.
const SESSION_WORK: Millis = Millis::seconds(30);

/// How many tasks share a session while nobody knows how long one takes.
const FIRST_SHARE: usize = 2;

/// How many of `tasks`, which wait or run, one session shall have of them when `slots` do them.
fn share_of(time: Option<Millis>, tasks: usize, slots: usize) -> usize {
    let by_time = time.map_or(FIRST_SHARE as u64, |time| SESSION_WORK.0 / time.0.max(1));
    let fair = tasks.div_ceil(slots.max(1));
    usize::try_from(by_time).unwrap_or(usize::MAX).clamp(1, fair.max(1))
}

/// More leases and offers than this at a time are not sought for one step.
const MAX_LEASES_OF_A_STEP: usize = 64;

impl Site {
    /// Give tasks of a job to the leases that it holds, and ask for more where that is not enough. Returns
    /// whether tasks of it wait for one of our own slots.
    ///
    /// With `yields`, somebody more urgent waits for our own slots: this job gives them up as its tasks end.
    pub(crate) fn seek(
        &mut self,
        id: JobId,
        yields: bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        let mut waits = false;
        for step in job.step_numbers() {
            self.top_up((id, step), yields, now, out);
            self.ask((id, step), yields, now, out);
            self.hear_ourselves(now, out);
            waits |= self.waits_for_own((id, step), now);
        }
        waits
    }

    pub(crate) fn supply<'a>(&'a self, engaged: &'a BTreeSet<SiteId>, now: Millis) -> Supply<'a> {
        let pauses = self.own_pause > now;
        Supply {
            me: self.config.me,
            my_name: &self.config.name,
            host: &self.lend.host,
            free: if pauses { 0 } else { self.lend.free() },
            sites: &self.sites,
            engaged,
        }
    }

    /// Whether tasks of a step wait that our own slots could run, were one free.
    fn waits_for_own(&self, (id, step): (JobId, StepNo), now: Millis) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        let me = self.config.me;
        job.waiting(step, now).next().is_some() && self.runs(job, step, me, now)
    }

    /// Whether a task of the step waits that `lender` could run.
    fn runs(&self, job: &Job, step: StepNo, lender: SiteId, now: Millis) -> bool {
        let Some(ready) = job.ready(step) else {
            return false;
        };
        if lender == self.config.me {
            let none = BTreeSet::new();
            let own = place::own_fits(job, step, &self.supply(&none, now));
            if !own || self.own_pause > now {
                return false;
            }
        }
        if ready.n_fresh() > 0 {
            return true;
        }
        let mut again = ready.again(now).peekable();
        if again.peek().is_none() {
            return false;
        }
        let fitting = place::fitting(job, step, &self.supply(&BTreeSet::new(), now), now);
        again.any(|failed_on| place::eligible(failed_on, lender, &fitting))
    }

    /// Assign waiting tasks to the leases that the step holds.
    pub(crate) fn top_up(
        &mut self,
        (id, step): (JobId, StepNo),
        yields: bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let mut held = Vec::new();
        let (mut spare, mut under_way) = (0, 0);
        for (lease, borrowed) in self.borrow.of_step(id, step) {
            if let State::Held(h) = &borrowed.state {
                held.push((lease, borrowed.lender));
                spare += if h.is_slow(now) { 0 } else { h.slots as usize };
                under_way += h.attempts.len();
            }
        }
        let Some(job) = self.jobs.get(id).filter(|_| !held.is_empty()) else {
            return;
        };
        let batch = job.spec.policy.batch.map_or(usize::MAX, |batch| batch.max(1) as usize);
        let again = job.ready(step).is_some_and(|r| r.again(now).next().is_some());
        let fitting = if again {
            place::fitting(job, step, &self.supply(&BTreeSet::new(), now), now)
        } else {
            Vec::new()
        };
        for (lease, lender) in held {
            let Some(job) = self.jobs.get(id) else { return };
            let left_alone =
                self.sites.is_shunned(lender, now) || (yields && lender == self.config.me);
            let takes = |failed_on: &[SiteId]| {
                !left_alone
                    && (failed_on.is_empty() || place::eligible(failed_on, lender, &fitting))
            };
            let mut waiting = 0;
            if let Some(ready) = job.ready(step).filter(|_| !left_alone) {
                waiting = ready.n_fresh() + ready.again(now).filter(|on| takes(on)).count();
            }
            // Our own slots are a call away: what waits stays free to go elsewhere.
            let ahead = lender != self.config.me;
            let shares = job.step_spec(step).is_some_and(|spec| spec.environments);
            let each = share_of(job.task_time(step), waiting + under_way, spare);
            let Some(held) = self.borrow.held_mut(lease) else {
                continue;
            };
            let isolation = held.isolation;
            let room = if shares {
                held.room_of_shares(each, now).min(batch)
            } else {
                held.room(waiting, (spare, ahead), now).min(batch)
            };
            held.set_more(waiting > room);
            let tasks = job.waiting(step, now).filter(|(_, on)| takes(on));
            let tasks: Vec<_> = tasks.take(room).map(|(task, _)| task).collect();
            let tasks = tasks.into_iter().map(|task| (task, AttemptId(self.random())));
            let tasks: Vec<_> = tasks.collect();
            if let Some(held) = self.borrow.held_mut(lease).filter(|_| shares && !tasks.is_empty())
            {
                held.share(&tasks.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>());
            }
            under_way += tasks.len();
            for (task, attempt) in tasks {
                let at = TaskRef { job: id, step, task };
                self.jobs.lease((at, attempt), (lease, lender, isolation), now, out);
                if let Some(held) = self.borrow.held_mut(lease) {
                    held.attempts.push(Assignment { attempt, task });
                }
            }
        }
    }

    /// Ask for slots for the tasks that no lease and no open offer covers.
    fn ask(
        &mut self,
        (id, step): (JobId, StepNo),
        yields: bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get(id) else { return };
        let (Some((root, bytes)), Some(ready)) = (job.content(step), job.ready(step)) else {
            return;
        };
        let again: Vec<_> = ready.again(now).collect();
        let fresh = ready.n_fresh();
        let waiting = u32::try_from(fresh + again.len()).unwrap_or(u32::MAX);
        let mut engaged = BTreeSet::new();
        let (mut covered, mut leases) = (0u32, 0);
        for (_, borrowed) in self.borrow.of_step(id, step) {
            leases += 1;
            match &borrowed.state {
                State::Offered { slots, .. } => {
                    engaged.insert(borrowed.lender);
                    covered = covered.saturating_add(*slots);
                }
                // It would fetch the same content a second time.
                State::Held(held) if held.is_slow(now) => drop(engaged.insert(borrowed.lender)),
                State::Held(_) => {}
            }
        }
        let uncovered = waiting.saturating_sub(covered);
        let Some(spec) = job.step_spec(step) else {
            return;
        };
        if uncovered == 0 || leases >= MAX_LEASES_OF_A_STEP {
            return;
        }
        if yields {
            engaged.insert(self.config.me);
        }
        let (tenant, priority) = (job.spec.tenant, job.spec.policy.priority);
        let floors = [place::floor(job, false), place::floor(job, true)];
        let mut rng = self.rng.clone();
        let demand = Demand { job, step, root, bytes, fresh, again: &again, uncovered };
        let asked = place::place(&demand, &self.supply(&engaged, now), now, &mut rng);
        if asked.is_empty() {
            return;
        }
        let requirement = spec.requirement.clone();
        self.rng = rng;
        for (lender, slots) in asked {
            let offer = Offer {
                lease: LeaseId(self.random()),
                tenant,
                requirement: requirement.clone(),
                isolation: floors[usize::from(lender == self.config.me)],
                slots,
                tasks: waiting,
                root,
                bytes,
                priority,
            };
            self.borrow.offered(&offer, (id, step), lender, now);
            out.push(Output::Send { to: lender, message: Message::Offer(offer) });
        }
    }

    /// Whether a task of the step waits that the lease could run.
    pub(crate) fn useful(
        &mut self,
        lease: LeaseId,
        (job, step): (JobId, StepNo),
        lender: SiteId,
        now: Millis,
    ) -> bool {
        if self.borrow.held_mut(lease).is_some_and(|held| held.phase == Phase::Gone) {
            return false;
        }
        let left_alone = self.sites.is_shunned(lender, now)
            || (lender == self.config.me && self.yields.contains(&job));
        let job = self.jobs.get(job).filter(|_| !left_alone);
        job.is_some_and(|job| self.runs(job, step, lender, now))
    }
}
