//! From a plan that fails to the smallest one that fails in the same way: faults, jobs, sites, frames, times, lines.

use crate::bug::Bug;
use crate::outcome::{Outcome, Verdict};
use crate::plan::Plan;
use crate::run;

/// The smallest plan that was found.
#[derive(Clone, Debug)]
pub struct Small {
    /// It.
    pub plan: Plan,
    /// How it fails.
    pub outcome: Outcome,
    /// How many were tried.
    pub tries: usize,
}

/// What makes two failures the same: the invariant, or that an expectation was missed.
fn fingerprint(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Pass => None,
        Verdict::Missed { why } => {
            // Without numbers, which change with every smaller plan.
            let first = why.first().map_or("", String::as_str);
            Some(format!("missed {}", first.replace(|c: char| c.is_ascii_digit(), "")))
        }
        Verdict::Broken(broken) => {
            let core = broken.what.split(':').next().unwrap_or_default();
            Some(format!(
                "{} {}",
                broken.invariant,
                if broken.invariant == "I0" { core } else { "" }
            ))
        }
    }
}

struct Shrinker<'a> {
    best: Plan,
    outcome: Outcome,
    wanted: String,
    bug: Option<Bug>,
    left: usize,
    tries: usize,
    told: &'a mut dyn FnMut(&str),
}

/// The smallest plan that fails as this one does; none when it passes. `told` hears of progress.
#[must_use]
pub fn smallest(
    plan: &Plan,
    bug: Option<Bug>,
    most: usize,
    told: &mut dyn FnMut(&str),
) -> Option<Small> {
    let outcome = run(plan, bug);
    let wanted = fingerprint(&outcome.verdict)?;
    let mut shrinker =
        Shrinker { best: plan.clone(), outcome, wanted, bug, left: most, tries: 0, told };
    let plain = crate::plan::Expect { jobs: plan.expect.jobs, ..crate::plan::Expect::default() };
    shrinker.accept(Plan { expect: plain, ..plan.clone() });
    loop {
        let before = shrinker.best.clone();
        shrinker.list(|plan| plan.fault.len(), |plan, keep| retain(&mut plan.fault, keep));
        shrinker.list(|plan| plan.job.len(), |plan, keep| retain(&mut plan.job, keep));
        shrinker.list(|plan| plan.site.len(), |plan, keep| retain(&mut plan.site, keep));
        shrinker.frames();
        shrinker.faults();
        shrinker.lines();
        if shrinker.best == before || shrinker.left == 0 {
            break;
        }
    }
    let Shrinker { best, outcome, tries, .. } = shrinker;
    Some(Small { plan: best, outcome, tries })
}

fn retain<T>(list: &mut Vec<T>, keep: &dyn Fn(usize) -> bool) {
    let mut n = 0;
    list.retain(|_| {
        n += 1;
        keep(n - 1)
    });
}

impl Shrinker<'_> {
    /// Keep a smaller plan if it fails in the same way.
    fn accept(&mut self, plan: Plan) -> bool {
        if self.left == 0 || plan == self.best || crate::plan::faults_of(&plan).is_some() {
            return false;
        }
        self.left -= 1;
        self.tries += 1;
        let outcome = run(&plan, self.bug);
        let same = fingerprint(&outcome.verdict).as_ref() == Some(&self.wanted);
        if same {
            let (sites, jobs, frames, faults) =
                (plan.n_sites(), plan.n_jobs(), plan.n_frames(), plan.n_faults());
            (self.told)(&format!("{sites} sites, {jobs} jobs, {frames} frames, {faults} faults"));
            (self.best, self.outcome) = (plan, outcome);
        }
        same
    }

    /// Delta debugging of one list: leave out halves, then quarters, then single ones.
    fn list(&mut self, len: fn(&Plan) -> usize, cut: fn(&mut Plan, &dyn Fn(usize) -> bool)) {
        let mut part = len(&self.best).div_ceil(2);
        while part > 0 {
            let mut from = 0;
            while from < len(&self.best) {
                let mut plan = self.best.clone();
                cut(&mut plan, &|n| n < from || n >= from + part);
                mend(&mut plan);
                if !self.accept(plan) {
                    from += part;
                }
            }
            part = if part == 1 { 0 } else { part / 2 };
        }
    }

    /// Fewer frames, fewer steps, all of them a second long.
    fn frames(&mut self) {
        for n in 0..self.best.job.len() {
            while self.best.job[n].steps.len() > 1 {
                let mut plan = self.best.clone();
                plan.job[n].steps.pop();
                if !self.accept(plan) {
                    break;
                }
            }
            for step in 0..self.best.job[n].steps.len() {
                while self.best.job[n].steps[step].len() > 1 {
                    let mut plan = self.best.clone();
                    let half = plan.job[n].steps[step].len() / 2;
                    plan.job[n].steps[step].truncate(half);
                    if !self.accept(plan) {
                        let mut plan = self.best.clone();
                        plan.job[n].steps[step].pop();
                        if !self.accept(plan) {
                            break;
                        }
                    }
                }
            }
            let plain: [fn(&mut crate::plan::PlanJob); 6] = [
                |job| job.steps.iter_mut().flatten().for_each(|ms| *ms = 1000),
                |job| (job.bytes, job.output_bytes, job.shared_percent) = (0, 0, 0),
                |job| (job.fail_ppm, job.unwritable_ppm) = (0, 0),
                |job| job.environments = false,
                |job| job.at_ms = 0,
                |job| job.priority = 50,
            ];
            for simplify in plain {
                let mut plan = self.best.clone();
                simplify(&mut plan.job[n]);
                self.accept(plan);
            }
        }
    }

    /// Shorter faults at fewer sites.
    fn faults(&mut self) {
        for n in 0..self.best.fault.len() {
            while self.best.fault[n].for_ms >= 2000 {
                let mut plan = self.best.clone();
                plan.fault[n].for_ms /= 2;
                if !self.accept(plan) {
                    break;
                }
            }
            let mut k = 0;
            while self.best.fault[n].sites.len() > 1 && k < self.best.fault[n].sites.len() {
                let mut plan = self.best.clone();
                plan.fault[n].sites.remove(k);
                if !self.accept(plan) {
                    k += 1;
                }
            }
        }
    }

    /// Perfect lines, plain machines.
    fn lines(&mut self) {
        for n in 0..self.best.site.len() {
            let plain: [fn(&mut crate::plan::PlanSite); 5] = [
                |site| (site.jitter_ms, site.loss_ppm) = (0, 0),
                |site| (site.up, site.down) = (125_000_000, 125_000_000),
                |site| (site.fail_ppm, site.speed) = (0, 1000),
                |site| site.hours = None,
                |site| site.slots = site.slots.min(1),
            ];
            for simplify in plain {
                let mut plan = self.best.clone();
                simplify(&mut plan.site[n]);
                self.accept(plan);
            }
        }
    }
}

/// Drop what names sites that are gone, and let it heal as early as it can.
fn mend(plan: &mut Plan) {
    let names: std::collections::BTreeSet<String> =
        plan.site.iter().map(|site| site.name.clone()).collect();
    plan.job.retain(|job| names.contains(&job.site));
    for fault in &mut plan.fault {
        let had_others = !fault.others.is_empty();
        fault.sites.retain(|name| names.contains(name));
        fault.others.retain(|name| names.contains(name));
        if had_others && fault.others.is_empty() {
            fault.sites.clear();
        }
    }
    plan.fault.retain(|fault| !fault.sites.is_empty());
}
