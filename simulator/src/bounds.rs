//! Lower bounds of the time at which all work can be done: no scheduler, however clever, is faster than any of them.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::job::Place;

use crate::plan::{Plan, PlanJob, PlanSite};

/// A bound: its name, what it says, and when all work can be done at the earliest, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// What limits.
    pub name: String,
    /// What that means.
    pub says: String,
    /// The earliest end, in milliseconds from the beginning.
    pub ms: u64,
}

/// What a site can do in so many milliseconds of the run, in slot milliseconds of the reference core.
fn can_do(site: &PlanSite, ms: u64, own: bool) -> u64 {
    let slots = u64::from(site.slots) * u64::from(site.speed);
    let open = match site.hours {
        Some([from, to]) if !own => {
            let (day, minute) = (86_400_000, 60_000);
            let (from, to) = (from * minute, to * minute);
            let in_day = |ms: u64| {
                if from < to {
                    ms.clamp(from, to) - from
                } else {
                    ms.min(to) + ms.saturating_sub(from)
                }
            };
            ms / day * in_day(day) + in_day(ms % day)
        }
        Some(_) | None => ms,
    };
    open.saturating_mul(slots) / 1000
}

/// The smallest moment that is enough.
fn first(mut enough: impl FnMut(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0u64, 1u64 << 42);
    while low < high {
        let middle = low.midpoint(high);
        if enough(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// Of these jobs, from each moment of submission on: all later work must fit into what is left of the time.
fn capacity(jobs: &[&PlanJob], sites: &[&PlanSite], own: bool) -> u64 {
    let mut releases: Vec<(u64, u64)> = Vec::new();
    for job in jobs.iter().rev() {
        let after = releases.last().map_or(0, |(_, work)| *work);
        releases.push((job.at_ms, after + job.work_ms()));
    }
    let fits = |end: u64| {
        releases.iter().all(|(at, work)| {
            let can =
                sites.iter().map(|site| can_do(site, end, own) - can_do(site, (*at).min(end), own));
            end >= *at && can.sum::<u64>() >= *work
        })
    };
    first(fits)
}

/// Every bound that says something of this plan.
pub(crate) fn of(plan: &Plan) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let mut add = |name: &str, says: &str, ms: u64| {
        bounds.push(Bound { name: name.to_owned(), says: says.to_owned(), ms });
    };
    let mut jobs: Vec<&PlanJob> = plan.job.iter().collect();
    jobs.sort_by_key(|job| job.at_ms);
    let sites: Vec<&PlanSite> = plan.site.iter().collect();
    if jobs.is_empty() {
        return bounds;
    }
    add(
        "slots",
        "all slots of the mesh together need as long for all work",
        capacity(&jobs, &sites, false),
    );
    let mut speeds: std::collections::HashMap<String, u64> = std::collections::HashMap::new();
    let chain = jobs.iter().map(|job| {
        // Steps wait for each other: the longest frame of each, on the fastest machine that may run it.
        let key = format!(
            "{:?}{:?}{}",
            job.place,
            job.needs,
            if job.place == Place::Auto { "" } else { &job.site }
        );
        let speed = *speeds.entry(key).or_insert_with(|| {
            let fits = plan.site.iter().filter(|site| site.may_run(job));
            fits.map(|site| u64::from(site.speed)).max().unwrap_or(1000)
        });
        let longest = job.steps.iter().map(|step| step.iter().max().copied().unwrap_or(0));
        job.at_ms + longest.sum::<u64>() * 1000 / speed.max(1)
    });
    add("frame", "the longest frames of a job's steps follow each other", chain.max().unwrap_or(0));
    if let Some(ms) = classes(plan, &jobs) {
        add("class", "some jobs may run on some sites only", ms);
    }
    if let Some(ms) = uplinks(plan, &jobs) {
        add("uplink", "what a home cannot render itself must leave through its uplink", ms);
    }
    bounds
}

/// Jobs that only some sites can run.
fn classes(plan: &Plan, jobs: &[&PlanJob]) -> Option<u64> {
    let mut classes: std::collections::BTreeMap<String, Vec<&PlanJob>> =
        std::collections::BTreeMap::new();
    for job in jobs.iter().filter(|job| job.place != Place::Auto || !job.needs.is_empty()) {
        let whose = if job.place == Place::Auto { "" } else { &job.site };
        classes.entry(format!("{:?}{:?}{whose}", job.place, job.needs)).or_default().push(job);
    }
    let bound = |class: &Vec<&PlanJob>| {
        let one = class.first()?;
        let narrowed: Vec<PlanSite> =
            plan.site
                .iter()
                .filter(|site| site.may_run(one))
                .map(|site| {
                    // Seats and slots: no more tasks run at a time than there is of what each needs.
                    let seats =
                        one.needs.iter().filter(|(_, need)| **need > 0).map(|(name, need)| {
                            site.amounts.get(name).copied().unwrap_or(0) / need
                        });
                    let seats = seats.fold(u64::from(site.slots), u64::min);
                    PlanSite { slots: u32::try_from(seats).unwrap_or(site.slots), ..site.clone() }
                })
                .collect();
        let own = one.place == Place::Local;
        Some(capacity(class, &narrowed.iter().collect::<Vec<_>>(), own))
    };
    classes.values().filter_map(bound).max()
}

/// What a home cannot render itself by then must have left it, once at least.
fn uplinks(plan: &Plan, jobs: &[&PlanJob]) -> Option<u64> {
    let mut homes: std::collections::BTreeMap<&str, Vec<&PlanJob>> =
        std::collections::BTreeMap::new();
    for job in jobs.iter().filter(|job| job.place != Place::Local) {
        homes.entry(&job.site).or_default().push(job);
    }
    let bound = |(home, jobs): (&&str, &Vec<&PlanJob>)| {
        let site = plan.site.iter().find(|site| site.name == **home)?;
        let begin = jobs.first()?.at_ms;
        let work: u64 = jobs.iter().map(|job| job.work_ms()).sum();
        let tasks: u64 = jobs.iter().map(|job| job.n_tasks()).sum();
        let scene =
            jobs.iter().map(|job| job.bytes * (100 - job.shared_percent.min(100)) / 100).min()?;
        let output = jobs.iter().map(|job| job.output_bytes).min()?;
        let mean = (work / tasks.max(1)).max(1);
        Some(first(|end| {
            let own = can_do(site, end.saturating_sub(begin), true);
            let away = work.saturating_sub(own);
            let frames = away / mean;
            let up = if frames > 0 { scene.saturating_mul(1000) / site.up } else { 0 };
            let down = frames.saturating_mul(output).saturating_mul(1000) / site.down;
            end >= begin.saturating_add(up.max(down))
        }))
    };
    homes.iter().filter_map(bound).max()
}

/// How long after the healing every job ends at the latest (I9): graces, the largest transfers, and three times what all
/// slots need for all work; a day more where sites have hours.
pub(crate) fn patience_ms(plan: &Plan) -> u64 {
    let work: u64 = plan.job.iter().map(PlanJob::work_ms).sum();
    let can: u64 = plan
        .site
        .iter()
        .filter(|site| site.lending || plan.job.iter().any(|job| job.site == site.name))
        .map(|site| u64::from(site.slots) * u64::from(site.speed))
        .sum();
    let narrowest = plan.site.iter().map(|site| site.up.min(site.down)).min().unwrap_or(1).max(1);
    let scene = plan.job.iter().map(|job| job.bytes).max().unwrap_or(0);
    let slowest = plan.site.iter().map(|site| u64::from(site.speed.max(1))).min().unwrap_or(1000);
    let frame =
        plan.job.iter().flat_map(|job| job.steps.iter().flatten()).max().copied().unwrap_or(0);
    let retries = plan.job.iter().map(|job| u64::from(job.retries) + 1).max().unwrap_or(1);
    let hours = if plan.site.iter().any(|site| site.hours.is_some()) { 86_400_000 } else { 0 };
    900_000
        + 3 * (work * 1000 / can.max(1))
        + 4 * (scene.saturating_mul(1000) / narrowest)
        + frame * 1000 / slowest * (retries + 1)
        + hours
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Source;

    fn plan(rest: &str) -> Plan {
        let text = format!("schema = 1\nname = \"x\"\npurpose = \"y\"\nduration = \"1h\"\n{rest}");
        Source::parse(&text, std::path::Path::new("x.toml")).unwrap().plan(Some(1)).unwrap()
    }

    #[test]
    fn each_bound_says_what_it_should() {
        let plan = plan(
            "[[site]]\nname = \"a\"\nslots = 1\nlink = { up = \"8Mbit\", down = \"80Mbit\" }\n\
             [[site]]\nname = \"b\"\nslots = 3\nspeed = 2.0\n\
             [[workload]]\nfrom = \"a\"\nat = \"10s\"\nframes = 70\nframe_time = { median = \"10s\" }\nscene = \"100MB\"\n",
        );
        let bounds = of(&plan);
        let ms = |name: &str| bounds.iter().find(|bound| bound.name == name).unwrap().ms;
        // 700 s of work on 1 + 3 * 2 reference slots.
        assert_eq!(ms("slots"), 110_000);
        assert_eq!(ms("frame"), 15_000);
        // 100 MB at 1 MB/s.
        assert_eq!(ms("uplink"), 110_000);
    }

    #[test]
    fn hours_bound_what_a_site_can_do() {
        let site = PlanSite {
            slots: 1,
            speed: 1000,
            hours: Some([22 * 60, 6 * 60]),
            ..PlanSite::default()
        };
        assert_eq!(can_do(&site, 86_400_000, false), 8 * 3_600_000);
        assert_eq!(can_do(&site, 7 * 3_600_000, false), 6 * 3_600_000);
        assert_eq!(can_do(&site, 7 * 3_600_000, true), 7 * 3_600_000);
    }
}
