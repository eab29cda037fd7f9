//! What a run found, in figures: written as `result.json`, compared between runs, and judged against expectations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshfarm_core::JobPhase;
use serde::{Deserialize, Serialize};

use crate::bounds::{self, Bound};
use crate::check::Broken;
use crate::ideal;
use crate::plan::{JobsEnd, Plan};
use crate::seen::Class;
use crate::story::{STATES, Story};
use crate::units::{spoken, spoken_bytes};
use crate::world::Ran;

/// Whether a run was as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Verdict {
    /// As expected, and no invariant was broken.
    Pass,
    /// No invariant was broken, but something expected did not come.
    Missed {
        /// What.
        why: Vec<String>,
    },
    /// An invariant was broken: this is a defect.
    Broken(Broken),
}

impl Verdict {
    /// The exit status that says it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Missed { .. } => 1,
            Self::Broken(_) => 2,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Missed { why } => write!(f, "expectation missed: {}", why.join("; ")),
            Self::Broken(Broken { invariant, what }) => {
                write!(f, "invariant {invariant} broken: {what}")
            }
        }
    }
}

/// What a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Layout of this record.
    pub schema: u32,
    /// At which level it ran.
    pub level: String,
    /// The scenario's name.
    pub scenario: String,
    /// The seed that repeats it.
    pub seed: u64,
    /// How it went.
    pub verdict: Verdict,
    /// Hash over every event in its order: equal for equal seeds.
    pub audit: String,
    /// Sites.
    pub sites: u64,
    /// Jobs, and how many of them are done.
    pub jobs: (u64, u64),
    /// Frames, and how many results were accepted.
    pub frames: (u64, u64),
    /// Virtual time at the end, in milliseconds.
    pub ended_ms: u64,
    /// When the last job had ended, in milliseconds.
    pub makespan_ms: Option<u64>,
    /// Moments before which nobody could have been done.
    pub bounds: Vec<Bound>,
    /// When one scheduler that knows everything would have been done, in milliseconds.
    pub oracle_ms: Option<u64>,
    /// Its mean turnaround of a job, in milliseconds.
    pub oracle_turnaround_ms: Option<u64>,
    /// Mean time from submission to end of a job, in milliseconds.
    pub turnaround_ms: u64,
    /// The longest of them.
    pub turnaround_max_ms: u64,
    /// Mean time from submission to the first task that runs, in milliseconds.
    pub waiting_ms: u64,
    /// Tries that began.
    pub tries: u64,
    /// Slot time, in milliseconds.
    pub slot_ms: u64,
    /// Of that, time that made no accepted frame.
    pub lost_slot_ms: u64,
    /// Share of the frames that another site rendered.
    pub rendered_elsewhere: f64,
    /// Accepted frames whose pixels are wrong.
    pub wrong_frames: u64,
    /// Bytes that moved, by class.
    pub bytes: BTreeMap<String, u64>,
    /// Least bytes of scenes and frames that the same placement needs.
    pub bytes_least: u64,
    /// Offers, refusals by reason.
    pub offers: u64,
    /// Why sites refused, and how often.
    pub refused: BTreeMap<String, u64>,
    /// Messages by kind.
    pub messages: BTreeMap<String, u64>,
    /// Profiles that were told, and how often each was heard.
    pub profiles: (u64, u64),
    /// Leases that were lost with open tasks.
    pub leases_lost: u64,
    /// Nodes that died.
    pub crashes: u64,
    /// Fairness between tenants after Jain: 1 is even; over the stretch of their jobs.
    pub fairness_jain: f64,
    /// Longest time that a fault's sites needed to be at work again, in milliseconds.
    pub recovery_max_ms: Option<u64>,
    /// States that were reached.
    pub states: BTreeSet<String>,
    /// Events of the heap and inputs of cores.
    pub events: (u64, u64),
}

impl Outcome {
    /// The greatest bound.
    #[must_use]
    pub fn bound_ms(&self) -> u64 {
        self.bounds.iter().map(|bound| bound.ms).max().unwrap_or(0)
    }

    /// The makespan as a multiple of the greatest bound, both counted from the first submission.
    pub(crate) fn over_bound(&self, plan: &Plan) -> Option<f64> {
        let first = plan.job.iter().map(|job| job.at_ms).min().unwrap_or(0);
        let bound = self.bound_ms().saturating_sub(first).max(1);
        Some(self.makespan_ms?.saturating_sub(first) as f64 / bound as f64)
    }

    pub(crate) fn bytes_over_least(&self) -> f64 {
        let moved: u64 = self.bytes.values().sum();
        if self.bytes_least == 0 { 1.0 } else { moved as f64 / self.bytes_least as f64 }
    }

    pub(crate) fn refusals(&self) -> f64 {
        let refused: u64 = self.refused.values().sum();
        refused as f64 / self.offers.max(1) as f64
    }

    pub(crate) fn lost_share(&self) -> f64 {
        self.lost_slot_ms as f64 / self.slot_ms.max(1) as f64
    }
}

/// Judge a run.
pub(crate) fn judge(
    plan: &Plan,
    ran: &Ran,
    (story, broken): (&Story, Option<&Broken>),
    n_results: u64,
) -> Outcome {
    let (lost_slot_ms, slot_ms) = story.lost_work(ran.ended);
    let ended = |job: &crate::story::JobStory| Some((job.ended?, job.due));
    let turnarounds: Vec<u64> = story
        .jobs
        .values()
        .filter_map(ended)
        .map(|(ended, due)| ended.saturating_sub(due))
        .collect();
    let waits: Vec<u64> =
        story.jobs.values().filter_map(|job| Some(job.first?.saturating_sub(job.due))).collect();
    let mean = |of: &[u64]| of.iter().sum::<u64>() / (of.len() as u64).max(1);
    let ideal = ideal::of(plan);
    let accepted = story.spans.iter().filter(|span| span.accepted);
    let away = accepted.clone().filter(|span| span.site != span.home).count();
    let n_accepted = accepted.clone().count();
    let names = [
        (Class::Scene, "scene"),
        (Class::Shared, "shared"),
        (Class::Output, "output"),
        (Class::Wasted, "wasted"),
    ];
    let bytes =
        names.map(|(class, name)| (name.to_owned(), story.bytes.get(&class).copied().unwrap_or(0)));
    let done = story.jobs.values().filter(|job| job.phase == Some(JobPhase::Done)).count();
    let mut outcome = Outcome {
        schema: 1,
        level: "model".to_owned(),
        scenario: plan.name.clone(),
        seed: plan.seed,
        verdict: Verdict::Pass,
        audit: ran.audit.to_string(),
        sites: plan.site.len() as u64,
        jobs: (plan.job.len() as u64, done as u64),
        frames: (plan.job.iter().map(crate::plan::PlanJob::n_tasks).sum(), n_results),
        ended_ms: ran.ended.0,
        makespan_ms: ran.makespan.map(|at| at.0),
        bounds: bounds::of(plan),
        oracle_ms: ideal.map(|ideal| ideal.makespan),
        oracle_turnaround_ms: ideal.map(|ideal| ideal.turnaround),
        turnaround_ms: mean(&turnarounds),
        turnaround_max_ms: turnarounds.iter().max().copied().unwrap_or(0),
        waiting_ms: mean(&waits),
        tries: story.spans.len() as u64,
        slot_ms,
        lost_slot_ms,
        rendered_elsewhere: away as f64 / n_accepted.max(1) as f64,
        wrong_frames: accepted.filter(|span| span.wrong).count() as u64,
        bytes: bytes.into_iter().collect(),
        bytes_least: least_bytes(plan, story),
        offers: story.said.get("offer").copied().unwrap_or(0),
        refused: story.refused.clone(),
        messages: story.said.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect(),
        profiles: story.profiles,
        leases_lost: story.lost.len() as u64,
        crashes: story.crashes,
        fairness_jain: jain(plan, story),
        recovery_max_ms: story.faults.iter().filter_map(|fault| fault.recovered).max(),
        states: story.states.iter().map(|state| (*state).to_owned()).collect(),
        events: (ran.counts.events, ran.counts.inputs),
    };
    outcome.verdict = match broken {
        Some(broken) => Verdict::Broken(broken.clone()),
        None => {
            let why = missed(plan, &outcome, story);
            if why.is_empty() { Verdict::Pass } else { Verdict::Missed { why } }
        }
    };
    outcome
}

/// Each site that rendered for another got the scene once; each frame went home once.
fn least_bytes(plan: &Plan, story: &Story) -> u64 {
    let jobs: BTreeMap<u32, &crate::plan::PlanJob> =
        plan.job.iter().map(|job| (job.id, job)).collect();
    let away = story.spans.iter().filter(|span| span.accepted && span.site != span.home);
    let places: BTreeSet<(usize, u32, u32)> =
        away.clone().map(|span| (span.site, span.job, span.step)).collect();
    let of = |number: &u32| jobs.get(number);
    let scenes: u64 = places
        .iter()
        .filter_map(|(_, job, _)| of(job))
        .map(|job| job.bytes * (100 - job.shared_percent.min(100)) / 100)
        .sum();
    let frames: u64 = away.filter_map(|span| of(&span.job)).map(|job| job.output_bytes).sum();
    scenes + frames
}

/// How evenly tenants fare: Jain's index of the mean stretch (turnaround by work) of each tenant's jobs, inverted, so
/// that a tenant whose jobs all wait long counts little.
fn jain(plan: &Plan, story: &Story) -> f64 {
    let mut by_tenant: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for job in &plan.job {
        let Some(ended) = story.jobs.get(&job.id).and_then(|story| story.ended) else { continue };
        let took = ended.saturating_sub(job.at_ms).max(1) as f64;
        let (sum, n) = by_tenant.entry(&job.tenant).or_default();
        *sum += job.work_ms().max(1) as f64 / took;
        *n += 1.0;
    }
    let shares: Vec<f64> = by_tenant.values().map(|(sum, n)| sum / n).collect();
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// What was expected and did not come.
fn missed(plan: &Plan, outcome: &Outcome, story: &Story) -> Vec<String> {
    let expect = &plan.expect;
    let mut missed = Vec::new();
    for (number, job) in &story.jobs {
        let as_wanted = match (expect.jobs, &job.phase) {
            (_, None) => false,
            (JobsEnd::Done, Some(phase)) => *phase == JobPhase::Done,
            (JobsEnd::Failed, Some(phase)) => matches!(phase, JobPhase::Failed(_)),
            (JobsEnd::Ended, Some(_)) => true,
        };
        if !as_wanted {
            let phase = job
                .phase
                .as_ref()
                .map_or_else(|| "did not end".to_owned(), |phase| format!("ended as {phase:?}"));
            missed.push(format!("job {number} {phase}"));
        }
    }
    missed.truncate(5);
    if let (Some(by), Some(at)) = (expect.complete_by_ms, outcome.makespan_ms)
        && at > by
    {
        missed.push(format!("all is done after {} instead of {}", spoken(at), spoken(by)));
    }
    let mut most = |what: &str, is: Option<f64>, most: Option<f64>| {
        if let (Some(is), Some(most)) = (is, most)
            && is > most
        {
            missed.push(format!("{what} is {is:.3}, at most {most} was expected"));
        }
    };
    most("the makespan over its bound", outcome.over_bound(plan), expect.makespan_over_bound);
    most("bytes over the least", Some(outcome.bytes_over_least()), expect.bytes_over_min);
    most("the share of refused offers", Some(outcome.refusals()), expect.refusals_at_most);
    most("the share of lost slot time", Some(outcome.lost_share()), expect.lost_work_at_most);
    if let Some(least) = expect.fairness_jain.filter(|least| outcome.fairness_jain < *least) {
        missed.push(format!(
            "fairness is {:.3}, at least {least} was expected",
            outcome.fairness_jain
        ));
    }
    let lacking = expect.sometimes.iter().filter(|state| !outcome.states.contains(*state));
    missed.extend(lacking.map(|state| format!("the run never came to the state {state}")));
    missed
}

/// Whether a state can be named in `sometimes`.
pub(crate) fn is_state(name: &str) -> bool {
    STATES.iter().any(|(known, _)| *known == name)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} with seed {}: {}", self.scenario, self.seed, self.verdict)?;
        let makespan = self.makespan_ms.map_or_else(
            || "not every job has ended".to_owned(),
            |ms| format!("all done after {}", spoken(ms)),
        );
        let bound = spoken(self.bound_ms());
        let oracle =
            self.oracle_ms.map_or_else(String::new, |ms| format!(", oracle {}", spoken(ms)));
        writeln!(
            f,
            "  {makespan} (bound {bound}{oracle}); {} of {} frames, {} tries, {:.0} % elsewhere, {:.1} % of slot time lost",
            self.frames.1,
            self.frames.0,
            self.tries,
            100.0 * self.rendered_elsewhere,
            100.0 * self.lost_share()
        )?;
        let moved: u64 = self.bytes.values().sum();
        writeln!(
            f,
            "  {} moved ({:.2} x least), {} messages, {} offers of which {:.0} % refused, {} leases lost, {} crashes",
            spoken_bytes(moved),
            self.bytes_over_least(),
            self.messages.values().sum::<u64>(),
            self.offers,
            100.0 * self.refusals(),
            self.leases_lost,
            self.crashes
        )?;
        write!(f, "  {} events, {} inputs, audit {}", self.events.0, self.events.1, self.audit)
    }
}

/// The whole part of a number, at least zero.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float-to-int cast saturates, which is what is wanted"
)]
pub(crate) fn floor(number: f64) -> usize {
    number.max(0.0) as usize
}
