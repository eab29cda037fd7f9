//! The story of a run: who rendered what when, what moved, what went wrong. Every picture and figure is made of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use meshfarm_core::{JobPhase, TaskRef};
use meshfarm_protocol::id::{AttemptId, JobId, Millis};

use crate::plan::Plan;
use crate::seen::{Class, Fate, Seen, TaskIs, What};

/// More transfers than this are counted, but not remembered one by one.
const MAX_MOVES: usize = 200_000;

/// A try of a task, on a lane of its site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) site: usize,
    pub(crate) lane: usize,
    pub(crate) home: usize,
    pub(crate) job: u32,
    pub(crate) step: u32,
    pub(crate) task: u32,
    pub(crate) attempt: AttemptId,
    pub(crate) begin: u64,
    /// None while it runs.
    pub(crate) end: Option<u64>,
    pub(crate) fate: Option<Fate>,
    pub(crate) accepted: bool,
    pub(crate) wrong: bool,
}

impl Span {
    pub(crate) fn ms(&self, until: u64) -> u64 {
        self.end.unwrap_or(until).saturating_sub(self.begin)
    }
}

/// What became of a job.
#[derive(Clone, Debug)]
pub(crate) struct JobStory {
    pub(crate) home: usize,
    pub(crate) due: u64,
    pub(crate) queued: Option<u64>,
    pub(crate) first: Option<u64>,
    pub(crate) ended: Option<u64>,
    pub(crate) phase: Option<JobPhase>,
    pub(crate) done: u64,
}

/// Content that moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) bytes: u64,
    pub(crate) class: Class,
    pub(crate) since: u64,
    pub(crate) at: u64,
}

/// A fault, and how long after its end a site that it touched was at work again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FaultStory {
    pub(crate) begin: Option<u64>,
    pub(crate) end: Option<u64>,
    pub(crate) recovered: Option<u64>,
}

/// States that a scenario can say it wants to have reached.
pub(crate) const STATES: [(&str, &str); 11] = [
    ("lease_lost", "a borrower lost a lease with open tasks"),
    ("late_result_accepted", "a result was accepted of a try that had been given up"),
    ("second_try_won", "a second try of a slow task was faster than the first"),
    ("content_from_third_site", "a lender got content from another lender"),
    ("site_refused", "a site refused an offer"),
    ("node_restarted", "a node came back with records on its disk"),
    ("site_blamed", "a site was caught lying"),
    ("try_failed", "a task failed and was tried again"),
    ("transfer_wasted", "content was on its way in vain"),
    ("rendered_elsewhere", "another site rendered a task"),
    ("wrong_frame_accepted", "a frame with wrong pixels was accepted"),
];

/// Everything that is remembered.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) spans: Vec<Span>,
    by_attempt: HashMap<AttemptId, usize>,
    pub(crate) jobs: BTreeMap<u32, JobStory>,
    numbers: HashMap<JobId, u32>,
    pub(crate) moves: Vec<Move>,
    pub(crate) bytes: BTreeMap<Class, u64>,
    pub(crate) said: BTreeMap<&'static str, u64>,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) lost: Vec<(u64, usize, usize, u32, String)>,
    pub(crate) faults: Vec<FaultStory>,
    touched: Vec<Vec<usize>>,
    open_faults: Vec<usize>,
    pub(crate) profiles: (u64, u64),
    pub(crate) crashes: u64,
    pub(crate) states: BTreeSet<&'static str>,
    leased: HashMap<TaskRef, (AttemptId, BTreeSet<AttemptId>)>,
}

impl Story {
    pub(crate) fn new(plan: &Plan) -> Self {
        let names: HashMap<&str, usize> =
            plan.site.iter().enumerate().map(|(n, site)| (site.name.as_str(), n)).collect();
        let number = |name: &String| names.get(name.as_str()).copied();
        let touched = plan.fault.iter().map(|fault| {
            fault.sites.iter().chain(&fault.others).filter_map(number).take(64).collect()
        });
        let job = |job: &crate::plan::PlanJob| JobStory {
            home: number(&job.site).unwrap_or(0),
            due: job.at_ms,
            queued: None,
            first: None,
            ended: None,
            phase: None,
            done: 0,
        };
        Self {
            spans: Vec::new(),
            by_attempt: HashMap::new(),
            jobs: plan.job.iter().map(|planned| (planned.id, job(planned))).collect(),
            numbers: HashMap::new(),
            moves: Vec::new(),
            bytes: BTreeMap::new(),
            said: BTreeMap::new(),
            refused: BTreeMap::new(),
            lost: Vec::new(),
            faults: vec![FaultStory::default(); plan.fault.len()],
            touched: touched.collect(),
            open_faults: Vec::new(),
            profiles: (0, 0),
            crashes: 0,
            states: BTreeSet::new(),
            leased: HashMap::new(),
        }
    }

    pub(crate) fn see(&mut self, seen: &Seen) {
        let (at, site) = (seen.at.0, seen.site);
        match &seen.what {
            What::Up { life, .. } if *life > 0 => drop(self.states.insert("node_restarted")),
            What::Down => self.crashes += 1,
            What::Queued { job, number } => {
                self.numbers.insert(*job, *number);
                if let Some(story) = self.jobs.get_mut(number) {
                    story.queued.get_or_insert(at);
                }
            }
            What::Job { job, phase } => self.job(*job, phase, at),
            What::Task { task, is } => self.task(*task, *is),
            What::Began { .. } => self.began(seen),
            What::Ended { attempt, fate, wrong, .. } => self.ended(*attempt, (*fate, *wrong), at),
            What::Moved { from, bytes, class, since } => {
                *self.bytes.entry(*class).or_default() += bytes;
                match class {
                    Class::Shared => drop(self.states.insert("content_from_third_site")),
                    Class::Wasted => drop(self.states.insert("transfer_wasted")),
                    Class::Scene | Class::Output => {}
                }
                if self.moves.len() < MAX_MOVES {
                    let (from, bytes, class, since) = (*from, *bytes, *class, since.0);
                    self.moves.push(Move { from, to: site, bytes, class, since, at });
                }
            }
            What::Refused { reason, .. } => {
                self.states.insert("site_refused");
                *self.refused.entry(reason.to_string()).or_default() += 1;
            }
            What::Lost { lender, tasks, reason } => {
                self.states.insert("lease_lost");
                self.lost.push((at, site, *lender, *tasks, reason.clone()));
            }
            What::Blamed { .. } => drop(self.states.insert("site_blamed")),
            What::Said { kind, .. } => *self.said.entry(kind).or_default() += 1,
            What::Profile { to, .. } => {
                self.profiles.0 += 1;
                self.profiles.1 += *to as u64;
            }
            What::Fault { n, begins: true } => self.faults[*n].begin = Some(at),
            What::Fault { n, begins: false } => {
                self.faults[*n].end = Some(at);
                self.open_faults.push(*n);
            }
            _ => {}
        }
    }

    fn job(&mut self, job: JobId, phase: &JobPhase, at: u64) {
        let number = self.numbers.get(&job);
        if let Some(story) = number.and_then(|number| self.jobs.get_mut(number)) {
            // Whoever submits again because no answer came has two jobs: the first that ends counts.
            if *phase != JobPhase::Active && story.ended.is_none() {
                (story.ended, story.phase) = (Some(at), Some(phase.clone()));
            }
        }
    }

    fn task(&mut self, task: TaskRef, is: TaskIs) {
        match is {
            TaskIs::Leased { attempt } => {
                let (current, all) = self.leased.entry(task).or_insert((attempt, BTreeSet::new()));
                *current = attempt;
                all.insert(attempt);
            }
            TaskIs::Done { attempt } => {
                if let Some((current, all)) = self.leased.remove(&task)
                    && current != attempt
                {
                    let late = all.contains(&attempt);
                    self.states.insert(if late {
                        "late_result_accepted"
                    } else {
                        "second_try_won"
                    });
                }
                let number = self.numbers.get(&task.job);
                if let Some(story) = number.and_then(|number| self.jobs.get_mut(number)) {
                    story.done += 1;
                }
                if let Some(span) = self.by_attempt.get(&attempt) {
                    let span = &mut self.spans[*span];
                    span.accepted = true;
                    if span.wrong {
                        self.states.insert("wrong_frame_accepted");
                    }
                }
            }
            TaskIs::Waiting | TaskIs::Failed | TaskIs::Canceled => {}
        }
    }

    fn began(&mut self, seen: &Seen) {
        let What::Began { attempt, number, step, task, borrower, lane } = &seen.what else {
            return;
        };
        let (site, begin) = (seen.site, seen.at.0);
        if site != *borrower {
            self.states.insert("rendered_elsewhere");
        }
        if let Some(story) = self.jobs.get_mut(number) {
            story.first.get_or_insert(begin);
        }
        self.by_attempt.insert(*attempt, self.spans.len());
        self.spans.push(Span {
            site,
            lane: *lane,
            home: *borrower,
            job: *number,
            step: step.0,
            task: task.0,
            attempt: *attempt,
            begin,
            end: None,
            fate: None,
            accepted: false,
            wrong: false,
        });
        if !self.open_faults.is_empty() {
            let (faults, touched) = (&mut self.faults, &self.touched);
            self.open_faults.retain(|n| {
                let here = touched[*n].contains(&site) || touched[*n].contains(borrower);
                if here {
                    faults[*n].recovered = faults[*n].end.map(|end| begin - end);
                }
                !here
            });
        }
    }

    fn ended(&mut self, attempt: AttemptId, (fate, wrong): (Fate, bool), at: u64) {
        if let Some(span) = self.by_attempt.get(&attempt) {
            let span = &mut self.spans[*span];
            (span.end, span.fate, span.wrong) = (Some(at), Some(fate), wrong);
            if fate == Fate::Failed {
                self.states.insert("try_failed");
            }
        }
    }

    /// Slot time that made no accepted frame, and all slot time, in milliseconds.
    pub(crate) fn lost_work(&self, until: Millis) -> (u64, u64) {
        let each = self.spans.iter().map(|span| (span.accepted, span.ms(until.0)));
        each.fold((0, 0), |(lost, all), (accepted, ms)| {
            (if accepted { lost } else { lost + ms }, all + ms)
        })
    }
}
