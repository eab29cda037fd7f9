//! Jobs and results: none is lost, none is accepted twice, and what was accepted is what was made (I1, I2, I3, I6, I10).

use std::collections::{BTreeSet, HashMap};

use meshfarm_core::{JobPhase, TaskRef};
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, Millis};

use crate::check::{Broken, broken};
use crate::seen::{Fate, Seen, TaskIs, What};

/// A try that has begun somewhere.
#[derive(Debug)]
struct Try {
    number: u32,
    task: (u32, u32),
    root: Option<ChunkId>,
}

/// What is known of jobs and their results.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Home and number of each job.
    jobs: HashMap<JobId, (usize, u32)>,
    acknowledged: HashMap<usize, BTreeSet<JobId>>,
    numbers: BTreeSet<u32>,
    ended: HashMap<JobId, JobPhase>,
    last_end: Millis,
    tries: HashMap<AttemptId, Try>,
    placed: HashMap<TaskRef, (AttemptId, ChunkId)>,
    accepted: HashMap<TaskRef, AttemptId>,
    /// Accepted results of each home.
    n_accepted: HashMap<usize, u64>,
}

impl Results {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn see(&mut self, seen: &Seen) -> Option<Broken> {
        let Seen { at, site, what } = seen;
        match what {
            What::Queued { job, number } => drop(self.jobs.insert(*job, (*site, *number))),
            What::Acknowledged { job, number } => {
                self.numbers.insert(*number);
                self.acknowledged.entry(*site).or_default().insert(*job);
            }
            What::Job { job, phase: JobPhase::Active } if self.ended.remove(job).is_some() => {
                return Some(broken("I14", format!("job {} had ended and goes on", job.short())));
            }
            What::Job { phase: JobPhase::Active, .. } => {}
            What::Job { job, phase } => {
                self.ended.insert(*job, phase.clone());
                self.last_end = self.last_end.max(*at);
            }
            What::Dropped { job, task: Some(task) } if self.accepted.contains_key(task) => {
                return Some(broken("I2", format!("a result of job {} was dropped", job.short())));
            }
            What::Dropped { job, task: None } => {
                return Some(broken("I1", format!("job {} was dropped", job.short())));
            }
            What::Up { jobs, done, .. } => return self.up(*site, jobs, *done),
            What::Began { attempt, number, step, task, .. } => {
                let fresh = Try { number: *number, task: (step.0, task.0), root: None };
                if self.tries.insert(*attempt, fresh).is_some() {
                    return Some(broken("I3", format!("{attempt:?} has begun twice")));
                }
            }
            What::Ended { attempt, fate: Fate::Made, root, .. } => {
                if let Some(known) = self.tries.get_mut(attempt) {
                    known.root = *root;
                }
            }
            What::Placed { task, attempt, root } => return self.place(*task, *attempt, *root),
            What::Task { task, is } => return self.task(*site, *task, *is),
            _ => {}
        }
        None
    }

    fn up(&self, site: usize, jobs: &[JobId], done: u64) -> Option<Broken> {
        let acknowledged = self.acknowledged.get(&site);
        let lost = acknowledged.into_iter().flatten().find(|job| !jobs.contains(job));
        if let Some(job) = lost {
            return Some(broken(
                "I1",
                format!("acknowledged job {} is lost in a crash", job.short()),
            ));
        }
        let had = self.n_accepted.get(&site).copied().unwrap_or(0);
        (done < had).then(|| {
            broken(
                "I10",
                format!("{done} results are on the disk after a crash, {had} were accepted"),
            )
        })
    }

    fn place(&mut self, task: TaskRef, attempt: AttemptId, root: ChunkId) -> Option<Broken> {
        let what = format!("task {} of job {}", task.task, task.job.short());
        if self.accepted.contains_key(&task) {
            return Some(broken("I2", format!("the accepted files of {what} are overwritten")));
        }
        let made = self.tries.get(&attempt).and_then(|known| known.root);
        if made != Some(root) {
            return Some(broken("I6", format!("what is placed for {what} is not what was made")));
        }
        self.placed.insert(task, (attempt, root));
        None
    }

    fn task(&mut self, site: usize, task: TaskRef, is: TaskIs) -> Option<Broken> {
        let what = || format!("task {} of job {}", task.task, task.job.short());
        match (self.accepted.get(&task), is) {
            (Some(before), TaskIs::Done { attempt }) if *before != attempt => {
                Some(broken("I2", format!("a second result of {} is accepted", what())))
            }
            (Some(_), TaskIs::Done { .. }) => None,
            (Some(_), other) => {
                Some(broken("I2", format!("{} was done and is {other:?} now", what())))
            }
            (None, TaskIs::Done { attempt }) => {
                self.accepted.insert(task, attempt);
                *self.n_accepted.entry(site).or_default() += 1;
                let number = self.jobs.get(&task.job).map(|(_, number)| *number);
                let ran = self.tries.get(&attempt).is_some_and(|known| {
                    Some(known.number) == number && known.task == (task.step.0, task.task.0)
                });
                if !ran {
                    return Some(broken(
                        "I3",
                        format!("{} is done by a try that never ran for it", what()),
                    ));
                }
                let placed = self.placed.get(&task).is_some_and(|(placed, _)| *placed == attempt);
                (!placed).then(|| {
                    broken("I2", format!("{} is done, but other files stand in its place", what()))
                })
            }
            (None, _) => None,
        }
    }

    /// When the last of `n` jobs had ended; none while one runs.
    pub(crate) fn all_ended(&self, n: usize) -> Option<Millis> {
        let all = self.numbers.len() >= n && self.ended.len() >= self.jobs.len();
        all.then_some(self.last_end)
    }

    /// How every job that is known ended.
    pub(crate) fn phases(&self) -> impl Iterator<Item = (u32, Option<&JobPhase>)> {
        self.jobs.iter().map(|(job, (_, number))| (*number, self.ended.get(job)))
    }

    pub(crate) fn n_results(&self) -> u64 {
        self.accepted.len() as u64
    }
}
