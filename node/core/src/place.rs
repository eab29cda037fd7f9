//! Placement: which sites are asked for slots for the waiting tasks of a step.
//!
//! Never greedily on gossip: what we believe of others is old, and everybody who believes the same would
//! go to the same site. A few candidates are sampled, ranked by when a batch would be done there, and asked;
//! the lender's admission decides. (Mitzenmacher 2000, "How useful is old information?".)

use std::collections::BTreeSet;

use rand_core::Rng;

use meshfarm_protocol::id::{ChunkId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::StepSpec;
use meshfarm_protocol::matching::{Misfit, fit, fits};
use meshfarm_protocol::profile::{HostClass, Level, Requirement};

use crate::job::Job;
use crate::sites::{Known, Sites};

/// How many sites are considered at a time, besides those that have the content already.
const SAMPLE: usize = 8;

/// What we assume of a link that we have not measured, in bytes per millisecond.
const ASSUMED_RATE: u64 = 20_000;

/// What we assume of a task's length before the first one is done.
pub(crate) const ASSUMED_TASK: Millis = Millis::seconds(30);

/// Speed of the reference core, in the profile's unit.
const REFERENCE_SPEED: u64 = 1000;

/// The waiting tasks of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) job: &'a Job,
    pub(crate) step: StepNo,
    pub(crate) root: ChunkId,
    pub(crate) bytes: u64,
    /// How many tasks wait that have never failed.
    pub(crate) fresh: usize,
    /// Of each other task that waits: where it has failed before.
    pub(crate) again: &'a [&'a [SiteId]],
    /// Tasks that no open offer covers yet.
    pub(crate) uncovered: u32,
}

/// Who could run them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supply<'a> {
    pub(crate) me: SiteId,
    pub(crate) my_name: &'a str,
    pub(crate) host: &'a HostClass,
    /// How many tasks of the step our own machine could begin now, and how many it could hold if it were idle.
    pub(crate) room: (u32, u32),
    pub(crate) sites: &'a Sites,
    /// Sites that are not asked now: they have an open offer of this step, or somebody more urgent waits there.
    pub(crate) engaged: &'a BTreeSet<SiteId>,
}

struct Candidate {
    site: SiteId,
    free: u32,
    warm: bool,
    done_after: u64,
}

/// The requirement of a step and the isolation that it asks of `site`: our own machine may be as weak as it is.
pub(crate) fn floor(job: &Job, own: bool) -> Level {
    if own { Level::S0 } else { job.spec.policy.isolation }
}

/// Every reason why a site cannot run a step: those of the host class that lacks least.
pub(crate) fn misfits(need: &Requirement, level: Level, hosts: &[HostClass]) -> Vec<Misfit> {
    let each = hosts.iter().map(|host| fit(need, level, host));
    each.min_by_key(Vec::len).unwrap_or_default()
}

/// Sites that could run the step at all, whether or not they have a slot free.
pub(crate) fn fitting(job: &Job, step: StepNo, supply: &Supply<'_>, now: Millis) -> Vec<SiteId> {
    let Some(spec) = job.step_spec(step) else {
        return Vec::new();
    };
    let own = own_fits(job, step, supply);
    let others = supply.sites.fitting(&spec.requirement, floor(job, false));
    let others = others.filter(|(_, known)| !known.shunned(now) && takes_work(job, known));
    own.then_some(supply.me).into_iter().chain(others.map(|(site, _)| site)).collect()
}

/// Whether our own machine could run the step at all.
pub(crate) fn own_fits(job: &Job, step: StepNo, supply: &Supply<'_>) -> bool {
    let fits = |spec: &StepSpec| fits(&spec.requirement, floor(job, true), supply.host);
    supply.host.slots > 0
        && job.allows(supply.my_name, true)
        && job.step_spec(step).is_some_and(fits)
}

/// Whether a site would take tasks of the job now that its hosts fit.
fn takes_work(job: &Job, known: &Known) -> bool {
    let lends = known.profile.as_ref().is_some_and(|profile| profile.lending);
    known.connected && lends && job.allows(&known.name, false)
}

/// Whether a task that failed on `failed_on` may go to `site`: not where it failed before, unless it has
/// failed on every site that fits.
pub(crate) fn eligible(failed_on: &[SiteId], site: SiteId, fitting: &[SiteId]) -> bool {
    !failed_on.contains(&site) || fitting.iter().all(|fits| failed_on.contains(fits))
}

/// Whom to ask for how many slots.
pub(crate) fn place(
    demand: &Demand<'_>,
    supply: &Supply<'_>,
    now: Millis,
    rng: &mut impl Rng,
) -> Vec<(SiteId, u32)> {
    let Some(spec) = demand.job.step_spec(demand.step) else {
        return Vec::new();
    };
    // A fresh task may go anywhere, so nobody needs to know where else it could.
    let fitting =
        if demand.fresh > 0 { Vec::new() } else { fitting(demand.job, demand.step, supply, now) };
    let takes = |site: SiteId| {
        let mut again = demand.again.iter();
        demand.fresh > 0 || again.any(|failed_on| eligible(failed_on, site, &fitting))
    };
    let mut left = demand.uncovered;
    let mut asked = Vec::new();
    let mut ask = |site, free: u32| {
        let slots = free.min(left);
        left -= slots;
        if slots > 0 {
            asked.push((site, slots));
        }
        left > 0
    };
    let own = own_fits(demand.job, demand.step, supply) && takes(supply.me);
    if own && !supply.engaged.contains(&supply.me) && !ask(supply.me, supply.room.0) {
        return asked;
    }
    let local = own.then(|| local_finish(demand, supply));
    let others = supply.sites.fitting(&spec.requirement, floor(demand.job, false));
    let mut candidates: Vec<_> = others
        .filter(|(site, _)| !supply.engaged.contains(site) && takes(*site))
        .filter_map(|(site, known)| Some((known, candidate(site, known, demand, now)?)))
        .filter(|(_, candidate)| local.is_none_or(|local| candidate.done_after < local))
        .filter(|(known, _)| takes_work(demand.job, known))
        .map(|(_, candidate)| candidate)
        .collect();
    sample(&mut candidates, rng);
    candidates.sort_by_key(|candidate| candidate.done_after);
    for candidate in candidates {
        if !ask(candidate.site, candidate.free) {
            break;
        }
    }
    asked
}

fn task_time(demand: &Demand<'_>) -> u64 {
    demand.job.task_time(demand.step).unwrap_or(ASSUMED_TASK).0
}

/// When our own slots alone would be through with the step, in milliseconds from now: what runs there already,
/// of whomever, comes first.
fn local_finish(demand: &Demand<'_>, supply: &Supply<'_>) -> u64 {
    let (free, at_once) = supply.room;
    let busy = at_once.saturating_sub(free) as usize;
    let tasks = demand.fresh + demand.again.len() + busy;
    let rounds = tasks.div_ceil(at_once.max(1) as usize) as u64;
    rounds.saturating_mul(at_speed(task_time(demand), supply.host.speed))
}

/// How long on our machine what takes `reference` on the reference core.
pub(crate) fn at_speed(reference: u64, speed: u32) -> u64 {
    reference.saturating_mul(REFERENCE_SPEED) / u64::from(speed.max(1))
}

fn candidate(site: SiteId, known: &Known, demand: &Demand<'_>, now: Millis) -> Option<Candidate> {
    let profile = known.profile.as_ref()?;
    if profile.free == 0 || known.ask_after > now {
        return None;
    }
    let warm = known.warm.contains(&demand.root);
    let transfer = if warm { 0 } else { demand.bytes / ASSUMED_RATE };
    let speed = profile.hosts.iter().map(|host| host.speed).max().unwrap_or(1);
    // The scene is shipped once for all tasks that the site will get, so its price is spread over them.
    let share = u64::from(profile.free.min(demand.uncovered).max(1));
    let done_after = (transfer / share).saturating_add(at_speed(task_time(demand), speed));
    Some(Candidate { site, free: profile.free, warm, done_after })
}

/// Keep the warm ones and a random few of the others.
fn sample(candidates: &mut Vec<Candidate>, rng: &mut impl Rng) {
    let n = candidates.len();
    for i in (1..n).rev() {
        let j = usize::try_from(rng.next_u64() % (i as u64 + 1)).unwrap_or(0);
        candidates.swap(i, j);
    }
    let mut cold = 0;
    candidates.retain(|candidate| {
        cold += usize::from(!candidate.warm);
        candidate.warm || cold <= SAMPLE
    });
}
