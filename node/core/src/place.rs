//! Placement: which sites are asked for slots for the waiting tasks of a step.
//!
//! Never greedily on gossip: what we believe of others is old, and everybody who believes the same would
//! go to the same site. A few candidates are sampled, ranked by when a batch would be done there, and asked;
//! the lender's admission decides. (Mitzenmacher 2000, "How useful is old information?".)

use std::collections::BTreeSet;

use rand_core::Rng;

use meshfarm_protocol::id::{ChunkId, Millis, SiteId, StepNo};
use meshfarm_protocol::job::{Place, StepSpec};
use meshfarm_protocol::matching::{Asked, Misfit, fit, fits};
use meshfarm_protocol::profile::{HostClass, Level, Profile, Requirement};

use crate::hosts::Hosts;
use crate::job::Job;
use crate::licences;
use crate::sites::{Known, Sites, at_speed};

/// How many sites are considered at a time, besides those that have the content already.
const SAMPLE: usize = 8;

/// So many slots a site is asked for that has none free and hands work on: what further sites have is not known here.
const ASKED_TO_PASS_ON: u32 = 8;

/// What we assume of a task's length before the first one is done.
pub(crate) const ASSUMED_TASK: Millis = Millis::seconds(30);

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
    /// Our own slots take no tasks, because a person said so.
    pub(crate) shut: bool,
    /// How many tasks of the step our own machine could begin now, and how many it could hold if it were idle.
    pub(crate) room: (u32, u32),
    /// How many tasks of the step there are licences for, on all our machines together.
    pub(crate) licensed: u32,
    pub(crate) sites: &'a Sites,
    pub(crate) hosts: &'a Hosts,
    /// Sites that are not asked now: they have an open offer of this step, or somebody more urgent waits there.
    pub(crate) engaged: &'a BTreeSet<SiteId>,
}

struct Candidate {
    site: SiteId,
    /// It is a host of ours.
    own: bool,
    free: u32,
    warm: bool,
    done_after: u64,
}

/// The isolation that a job asks of a machine: our own ones may be as weak as they are.
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
    let others = able(job, spec, supply).filter(|(_, known)| !known.shunned(now));
    own.then_some(supply.me).into_iter().chain(others.map(|(site, _)| site)).collect()
}

/// Every machine that could run the step, with slots: ours with all that an idle one has, others with what is free.
pub(crate) fn reach(
    (job, step): (&Job, StepNo),
    supply: &Supply<'_>,
    now: Millis,
) -> Vec<(SiteId, u32)> {
    let Some(spec) = job.step_spec(step) else {
        return Vec::new();
    };
    let own = own_fits(job, step, supply).then_some((supply.me, supply.room.1));
    let others = able(job, spec, supply).filter(|(_, known)| !known.shunned(now));
    let others = others.filter_map(|(site, known)| {
        let profile = known.profile.as_ref()?;
        let slots = profile.hosts.first().map_or(0, |host| host.slots);
        Some((site, if supply.hosts.contains(site) { slots } else { profile.free }))
    });
    own.into_iter().chain(others).collect()
}

/// Whether our own machine could run the step at all.
pub(crate) fn own_fits(job: &Job, step: StepNo, supply: &Supply<'_>) -> bool {
    let fits = |spec: &StepSpec| fits(&spec.requirement, floor(job, true), supply.host);
    supply.host.slots > 0
        && !supply.shut
        && job.allows(supply.my_name, true)
        && job.step_spec(step).is_some_and(fits)
}

/// Whether a host of ours could run the step, were a slot free there.
pub(crate) fn host_fits(
    (job, step): (&Job, StepNo),
    host: SiteId,
    supply: &Supply<'_>,
    now: Millis,
) -> bool {
    let known = supply.sites.get(host).filter(|known| known.ask_after <= now);
    let (Some(known), Some(spec)) = (known, job.step_spec(step)) else {
        return false;
    };
    let asked = asked_of_ours((job, spec), supply);
    host_has(&asked, known) && takes_work(job, (host, known), supply)
}

/// Whether a host of ours has what a step asks.
fn host_has(asked: &Asked<'_>, known: &Known) -> bool {
    let mut classes = known.profile.iter().flat_map(|profile| &profile.hosts);
    classes.any(|host| asked.fits(host))
}

/// What a step asks of our own hosts; licences are the site's.
fn asked_of_ours<'a>((job, spec): (&Job, &'a StepSpec), supply: &Supply<'_>) -> Asked<'a> {
    Asked::new(licences::of_host(&spec.requirement, supply.host), floor(job, true))
}

/// Whether a job's policy lets a site, or a host of ours, run its tasks. A name that a host of ours has means the host,
/// whatever another site calls itself.
pub(crate) fn allows(job: &Job, (site, name): (SiteId, &str), hosts: &Hosts) -> bool {
    let own = hosts.contains(site);
    let another = matches!(&job.spec.policy.place, Place::Site(name) if hosts.is_named(name));
    job.allows(name, own) && (own || !another)
}

/// Whether a machine would take tasks of the job now that it fits.
fn takes_work(job: &Job, (site, known): (SiteId, &Known), supply: &Supply<'_>) -> bool {
    let lends = known.lends() && known.profile.as_ref().is_some_and(|profile| profile.lending);
    let own = supply.hosts.contains(site);
    let open = !own || supply.hosts.is_open(site);
    let pays = own || known.profile.as_ref().is_some_and(|profile| job.pays(&profile.price));
    known.connected && pays && lends && open && allows(job, (site, &known.name), supply.hosts)
}

/// Whether a site that the job names hands its tasks on to further sites: then it is asked whatever it has itself.
pub(crate) fn passes_on(job: &Job, known: &Known) -> bool {
    let hands_on = known.profile.as_ref().is_some_and(|profile| profile.passes_on);
    hands_on && job.spec.policy.hops > 0 && matches!(job.place(), Place::Site(_))
}

/// Other machines that could run the step: sites, and hosts of ours.
fn able<'a>(
    job: &'a Job,
    spec: &'a StepSpec,
    supply: &'a Supply<'a>,
) -> impl Iterator<Item = (SiteId, &'a Known)> {
    let sites = supply.sites.fitting(&spec.requirement, floor(job, false));
    let sites = sites.filter(|(site, _)| !supply.hosts.contains(*site));
    let hosts = supply.hosts.all();
    let hosts = hosts.filter_map(|record| Some((record.host, supply.sites.get(record.host)?)));
    let asked = asked_of_ours((job, spec), supply);
    let hosts = hosts.filter(move |(_, known)| host_has(&asked, known));
    let by_way = matches!(job.place(), Place::Site(_)).then(|| supply.sites.all());
    let by_way = by_way.into_iter().flatten().filter(|(site, known)| {
        let has =
            |p: &Profile| p.hosts.iter().any(|h| fits(&spec.requirement, floor(job, false), h));
        passes_on(job, known)
            && !supply.hosts.contains(*site)
            && !known.profile.as_ref().is_some_and(has)
    });
    sites.chain(by_way).chain(hosts).filter(|other| takes_work(job, *other, supply))
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
    let (mut left, mut licensed) = (demand.uncovered, supply.licensed);
    let mut asked = Vec::new();
    let mut ask = |site, free: u32, own: bool| {
        // Another site has licences of its own.
        let slots = free.min(left).min(if own { licensed } else { u32::MAX });
        left -= slots;
        licensed -= if own { slots } else { 0 };
        if slots > 0 {
            asked.push((site, slots));
        }
        left > 0
    };
    let own = own_fits(demand.job, demand.step, supply) && takes(supply.me);
    let hurry = demand.job.hurry(now).is_some();
    let here = own && !supply.engaged.contains(&supply.me);
    // A job in a hurry takes the fastest first, wherever they are.
    if here && !hurry && !ask(supply.me, supply.room.0, true) {
        return asked;
    }
    let (mine, ours) = local_finish(demand, (spec, own), supply, takes);
    let mut candidates: Vec<_> = able(demand.job, spec, supply)
        .filter(|(site, _)| !supply.engaged.contains(site) && takes(*site))
        .filter_map(|(site, known)| {
            let own = supply.hosts.contains(site);
            candidate((site, own), known, demand, now)
        })
        .filter(|candidate| {
            let local = if candidate.own { mine } else { ours };
            hurry || local.is_none_or(|local| candidate.done_after < local)
        })
        .collect();
    sample(&mut candidates, rng);
    if hurry {
        let (site, free) = (supply.me, if here { supply.room.0 } else { 0 });
        let done_after = at_speed(task_time(demand), supply.host.speed).0;
        candidates.push(Candidate { site, own: true, free, warm: true, done_after });
    }
    // What our own machines can take does not leave the house.
    candidates.sort_by_key(|candidate| (!candidate.own && !hurry, candidate.done_after));
    for candidate in candidates {
        if !ask(candidate.site, candidate.free, candidate.own) {
            break;
        }
    }
    asked
}

/// How long a task of the step runs on the reference core.
fn task_time(demand: &Demand<'_>) -> Millis {
    demand.job.task_time(demand.step).unwrap_or(ASSUMED_TASK)
}

/// When this machine alone, and when it and our hosts together would be through with the step, in milliseconds from
/// now: what runs there already, of whomever, comes first. None where there is no such machine.
fn local_finish(
    demand: &Demand<'_>,
    (spec, own): (&StepSpec, bool),
    supply: &Supply<'_>,
    takes: impl Fn(SiteId) -> bool,
) -> (Option<u64>, Option<u64>) {
    let finish = |(slots, free, speed): (u32, u32, u32)| {
        let busy = slots.saturating_sub(free) as usize;
        let tasks = demand.fresh + demand.again.len() + busy;
        let rounds = tasks.div_ceil((slots as usize).max(1)) as u64;
        rounds.saturating_mul(at_speed(task_time(demand), speed).0)
    };
    let (free, at_once) = supply.room;
    let mine = own.then_some((at_once, free, supply.host.speed));
    let asked = asked_of_ours((demand.job, spec), supply);
    let hosts = supply.hosts.all().filter(|record| takes(record.host)).filter_map(|record| {
        let known = supply.sites.get(record.host)?;
        let fits = host_has(&asked, known) && takes_work(demand.job, (record.host, known), supply);
        let profile = known.profile.as_ref().filter(|_| fits)?;
        let host = profile.hosts.first()?;
        Some((host.slots, profile.free.min(host.slots), host.speed))
    });
    let ours = mine
        .into_iter()
        .chain(hosts)
        .reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1), a.2.max(b.2)));
    (mine.map(finish), ours.map(finish))
}

fn candidate(
    (site, own): (SiteId, bool),
    known: &Known,
    demand: &Demand<'_>,
    now: Millis,
) -> Option<Candidate> {
    let profile = known.profile.as_ref()?;
    let free = match profile.free {
        0 if passes_on(demand.job, known) => ASKED_TO_PASS_ON,
        free => free,
    };
    if free == 0 || known.shut || known.ask_after > now {
        return None;
    }
    let warm = known.warm.contains(&demand.root);
    let transfer = if warm { 0 } else { known.experience.transfer(demand.bytes) };
    let run = known.experience.run(at_speed(task_time(demand), known.speed()).0);
    // The scene is shipped once for all tasks that the site will get, so its price is spread over them.
    let share = u64::from(free.min(demand.uncovered).max(1));
    let done_after = (transfer / share).saturating_add(run);
    Some(Candidate { site, own, free, warm, done_after })
}

/// Keep our own hosts, the warm ones and a random few of the others.
fn sample(candidates: &mut Vec<Candidate>, rng: &mut impl Rng) {
    let n = candidates.len();
    for i in (1..n).rev() {
        let j = usize::try_from(rng.next_u64() % (i as u64 + 1)).unwrap_or(0);
        candidates.swap(i, j);
    }
    let mut cold = 0;
    candidates.retain(|candidate| {
        let kept = candidate.own || candidate.warm;
        cold += usize::from(!kept);
        kept || cold <= SAMPLE
    });
}
