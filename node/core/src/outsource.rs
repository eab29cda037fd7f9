//! How tasks find lenders and results find home: the borrower's decisions, on top of its leases.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::SessionSpec;
use meshfarm_protocol::lease::{
    Assignment, Done, Grant, MAX_REASON, Offer, Outcome, Phase, Status, Usage, Want,
};
use meshfarm_protocol::message::Message;

use crate::borrow::{Landing, State};
use crate::door::{CollectError, Content, Event, Output, TaskRef};
use crate::jobs::{Failure, Job, Task, put, put_delete};
use crate::place::{self, Demand, Supply};
use crate::record::{BorrowedRecord, Key, Record};
use crate::site::Site;

/// More leases and offers than this at a time are not sought for one step.
const MAX_LEASES_OF_A_STEP: usize = 64;

/// When outputs are asked for again whose lender could not be reached.
const FETCH_AGAIN: Millis = Millis::seconds(2);

/// When outputs are placed again that could not be written.
const WRITE_AGAIN: Millis = Millis::seconds(10);

/// How long our own slots are left alone after a session could not be prepared here.
const OWN_PAUSE: Millis = Millis::seconds(5);

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
    fn top_up(
        &mut self,
        (id, step): (JobId, StepNo),
        yields: bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let mut held = Vec::new();
        let mut spare = 0;
        for (lease, borrowed) in self.borrow.of_step(id, step) {
            if let State::Held(h) = &borrowed.state {
                held.push((lease, borrowed.lender));
                spare += h.slots as usize;
            }
        }
        let Some(job) = self.jobs.get(id).filter(|_| !held.is_empty()) else {
            return;
        };
        let batch = job.spec.policy.batch;
        let batch = batch.map_or(usize::MAX, |batch| batch.max(1) as usize);
        let again = job
            .ready(step)
            .is_some_and(|r| r.again(now).next().is_some());
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
            // Our own slots are a call away: what waits stays free to go elsewhere, unless it shares sessions.
            let own = lender == self.config.me;
            let ahead = !own || job.step_spec(step).is_some_and(|spec| spec.environments);
            let Some(held) = self.borrow.held_mut(lease) else {
                continue;
            };
            let room = held.room(waiting, spare, ahead).min(batch);
            held.set_more(waiting > room);
            let tasks = job.waiting(step, now).filter(|(_, on)| takes(on));
            let tasks: Vec<_> = tasks.take(room).map(|(task, _)| task).collect();
            for task in tasks {
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
            if let State::Offered { slots, .. } = borrowed.state {
                engaged.insert(borrowed.lender);
                covered = covered.saturating_add(slots);
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
        let demand = Demand {
            job,
            step,
            root,
            bytes,
            fresh,
            again: &again,
            uncovered,
        };
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
        if grant.slots > 0 && floor.is_some_and(|floor| grant.isolation >= floor) {
            self.sites.granted(from, grant.slots);
            self.top_up((job, step), false, now, out);
        } else {
            // It promises less than its profile says: no use in asking again at once.
            self.sites.declined(from, None, now);
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
        if self.borrow.is_landing(|landing| landing.lease == lease) {
            return;
        }
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
        if lost.lender == self.config.me {
            self.own_pause = now.plus(OWN_PAUSE);
        }
        if !lost.prepared {
            self.sites.failed(lost.lender, now);
        }
        if tasks > 0 {
            self.sites.pause(lost.lender, now);
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
        self.borrow.give_up(attempt, at);
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
        let late = self.borrow.given_up(attempt);
        let at = self.borrow.ended(from, &done, now).or(late);
        let wanted = at.filter(|at| self.jobs.wants_result(*at));
        let Some(at) = wanted else {
            accepted(from, done.lease, attempt, out);
            return;
        };
        match (done.outcome, done.outputs) {
            (Outcome::Done, Some(outputs)) => {
                let (lease, lender, usage) = (done.lease, from, done.usage);
                let (again, since, blocked, unreachable) = (Some(now), now, None, None);
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
                    unreachable,
                };
                self.borrow.land(attempt, landing);
            }
            (Outcome::Done, None) => self.complete(at, attempt, from, done.usage, now, out),
            (Outcome::Failed(mut reason), _) => {
                self.sites.failed(from, now);
                reason.truncate(reason.floor_char_boundary(MAX_REASON));
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
            Err(CollectError::Unreachable) => {
                landing.again = Some(now.plus(FETCH_AGAIN));
                landing.unreachable.get_or_insert(now);
            }
            Err(CollectError::Unwritable(reason)) => {
                landing.unreachable = None;
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

    /// End what is overdue, and fetch what is due.
    pub(crate) fn borrow_upkeep(&mut self, now: Millis, out: &mut Vec<Output>) {
        for lease in self.borrow.overdue(now, self.config.me) {
            let offered = self.borrow.forget_offer(lease);
            match offered {
                Some(lender) => {
                    self.sites.declined(lender, None, now);
                    self.sites.failed(lender, now);
                }
                None => self.lose(lease, &[], "the site fell silent", now, out),
            }
        }
        let (sites, me) = (&self.sites, self.config.me);
        let lost = self
            .borrow
            .lost_landings(now, |site| site == me || sites.is_connected(site));
        for attempt in lost {
            if let Some(l) = self.borrow.landed(attempt) {
                let reason = "the site fell silent before its outputs were here";
                self.give_up((l.task, attempt), l.lender, reason, now, out);
            }
        }
        self.collect(now, out);
    }

    /// Forget attempts whose tasks need them no more.
    fn let_go(&mut self) {
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
                if let Some(landing) = self.borrow.landing(attempt) {
                    landing.again = Some(now.plus(FETCH_AGAIN));
                }
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
        self.let_go();
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
        let left_alone = self.sites.is_shunned(lender, now)
            || (lender == self.config.me && self.yields.contains(&job));
        let job = self.jobs.get(job).filter(|_| !left_alone);
        job.is_some_and(|job| self.runs(job, step, lender, now))
    }
}

fn accepted(to: SiteId, lease: LeaseId, attempt: AttemptId, out: &mut Vec<Output>) {
    out.push(Output::Send {
        to,
        message: Message::Accepted { lease, attempt },
    });
}
