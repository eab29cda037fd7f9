//! From a scenario to a plan: every distribution is drawn, every group counted out, every name looked up.

mod nemesis;

use crate::import;
use crate::plan::{FOREVER, Plan, PlanFault, PlanJob, PlanSite, SCHEMA, Trouble};
use crate::scenario::{Churn, FrameTime, Group, Link, Scenario, Workload};
use crate::streams::{Streams, number_of};
use crate::units::{Dist, round};

/// More sites than this are not simulated.
const MAX_SITES: usize = 200_000;

/// More frames than this in all are not simulated.
const MAX_FRAMES: u64 = 50_000_000;

/// More faults than this are not simulated.
const MAX_FAULTS: usize = 200_000;

/// What a line is like unless the scenario says otherwise: bytes a second, milliseconds.
const USUAL: (u64, u64, u64, u64) = (12_500_000, 50_000_000, 12, 4);

/// The plan that a seed draws of a scenario.
pub(crate) fn plan(scenario: &Scenario, seed: u64) -> Result<Plan, String> {
    let streams = Streams::new(seed);
    let site = sites(scenario, streams)?;
    let duration_ms = scenario.duration.0;
    let mut job = jobs(scenario, &site, streams)?;
    job.retain(|job| job.at_ms < duration_ms);
    let last_job = job.iter().map(|job| job.at_ms).max().unwrap_or(0);
    let heal_ms = scenario.heal.as_ref().map_or(duration_ms, |heal| heal.at.0);
    let mut fault = nemesis::faults(scenario, &site, (streams, heal_ms))?;
    for group in &scenario.site {
        if let Some(churn) = &group.churn {
            fault.extend(comings_and_goings(group, churn, &site, (streams, heal_ms)));
        }
    }
    fault.extend(left_dead(scenario, &site, &job, streams));
    fault.extend(nights(&site, heal_ms));
    if fault.len() > MAX_FAULTS {
        return Err(format!("{} faults are more than {MAX_FAULTS}", fault.len()));
    }
    fault.sort_by_key(|fault| fault.at_ms);
    let ends = fault.iter().filter(|fault| fault.for_ms < FOREVER);
    let calm = ends.map(|fault| fault.at_ms + fault.for_ms).max().unwrap_or(0);
    let heal_ms = if scenario.heal.is_some() { heal_ms } else { calm.max(last_job) };
    Ok(Plan {
        expanded: SCHEMA,
        name: scenario.name.clone(),
        purpose: scenario.purpose.clone(),
        seed,
        duration_ms,
        heal_ms: heal_ms.min(duration_ms),
        view: scenario.net.view,
        relay: scenario.net.relay,
        expect: scenario.expect.explicit(),
        site,
        job,
        fault,
    })
}

/// A share as so many of a million.
pub(crate) fn ppm(share: f64, what: &str) -> Result<u32, String> {
    if !(0.0..=1.0).contains(&share) {
        return Err(format!("{what} = {share}: a share is from 0 to 1"));
    }
    Ok(u32::try_from(round(share * 1e6)).unwrap_or(1_000_000))
}

fn sites(scenario: &Scenario, streams: Streams) -> Result<Vec<PlanSite>, String> {
    let wanted: usize = scenario.site.iter().map(|group| group.count.unwrap_or(1) as usize).sum();
    if wanted > MAX_SITES {
        return Err(format!("{wanted} sites are more than {MAX_SITES}"));
    }
    let mut sites = Vec::new();
    for group in &scenario.site {
        for n in 1..=group.count.unwrap_or(1) {
            let name = match group.count {
                None => group.name.clone(),
                Some(_) => format!("{}-{n}", group.name),
            };
            sites.push(one_site(scenario, group, name, streams)?);
        }
    }
    Ok(sites)
}

fn one_site(
    scenario: &Scenario,
    group: &Group,
    name: String,
    streams: Streams,
) -> Result<PlanSite, String> {
    let key = (number_of(&name), 0);
    let usual = &scenario.defaults.link;
    let (up, down, latency, jitter) = USUAL;
    let rate = |of: fn(&Link) -> &Option<Dist<crate::units::Rate>>, purpose, usually| {
        let dist = of(&group.link).as_ref().or_else(|| of(usual).as_ref());
        dist.map_or(usually, |dist| dist.draw(streams, purpose, key)).max(1)
    };
    let span = |of: fn(&Link) -> &Option<Dist<crate::units::Span>>, purpose, usually| {
        let dist = of(&group.link).as_ref().or_else(|| of(usual).as_ref());
        dist.map_or(usually, |dist| dist.draw(streams, purpose, key))
    };
    let slots = group.slots.draw(streams, "slots", key);
    let speed = group.speed.as_ref().map_or(1000, |dist| dist.draw(streams, "speed", key));
    let shift = |minutes| streams.between("hours", key, [0, 2 * minutes]) as i64 - minutes as i64;
    let hours = group.available.as_deref().map(|text| hours(text, shift)).transpose()?;
    Ok(PlanSite {
        group: group.name.clone(),
        slots: u32::try_from(slots).map_err(|_too_many| format!("{slots} slots are too many"))?,
        speed: u32::try_from(speed.max(1)).map_err(|_too_fast| "the speed is too great")?,
        up: rate(|link| &link.up, "up", up),
        down: rate(|link| &link.down, "down", down),
        latency_ms: span(|link| &link.latency, "site latency", latency),
        jitter_ms: span(|link| &link.jitter, "site jitter", jitter),
        loss_ppm: ppm(group.link.loss.or(usual.loss).unwrap_or(0.0), "loss")?,
        nat: group.nat,
        lending: group.lending,
        fail_ppm: ppm(group.fail, "fail")?,
        amounts: group.has.clone(),
        hours,
        away: group.away,
        grace_ms: group.grace.map_or(0, |grace| grace.0),
        host_of: group.host_of.clone(),
        name,
    })
}

/// `18:00-07:00 ~30m` as minutes of the day, shifted by a draw.
fn hours(text: &str, shift: impl Fn(u64) -> i64) -> Result<[u64; 2], String> {
    let wrong =
        || format!("available = {text:?}: hours look like \"18:00-07:00\" or \"18:00-07:00 ~30m\"");
    let (range, about) = text.split_once('~').unwrap_or((text, "0m"));
    let minutes = about.trim().strip_suffix('m').and_then(|m| m.parse().ok()).ok_or_else(wrong)?;
    let (from, to) = range.trim().split_once('-').ok_or_else(wrong)?;
    let minute = |text: &str| {
        let (hour, minute) = text.trim().split_once(':')?;
        let (hour, minute): (i64, i64) = (hour.parse().ok()?, minute.parse().ok()?);
        ((0..24).contains(&hour) && (0..60).contains(&minute)).then_some(hour * 60 + minute)
    };
    let by = shift(minutes);
    let shifted = |minute: i64| (minute + by).rem_euclid(24 * 60).unsigned_abs();
    let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
    if from == to {
        return Err(format!("available = {text:?} is the whole day or nothing: leave it out"));
    }
    Ok([shifted(from), shifted(to)])
}

/// Names of the sites that a list of sites and groups means, in order.
pub(crate) fn members(names: &[String], sites: &[PlanSite]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for name in names {
        let before = found.len();
        let meant = |site: &&PlanSite| site.name == *name || site.group == *name;
        found.extend(sites.iter().filter(meant).map(|site| site.name.clone()));
        if found.len() == before {
            return Err(format!("there is no site and no group {name}"));
        }
    }
    Ok(found)
}

fn jobs(scenario: &Scenario, sites: &[PlanSite], streams: Streams) -> Result<Vec<PlanJob>, String> {
    let mut jobs = Vec::new();
    let mut frames = 0;
    for (n, workload) in (0u64..).zip(&scenario.workload) {
        let from = members(std::slice::from_ref(&workload.from), sites)?;
        let mut made = match &workload.trace {
            Some(trace) => import::jobs(workload, trace, &scenario.folder, &from)?,
            None => drawn(workload, &from, (n, scenario.duration.0), streams)?,
        };
        frames += made.iter().map(PlanJob::n_tasks).sum::<u64>();
        if frames > MAX_FRAMES {
            return Err(format!("more than {MAX_FRAMES} frames"));
        }
        jobs.append(&mut made);
    }
    jobs.sort_by_key(|job| job.at_ms);
    for (id, job) in (0..).zip(&mut jobs) {
        job.id = id;
    }
    Ok(jobs)
}

/// When the jobs of a workload are submitted.
fn arrivals(
    workload: &Workload,
    (n, duration): (u64, u64),
    streams: Streams,
) -> Result<Vec<u64>, String> {
    match (&workload.at, &workload.arrive) {
        (Some(at), None) => Ok(vec![at.draw(streams, "job at", (n, 0))]),
        (None, Some(arrive)) => {
            let from = arrive.from.map_or(0, |from| from.0);
            let until = arrive.until.map_or(duration, |until| until.0).min(duration);
            if arrive.rate.is_nan() || arrive.rate <= 0.0 || arrive.per.0 == 0 || from >= until {
                return Err("arrive: `rate` and `per` are greater than nothing, and `from` is before `until`".to_owned());
            }
            let mean = arrive.per.0 as f64 / arrive.rate;
            if (until - from) as f64 / mean > 1e6 {
                return Err("arrive: more than a million jobs".to_owned());
            }
            let (mut at, mut moments) = (from as f64, Vec::new());
            for k in 0.. {
                at += -streams.unit("arrival", (n, k)).ln() * mean;
                if at >= until as f64 {
                    break;
                }
                moments.push(round(at));
            }
            Ok(moments)
        }
        (Some(_), Some(_)) => Err("a workload has `at` or `arrive`, not both".to_owned()),
        (None, None) => Err("a workload has `at`, `arrive` or `trace`".to_owned()),
    }
}

fn drawn(
    workload: &Workload,
    from: &[String],
    (n, duration): (u64, u64),
    streams: Streams,
) -> Result<Vec<PlanJob>, String> {
    let mut jobs = Vec::new();
    for (k, at_ms) in (0u64..).zip(arrivals(workload, (n, duration), streams)?) {
        let key = (n, k);
        let counts = match (&workload.frames, &workload.steps) {
            (Some(frames), None) => vec![frames.draw(streams, "frames", key).max(1)],
            (None, Some(steps)) => steps.iter().map(|frames| u64::from(*frames)).collect(),
            _ => return Err("a workload has `frames` or `steps`".to_owned()),
        };
        if counts.iter().sum::<u64>() > MAX_FRAMES {
            return Err(format!("more than {MAX_FRAMES} frames"));
        }
        let time = workload.frame_time.as_ref().ok_or("a workload has `frame_time`")?;
        let steps = (0u64..).zip(counts).map(|(step, frames)| {
            (0..frames).map(|frame| frame_ms(time, key, (step, frame), streams)).collect()
        });
        let steps = steps.collect();
        let which = streams.between("home", key, [0, from.len() as u64 - 1]);
        let home = usize::try_from(which).ok().and_then(|which| from.get(which));
        let draw = |dist: &Option<Dist<crate::units::Size>>, purpose| {
            dist.as_ref().map_or(0, |dist| dist.draw(streams, purpose, key))
        };
        let job = as_planned(workload, home.ok_or("a group without sites")?)?;
        let (bytes, output_bytes) =
            (draw(&workload.scene, "scene"), draw(&workload.output, "output"));
        jobs.push(PlanJob { at_ms, bytes, output_bytes, steps, ..job });
    }
    Ok(jobs)
}

/// What a workload says of each of its jobs.
pub(crate) fn as_planned(workload: &Workload, home: &str) -> Result<PlanJob, String> {
    if workload.priority > 100 {
        return Err(format!("priority {} is not from 0 to 100", workload.priority));
    }
    Ok(PlanJob {
        id: 0,
        site: home.to_owned(),
        at_ms: 0,
        tenant: workload.tenant.clone().unwrap_or_else(|| home.to_owned()),
        place: workload.place.clone().unwrap_or(meshfarm_protocol::job::Place::Auto),
        priority: workload.priority,
        retries: workload.retries,
        environments: workload.environments,
        bytes: 0,
        shared_percent: u64::from(ppm(workload.shared, "shared")?) / 10_000,
        output_bytes: 0,
        fail_ppm: ppm(workload.fail, "fail")?,
        unwritable_ppm: ppm(workload.unwritable, "unwritable")?,
        needs: workload.needs.clone(),
        steps: Vec::new(),
    })
}

fn frame_ms(
    time: &FrameTime,
    (n, k): (u64, u64),
    (step, frame): (u64, u64),
    streams: Streams,
) -> u64 {
    let job = (n << 32) | k;
    let frame = (job, (step << 32) | frame);
    // A distribution without deviations around it is drawn for each frame.
    let around = time.shot_sigma > 0.0 || time.frame_sigma > 0.0;
    let median = time.median.draw(streams, "frame time", if around { (n, k) } else { frame });
    let shot = (streams.normal("shot", (n, k)) * time.shot_sigma).exp();
    let own = (streams.normal("frame", frame) * time.frame_sigma).exp();
    let ms = round(median as f64 * shot * own).max(1);
    ms.min(time.max.map_or(ms, |max| max.0))
}

/// Machines that come and go, as crashes.
fn comings_and_goings(
    group: &Group,
    churn: &Churn,
    sites: &[PlanSite],
    (streams, heal): (Streams, u64),
) -> Vec<PlanFault> {
    let mut faults = Vec::new();
    for site in sites.iter().filter(|site| site.group == group.name) {
        let entity = number_of(&site.name);
        let mut at = 0;
        for n in 0u64.. {
            at += churn.up.draw(streams, "up for", (entity, n)).max(1000);
            let for_ms = churn.down.draw(streams, "down for", (entity, n)).max(1000);
            if at + for_ms > heal {
                break;
            }
            let sites = vec![site.name.clone()];
            faults.push(PlanFault {
                at_ms: at,
                for_ms,
                sites,
                others: Vec::new(),
                what: Trouble::Crash,
            });
            at += for_ms;
        }
    }
    faults
}

/// Sites without jobs that do not come back: the others must do without them.
fn left_dead(
    scenario: &Scenario,
    sites: &[PlanSite],
    jobs: &[PlanJob],
    streams: Streams,
) -> Vec<PlanFault> {
    let Some(heal) = scenario.heal.as_ref().filter(|heal| heal.dead > 0.0) else {
        return Vec::new();
    };
    let share = u32::try_from(round(heal.dead.min(1.0) * 1e6)).unwrap_or(0);
    let dies = |site: &&PlanSite| {
        let home = jobs.iter().any(|job| job.site == site.name);
        !home && streams.chance("stays dead", (number_of(&site.name), 0), share)
    };
    let dead: Vec<_> = sites.iter().filter(dies).map(|site| site.name.clone()).collect();
    let (at_ms, others) = (heal.at.0 / 2, Vec::new());
    let fault = PlanFault { at_ms, for_ms: FOREVER, sites: dead, others, what: Trouble::Crash };
    if fault.sites.is_empty() { Vec::new() } else { vec![fault] }
}

/// Machines that are switched off outside of their hours, as crashes.
fn nights(sites: &[PlanSite], heal: u64) -> Vec<PlanFault> {
    let mut faults = Vec::new();
    let off = sites.iter().filter(|site| site.away == crate::plan::Away::Off);
    for (site, [from, to]) in off.filter_map(|site| Some((site, site.hours?))) {
        let away = (from + 24 * 60 - to) % (24 * 60);
        // Days begin before the run does: a machine may be off at its beginning.
        for day in 0.. {
            let at = (day * 24 * 60 + to) * 60_000;
            if at + away * 60_000 > heal {
                break;
            }
            let sites = vec![site.name.clone()];
            let for_ms = away * 60_000;
            faults.push(PlanFault {
                at_ms: at,
                for_ms,
                sites,
                others: Vec::new(),
                what: Trouble::Crash,
            });
        }
    }
    faults
}
