//! Sessions: what runs on a site's slots, for how long, and how it ends.

use std::collections::BTreeMap;

use meshfarm_core::{Ended, Input, Session};
use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::lease::{Assignment, Outcome};
use meshfarm_protocol::profile::Amount;

use crate::bug::Bug;
use crate::plan::Lie;
use crate::seen::{Fate, What};
use crate::streams::Streams;
use crate::workload;
use crate::world::node::{Running, Try};
use crate::world::{Event, World};

/// How long a session needs to start and to be stopped, in milliseconds.
pub(crate) const SESSION_START: u64 = 50;

/// How long a task runs that fails at once, in milliseconds.
const FAILS_AFTER: u64 = 1000;

impl World<'_> {
    pub(crate) fn start(
        &mut self,
        at: usize,
        session: Session,
        (lease, borrower): (LeaseId, SiteId),
        (run, holds): (&[Assignment], BTreeMap<String, Amount>),
    ) {
        let laid = self.nodes[at].laid.get(&lease).copied();
        let place = laid.and_then(|laid| Some((laid.root, *self.roots.get(&laid.root)?)));
        let Some((root, (n, step))) = place else {
            let what = format!("{lease:?} starts at {} without its content", self.nodes[at].name);
            self.see(at, What::Broke { invariant: "I6", what });
            return;
        };
        let mut moment = self.now.plus(Millis(SESSION_START));
        let mut tries = Vec::new();
        for Assignment { attempt, task } in run.iter().copied() {
            let (wall, outcome, wrong) = self.cost(at, n, (step, task.0));
            self.after(moment.since(self.now).0, Event::AttemptBegin(at, session, attempt));
            moment = moment.plus(Millis(wall));
            let begun = false;
            tries.push(Try { attempt, task, end: moment, wall, outcome, wrong, begun });
        }
        let node = &mut self.nodes[at];
        let lane = node.take_lane();
        let stopped = None;
        node.sessions.insert(session, Running { borrower, root, lane, holds, tries, stopped });
        let (running, slots) = (node.sessions.len(), self.plan.site[at].slots);
        let over = node.over_committed(&self.plan.site[at]);
        self.see(at, What::Session { running, slots, over });
        self.after(moment.since(self.now).0, Event::SessionEnd(at, session));
    }

    /// How long a task runs at a site, how it ends, and whether its pixels are wrong.
    fn cost(&mut self, at: usize, n: usize, (step, task): (StepNo, u32)) -> (u64, Outcome, bool) {
        let tries = self.tries.entry((n, step, task)).or_default();
        *tries += 1;
        let (job, site) = (&self.plan.job[n], &self.plan.site[at]);
        let key = ((u64::from(job.id) << 32) | u64::from(task), (*tries << 8) | u64::from(step.0));
        let wall = job.frame_ms(step, task).saturating_mul(1000) / u64::from(site.speed.max(1));
        let lies = self.nodes[at].lie.filter(|(_, ppm)| self.streams.chance("lie", key, *ppm));
        let fails = self.streams.chance("fail", key, job.fail_ppm.max(site.fail_ppm));
        let failed = || Outcome::Failed("the renderer ended with 1".to_owned());
        match lies.map(|(lie, _)| lie) {
            Some(Lie::FailAtOnce) => (FAILS_AFTER, failed(), false),
            Some(Lie::BlackFrames) => ((wall / 20).max(1), Outcome::Done, true),
            Some(Lie::WrongPixels) => (wall.max(1), Outcome::Done, true),
            Some(Lie::Corrupt | Lie::Boast) | None => {
                (wall.max(1), if fails { failed() } else { Outcome::Done }, false)
            }
        }
    }

    /// A session gets to one of its tries, unless it has been stopped or killed.
    pub(crate) fn attempt_begins(&mut self, at: usize, session: Session, attempt: AttemptId) {
        let borrowers = &self.by_id;
        let Some(running) = self.nodes[at].sessions.get_mut(&session) else {
            return;
        };
        if running.stopped.is_some() {
            return;
        }
        let Some(begins) = running.tries.iter_mut().find(|known| known.attempt == attempt) else {
            return;
        };
        begins.begun = true;
        let (task, lane, root) = (begins.task, running.lane, running.root);
        let borrower = borrowers.get(&running.borrower).copied().unwrap_or(at);
        if let Some((n, step)) = self.roots.get(&root).copied() {
            let number = self.plan.job[n].id;
            self.see(at, What::Began { attempt, number, step, task, borrower, lane });
        }
        self.hear(at, Input::AttemptStarted { attempt });
    }

    pub(crate) fn stop(&mut self, at: usize, session: Session) {
        let now = self.now;
        if let Some(running) = self.nodes[at].sessions.get_mut(&session) {
            running.stopped.get_or_insert(now);
            self.after(SESSION_START, Event::SessionEnd(at, session));
        }
    }

    pub(crate) fn session_ended(&mut self, at: usize, session: Session) {
        let node = &mut self.nodes[at];
        let Some(running) = node.sessions.remove(&session) else {
            return;
        };
        node.lanes[running.lane] = false;
        let (me, until) = (node.id, running.stopped.unwrap_or(self.now));
        let mut results = Vec::new();
        for one in running.tries {
            let stopped = one.end > until;
            let outcome = if stopped { Outcome::Failed("stopped".to_owned()) } else { one.outcome };
            let made = outcome == Outcome::Done;
            let root = ChunkId(Streams::new(1).bytes(
                "output",
                u64::from_le_bytes(one.attempt.0[..8].try_into().unwrap_or_default()),
                one.task.0.into(),
            ));
            if made && self.bug != Some(Bug::LoseOutputs) {
                self.nodes[at].kept.insert(one.attempt, root);
            }
            let fate = match (made, stopped) {
                (true, _) => Fate::Made,
                (false, true) => Fate::Stopped,
                (false, false) => Fate::Failed,
            };
            if one.begun {
                let (attempt, wrong) = (one.attempt, one.wrong);
                self.see(at, What::Ended { attempt, fate, root: made.then_some(root), wrong });
            }
            let outputs = made.then(|| workload::outputs(me, running.borrower, root));
            let usage = workload::usage(one.wall, 0);
            results.push(Ended { attempt: one.attempt, outcome, outputs, usage });
        }
        self.hear(at, Input::SessionEnded { session, results });
    }

    /// A node dies with everything that runs.
    pub(crate) fn sessions_die(&mut self, at: usize) {
        let sessions = std::mem::take(&mut self.nodes[at].sessions);
        for one in sessions.into_values().flat_map(|running| running.tries) {
            if one.begun {
                let (attempt, root, wrong) = (one.attempt, None, one.wrong);
                self.see(at, What::Ended { attempt, fate: Fate::Died, root, wrong });
            }
        }
        self.nodes[at].lanes.iter_mut().for_each(|taken| *taken = false);
    }
}
