//! Three sites whose members say anything to them in any order: nothing panics, and every look at all invariants holds.
#![no_main]
#![allow(dead_code, reason = "the core's own tests use all of the mesh")]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use meshfarm_core::{Ask, Ended, Input, Operation, Request, Session, SiteOperation, Tasks};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{
    AttemptId, ChunkId, JobId, LeaseId, MeshId, Millis, SiteId, StepNo, TaskNo, TenantId,
};
use meshfarm_protocol::lease::{
    Assignment, Commit, Declined, Done, Grant, Offer, Outcome, Outputs, Phase, Status, Usage, Want,
};
use meshfarm_protocol::membership::{Role, mesh_of_hosts};
use meshfarm_protocol::message::{MAX_CONTROL_BYTES, Message};
use meshfarm_protocol::profile::{
    Amount, AmountNeed, AttributeNeed, HostClass, Level, Profile, Requirement,
};
use meshfarm_protocol::receipt::{Price, Terms};
use meshfarm_protocol::seal::SealingKey;

#[path = "../../../node/core/tests/mesh.rs"]
mod mesh;

use mesh::{Mesh, envelope, frames, host, id, spec, step};

#[derive(Arbitrary, Debug)]
enum Act {
    Pass(u16),
    Long(u8),
    Deliver(u8),
    DeliverAll,
    Lose(u8),
    Repeat(u8),
    End(u8, u8, bool),
    Restart(u8),
    Cut(u8, u8),
    Mend(u8, u8),
    Submit(u8, u8, bool),
    Operate { at: u8, job: u8, what: Does, tasks: Which },
    Pause { at: u8, own: bool, grace: Option<u16> },
    Resume(u8),
    Shut { at: u8, name: u8, shut: bool },
    Disk(u8, bool),
    Join { at: u8, name: String, secret: u8, role: u8 },
    Invite(u8, u8, u8),
    Profile { at: u8, of: u8, says: ProfilePlan },
    Heard { at: u8, from: u8, says: Says },
    Ended(u8, u8, u8),
}

/// What a person does to a job.
#[derive(Arbitrary, Debug)]
enum Does {
    Hold(bool),
    Release,
    Cancel,
    Retry,
    Kill(bool),
    Priority(u8),
    Outsource(Option<u8>),
    Recall,
}

/// To which of its tasks.
#[derive(Arbitrary, Debug)]
enum Which {
    All,
    Failed,
    Step(u8),
    These(u8, Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct ProfilePlan {
    sequence: u64,
    ttl: u64,
    free: u32,
    lending: bool,
    slots: u32,
    speed: u32,
    count: u32,
    level: u8,
    name: String,
}

/// What a hostile member says; numbers choose among the leases and attempts that there are.
#[derive(Arbitrary, Debug)]
enum Says {
    Offer {
        lease: u8,
        slots: u32,
        tasks: u32,
        bytes: u64,
        level: u8,
        need: Option<(u64, String)>,
    },
    Grant {
        lease: u8,
        slots: u32,
        reserved: u64,
        level: u8,
    },
    Decline {
        lease: u8,
        reason: u8,
        retry_after: u64,
    },
    Commit {
        want: WantPlan,
        root: u8,
    },
    Want(WantPlan),
    Status {
        lease: u8,
        phase: u8,
        running: Vec<u8>,
        finished: Vec<u8>,
    },
    Done {
        lease: u8,
        attempt: u8,
        reason: Option<String>,
        outputs: bool,
        usage: (u64, u64, u64),
    },
    Accepted {
        lease: u8,
        attempt: u8,
    },
    Close {
        lease: u8,
    },
    /// Bytes of its own, as they pass the decoder.
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct WantPlan {
    lease: u8,
    version: u64,
    attempts: Vec<(u8, u32)>,
    more: bool,
}

/// Names that people say: of sites that are there, and of none.
const NAMES: [&str; 4] = ["oslo", "lyon", "graz", "rome"];

const PHASES: [Phase; 4] = [Phase::Preparing, Phase::Active, Phase::Draining, Phase::Gone];

/// Longer stories only take longer.
const MOST_ACTS: usize = 120;

/// Three sites of six slots have no use for more records of leases and results.
const MOST_RECORDS: usize = 1000;

fuzz_target!(|acts: Vec<Act>| {
    let mut mesh = Mesh::new([("oslo", 2), ("lyon", 3), ("graz", 1)]);
    for act in acts.into_iter().take(MOST_ACTS) {
        perform(&mut mesh, act);
        assert!(mesh.wires.len() < 5000, "the sites talk without end");
    }
    // What was written down is enough to begin again.
    for at in 0..3 {
        mesh.restart(at);
    }
    mesh.advance(5_000);
    assert!(mesh.leftovers() < MOST_RECORDS, "{} records are left", mesh.leftovers());
});

fn site(n: u8) -> usize {
    usize::from(n % 3)
}

fn perform(mesh: &mut Mesh, act: Act) {
    match act {
        Act::Pass(ms) => pass(mesh, u64::from(ms)),
        Act::Long(minutes) => pass(mesh, u64::from(minutes) * 60_000),
        Act::Deliver(n) => {
            let n = usize::from(n).min(mesh.wires.len().saturating_sub(1));
            if let Some((from, to, message)) = mesh.wires.remove(n) {
                mesh.give(to, Input::Heard { from: id(from), message });
            }
        }
        Act::DeliverAll => mesh.settle(),
        Act::Lose(n) => drop(mesh.wires.remove(usize::from(n))),
        Act::Repeat(n) => {
            if let Some(message) = mesh.wires.get(usize::from(n)).cloned() {
                mesh.wires.push_back(message);
            }
        }
        Act::End(at, n, well) => {
            let running = mesh.peers[site(at)].running.get(usize::from(n)).cloned();
            if let Some(running) = running {
                mesh.end(site(at), running.session, (!well).then_some("failed"));
            }
        }
        Act::Restart(at) => mesh.restart(site(at)),
        Act::Cut(a, b) if site(a) != site(b) => mesh.cut(site(a), site(b)),
        Act::Mend(a, b) if site(a) != site(b) => mesh.mend(site(a), site(b)),
        Act::Cut(..) | Act::Mend(..) => {}
        Act::Profile { at, of, says } => {
            // A profile's signature is checked before the core hears of it: it speaks for its signer alone.
            if site(at) != usize::from(of % 8) {
                mesh.give(site(at), Input::Profile(profile(of % 8, says)));
            }
        }
        Act::Heard { at, from, says } => {
            let (at, from) = (site(at), usize::from(from % 4));
            let from = if from == 3 { 8 } else { from };
            if at != from
                && let Some(message) = message(mesh, says)
            {
                mesh.give(at, Input::Heard { from: id(from), message });
            }
        }
        Act::Ended(at, session, attempt) => {
            let ended = Ended {
                attempt: attempt_of(mesh, attempt),
                outcome: Outcome::Done,
                outputs: None,
                usage: Usage::default(),
            };
            let session = Session(u64::from(session) + 1000);
            mesh.give(site(at), Input::SessionEnded { session, results: vec![ended] });
        }
        asked => ask(mesh, asked),
    }
}

fn operation(what: Does, tasks: Which) -> Operation {
    let step = |n: u8| StepNo(n.into());
    let tasks = match tasks {
        Which::All => Tasks::All,
        Which::Failed => Tasks::Failed,
        Which::Step(n) => Tasks::Step(step(n)),
        Which::These(n, these) => {
            Tasks::These(step(n), these.into_iter().map(|task| TaskNo(task.into())).collect())
        }
    };
    match what {
        Does::Hold(give_back) => Operation::Hold { tasks, give_back },
        Does::Release => Operation::Release { tasks },
        Does::Cancel => Operation::Cancel { tasks },
        Does::Retry => Operation::Retry { tasks },
        Does::Kill(fail) => Operation::Kill { tasks, fail },
        Does::Priority(priority) => Operation::Priority(priority),
        Does::Outsource(to) => {
            let name = |n: u8| NAMES[usize::from(n) % NAMES.len()].to_owned();
            Operation::Outsource(to.map(name))
        }
        Does::Recall => Operation::Recall,
    }
}

fn ask(mesh: &mut Mesh, act: Act) {
    let (at, ask) = match act {
        Act::Submit(at, n, steps) => {
            let n = u32::from(n % 16);
            let spec = if steps { spec(vec![step(n, &[]), step(1, &[0])]) } else { frames(n) };
            (at, Ask::Submit { spec: Box::new(spec), root: ChunkId([5; 32]), bytes: 1 })
        }
        Act::Operate { at, job: n, what, tasks } => match job(mesh, at, n) {
            Some(job) => (at, Ask::Operate { job, operation: operation(what, tasks) }),
            None => return,
        },
        Act::Pause { at, own, grace } => {
            let give_back = grace.map(|grace| Millis(grace.into()));
            (at, Ask::OperateSite(SiteOperation::Pause { own, give_back }))
        }
        Act::Resume(at) => (at, Ask::OperateSite(SiteOperation::Resume)),
        Act::Shut { at, name, shut } => {
            let name = NAMES[usize::from(name) % NAMES.len()].to_owned();
            let shut = if shut { SiteOperation::Shut(name) } else { SiteOperation::Reopen(name) };
            (at, Ask::OperateSite(shut))
        }
        Act::Invite(at, secret, uses) => {
            let host = secret % 2 == 1;
            let invite = Ask::Invite {
                mesh: if host { mesh_of_hosts(id(site(at))) } else { MeshId([7; 32]) },
                mesh_name: "consortium".into(),
                secret_hash: [secret; 32],
                role: if host { Role::Host } else { Role::Site },
                uses: uses.into(),
                expires: mesh.now.plus(Millis::seconds(1000)),
            };
            (at, invite)
        }
        Act::Disk(at, full) => return mesh.give(site(at), Input::Disk { full }),
        Act::Join { at, name, secret, role } => {
            let role = [Role::Site, Role::Host, Role::Submitter][usize::from(role % 3)];
            let join = Input::JoinAsked {
                request: Request(2),
                peer: SiteId([secret; 32]),
                secret_hash: [secret; 32],
                name,
                role,
            };
            return mesh.give(site(at), join);
        }
        _ => return,
    };
    mesh.give(site(at), Input::Asked(Request(1), ask));
}

fn pass(mesh: &mut Mesh, ms: u64) {
    mesh.now = mesh.now.plus(Millis(ms));
    (0..3).for_each(|at| mesh.give(at, Input::Tick));
}

fn job(mesh: &Mesh, at: u8, n: u8) -> Option<JobId> {
    mesh.site(site(at)).jobs().get(usize::from(n)).map(|job| job.job)
}

/// A lease that exists somewhere, or one that does not.
fn lease_of(mesh: &Mesh, pick: u8) -> LeaseId {
    let running = mesh.peers.iter().flat_map(|peer| &peer.running);
    let leases: Vec<_> = running.map(|running| running.lease).collect();
    leases.get(usize::from(pick)).copied().unwrap_or(LeaseId([pick; 16]))
}

fn attempt_of(mesh: &Mesh, pick: u8) -> AttemptId {
    let running = mesh.peers.iter().flat_map(|peer| &peer.running);
    let attempts: Vec<_> = running.map(|running| running.run[0].attempt).collect();
    attempts.get(usize::from(pick)).copied().unwrap_or(AttemptId([pick; 16]))
}

fn level(n: u8) -> Level {
    [Level::S0, Level::S1, Level::S2, Level::S3][usize::from(n % 4)]
}

fn want(mesh: &Mesh, plan: WantPlan) -> Want {
    let attempts = plan.attempts.into_iter().map(|(attempt, task)| Assignment {
        attempt: attempt_of(mesh, attempt),
        task: TaskNo(task),
    });
    Want {
        lease: lease_of(mesh, plan.lease),
        version: plan.version,
        attempts: attempts.collect(),
        more: plan.more,
    }
}

fn message(mesh: &Mesh, says: Says) -> Option<Message> {
    let lease = |pick| lease_of(mesh, pick);
    let attempt = |pick| attempt_of(mesh, pick);
    let attempts = |picks: Vec<u8>| picks.into_iter().map(attempt).collect();
    Some(match says {
        Says::Offer { lease: pick, slots, tasks, bytes, level: n, need } => Message::Offer(Offer {
            lease: lease(pick),
            tenant: TenantId([pick; 16]),
            requirement: need.map(requirement).unwrap_or_default(),
            isolation: level(n),
            slots,
            tasks,
            root: ChunkId([pick; 32]),
            bytes,
            priority: pick,
            hops: pick % 8,
        }),
        Says::Grant { lease: pick, slots, reserved, level: n } => Message::Grant(Grant {
            lease: lease(pick),
            slots,
            reserved: Millis(reserved),
            sealing_key: SealingKey([pick; 32]),
            isolation: level(n),
            terms: Terms { cores: slots, ..Terms::default() },
        }),
        Says::Decline { lease: pick, reason, retry_after } => {
            let reason = match reason % 5 {
                0 => Declined::Busy,
                1 => Declined::Misfit,
                2 => Declined::Policy,
                3 => Declined::Full,
                _ => Declined::Malformed,
            };
            Message::Decline { lease: lease(pick), reason, retry_after: Millis(retry_after) }
        }
        Says::Commit { want: plan, root } => Message::Commit(Box::new(Commit {
            want: want(mesh, plan),
            root: ChunkId([root; 32]),
            envelope: envelope(id(0), id(1)),
        })),
        Says::Want(plan) => Message::Want(want(mesh, plan)),
        Says::Status { lease: pick, phase, running, finished } => Message::Status(Status {
            lease: lease(pick),
            phase: PHASES[usize::from(phase) % PHASES.len()],
            running: attempts(running),
            finished: attempts(finished),
        }),
        Says::Done { lease: pick, attempt: tried, reason, outputs, usage } => {
            let outputs = outputs
                .then(|| Outputs { root: ChunkId([pick; 32]), envelope: envelope(id(0), id(1)) });
            Message::Done(Box::new(Done {
                lease: lease(pick),
                attempt: attempt(tried),
                outcome: reason.map_or(Outcome::Done, Outcome::Failed),
                outputs,
                usage: Usage {
                    wall: Millis(usage.0),
                    cpu: Millis(usage.1),
                    peak_memory: usage.2,
                    output_bytes: usage.2,
                },
            }))
        }
        Says::Accepted { lease: pick, attempt: tried } => {
            let counts = pick % 2 == 0;
            Message::Accepted { lease: lease(pick), attempt: attempt(tried), counts }
        }
        Says::Close { lease: pick } => Message::Close { lease: lease(pick) },
        Says::Raw(bytes) => codec::decode(&bytes, MAX_CONTROL_BYTES).ok()?,
    })
}

fn requirement((min, name): (u64, String)) -> Requirement {
    let need = AmountNeed { min: Amount(min), max: None };
    let values = AttributeNeed { any_of: [name.clone()].into(), all_of: [].into() };
    Requirement {
        amounts: [("amount.worker.vcpu".to_owned(), need), (name.clone(), need)].into(),
        attributes: [("attr.worker.os.family".to_owned(), values)].into(),
    }
}

fn profile(of: u8, says: ProfilePlan) -> Profile {
    let class = HostClass {
        count: says.count,
        speed: says.speed,
        level: level(says.level),
        ..host(says.slots)
    };
    Profile {
        version: 1,
        site: id(usize::from(of)),
        name: says.name,
        sequence: says.sequence,
        issued: Millis(0),
        ttl: Millis(says.ttl),
        hosts: vec![class],
        free: says.free,
        lending: says.lending,
        passes_on: false,
        sealing_key: SealingKey([1; 32]),
        addresses: Vec::new(),
        price: Price::default(),
    }
}
