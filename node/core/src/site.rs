//! A site: owns the rooms, routes one input to one of them, then does the same upkeep every time.

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use meshfarm_protocol::id::{JobId, LeaseId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::JobSpec;
use meshfarm_protocol::lease::Declined;
use meshfarm_protocol::message::{Message, PassBody};
use meshfarm_protocol::profile::{HostClass, Level};
use meshfarm_protocol::receipt::Exact;
use meshfarm_protocol::seal::SealingKey;

use crate::borrow::{Borrow, State};
use crate::deadline::Warned;
use crate::door::{Ask, Content, Event, Input, Output, Reply, TaskRef};
use crate::hosts::Hosts;
use crate::job::{JobPhase, Task};
use crate::jobs::{Jobs, put};
use crate::ledger::{Ledger, Pricing};
use crate::lend::{self, Lend};
use crate::membership::{Asking, Membership};
use crate::opening::{Opened, Opening};
use crate::record::{EvidenceRecord, InviteRecord, JobRecord, Record, SiteRecord, Steering};
use crate::relay::Relays;
use crate::sites::Sites;

mod profile;

/// How long a new peer is told our profile again and again: it hears gossip only some moments after it is up.
const GREETING: Millis = Millis::seconds(3);

/// What a site is told about itself when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who it is.
    pub me: SiteId,
    /// Its name.
    pub name: String,
    /// What its machine has.
    pub host: HostClass,
    /// The site that it is a host of, when it is one: it lends to that one only and has no jobs.
    pub head: Option<SiteId>,
    /// Whether its certificates let it borrow only: it then lends to nobody, whatever else is set.
    pub submitter: bool,
    /// X25519 key that envelopes for it are sealed to.
    pub sealing_key: SealingKey,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Whether it takes tasks of other sites; on a host, those of its head.
    pub lending: bool,
    /// The weakest isolation that it gives a job, own ones too, as far as its machine reaches it.
    pub floor: Level,
    /// When it takes tasks of other sites, if it does.
    pub opening: Opening,
    /// How long a job that has ended is remembered.
    pub keep_jobs: Millis,
    /// Whether it hands tasks of other sites on to further ones, when their jobs let it.
    pub pass_on: bool,
    /// Names of amounts that only its own jobs may have, such as licences that must not leave the house.
    pub kept: BTreeSet<String>,
    /// What it asks of other sites for its slots.
    pub pricing: Pricing,
    /// Seed of every random choice and of every id. Must never repeat on one site.
    pub seed: [u8; 32],
}

/// A site's brain. It owns all state, reads no clock and touches no device: the daemon, the simulator and
/// every test drive it through [`Site::handle`], [`Site::wake_at`] and [`Site::check`].
///
/// One input at a time and one owner of everything, because a decision (a lease, an accepted frame) touches
/// jobs, leases and slots together: with a lock on each, every order of two messages would be a case of its
/// own. The price is that a protocol of several messages is written out as states.
///
/// Own slots are not special: the site lends to itself by the same messages, which never leave it.
#[derive(Debug)]
pub struct Site {
    pub(crate) config: Config,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) jobs: Jobs,
    pub(crate) borrow: Borrow,
    pub(crate) lend: Lend,
    pub(crate) sites: Sites,
    pub(crate) hosts: Hosts,
    pub(crate) ledger: Ledger,
    pub(crate) relays: Relays,
    membership: Membership,
    /// What a person has told the site itself.
    pub(crate) told: SiteRecord,
    /// Steps that give up our own slots as their tasks end, because somebody more urgent waits.
    pub(crate) yields: BTreeSet<(JobId, StepNo)>,
    /// By urgency: hosts of ours that jobs of it give up as their tasks end, because somebody more urgent waits.
    pub(crate) host_yields: BTreeMap<(u8, bool), BTreeSet<SiteId>>,
    /// When jobs with a deadline are looked at again.
    pub(crate) look_at: Millis,
    /// Our own slots are left alone until then, because a session could not be prepared.
    pub(crate) own_pause: Millis,
    /// Whether hours and owner let us lend.
    pub(crate) opened: Opened,
    /// When it was last looked whether jobs go beyond their budgets.
    pub(crate) minded: Millis,
    sequence: u64,
    published: Option<(Millis, u32, bool)>,
    /// Whether our profile says something else than it did then.
    news: bool,
    /// Bytes of our profile when it was last told.
    told_bytes: usize,
    /// Somebody is new: until this moment the profile is told again and again.
    greet_until: Millis,
}

impl Site {
    /// A site that wakes up at `now` with the records that it had made durable before, in any order.
    #[must_use]
    pub fn new(config: Config, now: Millis, records: Vec<Record>) -> Self {
        let (me, key) = (config.me, config.sealing_key);
        let opened = Opened::before_the_first_look(&config.opening);
        let lending = config.lending && !config.submitter && opened.intake().is_open();
        let mut site = Self {
            rng: ChaCha8Rng::from_seed(config.seed),
            jobs: Jobs::default(),
            borrow: Borrow::default(),
            lend: Lend::new(
                (me, config.head, key),
                (config.host.clone(), config.kept.clone()),
                (lending, config.floor),
            ),
            sites: Sites::default(),
            hosts: Hosts::default(),
            ledger: Ledger::new(me, config.pricing),
            minded: Millis(0),
            relays: Relays::default(),
            membership: Membership::new(me, config.name.clone()),
            told: SiteRecord::default(),
            yields: BTreeSet::new(),
            host_yields: BTreeMap::new(),
            look_at: Millis(0),
            own_pause: Millis(0),
            opened,
            // Later starts are greater, and within one start there are 2^20 profiles a second at most.
            sequence: now.0 << 20,
            published: None,
            news: false,
            told_bytes: 0,
            greet_until: Millis(0),
            config,
        };
        site.lend.price = site.ledger.price();
        site.restore(now, records);
        site
    }

    fn restore(&mut self, now: Millis, mut records: Vec<Record>) {
        self.jobs.set_now(now);
        // What others refer to comes first.
        records.sort_by_key(|record| match record {
            Record::Spec(..) => 0,
            Record::Job(_)
            | Record::Borrowed(_)
            | Record::Lent(_)
            | Record::Invite(_)
            | Record::Evidence(_)
            | Record::Site(_)
            | Record::Host(_)
            | Record::Charge(_)
            | Record::Chain(_)
            | Record::Pending(_)
            | Record::Entry(_)
            | Record::Misdeed(_)
            | Record::Tally(_) => 1,
            Record::Task(..) | Record::Finished(_) | Record::Relay(_) => 2,
        });
        let mut specs: BTreeMap<JobId, JobSpec> = BTreeMap::new();
        for record in records {
            match record {
                Record::Spec(job, spec) => drop(specs.insert(job, *spec)),
                Record::Job(record) => {
                    if let Some(spec) = specs.remove(&record.job) {
                        self.jobs.restore(spec, record);
                    }
                }
                Record::Borrowed(record) => self.borrow.restore(&record, now),
                Record::Lent(record) => self.lend.restore_lease(&record),
                Record::Finished(record) => self.lend.restore_finished(record),
                Record::Invite(record) => self.membership.restore(record),
                Record::Evidence(record) => self.sites.restore_evidence(record),
                Record::Site(told) => self.restore_told(told),
                Record::Host(record) => self.hosts.restore(record),
                Record::Charge(record) => self.ledger.restore_charge(record),
                Record::Chain(record) => self.ledger.restore_chain(record),
                Record::Pending(record) => self.ledger.restore_pending(record),
                Record::Misdeed(record) => self.ledger.restore_misdeed(record),
                Record::Tally(record) => self.ledger.restore_tally(record, now),
                Record::Entry(_) => {}
                Record::Relay(record) => {
                    let promised = (record.slots, record.isolation, record.root);
                    if let Some(whose) = self.lend.restore_away(record.lease, promised, now) {
                        self.relays.restore(&record, whose, now);
                    }
                }
                Record::Task(at, task) => self.restore_task(at, task),
            }
        }
        self.jobs.restored();
        self.count_licences();
        self.lend.owe();
        self.restored_relays();
    }

    fn restore_task(&mut self, at: TaskRef, task: Task) {
        let task = match task {
            Task::Leased { lease, attempt, failed_on, spared, .. }
                if !self.jobs.is_active(at.job)
                    || !self.borrow.restore_attempt(lease, attempt, at) =>
            {
                // The lease was lost while its outputs were on their way: the task waits again.
                let (last, after) = (None, Millis(0));
                Task::Waiting { failed_on, last, after, spared }
            }
            Task::Leased { .. }
            | Task::Waiting { .. }
            | Task::Done { .. }
            | Task::Failed { .. }
            | Task::Canceled => task,
        };
        self.jobs.restore_task(at, task);
    }

    /// Apply one input. Pushes what must now happen, in the order in which it must happen.
    pub fn handle(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) {
        self.handle_all(now, [input], out);
    }

    /// The same for inputs that have come together: each is applied in its turn, and what follows from all of them is
    /// decided once. A look at everything costs the same after one input as after a hundred.
    pub fn handle_all(
        &mut self,
        now: Millis,
        inputs: impl IntoIterator<Item = Input>,
        out: &mut Vec<Output>,
    ) {
        self.jobs.set_now(now);
        let mut fresh = Vec::new();
        for input in inputs {
            self.route(now, input, &mut fresh);
            self.hear_ourselves(now, &mut fresh);
            out.append(&mut fresh);
        }
        self.upkeep(now, &mut fresh);
        out.append(&mut fresh);
    }

    fn route(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => {}
            Input::Asked(request, ask) => {
                let reply = self.on_ask(ask, now, out);
                out.push(Output::Answer(request, reply));
            }
            Input::Heard { from, message } => self.on_message(from, message, now, out),
            Input::PeerUp { site, name, role, meshes } => {
                self.sites.peer_up(site, (name, role, meshes), now, out);
                self.borrow.on_peer_up(site);
                self.lend.on_peer_up(site, now);
                self.ledger.on_peer_up(site);
                self.relays.on_peer_up(site);
                self.greet_until = now.plus(GREETING);
            }
            Input::PeerDown { site } => self.sites.peer_down(site),
            Input::Profile(profile) => {
                if profile.site != self.config.me {
                    self.sites.hear(profile, now, out);
                }
            }
            Input::JoinAsked { request, peer, secret_hash, name, role } => {
                let asking = Asking { request, peer, secret_hash, name, role };
                let chance = (now, &mut self.rng);
                self.membership.on_join(asking, &mut self.hosts, chance, out);
                if self.hosts.contains(peer) {
                    self.lend.close_all(peer, out);
                }
            }
            Input::Prepared { lease, result } => self.lend.on_prepared(lease, result, out),
            Input::Fetched { lease, result } => self.on_fetched(lease, result, now, out),
            Input::TakenIn { lease, attempt, result } => {
                self.on_taken_in((lease, attempt), result, now, out);
            }
            Input::SessionEnded { session, results } => {
                self.lend.on_ended(session, results, now, out);
            }
            Input::SessionSpoiled { session } => self.lend.on_spoiled(session, now, out),
            Input::AttemptStarted { attempt } => self.lend.on_started(attempt, out),
            Input::Collected { attempt, result } => self.on_collected(attempt, result, now, out),
            Input::InputsReady { job, step, result } => {
                self.jobs.inputs_ready((job, step), result, now, out);
            }
            Input::Host(host) => {
                self.news |= *host != *self.lend.host();
                self.lend.set_host(*host);
            }
            Input::WrongChunk { site, lease, chunk, came } => {
                let evidence = EvidenceRecord { site, n: 1, at: now, lease, chunk, came };
                put(out, Record::Evidence(self.sites.blamed(evidence, now)));
                let what = format!("it sent {} in place of chunk {}", came.short(), chunk.short());
                out.push(Output::Tell(Event::Blame { site, what }));
            }
            Input::Forked { site, entry } => self.ledger.on_forked(site, *entry, now, out),
            Input::Owner(owner) => self.on_owner(&owner, now, out),
            Input::Disk { full } => self.lend.full = full,
        }
    }

    fn on_ask(&mut self, ask: Ask, now: Millis, out: &mut Vec<Output>) -> Reply {
        match ask {
            Ask::Submit { spec, root, bytes } => {
                if let Some(head) = self.config.head {
                    let head = self.name_of(head);
                    return Reply::Refused(format!(
                        "this machine is a host of {head}: submit there"
                    ));
                }
                let job = JobId(self.random());
                let phase = JobPhase::Active;
                let (submitted, ended, steering) = (now, None, Steering::default());
                let (inputs, canceled, warned) = (Vec::new(), Vec::new(), Warned::default());
                self.look_soon();
                let record = JobRecord {
                    job,
                    submitted,
                    ended,
                    phase,
                    root,
                    bytes,
                    inputs,
                    steering,
                    canceled,
                    warned,
                    spent: Exact(0),
                };
                self.jobs.submit(*spec, record, out);
                Reply::Submitted(job)
            }
            Ask::Operate { job, operation } => {
                self.look_soon();
                self.on_operation(job, operation, now, out)
            }
            Ask::OperateSite(operation) => self.on_site_operation(operation, now, out),
            Ask::Invite { mesh, mesh_name, secret_hash, role, uses, expires } => {
                let (uses_left, used_by) = (uses, Vec::new());
                let invite = InviteRecord {
                    secret_hash,
                    mesh,
                    mesh_name,
                    role,
                    expires,
                    uses_left,
                    used_by,
                };
                match self.membership.invite(invite, now, out) {
                    Ok(()) => Reply::Changed(uses),
                    Err(reason) => Reply::Refused(reason),
                }
            }
            Ask::Host(host, mode) => self.set_host((host, mode), now, out),
            Ask::Serve(head) => {
                (self.config.head, self.lend.head) = (Some(head), Some(head));
                self.config.lending = true;
                self.obey(out);
                self.published = None;
                Reply::Changed(1)
            }
            Ask::Submitter(submitter) => {
                self.config.submitter = submitter;
                self.obey(out);
                self.published = None;
                Reply::Changed(1)
            }
        }
    }

    fn on_message(&mut self, from: SiteId, message: Message, now: Millis, out: &mut Vec<Output>) {
        let Some(message) = self.hear_of_relays(from, message, now, out) else {
            return;
        };
        match message {
            // A host has nothing to ask of its head.
            Message::Offer(offer) => {
                let message = if self.hosts.contains(from) || self.ledger.withholds(from, now) {
                    lend::decline(offer.lease, Declined::Policy)
                } else {
                    let mesh = self.mesh_with(from);
                    self.lend.on_offer((from, mesh), &offer, now)
                };
                out.push(Output::Send { to: from, message });
            }
            Message::Commit(commit) => {
                let content = Content::Sealed(commit.envelope);
                let commit = (commit.want, commit.root, content);
                self.lend.on_commit(from, commit, now, out);
            }
            Message::Want(want) => self.lend.on_want(from, want, now, out),
            Message::Accepted { lease, attempt, counts } => {
                let charge = self.lend.on_accepted(from, (lease, attempt, counts), now, out);
                if let Some(charge) = charge {
                    self.ledger.charge(charge, out);
                }
            }
            Message::Receipt(entry) => self.ledger.on_receipt(from, *entry, now, out),
            Message::Behind { lender, next } => {
                self.ledger.on_behind(from, (lender, next), now, out);
            }
            Message::Close { lease } => self.lend.on_close(from, lease, out),
            Message::Source { lease, source, pass } => {
                if self.lend.is_preparing(from, lease) && !self.sites.is_blamed(source) {
                    out.push(Output::Share { lease, source, pass: *pass });
                }
            }
            Message::Grant(grant) => self.on_grant(from, &grant, now, out),
            Message::Decline { lease, reason, retry_after } => {
                if self.borrow.declined(lease, from) {
                    self.sites.declined(from, Some((reason, retry_after)), now);
                    out.push(Output::Tell(Event::Declined { lender: from, reason }));
                }
            }
            Message::Status(status) => self.on_status(from, &status, now, out),
            Message::Done(done) => self.on_done(from, *done, now, out),
        }
    }

    /// The same after every input: end what is overdue, use what is free, say what has changed.
    fn upkeep(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.hear_ourselves(now, out);
        self.sites.expire(now, out);
        self.end_grace(now, out);
        let (sites, me) = (&self.sites, self.config.me);
        self.lend.tick(now, |site| site == me || sites.is_connected(site), out);
        self.borrow_upkeep(now, out);
        self.mind_budgets(now, out);
        let borrow = &self.borrow;
        let busy = |job| borrow.serves(job);
        self.jobs.purge((now, self.config.keep_jobs), busy, out);
        self.look_at_deadlines(now, out);
        for _ in 0..Self::rounds() {
            self.place_jobs(now, out);
            loop {
                self.say_wishes(now, out);
                self.introduce(now, out);
                self.lend.fill(now, out);
                if !self.hear_ourselves(now, out) {
                    break;
                }
            }
            if !self.could_start() {
                break;
            }
        }
        self.relay_upkeep(now, out);
        let (lend, sites) = (&self.lend, &self.sites);
        let connected = |site| sites.is_connected(site);
        self.ledger.tick(now, |lease| lend.goes_on(lease), connected, out);
        self.publish(now, out);
    }

    /// Take what we have said to ourselves out of `out` and hear it. Returns whether there was anything.
    pub(crate) fn hear_ourselves(&mut self, now: Millis, out: &mut Vec<Output>) -> bool {
        let me = self.config.me;
        let mut any = false;
        loop {
            let to_us =
                |output: &mut Output| matches!(output, Output::Send { to, .. } if *to == me);
            let said: Vec<_> = out.extract_if(.., to_us).collect();
            if said.is_empty() {
                return any;
            }
            any = true;
            for output in said {
                if let Output::Send { message, .. } = output {
                    self.on_message(me, message, now, out);
                }
            }
        }
    }

    /// When to call again with [`Input::Tick`] if nothing else arrives.
    #[must_use]
    pub fn wake_at(&self, now: Millis) -> Option<Millis> {
        let (sites, me) = (&self.sites, self.config.me);
        let connected = |site| site == me || sites.is_connected(site);
        let moments = [
            self.jobs.wake_at(now),
            self.borrow.wake_at(me, |lender| self.grace(lender)),
            self.lend.wake_at(connected),
            self.relays_wake_at(),
            self.sites.wake_at(now),
            Some(self.publish_at()),
            self.deadline_look(),
            self.jobs.purge_at(self.config.keep_jobs).filter(|at| *at > now),
            Some(self.own_pause).filter(|pause| *pause > now),
            self.foreign().give_back().filter(|at| *at > now),
            self.told.own.give_back().filter(|at| *at > now),
            self.ledger.wake_at(|site| sites.is_connected(site)),
        ];
        moments.into_iter().flatten().min()
    }

    /// Whether `peer` may read content under `lease`: as our borrower its outputs, as our lender the inputs, ours or
    /// those of whoever's tasks it has from us.
    #[must_use]
    pub fn may_read(&self, peer: SiteId, lease: LeaseId) -> bool {
        self.borrow.get(lease, peer).is_some()
            || self.lend.serves(peer, lease)
            || self.relays.serves(peer, lease)
    }

    /// Whether content that `pass` names may go from here to whoever shows it.
    #[must_use]
    pub fn may_share(&self, pass: &PassBody) -> bool {
        self.lend.shares(pass.borrower, pass.lease, pass.root)
    }

    /// Where this site listens has changed.
    pub fn set_addresses(&mut self, addresses: Vec<String>) {
        if self.config.addresses != addresses {
            self.config.addresses = addresses;
            self.news = true;
        }
    }

    /// Panic if two rooms disagree. Called after every step by tests and the simulator.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check(&self) {
        self.jobs.check();
        self.borrow.check();
        self.lend.check();
        self.sites.check();
        self.hosts.check();
        self.ledger.check();
        self.check_hosts();
        self.check_licences();
        self.check_relays();
        for (lease, borrowed) in self.borrow.all() {
            let State::Held(held) = &borrowed.state else {
                continue;
            };
            for a in &held.attempts {
                let at = TaskRef { job: borrowed.job, step: borrowed.step, task: a.task };
                match self.jobs.task(at) {
                    Some(Task::Leased { attempt, .. })
                        if self.borrow.seconds.contains_key(&a.attempt) =>
                    {
                        assert_ne!(*attempt, a.attempt, "a first try is a second one");
                    }
                    Some(Task::Leased { attempt, lease: of, .. }) => {
                        assert_eq!((*attempt, *of), (a.attempt, lease), "lease and task disagree");
                    }
                    other => panic!("a leased task is {other:?}"),
                }
            }
        }
    }

    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}
