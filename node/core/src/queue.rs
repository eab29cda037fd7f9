//! In which order jobs get our own slots: priority, then deadlines in danger, then fair share between projects, then age;
//! and what is kept for the first in line when it does not fit yet.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{JobId, LeaseId, Millis, SiteId, StepNo};

use crate::borrow::State;
use crate::capacity::{Budget, Share};
use crate::door::Output;
use crate::fair::HYSTERESIS;
use crate::jobs::Rank;
use crate::lent::Lent;
use crate::place::ASSUMED_TASK;
use crate::reserve::{End, Reservation};
use crate::site::Site;
use crate::sites::at_speed;

/// What one job gives up another may take in the same step, and so on for so many jobs.
const ROUNDS: usize = 4;

/// What the jobs before one leave to it.
#[derive(Debug, Default)]
struct Line {
    class: (u8, bool),
    /// Whether somebody of a higher priority waits, or somebody in danger of missing a deadline.
    above: bool,
    /// Slack of the first of the same class that waits, and use of its project.
    first: Option<(u64, u64)>,
}

/// A job in danger gives up slots to another one only when that has so much less time to spare, in milliseconds.
const NEARER: u64 = 60_000;

impl Line {
    /// Whether a job gives up our slots as its tasks end, because somebody more urgent waits for them.
    fn yields(&mut self, rank: &Rank) -> bool {
        if rank.class > self.class {
            self.above |= self.first.is_some();
            (self.class, self.first) = (rank.class, None);
        }
        let in_danger = rank.slack < u64::MAX;
        let unfair = |(slack, used): (u64, u64)| match in_danger {
            true => slack.saturating_add(NEARER) <= rank.slack,
            false => used.saturating_add(HYSTERESIS) <= rank.used,
        };
        self.above || self.first.is_some_and(unfair)
    }
}

/// One look at all jobs.
#[derive(Debug)]
pub(crate) struct Pass {
    /// What is left of our own machine.
    pub(crate) left: Budget,
    /// Whether no other site could be asked now.
    pub(crate) alone: bool,
    /// Steps with leases that have had their turn.
    pub(crate) passed: Vec<(JobId, StepNo)>,
    /// Whether the job that has its turn gives our slots up as its tasks end, because somebody more urgent waits.
    pub(crate) yields: bool,
    /// Hosts of ours that tasks wait for.
    pub(crate) hosts: BTreeSet<SiteId>,
}

/// A step's turn in the line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// It may take what is free.
    Open,
    /// What it takes of our own slots must not delay the first in line.
    Behind,
}

impl Site {
    /// Find lenders for the tasks of all jobs, the most urgent first. Slots that one gives up go to the next.
    pub(crate) fn place_jobs(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.yields.clear();
        self.count_licences();
        self.lend.reserved = None;
        let mut line = Line::default();
        let (left, alone) = (self.lend.left(), !self.sites.any_to_ask(now));
        let (passed, hosts) = (Vec::new(), BTreeSet::new());
        let mut pass = Pass { left, alone, passed, hosts, yields: false };
        self.host_yields.clear();
        for rank in self.jobs.by_urgency() {
            self.jobs.settle(rank.job, now, out);
            self.host_yields.entry(rank.class).or_insert_with(|| pass.hosts.clone());
            pass.yields = line.yields(&rank);
            if self.seek(rank.job, &mut pass, now, out) {
                line.first.get_or_insert((rank.slack, rank.used));
            }
        }
    }

    /// Whether the first in line could start by now.
    pub(crate) fn could_start(&self) -> bool {
        let fits = |kept: &Reservation| self.lend.left().room(&kept.share) > 0;
        self.lend.reserved.as_ref().is_some_and(fits)
    }

    /// How often jobs are looked at in one step, at most.
    pub(crate) const fn rounds() -> usize {
        ROUNDS
    }

    /// How a step may take our own slots.
    pub(crate) fn turn(&self, share: &Share, yields: bool) -> Turn {
        match &self.lend.reserved {
            Some(kept) if yields || kept.share.is_wider(share) => Turn::Behind,
            Some(_) | None => Turn::Open,
        }
    }

    /// When a task of a step would end that starts on our own machine now. Never, as long as none was seen to end.
    pub(crate) fn would_end(&self, job: JobId, step: StepNo, now: Millis) -> Millis {
        self.own_time(job, step).map_or(Millis(u64::MAX), |time| now.plus(time))
    }

    fn own_time(&self, job: JobId, step: StepNo) -> Option<Millis> {
        let learned = self.jobs.get(job).and_then(|job| job.task_time(step))?;
        Some(at_speed(learned, self.lend.host().speed))
    }

    /// Keep room for a step that is the first that does not fit. Steps in `passed` come before it and go on.
    pub(crate) fn reserve(
        &mut self,
        (job, step): (JobId, StepNo),
        share: Share,
        passed: &[(JobId, StepNo)],
        now: Millis,
    ) {
        let waiting = self.waiting(job, step, now);
        let n = waiting.min(self.lend.at_once(&share)).max(1);
        let mut ends = Vec::new();
        for (lease, lent) in self.lend.all().filter(|(_, lent)| lent.held() > 0) {
            self.ends((lease, lent), ((job, step), passed), now, &mut ends);
        }
        for (borrowed, n, share) in self.at_hosts() {
            let known = self.jobs.get(borrowed.job).and_then(|job| job.task_time(borrowed.step));
            let time = self.runs_for(borrowed.lender, known.unwrap_or(ASSUMED_TASK));
            ends.push(End { at: now.plus(time), share, n, sure: known.is_some() });
        }
        self.lend.reserved = Reservation::new((job, step), (share, n), self.lend.left(), ends);
    }

    /// How many tasks of a step could start now.
    pub(crate) fn waiting(&self, job: JobId, step: StepNo, now: Millis) -> u32 {
        let ready = self.jobs.get(job).and_then(|job| job.ready(step));
        let n = ready.map_or(0, |ready| ready.n_fresh() + ready.again(now).count());
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// When what a lease holds is expected to be free.
    fn ends(
        &self,
        (lease, lent): (LeaseId, &Lent),
        (first, passed): ((JobId, StepNo), &[(JobId, StepNo)]),
        now: Millis,
        ends: &mut Vec<End>,
    ) {
        let own = self.borrow.get(lease, self.config.me);
        let (time, before, lasts) = match own {
            Some(own) => {
                let known = self.own_time(own.job, own.step);
                let time = known.unwrap_or(ASSUMED_TASK);
                let under_way = match &own.state {
                    State::Held(held) => held.attempts.len(),
                    State::Offered { .. } => 0,
                };
                let goes_on = passed.contains(&(own.job, own.step));
                let left = if goes_on { self.waiting(own.job, own.step, now) } else { 0 };
                let left = u64::from(left) + under_way as u64;
                let rounds = left.div_ceil(u64::from(lent.slots.max(1)));
                let lasts = (left > under_way as u64).then(|| time.times(rounds));
                (known, goes_on || (own.job, own.step) == first, lasts)
            }
            None => (lent.task_time(), false, None),
        };
        let (time, sure) = (time.unwrap_or(ASSUMED_TASK), before || time.is_some());
        let mut end = |at: Millis, n: u32, sure: bool| {
            let share = lent.share.clone();
            // What is late can be over at any moment, and never is by now.
            ends.push(End { at: at.max(now.plus(Millis(1))), share, n, sure });
        };
        if let Some(lasts) = lasts {
            return end(now.plus(lasts), lent.held(), true);
        }
        for run in lent.running.values() {
            end(run.since.plus(time.times(run.tasks.len() as u64)), 1, sure);
        }
        let running = u32::try_from(lent.running.len()).unwrap_or(u32::MAX);
        let idle = lent.held().saturating_sub(running);
        if idle > 0 {
            // What waits at another site's lease starts only if the first in line lets it.
            match own.is_none() || lent.is_idle() {
                true => end(now, idle, true),
                false => end(now.plus(time), idle, sure),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_yields_to_whom() {
        let (submitted, job) = (Millis(0), JobId([0; 16]));
        let rank = |level, used| {
            let (class, slack) = ((level, true), u64::MAX);
            Rank { class, slack, used, submitted, job }
        };
        let mut line = Line::default();
        assert!(!line.yields(&rank(10, 0)));
        line.first = Some((u64::MAX, 0));
        assert!(!line.yields(&rank(10, HYSTERESIS - 1)), "nearly even: nobody gives up a slot");
        assert!(line.yields(&rank(10, HYSTERESIS)));
        assert!(line.yields(&rank(20, 0)), "somebody of a higher priority waits");
        assert!(line.yields(&rank(30, 0)));
        let mut line = Line::default();
        assert!(!line.yields(&rank(10, 0)));
        assert!(!line.yields(&rank(20, 0)), "nobody waits");
        let near = |slack| Rank { class: (20, false), slack, ..rank(20, 0) };
        let mut line = Line::default();
        assert!(!line.yields(&near(10)));
        line.first = Some((10, 0));
        assert!(!line.yields(&near(NEARER)), "nearly as near: nobody gives up a slot");
        assert!(line.yields(&near(NEARER + 10)));
        assert!(line.yields(&rank(20, 0)), "somebody of the same priority is in danger");
    }
}
