//! How leases begin and end and how results find home: the borrower's decisions, on top of its leases.

use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::SessionSpec;
use meshfarm_protocol::lease::{Done, Grant, MAX_REASON, Outcome, Phase, Status, Usage, Want};
use meshfarm_protocol::message::{Message, PassBody};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{Terms, Used};

use crate::borrow::Landing;
use crate::door::{CollectError, Content, Event, Landed, Output, TaskRef};
use crate::job::{Job, Task};
use crate::jobs::{Failure, Fault, put, put_delete};
use crate::place;
use crate::queue::Turn;
use crate::record::{BorrowedRecord, Key, Record};
use crate::site::Site;
use crate::sites::{Known, reference};

/// When outputs are asked for again whose lender could not be reached.
const FETCH_AGAIN: Millis = Millis::seconds(2);

/// When outputs are placed again that could not be written.
const WRITE_AGAIN: Millis = Millis::seconds(10);

/// How long a lender may fetch from another one: longer than content takes, and the clocks of sites differ.
const PASS_LIFE: Millis = Millis::seconds(24 * 3600);

/// How long our own slots are left alone after a session could not be prepared here.
const OWN_PAUSE: Millis = Millis::seconds(5);

impl Site {
    /// A lender grants: fill its slots and hand over the keys, or let it go.
    pub(crate) fn on_grant(
        &mut self,
        from: SiteId,
        grant: &Grant,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let lease = grant.lease;
        let close = Output::Send { to: from, message: Message::Close { lease } };
        let Some((job, step)) = self.borrow.granted(from, grant, now) else {
            if self.borrow.get(lease, from).is_none() {
                out.push(close);
            }
            return;
        };
        let own = from == self.config.me;
        let ours = self.owns(from);
        let suits = self.jobs.get(job).is_some_and(|job| {
            let price = &grant.terms.price;
            grant.isolation >= place::floor(job, ours) && (ours || job.pays(price))
        });
        if ours && let Some(held) = self.borrow.held_mut(lease) {
            held.terms = Terms::default();
        }
        if grant.slots > 0 && suits {
            self.sites.granted(from, grant.slots);
            self.top_up((job, step), (Some(lease), Turn::Open), now, out);
            self.give_second((job, step), (lease, from), now, out);
        } else {
            // It promises less than its profile says: no use in asking again at once.
            self.sites.declined(from, None, now);
        }
        let content = self.jobs.get(job).and_then(|job| job.content(step));
        let session = self.session_spec(job, step);
        let held = self.borrow.held_mut(lease).filter(|held| !held.attempts.is_empty());
        let (Some(held), Some((root, _)), Some(session)) = (held, content, session) else {
            let slots = self.borrow.remove(lease);
            self.sites.returned(from, slots);
            out.push(close);
            return;
        };
        let (slots, terms, want) = (held.slots, held.terms, held.say(lease, now));
        let isolation = Some(grant.isolation);
        let lender = from;
        let record = BorrowedRecord { lease, job, step, lender, slots, isolation, terms };
        put(out, Record::Borrowed(record));
        if own {
            let content = Content::Own(job, session);
            self.lend.on_commit(from, (want, root, content), now, out);
        } else {
            let sealing_key = grant.sealing_key;
            out.push(Output::Commit { to: from, sealing_key, job, root, want, session });
        }
    }

    fn session_spec(&self, job: JobId, step: StepNo) -> Option<SessionSpec> {
        let job = self.jobs.get(job)?;
        Some(SessionSpec {
            layout: job.spec.layout.clone(),
            step,
            environments: job.step_spec(step)?.shares_sessions(),
            timeout: job.spec.policy.timeout,
            silence: job.spec.policy.silence,
            profile: job.spec.policy.profile,
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
        let fetching_since = borrowed.fetching_since();
        if let Some(started) = self.borrow.on_status(status, now) {
            let told = started.into_iter().map(|task| Event::TaskStarted { task, lender: from });
            out.extend(told.map(Output::Tell));
        }
        self.take_held(status, (job, step), now, out);
        match status.phase {
            Phase::Preparing => {}
            Phase::Draining => {
                let keeps = status.running.iter().chain(&status.finished).copied().collect();
                let reason = "the site takes no more tasks now";
                for (at, attempt) in self.borrow.shed(lease, &keeps) {
                    self.give_up((at, attempt), (from, reason), now, out);
                }
            }
            Phase::Active => {
                let content = self.jobs.get(job).and_then(|job| job.content(step));
                if let Some((root, bytes)) = content {
                    let had = self.sites.get(from).is_some_and(|known| known.warm.contains(&root));
                    if let Some(since) = fetching_since.filter(|_| !had) {
                        self.sites.content_came(from, bytes, now.since(since));
                    }
                    self.sites.has_content(from, root);
                }
            }
            Phase::Gone => {
                self.lose((lease, "the site gave the lease back"), &status.finished, now, out);
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
            (Phase::Preparing | Phase::Active | Phase::Draining, true) => Message::Close { lease },
            (Phase::Preparing | Phase::Active | Phase::Draining, false)
                if !status.running.is_empty() =>
            {
                let (attempts, more) = (Vec::new(), false);
                Message::Want(Want { lease, version: now.0, attempts, more })
            }
            (Phase::Preparing | Phase::Active | Phase::Draining, false) => return,
        };
        out.push(Output::Send { to: from, message });
    }

    /// A lease is no longer ours, except for what the lender has finished under it.
    pub(crate) fn lose(
        &mut self,
        (lease, reason): (LeaseId, &str),
        finished: &[AttemptId],
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(lost) = self.borrow.split_off(lease, finished) else {
            return;
        };
        let tasks = u32::try_from(lost.tasks.len()).unwrap_or(u32::MAX);
        for (at, attempt) in lost.tasks {
            self.give_up((at, attempt), (lost.lender, reason), now, out);
        }
        if lost.over {
            put_delete(out, Key::Borrowed(lease));
        }
        if !lost.prepared {
            if lost.lender == self.config.me {
                self.own_pause = now.plus(OWN_PAUSE);
            }
            self.sites.failed(lost.lender, now);
        }
        if tasks > 0 {
            self.sites.pause(lost.lender, now);
            let (lender, reason) = (lost.lender, reason.to_owned());
            out.push(Output::Tell(Event::LeaseLost { lease, lender, tasks, reason }));
        }
    }

    /// A task waits again; should its attempt's result arrive after all, it will be welcome.
    pub(crate) fn give_up(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (by, reason): (SiteId, &str),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.borrow.give_up(attempt, at);
        if self.second_goes_on((at, attempt), None, now, out) {
            return;
        }
        let failure = Failure { by, reason: reason.to_owned(), fault: Fault::Nobodys };
        self.jobs.fail((at, attempt), failure, now, out);
    }

    /// An attempt has ended at its lender.
    pub(crate) fn on_done(&mut self, from: SiteId, done: Done, now: Millis, out: &mut Vec<Output>) {
        let attempt = done.attempt;
        if self.borrow.landing(attempt).is_some() {
            return;
        }
        let late = self.borrow.given_up(attempt);
        let isolation = self.borrow.isolation(done.lease);
        let earliest = self.borrow.earliest(done.lease, attempt);
        let at = self.borrow.ended(from, &done, now).or(late);
        let wanted = at.filter(|at| self.jobs.wants_result(*at));
        let Some(at) = wanted else {
            self.say_accepted((from, done.lease), attempt, out);
            return;
        };
        let seen = self.seen((at, attempt), earliest, now);
        if self.is_beyond_budget(at, (from, &done), seen) {
            self.give_up((at, attempt), (from, "it costs more than the budget has left"), now, out);
            self.say_accepted((from, done.lease), attempt, out);
            return;
        }
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
                    isolation,
                    seen,
                    outputs,
                    again,
                    since,
                    blocked,
                    unreachable,
                };
                self.borrow.land(attempt, landing);
            }
            (Outcome::Done, None) => {
                let by = (from, done.lease, (done.usage, seen));
                self.complete((at, attempt), (by, isolation), now, out);
            }
            (Outcome::Failed(mut reason), _) => {
                // Before anybody has done a task of the job, the scene is as suspect as the site. A try that was
                // given up has ended because it was stopped.
                if late.is_none() {
                    if self.jobs.get(at.job).is_some_and(Job::has_done_some) {
                        self.sites.failed(from, now);
                    }
                    self.count((at, attempt), (from, done.lease), (&Used::failed(), now), out);
                }
                reason.truncate(reason.floor_char_boundary(MAX_REASON));
                self.try_failed((at, attempt), (from, reason), now, out);
            }
        }
        if self.borrow.landing(attempt).is_none() {
            self.say_accepted((from, done.lease), attempt, out);
        }
    }

    /// A try has failed by its own fault or its site's: its task waits again, unless a second try of it goes on.
    fn try_failed(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (by, reason): (SiteId, String),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if self.second_goes_on((at, attempt), Some(by), now, out) {
            let (task, lender, again) = (at, by, true);
            out.push(Output::Tell(Event::TaskFailed { task, lender, reason, again }));
        } else {
            let failure = Failure { by, reason, fault: Fault::Its };
            self.jobs.fail((at, attempt), failure, now, out);
        }
    }

    fn complete(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        ((by, lease, (usage, seen)), isolation): (
            (SiteId, LeaseId, (Usage, Millis)),
            Option<Level>,
        ),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let wall = usage.wall;
        let expected = self.jobs.get(at.job).and_then(|job| job.task_time(at.step));
        self.sites.succeeded(by, wall, expected);
        let own = (by == self.config.me).then_some(self.lend.host().speed);
        let speed = own.or_else(|| self.sites.get(by).map(Known::speed));
        let (used, cost) = self.cost((by, lease), (&usage, seen));
        if self.jobs.accept((at, attempt), (by, isolation), (now, wall, cost), out) {
            self.jobs.learn_use(at, &used);
            self.count((at, attempt), (by, lease), (&used, now), out);
            self.jobs.learn(at, speed.map_or(wall, |speed| reference(wall, speed)));
        }
    }

    /// An attempt's outputs stand in their place, or do not.
    pub(crate) fn on_collected(
        &mut self,
        attempt: AttemptId,
        result: Result<Landed, CollectError>,
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
                out.push(Output::Tell(Event::OutputBlocked { task: landing.task, reason }));
            }
            Ok(placed) => {
                let Some(mut l) = self.borrow.landed(attempt) else {
                    return;
                };
                l.usage.output_bytes = l.usage.output_bytes.min(placed.bytes);
                let by = (l.lender, l.lease, (l.usage, l.seen));
                self.complete((l.task, attempt), (by, l.isolation), now, out);
                self.say_accepted((l.lender, l.lease), attempt, out);
            }
            Err(CollectError::Bad(what)) => {
                let Some(l) = self.borrow.landed(attempt) else {
                    return;
                };
                let reason = format!("its outputs were refused: {what}");
                out.push(Output::Tell(Event::Blame { site: l.lender, what }));
                self.sites.failed(l.lender, now);
                self.try_failed((l.task, attempt), (l.lender, reason), now, out);
                self.say_accepted((l.lender, l.lease), attempt, out);
            }
        }
    }

    /// End what is overdue, and fetch what is due.
    pub(crate) fn borrow_upkeep(&mut self, now: Millis, out: &mut Vec<Output>) {
        for lease in self.borrow.overdue(now, self.config.me, |lender| self.grace(lender)) {
            let offered = self.borrow.forget_offer(lease);
            match offered {
                Some(lender) => {
                    self.sites.declined(lender, None, now);
                    self.sites.failed(lender, now);
                }
                None => self.lose((lease, "the site fell silent"), &[], now, out),
            }
        }
        for (lender, at, attempt) in self.borrow.take_back(now) {
            let reason = "the content was on its way to the site for too long";
            self.give_up((at, attempt), (lender, reason), now, out);
        }
        let (sites, me) = (&self.sites, self.config.me);
        let connected = |site| site == me || sites.is_connected(site);
        let lost = self.borrow.lost_landings(now, connected, |lender| self.grace(lender));
        for attempt in lost {
            if let Some(l) = self.borrow.landed(attempt) {
                let reason = "the site fell silent before its outputs were here";
                self.give_up((l.task, attempt), (l.lender, reason), now, out);
            }
        }
        self.collect(now, out);
    }

    /// Forget attempts whose tasks need them no more.
    fn let_go(&mut self) {
        let jobs = &self.jobs;
        let mut seconds = std::mem::take(&mut self.borrow.seconds);
        seconds.retain(|_, at| matches!(jobs.task(*at), Some(Task::Leased { .. })));
        self.borrow.retain(|at, attempt| match jobs.task(at) {
            Some(Task::Leased { attempt: current, .. }) => {
                *current == attempt || seconds.get(&attempt) == Some(&at)
            }
            Some(
                Task::Waiting { .. } | Task::Done { .. } | Task::Failed { .. } | Task::Canceled,
            )
            | None => false,
        });
        seconds.retain(|attempt, _| self.borrow.holder(*attempt).is_some());
        self.borrow.seconds = seconds;
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
                    self.say_accepted((l.lender, l.lease), attempt, out);
                }
                continue;
            }
            if self.borrow.is_landing(|l| l.task == task && l.again.is_none()) {
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

    /// Tell lenders that still fetch content of others that have some of it, or will soon: this site is the tracker
    /// of its own jobs. Our hosts speak with us only.
    pub(crate) fn introduce(&mut self, now: Millis, out: &mut Vec<Output>) {
        for (lease, other) in self.borrow.strangers(|site| self.owns(site)) {
            self.borrow.told_of(lease, other);
            let (Some((to, root)), Some((source, same))) =
                (self.content_of(lease), self.content_of(other))
            else {
                continue;
            };
            if root != same || self.sites.is_blamed(source) {
                continue;
            }
            let expires = now.plus(PASS_LIFE);
            let pass = PassBody { borrower: self.config.me, lease: other, to, root, expires };
            out.push(Output::Introduce { to, lease, source, pass });
        }
    }

    /// Who has a lease of ours, and the root of the content that it is for.
    fn content_of(&self, lease: LeaseId) -> Option<(SiteId, ChunkId)> {
        let (_, borrowed) = self.borrow.all().find(|(id, _)| *id == lease)?;
        let (root, _) = self.jobs.get(borrowed.job)?.content(borrowed.step)?;
        Some((borrowed.lender, root))
    }

    /// Say what has changed, renew what is due, close what is not needed.
    pub(crate) fn say_wishes(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.let_go();
        let idle = self.borrow.idle();
        for (lease, (job, step), lender) in idle {
            let landing = self.borrow.is_landing(|landing| landing.lease == lease);
            let useful = self.useful(lease, (job, step), lender, now);
            if !landing && !useful && !self.borrow.may_be_first(lease) {
                let slots = self.borrow.remove(lease);
                self.sites.returned(lender, slots);
                put_delete(out, Key::Borrowed(lease));
                out.push(Output::Send { to: lender, message: Message::Close { lease } });
            }
        }
        for (to, want) in self.borrow.wishes(now) {
            out.push(Output::Send { to, message: Message::Want(want) });
        }
    }
}
