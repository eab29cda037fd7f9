//! How waiting tasks find lenders: leases that we hold are filled, and slots are asked for where that is not enough.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::StepSpec;
use meshfarm_protocol::lease::{Assignment, Offer};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::Level;

use crate::borrow::State;
use crate::door::{Output, TaskRef};
use crate::job::Job;
use crate::licences;
use crate::place::{self, Demand, Supply};
use crate::queue::{Pass, Turn};
use crate::site::Site;

/// A session whose environments cost something gets so much work: entering them is then a small part of it. What it
/// has made comes home when it is over, so more would keep an artist waiting and lose more with a lender.
const SESSION_WORK: Millis = Millis::seconds(30);

/// How many tasks share a session while nobody knows how long one takes.
const FIRST_SHARE: usize = 2;

/// How many of `tasks`, which wait or run, one session shall have of them when `slots` do them.
fn share_of((time, work): (Option<Millis>, Millis), tasks: usize, slots: usize) -> usize {
    let by_time = time.map_or(FIRST_SHARE as u64, |time| work.0 / time.0.max(1));
    let fair = tasks.div_ceil(slots.max(1));
    usize::try_from(by_time).unwrap_or(usize::MAX).clamp(1, fair.max(1))
}

/// More leases and offers than this at a time are not sought for one step, not counting those of our own hosts.
const MAX_LEASES_OF_A_STEP: usize = 64;

impl Site {
    /// Give tasks of a job to the leases that it holds, and ask for more where that is not enough. Returns
    /// whether tasks of it wait until one of our own slots is free.
    ///
    /// When it yields, somebody more urgent waits for our own slots: this job gives them up as its tasks end.
    pub(crate) fn seek(
        &mut self,
        id: JobId,
        pass: &mut Pass,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        let mut waits = false;
        for step in job.step_numbers() {
            let spec = self.jobs.get(id).and_then(|job| job.step_spec(step));
            let Some(share) = spec.map(|spec| self.lend.share(&spec.requirement)) else {
                continue;
            };
            let holds = self.borrow.of_step(id, step).next().is_some();
            let full = pass.left.room(&share) == 0;
            // Behind somebody who waits, most jobs wait too.
            if holds || !pass.alone || !full || self.lend.reserved.is_none() {
                let turn = self.turn(&share, pass.yields);
                self.top_up((id, step), (None, turn), now, out);
                self.ask((id, step), turn, now, out);
                self.ask_for_second((id, step), turn, now, out);
                self.hear_ourselves(now, out);
                pass.left = self.lend.left();
            }
            let blocked = pass.left.room(&share) == 0 && self.waits_for_own((id, step), now);
            if blocked && self.lend.reserved.is_none() {
                self.reserve((id, step), share, &pass.passed, now);
            }
            if holds {
                pass.passed.push((id, step));
            }
            if !self.hosts.is_empty() {
                self.waits_for_hosts((id, step), &mut pass.hosts, now);
                if !self.relays.is_empty() {
                    self.make_way((id, step), now, out);
                }
            }
            waits |= blocked;
        }
        waits
    }

    pub(crate) fn supply<'a>(
        &'a self,
        engaged: &'a BTreeSet<SiteId>,
        room: (u32, u32),
    ) -> Supply<'a> {
        Supply {
            me: self.config.me,
            my_name: &self.config.name,
            host: self.lend.host(),
            shut: !self.told.own.is_open(),
            room,
            licensed: u32::MAX,
            sites: &self.sites,
            hosts: &self.hosts,
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

    /// Add to `waits` the hosts of ours that could run waiting tasks of a step, were a slot free there.
    fn waits_for_hosts(
        &self,
        (id, step): (JobId, StepNo),
        waits: &mut BTreeSet<SiteId>,
        now: Millis,
    ) {
        let Some(job) = self.jobs.get(id).filter(|job| job.waiting(step, now).next().is_some())
        else {
            return;
        };
        let none = BTreeSet::new();
        let supply = self.supply(&none, (0, 0));
        // What waits for a licence and not for a slot: those who have one give theirs up, and nobody else.
        let free = self.licensed(id, step) > 0;
        let gives = |host| free || self.has_licence_of_less_urgent(host, (job, step));
        for host in self.hosts.all().map(|record| record.host) {
            if !waits.contains(&host)
                && gives(host)
                && place::host_fits((job, step), host, &supply, now)
                && self.runs(job, step, host, now)
            {
                waits.insert(host);
            }
        }
    }

    /// Hosts of ours that the job gives up as its tasks end, because somebody more urgent waits for them.
    pub(crate) fn yielded(&self, job: &Job) -> &BTreeSet<SiteId> {
        static NONE: BTreeSet<SiteId> = BTreeSet::new();
        self.host_yields.get(&job.class()).unwrap_or(&NONE)
    }

    /// Whether a lease of `lender` gets no further tasks of the job now.
    pub(crate) fn left_alone(&self, job: &Job, lender: SiteId, now: Millis) -> bool {
        if lender == self.config.me {
            return !self.told.own.is_open() || !job.allows(&self.config.name, true);
        }
        let name = self.sites.get(lender).map_or("", |known| known.name.as_str());
        let stopped = self.hosts.contains(lender) && !self.hosts.is_open(lender);
        stopped
            || self.yielded(job).contains(&lender)
            || self.sites.is_shunned(lender, now)
            || !place::allows(job, (lender, name), &self.hosts)
    }

    /// Whether a task of the step waits that `lender` could run.
    pub(crate) fn runs(&self, job: &Job, step: StepNo, lender: SiteId, now: Millis) -> bool {
        let Some(ready) = job.ready(step) else {
            return false;
        };
        if lender == self.config.me {
            let none = BTreeSet::new();
            let own = place::own_fits(job, step, &self.supply(&none, (0, 0)));
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
        let fitting = place::fitting(job, step, &self.supply(&BTreeSet::new(), (0, 0)), now);
        again.any(|failed_on| place::eligible(failed_on, lender, &fitting))
    }

    /// Assign waiting tasks to the leases that the step holds, but not on those of our own machines that it `yields`:
    /// somebody more urgent waits for them.
    pub(crate) fn top_up(
        &mut self,
        (id, step): (JobId, StepNo),
        (only, turn): (Option<LeaseId>, Turn),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let mut held = Vec::new();
        let (mut spare, mut under_way) = (0, 0);
        for (lease, borrowed) in self.borrow.of_step(id, step) {
            match &borrowed.state {
                State::Held(h) => {
                    if only.is_none_or(|only| only == lease) {
                        held.push((lease, borrowed.lender));
                    }
                    spare += if h.is_slow(now) { 0 } else { h.slots as usize };
                    under_way += h.attempts.len();
                }
                // Nothing is put behind what runs somewhere while another lender may have a slot for it.
                State::Offered { slots, .. } => spare += *slots as usize,
            }
        }
        let Some(job) = self.jobs.get(id).filter(|_| !held.is_empty()) else {
            return;
        };
        let batch = job.spec.policy.batch.map_or(usize::MAX, |batch| batch.max(1) as usize);
        let again = job.ready(step).is_some_and(|r| r.again(now).next().is_some());
        let fitting = if again {
            place::fitting(job, step, &self.supply(&BTreeSet::new(), (0, 0)), now)
        } else {
            Vec::new()
        };
        let slow = self.too_slow(job, step, now);
        for (lease, lender) in held {
            let Some(job) = self.jobs.get(id) else { return };
            let left_alone = self.left_alone(job, lender, now) || slow.contains(&lender);
            let takes = |failed_on: &[SiteId]| {
                !left_alone
                    && (failed_on.is_empty() || place::eligible(failed_on, lender, &fitting))
            };
            let mut waiting = 0;
            if let Some(ready) = job.ready(step).filter(|_| !left_alone) {
                waiting = ready.n_fresh() + ready.again(now).filter(|on| takes(on)).count();
            }
            // Our own slots are a call away: what waits stays free to go elsewhere.
            let own = lender == self.config.me;
            let shares = job.step_spec(step).is_some_and(StepSpec::shares_sessions);
            let work = job.step_spec(step).and_then(|spec| spec.session).unwrap_or(SESSION_WORK);
            let each = share_of((job.task_time(step), work), waiting + under_way, spare);
            let Some(held) = self.borrow.held_mut(lease) else {
                continue;
            };
            let isolation = held.isolation;
            let room = if shares {
                held.room_of_shares(each, now).min(batch)
            } else {
                held.room(waiting, (spare, !own), now).min(batch)
            };
            let pays = self.affordable((id, step), (lease, lender), room.max(waiting), now);
            let (room, waiting) = (room.min(pays), waiting.min(pays));
            let room = self.own_share((id, step), (lease, lender), (room, waiting, turn), now);
            let Some(job) = self.jobs.get(id) else { return };
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
                self.assign((at, attempt), (lease, lender, isolation), now, out);
            }
        }
    }

    /// Of the tasks that there is `room` for under a lease, how many it may get: on our own machine, what does not
    /// delay the first in line. Says to the lender whether more will come.
    fn own_share(
        &mut self,
        (id, step): (JobId, StepNo),
        (lease, lender): (LeaseId, SiteId),
        (mut room, waiting, turn): (usize, usize, Turn),
        now: Millis,
    ) -> usize {
        let own = lender == self.config.me;
        let spec = self.jobs.get(id).and_then(|job| job.step_spec(step));
        let alone = spec.is_some_and(|spec| !spec.shares_sessions());
        let under_way = self.borrow.held_mut(lease).map_or(0, |held| held.attempts.len());
        if own && alone {
            room = room.min(self.lend.room_in(lease, under_way));
        }
        let behind = own && matches!(turn, Turn::Behind);
        if behind {
            room = self.admit((id, step), room.min(waiting), now);
        }
        if let Some(held) = self.borrow.held_mut(lease) {
            held.set_more(waiting > room && !behind);
        }
        room
    }

    fn assign(
        &mut self,
        (at, attempt): (TaskRef, AttemptId),
        (lease, lender, isolation): (LeaseId, SiteId, Option<Level>),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.jobs.lease((at, attempt), (lease, lender, isolation), now, out);
        if let Some(held) = self.borrow.held_mut(lease) {
            held.attempts.push(Assignment { attempt, task: at.task });
        }
    }

    /// Of `n` tasks of a step that would start on our own machine now, how many do not delay the first in line. A step
    /// that has to wait gives up our slots as its tasks end.
    fn admit(&mut self, (id, step): (JobId, StepNo), n: usize, now: Millis) -> usize {
        let spec = self.jobs.get(id).and_then(|job| job.step_spec(step));
        let share = spec.map(|spec| self.lend.share(&spec.requirement)).unwrap_or_default();
        let ends = self.would_end(id, step, now);
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let admitted = match &mut self.lend.reserved {
            Some(kept) => kept.admit(&share, n, ends),
            None => n,
        };
        if admitted < n {
            self.yields.insert((id, step));
        }
        admitted as usize
    }

    /// How many tasks of a step could start on our own machine now without delaying the first in line.
    pub(crate) fn own_room(
        &mut self,
        (id, step): (JobId, StepNo),
        turn: Turn,
        most: u32,
        now: Millis,
    ) -> (u32, u32) {
        let spec = self.jobs.get(id).and_then(|job| job.step_spec(step));
        let share = spec.map(|spec| self.lend.share(&spec.requirement)).unwrap_or_default();
        let at_once = self.lend.at_once(&share);
        let free = self.lend.left().room(&share).min(most);
        let own = |job| place::own_fits(job, step, &self.supply(&BTreeSet::new(), (0, 0)));
        if free == 0 || self.own_pause > now || !self.jobs.get(id).is_some_and(own) {
            return (0, at_once);
        }
        match turn {
            Turn::Open => (free, at_once),
            Turn::Behind => {
                let may = self.admit((id, step), free as usize, now);
                (u32::try_from(may).unwrap_or(u32::MAX), at_once)
            }
        }
    }

    /// Ask for slots for the tasks that no lease and no open offer covers.
    fn ask(&mut self, (id, step): (JobId, StepNo), turn: Turn, now: Millis, out: &mut Vec<Output>) {
        let waiting = self.waiting(id, step, now);
        let mut engaged = BTreeSet::new();
        let (mut covered, mut leases) = (0u32, 0);
        for (_, borrowed) in self.borrow.of_step(id, step) {
            leases += usize::from(!self.hosts.contains(borrowed.lender));
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
        if uncovered == 0 || leases >= MAX_LEASES_OF_A_STEP {
            return;
        }
        engaged.extend(self.jobs.get(id).into_iter().flat_map(|job| self.yielded(job)));
        engaged.extend(self.jobs.get(id).into_iter().flat_map(|job| self.too_slow(job, step, now)));
        engaged.extend(self.too_dear((id, step), now));
        let own = !engaged.contains(&self.config.me);
        let room = self.own_room((id, step), turn, if own { uncovered } else { 0 }, now);
        let Some(job) = self.jobs.get(id) else { return };
        let (Some((root, bytes)), Some(ready)) = (job.content(step), job.ready(step)) else {
            return;
        };
        let again: Vec<_> = ready.again(now).collect();
        let fresh = ready.n_fresh();
        let mut rng = self.rng.clone();
        let demand = Demand { job, step, root, bytes, fresh, again: &again, uncovered };
        let licensed = self.licensed_with_hosts(id, step);
        let supply = Supply { licensed, ..self.supply(&engaged, room) };
        let asked = place::place(&demand, &supply, now, &mut rng);
        if !asked.is_empty() {
            self.rng = rng;
            self.offer((id, step), (asked, waiting), now, out);
        }
    }

    /// Ask these lenders for so many slots each, for a step of which `tasks` wait.
    pub(crate) fn offer(
        &mut self,
        (id, step): (JobId, StepNo),
        (lenders, tasks): (Vec<(SiteId, u32)>, u32),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        for (lender, slots) in lenders {
            let lease = LeaseId(self.random());
            let Some(job) = self.jobs.get(id) else { return };
            let (Some((root, bytes)), Some(spec)) = (job.content(step), job.step_spec(step)) else {
                return;
            };
            let requirement = if self.hosts.contains(lender) {
                licences::of_host(&spec.requirement, self.lend.host()).into_owned()
            } else {
                spec.requirement.clone()
            };
            let offer = Offer {
                lease,
                tenant: job.spec.tenant,
                requirement,
                isolation: place::floor(job, self.owns(lender)),
                slots,
                tasks,
                root,
                bytes,
                priority: job.priority(),
                hops: job.spec.policy.hops,
            };
            self.borrow.offered(&offer, (id, step), lender, now);
            if self.hosts.contains(lender) {
                let share = self.licences(id, step);
                self.lend.away.take_in(&share, slots);
            }
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
        if self.borrow.held_mut(lease).is_some_and(|held| held.is_closing()) {
            return false;
        }
        if lender == self.config.me && self.yields.contains(&(job, step)) {
            return false;
        }
        if self.affordable((job, step), (lease, lender), 1, now) == 0 {
            return false;
        }
        let job = self.jobs.get(job).filter(|job| !self.left_alone(job, lender, now));
        let in_time = |job: &&Job| !self.too_slow(job, step, now).contains(&lender);
        job.filter(in_time).is_some_and(|job| self.runs(job, step, lender, now))
    }
}
