//! Filling a large idle farm: one head and 1,553 hosts, all of them real cores on a simulated clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use meshfarm_core::opening::Opening;
use meshfarm_core::{
    Ask, Config, HostMode, HostRecord, Input, Output, Pricing, Ready, Record, Request, Site,
};
use meshfarm_protocol::id::{ChunkId, JobId, Millis, SiteId};
use meshfarm_protocol::lease::Commit;
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::seal::{Address, Envelope, SealingKey, Signature};

use super::cpu;
use super::one_site::{host, job};
use crate::table::{Row, Table};

const HOSTS: u64 = 1553;
const CORES: u64 = 57_000;
const JOBS: u64 = 20;

/// A node decides about so many inputs together at most, as the daemon does.
const MAX_TURN: usize = 256;

/// One way between two machines of a site.
const LATENCY: Millis = Millis(1);

/// One synced write: whatever comes meanwhile waits for it, and is decided together.
const SYNC: Millis = Millis(4);

/// The job's content is at hand on every host.
const PREPARE: Millis = Millis(5);

/// From the order to start a session until its task has begun.
const START: Millis = Millis(10);

/// Nothing takes longer than this that works at all.
const MOST: Millis = Millis::seconds(120);

/// Where the clock begins, late enough that nothing lies before zero.
const BEGIN: Millis = Millis::seconds(1_000_000);

const HEAD: usize = 0;

enum Event {
    Arrive(usize, Box<Input>),
    Turn(usize),
    Wake(usize),
}

/// One machine and its node.
struct Machine {
    site: Site,
    inbox: Vec<Input>,
    /// Its disk writes until then.
    busy_until: Millis,
    has_turn: bool,
    wake: Option<Millis>,
}

struct Farm {
    now: Millis,
    machines: Vec<Machine>,
    /// By moment and order.
    events: BTreeMap<(Millis, u64), Event>,
    next: u64,
    running: u64,
    /// When the last session was begun.
    last: Millis,
    /// Processor time of the head and of all hosts.
    spent: [Duration; 2],
    /// How often the head decided, about how many inputs in all, and the processor time that it took at most.
    turns: u64,
    inputs: u64,
    slowest: Duration,
}

fn id(n: usize) -> SiteId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    SiteId(bytes)
}

fn number(site: SiteId) -> Option<usize> {
    let n = u64::from_be_bytes(site.0[..8].try_into().ok()?);
    usize::try_from(n).ok()?.checked_sub(1)
}

fn name(n: usize) -> String {
    if n == HEAD { "head".to_owned() } else { format!("host {n}") }
}

fn machine(n: usize, slots: u32, hosts: &[usize]) -> Machine {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(n as u64).to_be_bytes());
    let config = Config {
        me: id(n),
        name: name(n),
        host: host(slots),
        submitter: false,
        head: (n != HEAD).then(|| id(HEAD)),
        sealing_key: SealingKey([1; 32]),
        addresses: Vec::new(),
        lending: true,
        pass_on: false,
        floor: Level::S2,
        opening: Opening::default(),
        keep_jobs: Millis(u64::MAX),
        kept: BTreeSet::new(),
        pricing: Pricing::default(),
        seed,
    };
    let of = |n: &usize| {
        let (host, name, joined, mode) = (id(*n), name(*n), BEGIN, HostMode::Open);
        Record::Host(HostRecord { host, name, joined, mode })
    };
    let records = hosts.iter().map(of).collect();
    let site = Site::new(config, BEGIN, records);
    let (inbox, busy_until, has_turn, wake) = (Vec::new(), Millis(0), false, None);
    Machine { site, inbox, busy_until, has_turn, wake }
}

impl Farm {
    /// So many cores, spread over hosts that know their head.
    fn new(hosts: u64, cores: u64) -> Result<Self> {
        let n = usize::try_from(hosts)?;
        let (each, more) = (cores / hosts, usize::try_from(cores % hosts)?);
        let of_head: Vec<_> = (1..=n).collect();
        let mut machines = vec![machine(HEAD, 0, &of_head)];
        for at in 1..=n {
            let slots = u32::try_from(each)? + u32::from(at <= more);
            machines.push(machine(at, slots, &[]));
        }
        let mut farm = Self {
            now: BEGIN,
            machines,
            events: BTreeMap::new(),
            next: 0,
            running: 0,
            last: BEGIN,
            spent: [Duration::ZERO; 2],
            turns: 0,
            inputs: 0,
            slowest: Duration::ZERO,
        };
        for at in 1..=n {
            for (a, b) in [(HEAD, at), (at, HEAD)] {
                farm.after(Millis(0), Event::Arrive(a, Box::new(up(b))));
            }
        }
        Ok(farm)
    }

    fn after(&mut self, wait: Millis, event: Event) {
        self.next += 1;
        self.events.insert((self.now.plus(wait), self.next), event);
    }

    /// Until nothing is left to do before `until`, or `enough` sessions run.
    fn run(&mut self, until: Millis, enough: u64) {
        while self.running < enough
            && let Some(next) = self.events.first_entry().filter(|next| next.key().0 <= until)
        {
            let ((now, _), event) = next.remove_entry();
            self.now = now;
            match event {
                Event::Arrive(at, input) => self.arrive(at, *input),
                Event::Turn(at) => self.turn(at),
                Event::Wake(at) if self.machines[at].wake == Some(now) => {
                    self.machines[at].wake = None;
                    self.arrive(at, Input::Tick);
                }
                Event::Wake(_) => {}
            }
        }
        if self.running < enough {
            self.now = until;
        }
    }

    fn arrive(&mut self, at: usize, input: Input) {
        let machine = &mut self.machines[at];
        machine.inbox.push(input);
        if !machine.has_turn {
            machine.has_turn = true;
            let wait = Millis(machine.busy_until.0.saturating_sub(self.now.0));
            self.after(wait, Event::Turn(at));
        }
    }

    /// What the daemon does: decide about all that has come, write it down, then do it.
    fn turn(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let n = machine.inbox.len().min(MAX_TURN);
        let inputs: Vec<_> = machine.inbox.drain(..n).collect();
        let mut out = Vec::new();
        let began = cpu();
        machine.site.handle_all(self.now, inputs, &mut out);
        let wake = machine.site.wake_at(self.now);
        let took = cpu() - began;
        self.spent[usize::from(at != HEAD)] += took;
        if at == HEAD {
            self.turns += 1;
            self.inputs += n as u64;
            self.slowest = self.slowest.max(took);
        }
        let writes = out.iter().any(|output| matches!(output, Output::Persist(_)));
        let wait = if writes { SYNC } else { Millis(0) };
        machine.busy_until = self.now.plus(wait);
        machine.has_turn = !machine.inbox.is_empty();
        if machine.has_turn {
            self.after(wait, Event::Turn(at));
        }
        if let Some(wake) = wake {
            let machine = &mut self.machines[at];
            let wake = wake.max(self.now.plus(wait)).max(self.now.plus(Millis(1)));
            if machine.wake.is_none_or(|known| known > wake) {
                machine.wake = Some(wake);
                self.after(wake.since(self.now), Event::Wake(at));
            }
        }
        for output in out {
            self.perform(at, wait, output);
        }
    }

    fn perform(&mut self, at: usize, wait: Millis, output: Output) {
        let there = wait.plus(LATENCY);
        match output {
            Output::Send { to, message } => self.say((at, to), there, message),
            Output::Commit { to, root, want, .. } => {
                let envelope = envelope(id(at), to);
                let commit = Commit { want, root, envelope };
                self.say((at, to), there, Message::Commit(Box::new(commit)));
            }
            Output::Prepare { lease, .. } => {
                let result = Ok(Ready { shared_sessions: false, whole: true });
                let input = Input::Prepared { lease, result };
                self.after(wait.plus(PREPARE), Event::Arrive(at, Box::new(input)));
            }
            Output::Start { run, .. } => {
                self.running += 1;
                self.last = self.now.plus(wait).plus(START);
                let input = Input::AttemptStarted { attempt: run[0].attempt };
                self.after(wait.plus(START), Event::Arrive(at, Box::new(input)));
            }
            Output::Publish(profile) => {
                let to = if at == HEAD { 1..self.machines.len() } else { HEAD..HEAD + 1 };
                for to in to {
                    let input = Input::Profile(profile.clone());
                    self.after(there, Event::Arrive(to, Box::new(input)));
                }
            }
            _ => {}
        }
    }

    fn say(&mut self, (from, to): (usize, SiteId), after: Millis, message: Message) {
        if let Some(to) = number(to) {
            let input = Input::Heard { from: id(from), message };
            self.after(after, Event::Arrive(to, Box::new(input)));
        }
    }
}

fn up(n: usize) -> Input {
    let role = if n == HEAD { Role::Site } else { Role::Host };
    let meshes = BTreeSet::new();
    Input::PeerUp { site: id(n), name: name(n), role, meshes }
}

/// The keys in it are nobody's: no driver opens it here.
fn envelope(from: SiteId, to: SiteId) -> Envelope {
    let (key, expires) = (SealingKey([1; 32]), Millis(u64::MAX));
    let (job, root) = (JobId([0; 16]), ChunkId([0; 32]));
    Envelope {
        address: Address { from, to, key, job, root, expires },
        ephemeral: [0; 32],
        nonce: [0; 24],
        sealed: Vec::new(),
        signature: Signature([0; 64]),
    }
}

/// From the submission of more tasks than there are cores until the last core has one.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let hosts = table.scale().of(HOSTS).max(2);
    let cores = table.scale().of(CORES).max(hosts);
    let mut farm = Farm::new(hosts, cores)?;
    // They get acquainted.
    farm.run(BEGIN.plus(Millis::seconds(20)), u64::MAX);
    (farm.spent, farm.turns, farm.inputs) = ([Duration::ZERO; 2], 0, 0);
    let (began, each) = (farm.now, u32::try_from(cores.div_ceil(JOBS) * 21 / 20)?);
    for n in 0..JOBS {
        let spec = Box::new(job(each, &format!("project {}", n % 5)));
        let ask = Ask::Submit { spec, root: ChunkId([5; 32]), bytes: 1 << 20 };
        farm.arrive(HEAD, Input::Asked(Request(n), ask));
    }
    farm.run(began.plus(MOST), cores);
    let (running, most) = (farm.running, MOST.0 / 1000);
    ensure!(running == cores, "{running} of {cores} cores have a task after {most} s");
    let simulated = farm.last.since(began);
    // The last word of each start is heard too.
    farm.run(farm.last.plus(Millis(50)), u64::MAX);
    let [head, of_hosts] = farm.spent.map(|spent| spent.as_secs_f64());
    let note = format!(
        "one head, {hosts} hosts, {cores} cores, {JOBS} jobs; {} ms a way, {} ms a write",
        LATENCY.0, SYNC.0
    );
    let row = Row::alone("farm.fill.time", simulated.0 as f64 / 1000.0, "s");
    table.add(row.at_most(10.0).note(note));
    let note = format!(
        "of the head, which decided {} times about {} inputs, {:.0} ms at most; the hosts together {of_hosts:.1} s",
        farm.turns,
        farm.inputs,
        super::ms(farm.slowest)
    );
    table.add(Row::alone("farm.fill.cpu", head + of_hosts, "s").at_most(10.0).note(note));
    Ok(())
}
