//! Content on its way to lenders, from the borrower and from each other, and outputs on their way home.

use std::rc::Rc;

use meshfarm_core::{CollectError, Content, Input, Landed, PrepareError, Ready, TaskRef};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId, SiteId};
use meshfarm_protocol::message::{Pass, PassBody};

use crate::bug::Bug;
use crate::plan::Lie;
use crate::seen::{Class, What};
use crate::world::flow::Turn;
use crate::world::node::Laid;
use crate::world::passing::{From, SEALED_TO};
use crate::world::sessions::SESSION_START;
use crate::world::{Event, World};

/// How long a driver tries to reach a site before it says that it cannot, in milliseconds.
pub(super) const FETCH_TIMEOUT: u64 = 10_000;

/// How long a transfer may stand still before its line is given up, in milliseconds.
const STALL: u64 = 30_000;

/// How long outputs need that need not travel, in milliseconds.
pub(super) const AT_HOME: u64 = 5;

/// An encoded session spec is shorter than this.
const MAX_SESSION_BYTES: usize = 1 << 16;

/// What a transfer is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    site: usize,
    life: u64,
    kind: GoalKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum GoalKind {
    Content {
        lease: LeaseId,
        third: bool,
    },
    Outputs {
        task: TaskRef,
        attempt: AttemptId,
        lender: SiteId,
        lease: LeaseId,
    },
    /// The content of a lease that will run on another machine.
    Onward {
        lease: LeaseId,
        root: ChunkId,
    },
    /// Outputs that another machine has made for a lease.
    Taken {
        lease: LeaseId,
        attempt: AttemptId,
        from: From,
    },
}

impl World<'_> {
    pub(crate) fn prepare(
        &mut self,
        at: usize,
        (lease, borrower): (LeaseId, SiteId),
        root: ChunkId,
        content: Content,
    ) {
        let session = match content {
            Content::Own(_, session) => session,
            Content::Sealed(envelope) => codec::decode(&envelope.sealed, MAX_SESSION_BYTES)
                .expect("the simulated borrower sealed a session"),
        };
        let job = self.roots.get(&root).map(|(n, _)| &self.plan.job[*n]);
        let node = &mut self.nodes[at];
        let shared = job.filter(|job| node.tenants.contains(&job.tenant));
        let shared = shared.map_or(0, |job| job.shared_percent);
        let bytes = job.map_or(0, |job| job.bytes) * (100 - shared.min(100)) / 100;
        let warm = node.id == borrower || node.cached.contains(&root) || bytes == 0;
        let shared_sessions = session.environments;
        node.laid.insert(lease, Laid { root, borrower, shared_sessions, parts: u32::from(!warm) });
        let source = self.by_id.get(&borrower).copied().filter(|_| self.reads(at, borrower, lease));
        if self.nodes[at].disk_full > 0 {
            self.content_fails(at, lease, (SESSION_START, PrepareError::Full));
        } else if warm {
            let result = Ok(Ready { shared_sessions, whole: true });
            let input = Rc::new(Input::Prepared { lease, result });
            self.after(SESSION_START, Event::Input(at, input));
        } else if let Some(source) = source {
            self.fetch((source, at), bytes, GoalKind::Content { lease, third: false });
        } else {
            self.content_fails(at, lease, (FETCH_TIMEOUT, PrepareError::Unreachable));
        }
    }

    fn content_fails(&mut self, at: usize, lease: LeaseId, (ms, error): (u64, PrepareError)) {
        let input = Rc::new(Input::Prepared { lease, result: Err(error) });
        self.after(ms, Event::Input(at, input));
    }

    /// Whether `at` can read from `source` now, and `source` lets it.
    pub(super) fn reads(&self, at: usize, source: SiteId, lease: LeaseId) -> bool {
        let Some(from) = self.by_id.get(&source).copied() else {
            return false;
        };
        let me = self.nodes[at].id;
        let runs = self.nodes[from].paused == 0;
        let allows = self.nodes[from].site.as_ref().is_some_and(|site| site.may_read(me, lease));
        runs && self.net.is_whole(at, from) && (at == from || allows)
    }

    /// Begin a transfer.
    pub(super) fn fetch(&mut self, (from, to): (usize, usize), bytes: u64, kind: GoalKind) {
        let flow = self.flows.begin((from, to), bytes, self.now);
        let life = self.nodes[to].life;
        self.goals.insert(flow, Goal { site: to, life, kind });
        self.share_lines(&[from, to]);
    }

    /// Share out the lines of these sites anew, because something there has changed.
    pub(crate) fn share_lines(&mut self, sites: &[usize]) {
        let (net, nodes) = (&self.net, &self.nodes);
        let runs = |site: usize| nodes[site].site.is_some() && nodes[site].paused == 0;
        let cap = |flow: &crate::world::flow::Flow| {
            let (from, to) = (flow.from, flow.to);
            let moves = net.is_whole(from, to)
                && !net.is_clogged(from, to)
                && !net.is_clogged(to, from)
                && runs(from)
                && runs(to);
            let (cap, _) = net.stream(from, to, flow.bytes);
            let percent = net.percent(from, to);
            let line = self.plan.site[from].up.min(self.plan.site[to].down);
            if moves { cap.min(line).saturating_mul(percent) / 100 } else { 0 }
        };
        let turns = self.flows.share(sites, self.now, cap);
        for Turn { flow, version, over_in } in turns {
            let begins = version == 1;
            let slow = self
                .flows
                .get(flow)
                .filter(|_| begins)
                .map_or(0, |flow| self.net.stream(flow.from, flow.to, flow.bytes).1);
            match over_in {
                Some(ms) => self.after(ms + slow, Event::Flow { flow, version }),
                None => self.after(STALL, Event::Stalled { flow, version }),
            }
        }
    }

    fn is_current(&self, flow: u64, version: u64) -> bool {
        self.flows.get(flow).is_some_and(|flow| flow.version == version)
    }

    pub(crate) fn flow_over(&mut self, id: u64, version: u64) {
        if !self.is_current(id, version) {
            return;
        }
        let (Some(flow), Some(goal)) = (self.flows.end(id, self.now), self.goals.remove(&id))
        else {
            return;
        };
        self.share_lines(&[flow.from, flow.to]);
        if self.nodes[goal.site].life != goal.life {
            return;
        }
        let class = match goal.kind {
            GoalKind::Content { third: false, .. } | GoalKind::Onward { .. } => Class::Scene,
            GoalKind::Content { third: true, .. } => Class::Shared,
            GoalKind::Outputs { .. } | GoalKind::Taken { .. } => Class::Output,
        };
        let (from, bytes, since) = (flow.from, flow.bytes, flow.began);
        self.see(goal.site, What::Moved { from, bytes, class, since });
        match goal.kind {
            GoalKind::Content { lease, .. } => self.part_came(goal.site, lease),
            GoalKind::Outputs { task, attempt, lender, lease } => {
                self.arrived(goal.site, (task, attempt), lender, lease);
            }
            GoalKind::Onward { lease, root } => {
                self.nodes[goal.site].cached.insert(root);
                self.hear(goal.site, Input::Fetched { lease, result: Ok(SEALED_TO) });
            }
            GoalKind::Taken { lease, attempt, from } => {
                self.taken_in(goal.site, (lease, attempt), from);
            }
        }
    }

    pub(crate) fn flow_stalled(&mut self, id: u64, version: u64) {
        if self.is_current(id, version) {
            self.flow_breaks(id);
        }
    }

    /// A transfer comes to nothing; what was fetched of a third site is fetched from the borrower.
    pub(crate) fn flow_breaks(&mut self, id: u64) {
        let (Some(flow), Some(goal)) = (self.flows.end(id, self.now), self.goals.remove(&id))
        else {
            return;
        };
        self.share_lines(&[flow.from, flow.to]);
        let (from, bytes, since) = (flow.from, flow.bytes - flow.left, flow.began);
        if bytes > 0 {
            self.see(goal.site, What::Moved { from, bytes, class: Class::Wasted, since });
        }
        if self.nodes[goal.site].life != goal.life {
            return;
        }
        match goal.kind {
            GoalKind::Content { lease, third: true } => {
                let laid = self.nodes[goal.site].laid.get(&lease).copied();
                let home = laid.and_then(|laid| self.by_id.get(&laid.borrower).copied());
                if let Some(home) = home {
                    self.fetch(
                        (home, goal.site),
                        flow.left.max(1),
                        GoalKind::Content { lease, third: false },
                    );
                }
            }
            GoalKind::Content { lease, third: false } => {
                self.content_fails(goal.site, lease, (1, PrepareError::Unreachable));
            }
            GoalKind::Outputs { attempt, .. } => {
                let result = Err(CollectError::Unreachable);
                let input = Rc::new(Input::Collected { attempt, result });
                self.after(1, Event::Input(goal.site, input));
            }
            GoalKind::Onward { lease, .. } => {
                self.fetched_on(goal.site, lease, (1, Err(PrepareError::Unreachable)));
            }
            GoalKind::Taken { lease, attempt, .. } => {
                let result = Err(CollectError::Unreachable);
                let input = Rc::new(Input::TakenIn { lease, attempt, result });
                self.after(1, Event::Input(goal.site, input));
            }
        }
    }

    fn part_came(&mut self, at: usize, lease: LeaseId) {
        let node = &mut self.nodes[at];
        let Some(laid) = node.laid.get_mut(&lease) else {
            return;
        };
        laid.parts = laid.parts.saturating_sub(1);
        if laid.parts > 0 {
            return;
        }
        let laid = *laid;
        node.cached.insert(laid.root);
        if let Some((n, _)) = self.roots.get(&laid.root) {
            let tenant = self.plan.job[*n].tenant.clone();
            self.nodes[at].tenants.insert(tenant);
        }
        let result = Ok(Ready { shared_sessions: laid.shared_sessions, whole: true });
        self.hear(at, Input::Prepared { lease, result });
    }

    /// Another lender has some of a lease's content: half of what is left comes from there.
    pub(crate) fn share(&mut self, at: usize, (lease, source): (LeaseId, SiteId), pass: &Pass) {
        let Some(from) = self.by_id.get(&source).copied() else { return };
        let Some(root) = self.nodes[at].laid.get(&lease).map(|laid| laid.root) else { return };
        let source_node = &self.nodes[from];
        let has = source_node.cached.contains(&root)
            || source_node.laid.values().any(|laid| laid.root == root && laid.parts > 0);
        let body = codec::decode::<PassBody>(&pass.body, MAX_SESSION_BYTES).ok();
        let lets = body.is_some_and(|body| {
            self.nodes[from].site.as_ref().is_some_and(|site| site.may_share(&body))
        });
        let life = self.nodes[at].life;
        let largest = self.flows.of(at).into_iter().filter(|flow| {
            let goal = self.goals.get(flow);
            goal.is_some_and(|goal| {
                goal.site == at
                    && goal.life == life
                    && matches!(goal.kind, GoalKind::Content { lease: of, .. } if of == lease)
            })
        });
        let largest = largest.max_by_key(|flow| self.flows.get(*flow).map(|flow| flow.left));
        let Some(largest) = largest.filter(|_| has && lets && self.net.is_whole(at, from)) else {
            return;
        };
        // Sources that are fetching themselves can give what they have got: nothing leaves its home less than once in all.
        if !self.nodes[from].cached.contains(&root) {
            let fetching = |node: &crate::world::node::Node| {
                node.laid.values().any(|laid| laid.root == root && laid.parts > 0)
            };
            let n = self.nodes.iter().filter(|node| fetching(node)).count() as u64;
            let bytes = self.roots.get(&root).map_or(0, |(n, _)| self.plan.job[*n].bytes);
            let left = self.flows.get(largest).map_or(0, |flow| flow.left);
            if left / 2 < bytes / n.max(1) {
                return;
            }
        }
        let half = self.flows.halve(largest, self.now);
        if let Some(laid) = self.nodes[at].laid.get_mut(&lease).filter(|_| half > 0) {
            laid.parts += 1;
            let (home, to) = self.flows.get(largest).map_or((at, at), |flow| (flow.from, flow.to));
            self.fetch((from, at), half, GoalKind::Content { lease, third: true });
            self.flows.moved(largest);
            self.share_lines(&[home, to]);
        }
    }

    pub(crate) fn collect(
        &mut self,
        at: usize,
        (task, attempt): (TaskRef, AttemptId),
        lease: LeaseId,
        lender: SiteId,
    ) {
        let bytes = self.jobs.get(&task.job).map_or(0, |n| self.plan.job[*n].output_bytes);
        let from = self.by_id.get(&lender).copied().filter(|_| self.reads(at, lender, lease));
        match from {
            Some(from) if from != at && bytes > 0 => {
                self.fetch((from, at), bytes, GoalKind::Outputs { task, attempt, lender, lease });
            }
            Some(from) => {
                let ms = if from == at { AT_HOME } else { 2 * self.net.latency(from, at) };
                self.after(ms, Event::Arrived { site: at, task, attempt, lender, lease });
            }
            None => {
                let result = Err(CollectError::Unreachable);
                let input = Rc::new(Input::Collected { attempt, result });
                self.after(FETCH_TIMEOUT, Event::Input(at, input));
            }
        }
    }

    pub(crate) fn arrived(
        &mut self,
        at: usize,
        (task, attempt): (TaskRef, AttemptId),
        lender: SiteId,
        lease: LeaseId,
    ) {
        let from = self.by_id.get(&lender).copied();
        let kept = from.and_then(|from| self.nodes[from].kept.get(&attempt).copied());
        let (number, unwritable) = self
            .jobs
            .get(&task.job)
            .map_or((0, 0), |n| (self.plan.job[*n].id, self.plan.job[*n].unwritable_ppm));
        let task_key = (u64::from(number) << 32) | u64::from(task.task.0);
        let key = (task_key, (self.now.0 << 8) | u64::from(task.step.0));
        let lies = from.and_then(|from| self.nodes[from].lie);
        let corrupt = lies.is_some_and(|(lie, ppm)| {
            lie == Lie::Corrupt && self.streams.chance("corrupt", key, ppm)
        });
        let result = match kept.filter(|_| self.reads(at, lender, lease)) {
            None => Err(CollectError::Unreachable),
            Some(_) if corrupt => {
                Err(CollectError::Bad("a chunk does not match its hash".to_owned()))
            }
            Some(_) if self.nodes[at].disk_full > 0 => {
                Err(CollectError::Unwritable("no space is left".to_owned()))
            }
            Some(_) if self.streams.chance("unwritable", key, unwritable) => {
                Err(CollectError::Unwritable("the folder is gone".to_owned()))
            }
            Some(root) => {
                let root =
                    if self.bug == Some(Bug::SkipVerification) { ChunkId([0; 32]) } else { root };
                self.see(at, What::Placed { task, attempt, root });
                Ok(Landed { files: 1, bytes: u64::MAX })
            }
        };
        self.hear(at, Input::Collected { attempt, result });
    }

    /// What a node sent or received stands still, or is lost with it.
    pub(crate) fn transfers_die(&mut self, at: usize) {
        for id in self.flows.of(at) {
            let mine = self.goals.get(&id).is_some_and(|goal| goal.site == at);
            let Some(flow) = self.flows.get(id) else { continue };
            let ends = [flow.from, flow.to];
            if mine {
                let (from, bytes) = (flow.from, flow.bytes);
                let since = flow.began;
                self.goals.remove(&id);
                let left = self.flows.end(id, self.now).map_or(0, |flow| flow.left);
                if bytes > left {
                    let bytes = bytes - left;
                    self.see(at, What::Moved { from, bytes, class: Class::Wasted, since });
                }
            }
            self.share_lines(&ends);
        }
    }
}
