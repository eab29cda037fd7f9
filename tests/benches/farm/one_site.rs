//! One site's core by hand: it runs what it is asked to run, whose sessions end when the measurement says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meshfarm_core::opening::Opening;
use meshfarm_core::{
    Ask, Config, Ended, Input, Output, Pricing, Ready, Reply, Request, Session, Site,
};
use meshfarm_protocol::id::{ChunkId, JobId, Millis, SiteId, TenantId};
use meshfarm_protocol::job::{JobSpec, Layout, MeshPolicy, StepSpec};
use meshfarm_protocol::lease::{Assignment, Outcome, Usage};
use meshfarm_protocol::profile::{Amount, HostClass, Level, MEMORY, Requirement, VCPU};
use meshfarm_protocol::seal::SealingKey;

use super::cpu;

/// A host with so many slots.
pub(crate) fn host(slots: u32) -> HostClass {
    let amounts = [(VCPU, slots.into()), (MEMORY, 4096 * u64::from(slots))];
    HostClass {
        count: 1,
        description: "measured".into(),
        amounts: amounts.map(|(name, n)| (name.to_owned(), Amount::whole(n))).into(),
        attributes: BTreeMap::new().into(),
        software: BTreeMap::new(),
        slots,
        speed: 1000,
        level: Level::S2,
    }
}

/// A job of one step.
pub(crate) fn job(n: u32, project: &str) -> JobSpec {
    let step = StepSpec {
        name: "render".into(),
        requirement: Requirement::default(),
        labels: (1..=n).map(|frame| format!("Frame={frame}")).collect(),
        needs: Vec::new(),
        environments: false,
        session: None,
    };
    JobSpec {
        name: "shot".into(),
        user: "ada".into(),
        project: project.into(),
        tenant: TenantId([9; 16]),
        policy: MeshPolicy::default(),
        steps: vec![step],
        layout: Layout::default(),
    }
}

/// A site, its sessions, and what each kind of input has cost at most.
pub(crate) struct OneSite {
    pub(crate) site: Site,
    pub(crate) now: Millis,
    pub(crate) running: VecDeque<(Session, Vec<Assignment>)>,
    pub(crate) replies: Vec<Reply>,
    /// Processor time of the slowest call, by the kind of its input.
    pub(crate) slowest: BTreeMap<&'static str, Duration>,
    /// How many offers were made.
    pub(crate) offers: usize,
}

impl OneSite {
    pub(crate) fn new(slots: u32) -> Self {
        let config = Config {
            me: SiteId([1; 32]),
            name: "oslo".into(),
            host: host(slots),
            sealing_key: SealingKey([1; 32]),
            addresses: Vec::new(),
            lending: true,
            pass_on: false,
            floor: Level::S2,
            kept: BTreeSet::new(),
            pricing: Pricing::default(),
            head: None,
            submitter: false,
            opening: Opening::default(),
            keep_jobs: Millis(u64::MAX),
            seed: [7; 32],
        };
        let now = Millis::seconds(1_000_000);
        Self {
            site: Site::new(config, now, Vec::new()),
            now,
            running: VecDeque::new(),
            replies: Vec::new(),
            slowest: BTreeMap::new(),
            offers: 0,
        }
    }

    /// One input and what follows from it, as a driver would do it.
    pub(crate) fn give(&mut self, kind: &'static str, input: Input) {
        let mut inputs = VecDeque::from([(kind, input)]);
        while let Some((kind, input)) = inputs.pop_front() {
            let mut out = Vec::new();
            let began = cpu();
            self.site.handle(self.now, input, &mut out);
            let took = cpu() - began;
            let slowest = self.slowest.entry(kind).or_default();
            *slowest = took.max(*slowest);
            for output in out {
                if let Some(answer) = self.perform(output) {
                    inputs.push_back(answer);
                }
            }
        }
    }

    fn perform(&mut self, output: Output) -> Option<(&'static str, Input)> {
        match output {
            Output::Prepare { lease, .. } => {
                let ready = Ready { shared_sessions: false, whole: true };
                Some(("prepared", Input::Prepared { lease, result: Ok(ready) }))
            }
            Output::Start { session, run, .. } => {
                let attempt = run[0].attempt;
                self.running.push_back((session, run));
                Some(("started", Input::AttemptStarted { attempt }))
            }
            Output::Stop(session) => {
                self.running.retain(|(known, _)| *known != session);
                Some(("stopped", Input::SessionEnded { session, results: Vec::new() }))
            }
            Output::Answer(_, reply) => {
                self.replies.push(reply);
                None
            }
            Output::Send { .. } => {
                self.offers += 1;
                None
            }
            _ => None,
        }
    }

    pub(crate) fn ask(&mut self, kind: &'static str, ask: Ask) {
        self.now = self.now.plus(Millis(1));
        self.give(kind, Input::Asked(Request(1), ask));
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> Option<JobId> {
        let ask = Ask::Submit { spec: Box::new(spec), root: ChunkId([5; 32]), bytes: 1 << 20 };
        self.ask("submit", ask);
        match self.replies.pop() {
            Some(Reply::Submitted(job)) => Some(job),
            _ => None,
        }
    }

    /// End the session that has run longest. Returns whether one ran.
    pub(crate) fn end_one(&mut self) -> bool {
        let Some((session, run)) = self.running.pop_front() else {
            return false;
        };
        self.now = self.now.plus(Millis(100));
        let ended = |task: Assignment| Ended {
            attempt: task.attempt,
            outcome: Outcome::Done,
            outputs: None,
            usage: Usage { wall: Millis(800), ..Usage::default() },
        };
        let results = run.into_iter().map(ended).collect();
        self.give("ended", Input::SessionEnded { session, results });
        true
    }
}
