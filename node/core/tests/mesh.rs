//! A few sites by hand: messages arrive at once and in order unless a test says otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meshfarm_core::opening::Opening;
use meshfarm_core::{
    Ask, ChainId, Change, CollectError, Config, Ended, EntryRecord, Event, Hold, Input, JobPhase,
    JobView, Key, Landed, Operation, Output, PrepareError, Pricing, Ready, Record, Reply, Request,
    Session, Site, SiteOperation, Task, TaskRef, Tasks,
};
use meshfarm_protocol::codec::{decode, encode};
use meshfarm_protocol::id::{
    AttemptId, ChunkId, JobId, LeaseId, MeshId, Millis, SiteId, StepNo, TenantId,
};
use meshfarm_protocol::job::{JobSpec, Layout, MeshPolicy, StepSpec};
use meshfarm_protocol::lease::{Assignment, Commit, Outcome, Outputs, Usage};
use meshfarm_protocol::membership::{Role, mesh_of_hosts};
use meshfarm_protocol::message::{Message, Pass, PassBody};
use meshfarm_protocol::profile::{
    Amount, AmountNeed, HostClass, Level, Profile, Requirement, VCPU,
};
use meshfarm_protocol::receipt::{Entry, SignedVerdict};
use meshfarm_protocol::seal::{Address, Envelope, SealingKey, Signature};

/// Where the clock stands when a test begins: late enough that nothing lies before zero.
const START: Millis = Millis::seconds(1_000_000);

/// How long the sites of a test remember jobs that have ended.
pub(crate) const KEEP_JOBS: Millis = Millis::seconds(30 * 24 * 3600);

/// A session that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) session: Session,
    pub(crate) lease: LeaseId,
    pub(crate) since: Millis,
    pub(crate) run: Vec<Assignment>,
    /// What its jail has at least.
    pub(crate) isolation: Level,
    /// What of the machine is its own.
    pub(crate) holds: Hold,
}

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) site: Option<Site>,
    pub(crate) disk: BTreeMap<Key, Record>,
    pub(crate) running: Vec<Running>,
    /// Every attempt that was ever started here, in order.
    pub(crate) started: Vec<AttemptId>,
    pub(crate) stopped: Vec<Session>,
    pub(crate) told: Vec<Event>,
    pub(crate) released: Vec<LeaseId>,
    /// Other lenders that content of a lease is fetched from, and that let us.
    pub(crate) shared: Vec<(LeaseId, SiteId)>,
    pub(crate) collects: VecDeque<(AttemptId, TaskRef)>,
    pub(crate) replies: Vec<Reply>,
    pub(crate) admitted: Vec<Result<String, String>>,
    pub(crate) profile: Option<Profile>,
    /// Logs that were dropped: those of attempts, and older ones than that moment.
    pub(crate) purged: Vec<(Vec<AttemptId>, Millis)>,
    /// The site that it is a host of.
    head: Option<usize>,
    /// What its certificate lets it do.
    pub(crate) role: Role,
    host: HostClass,
    /// The weakest isolation that it gives.
    pub(crate) floor: Level,
    /// When it lends.
    pub(crate) opening: Opening,
    /// How long each task says to have run here.
    pub(crate) wall: Millis,
    /// Whether it says what it has run instead.
    pub(crate) tells_true: bool,
    /// Amounts that it does not lend.
    pub(crate) kept: BTreeSet<String>,
    /// What it asks for its slots.
    pub(crate) pricing: Pricing,
    /// How much longer it claims to have worked than it has.
    pub(crate) claims: u64,
    /// Whether it passes work of others on to further sites.
    pub(crate) pass_on: bool,
    /// What it has made durable for others that another machine has made: leases, attempts, and where it came from.
    pub(crate) taken: Vec<(LeaseId, AttemptId, SiteId)>,
    lives: u8,
}

/// How much of a content is in place at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtOnce {
    Whole,
    Enough,
    Nothing,
}

/// Sites, the messages between them, and a clock.
pub(crate) struct Mesh {
    pub(crate) now: Millis,
    pub(crate) peers: Vec<Peer>,
    pub(crate) wires: VecDeque<(usize, usize, Message)>,
    cuts: BTreeSet<(usize, usize)>,
    /// Who know each other from another mesh than all others.
    pub(crate) elsewhere: BTreeSet<(usize, usize)>,
    /// What drivers answer: heard when every output before it was performed.
    answers: VecDeque<(usize, Vec<Input>)>,
    /// How the next contents that are prepared turn out; in place when empty.
    pub(crate) prepares: VecDeque<PrepareError>,
    /// How much of a content is in place when it is asked for; the rest comes when a test says so.
    pub(crate) at_once: AtOnce,
    /// Leases whose whole content is on its way, and where.
    pub(crate) coming: Vec<(usize, LeaseId)>,
    /// Leases whose content is on its way to be handed on, and where.
    pub(crate) fetching: Vec<(usize, LeaseId)>,
    /// How the next outputs that are fetched turn out; placed when empty.
    pub(crate) collected: VecDeque<CollectError>,
    /// Outputs are not fetched until a test says so.
    pub(crate) hold_collects: bool,
    /// Contents stay on their way.
    pub(crate) hold_prepares: bool,
    /// A site of which no word about receipts arrives.
    pub(crate) signs_nothing: Option<usize>,
    /// Whether tasks share sessions.
    pub(crate) shared_sessions: bool,
    /// Whether every step is followed by a look at all invariants.
    pub(crate) checks: bool,
}

pub(crate) fn id(n: usize) -> SiteId {
    SiteId([u8::try_from(n).unwrap() + 1; 32])
}

pub(crate) fn host(slots: u32) -> HostClass {
    HostClass {
        count: 1,
        description: "test".into(),
        amounts: BTreeMap::new(),
        attributes: BTreeMap::new().into(),
        software: BTreeMap::new(),
        slots,
        speed: 1000,
        level: Level::S2,
    }
}

/// A host with so many slots, and so much of some amounts in whole units.
pub(crate) fn having(slots: u32, amounts: &[(&str, u64)]) -> HostClass {
    let amounts = amounts.iter().map(|(name, n)| ((*name).to_owned(), Amount::whole(*n)));
    HostClass { amounts: amounts.collect(), ..host(slots) }
}

/// A job of one step whose tasks ask for at least so much of an amount.
pub(crate) fn asking(n: u32, amounts: &[(&str, u64)]) -> JobSpec {
    let mut job = frames(n);
    for (name, n) in amounts {
        let need = AmountNeed { min: Amount::whole(*n), max: None };
        job.steps[0].requirement.amounts.insert((*name).to_owned(), need);
    }
    job
}

/// A job whose tasks ask for so many processors.
pub(crate) fn cores(n: u32, vcpu: u64) -> JobSpec {
    asking(n, &[(VCPU, vcpu)])
}

pub(crate) fn step(n: u32, needs: &[u32]) -> StepSpec {
    StepSpec {
        name: format!("step of {n}"),
        requirement: Requirement::default(),
        labels: (1..=n).map(|frame| format!("Frame={frame}")).collect(),
        needs: needs.iter().copied().map(StepNo).collect(),
        environments: false,
        session: None,
    }
}

pub(crate) fn spec(steps: Vec<StepSpec>) -> JobSpec {
    JobSpec {
        name: "shot".into(),
        user: "ada".into(),
        project: "film".into(),
        tenant: TenantId([9; 16]),
        policy: MeshPolicy::default(),
        steps,
        layout: Layout::default(),
    }
}

/// The owner of a site's jobs.
pub(crate) fn tenant(at: usize) -> TenantId {
    TenantId([u8::try_from(at).unwrap() + 100; 16])
}

pub(crate) fn frames(n: u32) -> JobSpec {
    spec(vec![step(n, &[])])
}

pub(crate) fn with(mut spec: JobSpec, policy: impl FnOnce(&mut MeshPolicy)) -> JobSpec {
    policy(&mut spec.policy);
    spec
}

pub(crate) fn envelope(from: SiteId, to: SiteId) -> Envelope {
    Envelope {
        address: Address {
            from,
            to,
            key: SealingKey([1; 32]),
            job: JobId([0; 16]),
            root: ChunkId([0; 32]),
            expires: Millis(u64::MAX),
        },
        ephemeral: [0; 32],
        nonce: [0; 24],
        sealed: Vec::new(),
        signature: Signature([0; 64]),
    }
}

/// A receipt as it is sent, with signatures that nobody looks at.
pub(crate) fn unsigned(record: &EntryRecord) -> Entry {
    let signature = Signature([0; 64]);
    let body = record.verdict.clone();
    let verdict = (!body.is_empty()).then_some(SignedVerdict { body, signature });
    Entry { receipt: record.receipt.clone(), lender: signature, verdict }
}

impl Mesh {
    /// Sites with their slots, connected and acquainted.
    pub(crate) fn new<const N: usize>(sites: [(&'static str, u32); N]) -> Self {
        Self::with_hosts(sites.map(|(name, slots)| (name, host(slots))))
    }

    pub(crate) fn with_hosts<const N: usize>(sites: [(&'static str, HostClass); N]) -> Self {
        let peers = sites.map(|(name, host)| Peer {
            name,
            site: None,
            disk: BTreeMap::new(),
            running: Vec::new(),
            started: Vec::new(),
            stopped: Vec::new(),
            told: Vec::new(),
            released: Vec::new(),
            shared: Vec::new(),
            collects: VecDeque::new(),
            replies: Vec::new(),
            admitted: Vec::new(),
            profile: None,
            purged: Vec::new(),
            head: None,
            role: Role::Site,
            host,
            floor: Level::S2,
            opening: Opening::default(),
            wall: Millis(1000),
            tells_true: false,
            kept: BTreeSet::new(),
            pricing: Pricing::default(),
            claims: 1,
            pass_on: true,
            taken: Vec::new(),
            lives: 0,
        });
        let mut mesh = Self {
            now: START,
            peers: peers.into(),
            wires: VecDeque::new(),
            cuts: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
            answers: VecDeque::new(),
            prepares: VecDeque::new(),
            at_once: AtOnce::Whole,
            coming: Vec::new(),
            fetching: Vec::new(),
            collected: VecDeque::new(),
            hold_collects: false,
            hold_prepares: false,
            signs_nothing: None,
            shared_sessions: false,
            checks: true,
        };
        for at in 0..N {
            mesh.boot(at);
        }
        mesh.advance(2000);
        mesh.peers.iter_mut().for_each(|peer| peer.told.clear());
        mesh
    }

    pub(crate) fn boot(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.lives += 1;
        let mut seed = [u8::try_from(at).unwrap(); 32];
        seed[0] = peer.lives;
        let config = Config {
            me: id(at),
            name: peer.name.into(),
            host: peer.host.clone(),
            head: peer.head.map(id),
            submitter: peer.role == Role::Submitter,
            sealing_key: SealingKey([1; 32]),
            addresses: Vec::new(),
            lending: true,
            pass_on: peer.pass_on,
            floor: peer.floor,
            opening: peer.opening.clone(),
            keep_jobs: KEEP_JOBS,
            kept: peer.kept.clone(),
            pricing: peer.pricing,
            seed,
        };
        let records = peer.disk.values().cloned().collect();
        peer.site = Some(Site::new(config, self.now, records));
        self.give(at, Input::Tick);
        for other in 0..self.peers.len() {
            if other != at {
                self.connect(at, other);
            }
        }
        self.settle();
    }

    fn connect(&mut self, a: usize, b: usize) {
        let alive = self.peers[a].site.is_some() && self.peers[b].site.is_some();
        if !alive || self.is_cut(a, b) {
            return;
        }
        for (a, b) in [(a, b), (b, a)] {
            let (site, name) = (id(b), self.peers[b].name.to_owned());
            let role = self.peers[b].role;
            let other = self.elsewhere.contains(&(a.min(b), a.max(b)));
            let meshes = BTreeSet::from([MeshId([if other { 43 } else { 42 }; 32])]);
            self.give(a, Input::PeerUp { site, name, role, meshes });
            if let Some(profile) = self.peers[b].profile.clone() {
                self.give(a, Input::Profile(profile));
            }
        }
    }

    /// The node dies: only its disk stays.
    pub(crate) fn kill(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.site = None;
        peer.running.clear();
        peer.collects.clear();
        self.coming.retain(|(coming, _)| *coming != at);
        self.fetching.retain(|(fetching, _)| *fetching != at);
        self.wires.retain(|(from, to, _)| *from != at && *to != at);
        for other in 0..self.peers.len() {
            self.give(other, Input::PeerDown { site: id(at) });
        }
    }

    pub(crate) fn restart(&mut self, at: usize) {
        self.kill(at);
        self.boot(at);
    }

    /// Whether two have no connection: it was cut, or one is a host and the other is not its head.
    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        let apart = |host: usize, other| self.peers[host].head.is_some_and(|head| head != other);
        self.cuts.contains(&(a.min(b), a.max(b))) || apart(a, b) || apart(b, a)
    }

    /// Somebody asks to join a site with a ticket, whose secret hash is `[secret; 32]`.
    pub(crate) fn join(
        &mut self,
        at: usize,
        (peer, secret): (SiteId, u8),
        (name, role): (&str, Role),
    ) -> Result<String, String> {
        let (request, secret_hash) = (Request(1), [secret; 32]);
        self.give(at, Input::JoinAsked { request, peer, secret_hash, name: name.into(), role });
        self.peers[at].admitted.pop().unwrap()
    }

    /// A ticket for hosts of a site, whose secret hash is `[77; 32]`.
    pub(crate) fn invite_hosts(&mut self, head: usize, uses: u32) {
        let invite = Ask::Invite {
            mesh: mesh_of_hosts(id(head)),
            mesh_name: self.peers[head].name.into(),
            secret_hash: [77; 32],
            role: Role::Host,
            uses,
            expires: self.now.plus(Millis::seconds(3600)),
        };
        assert_eq!(self.ask(head, invite), Reply::Changed(uses));
    }

    /// The others become hosts of `head`.
    pub(crate) fn become_hosts(&mut self, head: usize, hosts: &[usize]) {
        self.invite_hosts(head, u32::try_from(hosts.len()).unwrap());
        for &host in hosts {
            let name = self.peers[host].name;
            self.join(head, (id(host), 77), (name, Role::Host)).unwrap();
            self.peers[host].head = Some(head);
            self.restart(host);
        }
        self.advance(2000);
        self.peers.iter_mut().for_each(|peer| peer.told.clear());
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
        self.give(a, Input::PeerDown { site: id(b) });
        self.give(b, Input::PeerDown { site: id(a) });
    }

    pub(crate) fn mend(&mut self, a: usize, b: usize) {
        self.cuts.remove(&(a.min(b), a.max(b)));
        self.connect(a, b);
        self.settle();
    }

    /// One input, and everything that its outputs ask of a driver.
    pub(crate) fn give(&mut self, at: usize, input: Input) {
        self.give_all(at, vec![input]);
    }

    /// Inputs that have come together.
    pub(crate) fn give_all(&mut self, at: usize, inputs: Vec<Input>) {
        self.answers.push_back((at, inputs));
        while let Some((at, inputs)) = self.answers.pop_front() {
            let mut out = Vec::new();
            let Some(site) = &mut self.peers[at].site else {
                continue;
            };
            site.handle_all(self.now, inputs, &mut out);
            if self.checks {
                site.check();
            }
            for output in out {
                self.perform(at, output);
            }
        }
    }

    fn answer(&mut self, at: usize, input: Input) {
        self.answers.push_back((at, vec![input]));
    }

    fn perform(&mut self, at: usize, output: Output) {
        let peer = &mut self.peers[at];
        match output {
            Output::Persist(Change::Put(record)) => drop(peer.disk.insert(record.key(), *record)),
            Output::Persist(Change::Delete(key)) => drop(peer.disk.remove(&key)),
            Output::Send { to, message } => self.send(at, to, message),
            Output::Commit { to, root, want, .. } => {
                let envelope = envelope(id(at), to);
                let commit = Commit { want, root, envelope };
                self.send(at, to, Message::Commit(Box::new(commit)));
            }
            Output::Introduce { to, lease, source, pass } => {
                self.introduce(at, to, (lease, source), &pass);
            }
            Output::Share { lease, source, pass } => {
                let there = self.peers[usize::from(source.0[0]) - 1].site.as_ref();
                let body = decode::<PassBody>(&pass.body, 512).ok();
                if body.zip(there).is_some_and(|(body, there)| there.may_share(&body)) {
                    self.peers[at].shared.push((lease, source));
                }
            }
            Output::Forget { .. } => {}
            Output::Prepare { .. } if self.hold_prepares => {}
            Output::Prepare { lease, .. } => self.prepare(at, lease),
            output @ (Output::Fetch { .. } | Output::HandOn { .. } | Output::TakeIn { .. }) => {
                self.relay(at, output);
            }
            Output::Start { session, lease, run, isolation, holds, .. } => {
                peer.started.extend(run.iter().map(|a| a.attempt));
                let attempt = run[0].attempt;
                let since = self.now;
                peer.running.push(Running { session, lease, since, run, isolation, holds });
                self.answer(at, Input::AttemptStarted { attempt });
            }
            Output::Stop(session) => {
                peer.stopped.push(session);
                self.over(at, session, Some("stopped"));
            }
            Output::Release(lease) => {
                peer.released.push(lease);
                self.coming.retain(|coming| *coming != (at, lease));
                self.fetching.retain(|fetching| *fetching != (at, lease));
            }
            Output::Collect { attempt, task, lease, lender, .. } => {
                self.collect(at, (attempt, task), (lender, lease));
            }
            Output::BuildInputs { job, step, .. } => {
                let root = ChunkId([u8::try_from(step.0).unwrap() + 100; 32]);
                self.answer(at, Input::InputsReady { job, step, result: Ok((root, 1)) });
            }
            Output::Publish(profile) => {
                peer.profile = Some(profile.clone());
                for other in 0..self.peers.len() {
                    if other != at && !self.is_cut(at, other) {
                        self.answer(other, Input::Profile(profile.clone()));
                    }
                }
            }
            Output::Admit(_, body) => peer.admitted.push(Ok(body.name)),
            Output::Refuse(_, reason) => peer.admitted.push(Err(reason)),
            Output::Answer(_, reply) => peer.replies.push(reply),
            Output::Tell(event) => peer.told.push(event),
            output @ (Output::SendReceipt { .. } | Output::ShowReceipt { .. }) => {
                self.receipt(at, output);
            }
            Output::Purge { attempts, before } => peer.purged.push((attempts, before)),
        }
    }

    fn receipt(&mut self, at: usize, output: Output) {
        match output {
            Output::SendReceipt { to, entry } => {
                let entry = Box::new(unsigned(&entry));
                self.send(at, to, Message::Receipt(entry));
            }
            Output::ShowReceipt { to, chain, sequence, against } => {
                self.show_receipt(at, to, (chain, sequence), against);
            }
            other => panic!("{other:?} is no receipt"),
        }
    }

    fn prepare(&mut self, at: usize, lease: LeaseId) {
        let whole = self.at_once == AtOnce::Whole;
        let ready = Ready { shared_sessions: self.shared_sessions, whole };
        let error = self.prepares.pop_front();
        if error.is_none() && !whole {
            self.coming.push((at, lease));
        }
        if error.is_some() || self.at_once != AtOnce::Nothing {
            let result = error.map_or(Ok(ready), Err);
            self.answer(at, Input::Prepared { lease, result });
        }
    }

    fn show_receipt(
        &mut self,
        at: usize,
        to: SiteId,
        (chain, sequence): (ChainId, u64),
        against: Option<Box<Entry>>,
    ) {
        let stored = self.peers[at].disk.get(&Key::Entry(chain, sequence));
        let Some(Record::Entry(stored)) = stored.cloned() else { return };
        if let Some(entry) = against.filter(|entry| entry.receipt != stored.receipt) {
            self.answer(at, Input::Forked { site: to, entry });
        }
        self.send(at, to, Message::Receipt(Box::new(unsigned(&stored))));
    }

    fn introduce(
        &mut self,
        at: usize,
        to: SiteId,
        (lease, source): (LeaseId, SiteId),
        pass: &PassBody,
    ) {
        assert_eq!(pass.to, to, "a pass is for whom it is sent to");
        let pass = Box::new(Pass { body: encode(pass), signature: Signature([0; 64]) });
        self.send(at, to, Message::Source { lease, source, pass });
    }

    fn collect(
        &mut self,
        at: usize,
        (attempt, task): (AttemptId, TaskRef),
        (lender, lease): (SiteId, LeaseId),
    ) {
        if self.may_read(at, lender, lease) {
            self.peers[at].collects.push_back((attempt, task));
        } else {
            self.answer(at, Input::Collected { attempt, result: Err(CollectError::Unreachable) });
        }
    }

    /// Whether `there` lets `at` read under a lease; a stranger to this mesh lets everybody.
    fn may_read(&self, at: usize, there: SiteId, lease: LeaseId) -> bool {
        let there = self.peers.get(usize::from(there.0[0]) - 1);
        there.is_none_or(|there| there.site.as_ref().is_some_and(|s| s.may_read(id(at), lease)))
    }

    /// What is to be done for a lease that runs on another machine.
    fn relay(&mut self, at: usize, output: Output) {
        match output {
            Output::Fetch { .. } if self.hold_prepares => {}
            Output::Fetch { lease, .. } => {
                let error = self.prepares.pop_front();
                if error.is_none() && self.at_once == AtOnce::Nothing {
                    self.fetching.push((at, lease));
                } else {
                    let result = error.map_or(Ok(SealingKey([2; 32])), Err);
                    self.answer(at, Input::Fetched { lease, result });
                }
            }
            Output::HandOn { to, root, want, .. } => {
                let envelope = envelope(id(at), to);
                self.send(at, to, Message::Commit(Box::new(Commit { want, root, envelope })));
            }
            Output::TakeIn { lease, attempt, to, from: (onward, machine), .. } => {
                assert_eq!(to.1, SealingKey([2; 32]), "outputs are sealed to somebody else");
                let readable = self.may_read(at, machine, onward);
                let result = match self.collected.pop_front() {
                    Some(error) => Err(error),
                    None if !readable => Err(CollectError::Unreachable),
                    None => {
                        self.peers[at].taken.push((lease, attempt, machine));
                        let envelope = envelope(id(at), to.0);
                        Ok(Outputs { root: ChunkId([3; 32]), envelope })
                    }
                };
                self.answer(at, Input::TakenIn { lease, attempt, result });
            }
            other => panic!("{other:?} is for no lease that runs elsewhere"),
        }
    }

    fn send(&mut self, from: usize, to: SiteId, message: Message) {
        let to = usize::from(to.0[0]) - 1;
        assert_ne!(from, to, "what a site says to itself never leaves it");
        if let Message::Accepted { attempt, lease: under, .. } = &message {
            // The lender forgets the outputs when it hears this, so a crash must not undo it. A task whose lease is
            // no longer on the disk waits again after a crash.
            let disk = &self.peers[from].disk;
            let open = |record: &Record| match record {
                Record::Task(_, Task::Leased { attempt: leased, lender, lease, .. }) => {
                    (leased, lease) == (attempt, under)
                        && *lender == id(to)
                        && disk.contains_key(&Key::Borrowed(*lease))
                }
                _ => false,
            };
            assert!(!disk.values().any(open), "accepted before it is durable");
        }
        let lost = self.signs_nothing == Some(from) && matches!(message, Message::Receipt(_));
        if to < self.peers.len() && !self.is_cut(from, to) && !lost {
            self.wires.push_back((from, to, message));
        }
    }

    /// Deliver until nothing is under way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            if let Some((from, to, message)) = self.wires.pop_front() {
                if !self.is_cut(from, to) {
                    let from = id(from);
                    self.give(to, Input::Heard { from, message });
                }
            } else if !self.collect_one() {
                return;
            }
        }
        panic!("the sites never stop talking");
    }

    fn collect_one(&mut self) -> bool {
        if self.hold_collects {
            return false;
        }
        let at = self.peers.iter().position(|peer| !peer.collects.is_empty());
        let Some(at) = at else { return false };
        let (attempt, _) = self.peers[at].collects.pop_front().unwrap();
        let landed = Landed { files: 1, bytes: u64::MAX };
        let result = self.collected.pop_front().map_or(Ok(landed), Err);
        self.give(at, Input::Collected { attempt, result });
        true
    }

    /// Let time pass, waking each site when it asked for it.
    pub(crate) fn advance(&mut self, ms: u64) {
        let until = self.now.plus(Millis(ms));
        for _ in 0..1_000_000 {
            self.settle();
            let wakes = self.peers.iter().enumerate().filter_map(|(at, peer)| {
                Some((peer.site.as_ref()?.wake_at(self.now)?.max(self.now), at))
            });
            match wakes.min() {
                Some((wake, at)) if wake <= until => {
                    self.now = wake;
                    self.give(at, Input::Tick);
                    let again = self.peers[at].site.as_ref().unwrap().wake_at(self.now);
                    assert!(again.is_none_or(|again| again > self.now), "a site spins");
                }
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("time does not pass");
    }

    pub(crate) fn ask(&mut self, at: usize, ask: Ask) -> Reply {
        self.give(at, Input::Asked(Request(1), ask));
        self.settle();
        self.peers[at].replies.pop().unwrap()
    }

    pub(crate) fn submit(&mut self, at: usize, mut spec: JobSpec) -> JobId {
        spec.tenant = tenant(at);
        let ask = Ask::Submit { spec: Box::new(spec), root: ChunkId([5; 32]), bytes: 1000 };
        match self.ask(at, ask) {
            Reply::Submitted(job) => job,
            other => panic!("not submitted: {other:?}"),
        }
    }

    pub(crate) fn operate(&mut self, at: usize, job: JobId, operation: Operation) -> Reply {
        self.ask(at, Ask::Operate { job, operation })
    }

    pub(crate) fn cancel(&mut self, at: usize, job: JobId) -> Reply {
        self.operate(at, job, Operation::Cancel { tasks: Tasks::All })
    }

    pub(crate) fn retry(&mut self, at: usize, job: JobId, tasks: Tasks) -> Reply {
        self.operate(at, job, Operation::Retry { tasks })
    }

    /// Take no more tasks of other sites.
    pub(crate) fn pause(&mut self, at: usize) -> Reply {
        self.ask(at, Ask::OperateSite(SiteOperation::Pause { own: false, give_back: None }))
    }

    pub(crate) fn resume(&mut self, at: usize) -> Reply {
        self.ask(at, Ask::OperateSite(SiteOperation::Resume))
    }

    /// The machine turns out to have so many slots.
    pub(crate) fn set_slots(&mut self, at: usize, slots: u32) {
        let host = HostClass { slots, ..self.peers[at].host.clone() };
        self.give(at, Input::Host(Box::new(host)));
        self.settle();
    }

    /// Everything that is on its way has come.
    pub(crate) fn complete(&mut self) {
        for (at, lease) in std::mem::take(&mut self.coming) {
            let result = Ok(Ready { shared_sessions: self.shared_sessions, whole: true });
            self.give(at, Input::Prepared { lease, result });
        }
        for (at, lease) in std::mem::take(&mut self.fetching) {
            let result = Ok(SealingKey([2; 32]));
            self.give(at, Input::Fetched { lease, result });
        }
        self.settle();
    }

    /// A session turns out to have read what was not there yet.
    pub(crate) fn spoil(&mut self, at: usize, session: Session) {
        self.peers[at].running.retain(|running| running.session != session);
        self.give(at, Input::SessionSpoiled { session });
        self.settle();
    }

    /// End a session: well, or with a reason.
    pub(crate) fn end(&mut self, at: usize, session: Session, reason: Option<&str>) {
        self.over(at, session, reason);
        self.give(at, Input::Tick);
    }

    fn over(&mut self, at: usize, session: Session, reason: Option<&str>) {
        let running = &mut self.peers[at].running;
        let Some(n) = running.iter().position(|r| r.session == session) else {
            return;
        };
        let Running { run, since, .. } = running.remove(n);
        let peer = &self.peers[at];
        let ran = if peer.tells_true { self.now.since(since) } else { peer.wall };
        let wall = ran.times(self.peers[at].claims);
        let results = run.into_iter().map(|a| Ended {
            attempt: a.attempt,
            outcome: reason.map_or(Outcome::Done, |r| Outcome::Failed(r.into())),
            outputs: reason
                .is_none()
                .then(|| Outputs { root: ChunkId([3; 32]), envelope: envelope(id(at), id(at)) }),
            usage: Usage { wall, cpu: wall, ..Usage::default() },
        });
        let results = results.collect();
        self.answer(at, Input::SessionEnded { session, results });
    }

    /// End every session that runs at a site now.
    pub(crate) fn finish(&mut self, at: usize, reason: Option<&str>) {
        for running in self.peers[at].running.clone() {
            self.end(at, running.session, reason);
        }
        self.settle();
    }

    /// Let everything run to its end.
    pub(crate) fn finish_all(&mut self) {
        for _ in 0..200 {
            for at in 0..self.peers.len() {
                self.finish(at, None);
            }
            self.advance(1000);
        }
    }

    pub(crate) fn n_running(&self, at: usize) -> usize {
        self.peers[at].running.len()
    }

    pub(crate) fn site(&self, at: usize) -> &Site {
        self.peers[at].site.as_ref().unwrap()
    }

    pub(crate) fn job(&self, at: usize, job: JobId) -> JobView {
        self.site(at).job(job, self.now).unwrap()
    }

    pub(crate) fn phase(&self, at: usize, job: JobId) -> JobPhase {
        self.job(at, job).phase
    }

    /// The states of a job's tasks, step by step.
    pub(crate) fn states(&self, at: usize, job: JobId) -> Vec<String> {
        let steps = self.job(at, job).steps;
        let tasks = steps.into_iter().flat_map(|step| step.tasks);
        tasks.map(|task| task.state).collect()
    }

    /// Where each done task of a job was rendered.
    pub(crate) fn rendered_by(&self, at: usize, job: JobId) -> Vec<Option<String>> {
        let steps = self.job(at, job).steps;
        let tasks = steps.into_iter().flat_map(|step| step.tasks);
        tasks.map(|task| task.site).collect()
    }

    /// Records of leases and finished work that are still on any disk.
    pub(crate) fn leftovers(&self) -> usize {
        let disks = self.peers.iter().flat_map(|peer| peer.disk.keys());
        disks
            .filter(|key| {
                matches!(key, Key::Borrowed(_) | Key::Lent(_) | Key::Finished(_) | Key::Relay(_))
            })
            .count()
    }
}
