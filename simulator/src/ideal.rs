//! The oracle: one scheduler that knows everything at once, with the same machines and transfers that never meet.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use crate::plan::{Plan, PlanJob, PlanSite};

/// Larger plans have no oracle: it looks at every site for every frame.
const MAX_LOOKS: u64 = 30_000_000;

/// When the last frame would be home, and the mean turnaround of a job, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ideal {
    pub(crate) makespan: u64,
    pub(crate) turnaround: u64,
}

/// Jobs in the order of their submission, each frame where it would be home first: slots, content and line counted.
pub(crate) fn of(plan: &Plan) -> Option<Ideal> {
    let frames: u64 = plan.job.iter().map(PlanJob::n_tasks).sum();
    // It knows slots only: where jobs share out amounts, or sites have hours, it would promise too much.
    let needs = plan.job.iter().any(|job| !job.needs.is_empty())
        || plan.site.iter().any(|site| site.hours.is_some());
    if plan.job.is_empty() || needs || frames.saturating_mul(plan.site.len() as u64) > MAX_LOOKS {
        return None;
    }
    let mut slots: Vec<BinaryHeap<Reverse<u64>>> =
        plan.site.iter().map(|site| (0..site.slots).map(|_| Reverse(0)).collect()).collect();
    let mut jobs: Vec<&PlanJob> = plan.job.iter().collect();
    jobs.sort_by_key(|job| (job.at_ms, Reverse(job.priority)));
    let (mut makespan, mut sum) = (0, 0);
    for job in &jobs {
        let home = plan.site.iter().find(|site| site.name == job.site)?;
        let mut warm: HashSet<usize> = HashSet::new();
        let mut release = job.at_ms;
        for step in &job.steps {
            let mut longest: Vec<u64> = step.clone();
            longest.sort_unstable_by_key(|ms| Reverse(*ms));
            let mut ended = release;
            for reference in longest {
                let best = (0..plan.site.len()).filter_map(|n| {
                    let site = &plan.site[n];
                    let free = slots[n].peek().map(|Reverse(at)| *at)?;
                    site.may_run(job).then(|| {
                        let fetch = if site.name == job.site || warm.contains(&n) {
                            0
                        } else {
                            job.bytes.saturating_mul(1000) / home.up.min(site.down).max(1)
                        };
                        let begin = free.max(release + fetch);
                        let rendered =
                            begin + (reference * 1000 / u64::from(site.speed.max(1))).max(1);
                        (rendered + back(job, site, home), rendered, n)
                    })
                });
                let (at_home, rendered, n) = best.min()?;
                slots[n].pop();
                slots[n].push(Reverse(rendered));
                warm.insert(n);
                ended = ended.max(at_home);
            }
            release = ended;
        }
        makespan = makespan.max(release);
        sum += release - job.at_ms;
    }
    Some(Ideal { makespan, turnaround: sum / jobs.len() as u64 })
}

/// How long a frame is on its way home.
fn back(job: &PlanJob, site: &PlanSite, home: &PlanSite) -> u64 {
    if site.name == home.name {
        return 0;
    }
    job.output_bytes.saturating_mul(1000) / site.up.min(home.down).max(1)
}
