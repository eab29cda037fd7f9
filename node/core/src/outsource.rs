//! How tasks find lenders and results find home: the borrower's decisions, on top of its leases.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::SessionSpec;
use meshfarm_protocol::lease::{
    Assignment, Done, Grant, Offer, Outcome, Phase, Status, Usage, Want,
};
use meshfarm_protocol::message::Message;

use crate::borrow::{Landing, State};
use crate::door::{CollectError, Content, Event, Output, TaskRef};
use crate::jobs::{Failure, Task, put, put_delete};
use crate::place::{self, Demand, Supply};
use crate::record::{BorrowedRecord, Key, Record};
use crate::site::Site;

/// More leases and offers than this at a time are not sought for one step.
const MAX_LEASES_OF_A_STEP: usize = 64;

/// When outputs are asked for again whose lender could not be reached.
const FETCH_AGAIN: Millis = Millis::seconds(2);

/// When outputs are placed again that could not be written.
const WRITE_AGAIN: Millis = Millis::seconds(10);

/// So many attempts that were given up are remembered, in case that their results arrive after all.
const MAX_GIVEN_UP: usize = 10_000;

impl Site {
    /// Give tasks of a job to the leases that it holds, and ask for more where that is not enough.
    pub(crate) fn seek(&mut self, id: JobId, now: Millis, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(id) else { return };
        for step in job.step_numbers() {
            self.top_up((id, step), now, out);
            self.ask((id, step), now, out);
            self.hear_ourselves(now, out);
        }
    }

    pub(crate) fn supply<'a>(&'a self, engaged: &'a BTreeSet<SiteId>) -> Supply<'a> {
        Supply {
            me: self.config.me,
            my_name: &self.config.name,
            host: &self.lend.host,
            free: self.lend.free(),
            sites: &self.sites,
            engaged,
        }
    }

    /// Assign waiting tasks to the leases that the step holds.
    fn top_up(&mut self, (id, step): (JobId, StepNo), now: Millis, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(id) else { return };
        let fitting = place::fitting(job, step, &self.supply(&BTreeSet::new()));
        let batch = job
            .spec
            .policy
            .batch
            .map_or(usize::MAX, |batch| batch.max(1) as usize);
        let mut held = Vec::new();
        let mut spare = 0;
        for (lease, borrowed) in self.borrow.of_step(id, step) {
            if let State::Held(h) = &borrowed.state {
                held.push((lease, borrowed.lender));
                spare += h.slots as usize;
            }
        }
        for (lease, lender) in held {
            let Some(job) = self.jobs.get(id) else { return };
            let waiting: Vec<_> = job
                .waiting(step, now)
                .filter(|(_, failed_on)| place::eligible(failed_on, lender, &fitting))
                .map(|(task, _)| task)
                .collect();
            let Some(held) = self.borrow.held_mut(lease) else {
                continue;
            };
            let room = held.room(waiting.len(), spare).min(batch);
            held.set_more(waiting.len() > room);
            for task in waiting.into_iter().take(room) {
                let attempt = AttemptId(self.random());
                let at = TaskRef {
                    job: id,
                    step,
                    task,
                };
                self.jobs.lease(at, attempt, (lease, lender), now, out);
                if let Some(held) = self.borrow.held_mut(lease) {
                    held.attempts.push(Assignment { attempt, task });
                }
            }
        }
    }

    /// Ask for slots for the tasks that no lease and no open offer covers.
    fn ask(&mut self, (id, step): (JobId, StepNo), now: Millis, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(id) else { return };
        let Some((root, bytes)) = job.content(step) else {
            return;
        };
        let failed_on: Vec<_> = job.waiting(step, now).map(|(_, on)| on.to_vec()).collect();
        let mut engaged = BTreeSet::new();
        let mut covered = 0;
        for (_, borrowed) in self.borrow.of_step(id, step) {
            engaged.insert(borrowed.lender);
            if let State::Offered { slots, .. } = borrowed.state {
                covered += slots;
            }
        }
        let waiting = u32::try_from(failed_on.len()).unwrap_or(u32::MAX);
        let uncovered = waiting.saturating_sub(covered);
        let Some(spec) = job.step_spec(step) else {
            return;
        };
        if uncovered == 0 || engaged.len() >= MAX_LEASES_OF_A_STEP {
            return;
        }
        let (tenant, priority) = (job.spec.tenant, job.spec.policy.priority);
        let requirement = spec.requirement.clone();
        let floors = [place::floor(job, false), place::floor(job, true)];
        let mut rng = self.rng.clone();
        let demand = Demand {
            job,
            step,
            root,
            bytes,
            failed_on: &failed_on,
            uncovered,
        };
        let asked = place::place(&demand, &self.supply(&engaged), now, &mut rng);
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
            self.borrow
                .offered(offer.lease, (id, step), lender, slots, now);
            out.push(Output::Send {
                to: lender,
                message: Message::Offer(offer),
            });
        }
    }

    /// A lender grants: fill its slots and hand over the keys, or let it go.
    pub(crate) fn on_grant(
        &mut self,
        from: SiteId,
        grant: &Grant,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let lease = grant.lease;
        let close = Output::Send {
            to: from,
            message: Message::Close { lease },
        };
        let Some((job, step)) = self.borrow.granted(from, grant, now) else {
            if self.borrow.get(lease, from).is_none() {
                out.push(close);
            }
            return;
        };
        let own = from == self.config.me;
        let floor = self.jobs.get(job).map(|job| place::floor(job, own));
        if floor.is_some_and(|floor| grant.isolation >= floor) {
            self.top_up((job, step), now, out);
        }
        let content = self.jobs.get(job).and_then(|job| job.content(step));
        let session = self.session_spec(job, step);
        let held = self
            .borrow
            .held_mut(lease)
            .filter(|held| !held.attempts.is_empty());
        let (Some(held), Some((root, _)), Some(session)) = (held, content, session) else {
            self.borrow.remove(lease);
            out.push(close);
            return;
        };
        let (slots, want) = (held.slots, held.say(lease, now));
        let record = BorrowedRecord {
            lease,
            job,
            step,
            lender: from,
            slots,
        };
        put(out, Record::Borrowed(record));
        if own {
            let content = Content::Own(job, session);
            self.lend.on_commit(from, want, (root, content), now, out);
        } else {
            let sealing_key = grant.sealing_key;
            out.push(Output::Commit {
                to: from,
                sealing_key,
                job,
                root,
                want,
                session,
            });
        }
    }

    fn session_spec(&self, job: JobId, step: StepNo) -> Option<SessionSpec> {
        let job = self.jobs.get(job)?;
        Some(SessionSpec {
            layout: job.spec.layout.clone(),
            step,
            environments: job.step_spec(step)?.environments,
            timeout: job.spec.policy.timeout,
        })
    }

    /// A lender says how a lease stands.
    pub(crate) fn on_status(
        &mut self,
        from: SiteId,
        status: &Status,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let lease = status.lease;
        let Some(borrowed) = self.borrow.get(lease, from) else {
            self.on_strange_status(from, status, now, out);
            return;
        };
        let (job, step) = (borrowed.job, borrowed.step);
        if let Some(started) = self.borrow.on_status(status, now) {
            let told = started
                .into_iter()
                .map(|task| Event::TaskStarted { task, lender: from });
            out.extend(told.map(Output::Tell));
        }
        match status.phase {
            Phase::Preparing => {}
            Phase::Active => {
                let content = self.jobs.get(job).and_then(|job| job.content(step));
                if let Some((root, _)) = content {
                    self.sites.has_content(from, root);
                }
            }
            Phase::Gone => {
                self.lose(
                    lease,
                    &status.finished,
                    "the site gave the lease back",
                    now,
                    out,
                );
            }
        }
    }

    /// A lender speaks of a lease that we have given up: let it stop, but tell us what it has finished.
    fn on_strange_status(
        &mut self,
        from: SiteId,
        status: &Status,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let lease = status.lease;
        let message = match (status.phase, status.finished.is_empty()) {
            (Phase::Gone, _) => return,
            (Phase::Preparing | Phase::Active, true) => Message::Close { lease },
            (Phase::Preparing | Phase::Active, false) if !status.running.is_empty() => {
                let (attempts, more) = (Vec::new(), false);
                Message::Want(Want {
                    lease,
                    version: now.0,
                    attempts,
                    more,
                })
            }
            (Phase::Preparing | Phase::Active, false) => return,
        };
        out.push(Output::Send { to: from, message });
    }

    /// A lease is no longer ours, except for what the lender has finished under it.
    fn lose(
        &mut self,
        lease: LeaseId,
        finished: &[AttemptId],
        reason: &str,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(lost) = self.borrow.split_off(lease, finished) else {
            return;
        };
        let tasks = u32::try_from(lost.tasks.len()).unwrap_or(u32::MAX);
        for (at, attempt) in lost.tasks {
            self.give_up((at, attempt), lost.lender, reason, now, out);
        }
        if lost.over {
            put_delete(out, Key::Borrowed(lease));
        }
        if tasks > 0 {
            self.sites.declined(lost.lender, None, now);
            let (lender, reason) = (lost.lender, reason.to_owned());
            out.push(Output::Tell(Event::LeaseLost {
                lease,
                lender,
                tasks,
                reason,
            }));
        }
    }

    /// A task waits again; should its attempt's result arrive after all, it will be welcome.
    fn give_up(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        by: SiteId,
        reason: &str,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if self.given_up.len() >= MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back((attempt, at));
        let failure = Failure {
            by,
            reason: reason.to_owned(),
            counts: false,
        };
        self.jobs.fail(at, attempt, failure, now, out);
    }

    /// An attempt has ended at its lender.
    pub(crate) fn on_done(&mut self, from: SiteId, done: Done, now: Millis, out: &mut Vec<Output>) {
        let attempt = done.attempt;
        if self.borrow.landing(attempt).is_some() {
            return;
        }
        let late = self
            .given_up
            .iter()
            .find(|(given_up, _)| *given_up == attempt);
        let late = late.map(|(_, at)| *at);
        let at = self.borrow.ended(from, &done, now).or(late);
        let wanted = at.filter(|at| self.jobs.wants_result(*at));
        let Some(at) = wanted else {
            accepted(from, done.lease, attempt, out);
            return;
        };
        match (done.outcome, done.outputs) {
            (Outcome::Done, Some(outputs)) => {
                let (lease, lender, usage) = (done.lease, from, done.usage);
                let (again, since, blocked) = (Some(now), now, None);
                let task = at;
                let landing = Landing {
                    task,
                    lease,
                    lender,
                    usage,
                    outputs,
                    again,
                    since,
                    blocked,
                };
                self.borrow.land(attempt, landing);
            }
            (Outcome::Done, None) => self.complete(at, attempt, from, done.usage, now, out),
            (Outcome::Failed(reason), _) => {
                self.sites.failed(from, now);
                let failure = Failure {
                    by: from,
                    reason,
                    counts: true,
                };
                self.jobs.fail(at, attempt, failure, now, out);
            }
        }
        if self.borrow.landing(attempt).is_none() {
            accepted(from, done.lease, attempt, out);
        }
    }

    fn complete(
        &mut self,
        at: TaskRef,
        attempt: AttemptId,
        by: SiteId,
        usage: Usage,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.sites.succeeded(by);
        self.given_up.retain(|(given_up, _)| *given_up != attempt);
        self.jobs.accept(at, attempt, by, (now, usage.wall), out);
    }

    /// An attempt's outputs stand in their place, or do not.
    pub(crate) fn on_collected(
        &mut self,
        attempt: AttemptId,
        result: Result<u32, CollectError>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(landing) = self.borrow.landing(attempt) else {
            return;
        };
        match result {
            Err(CollectError::Unreachable) => landing.again = Some(now.plus(FETCH_AGAIN)),
            Err(CollectError::Unwritable(reason)) => {
                landing.again = Some(now.plus(WRITE_AGAIN));
                landing.blocked = Some(reason.clone());
                out.push(Output::Tell(Event::OutputBlocked {
                    task: landing.task,
                    reason,
                }));
            }
            Ok(_) => {
                let Some(l) = self.borrow.landed(attempt) else {
                    return;
                };
                self.complete(l.task, attempt, l.lender, l.usage, now, out);
                accepted(l.lender, l.lease, attempt, out);
            }
            Err(CollectError::Bad(what)) => {
                let Some(l) = self.borrow.landed(attempt) else {
                    return;
                };
                let reason = format!("its outputs were refused: {what}");
                out.push(Output::Tell(Event::Blame {
                    site: l.lender,
                    what,
                }));
                self.sites.failed(l.lender, now);
                let failure = Failure {
                    by: l.lender,
                    reason,
                    counts: true,
                };
                self.jobs.fail(l.task, attempt, failure, now, out);
                accepted(l.lender, l.lease, attempt, out);
            }
        }
    }

    /// End what is overdue, fetch what is due, and forget attempts whose tasks need them no more.
    pub(crate) fn borrow_upkeep(&mut self, now: Millis, out: &mut Vec<Output>) {
        for lease in self.borrow.overdue(now) {
            let offered = self.borrow.forget_offer(lease);
            match offered {
                Some(lender) => self.sites.declined(lender, None, now),
                None => self.lose(lease, &[], "the site fell silent", now, out),
            }
        }
        let (sites, me) = (&self.sites, self.config.me);
        let lost = self
            .borrow
            .given_up(now, |site| site == me || sites.is_connected(site));
        for attempt in lost {
            if let Some(l) = self.borrow.landed(attempt) {
                let reason = "the site fell silent before its outputs were here";
                self.give_up((l.task, attempt), l.lender, reason, now, out);
            }
        }
        self.collect(now, out);
        let jobs = &self.jobs;
        self.borrow.retain(|at, attempt| match jobs.task(at) {
            Some(Task::Leased {
                attempt: current, ..
            }) => *current == attempt,
            Some(
                Task::Waiting { .. } | Task::Done { .. } | Task::Failed { .. } | Task::Canceled,
            )
            | None => false,
        });
    }

    /// Fetch outputs that are due: of each task one attempt's at a time, so that a second result never
    /// overwrites a first.
    fn collect(&mut self, now: Millis, out: &mut Vec<Output>) {
        for attempt in self.borrow.due(now) {
            let Some(landing) = self.borrow.landing(attempt) else {
                continue;
            };
            let task = landing.task;
            if !self.jobs.wants_result(task) {
                if let Some(l) = self.borrow.landed(attempt) {
                    accepted(l.lender, l.lease, attempt, out);
                }
                continue;
            }
            if self
                .borrow
                .is_landing(|l| l.task == task && l.again.is_none())
            {
                continue;
            }
            let Some(landing) = self.borrow.landing(attempt) else {
                continue;
            };
            landing.again = None;
            out.push(Output::Collect {
                attempt,
                task,
                lease: landing.lease,
                lender: landing.lender,
                outputs: landing.outputs.clone(),
            });
        }
    }

    /// Say what has changed, renew what is due, close what is not needed.
    pub(crate) fn say_wishes(&mut self, now: Millis, out: &mut Vec<Output>) {
        let idle = self.borrow.idle();
        for (lease, (job, step), lender) in idle {
            let landing = self.borrow.is_landing(|landing| landing.lease == lease);
            if !landing && !self.useful(lease, (job, step), lender, now) {
                self.borrow.remove(lease);
                put_delete(out, Key::Borrowed(lease));
                out.push(Output::Send {
                    to: lender,
                    message: Message::Close { lease },
                });
            }
        }
        for (to, want) in self.borrow.to_say(now) {
            out.push(Output::Send {
                to,
                message: Message::Want(want),
            });
        }
    }

    /// Whether a task of the step waits that the lease could run.
    fn useful(
        &mut self,
        lease: LeaseId,
        (job, step): (JobId, StepNo),
        lender: SiteId,
        now: Millis,
    ) -> bool {
        if self
            .borrow
            .held_mut(lease)
            .is_some_and(|held| held.phase == Phase::Gone)
        {
            return false;
        }
        let Some(job) = self.jobs.get(job) else {
            return false;
        };
        let fitting = place::fitting(job, step, &self.supply(&BTreeSet::new()));
        let mut waiting = job.waiting(step, now);
        waiting.any(|(_, failed_on)| place::eligible(failed_on, lender, &fitting))
    }
}

fn accepted(to: SiteId, lease: LeaseId, attempt: AttemptId, out: &mut Vec<Output>) {
    out.push(Output::Send {
        to,
        message: Message::Accepted { lease, attempt },
    });
}
