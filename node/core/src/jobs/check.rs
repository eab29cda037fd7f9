//! What must hold of all jobs after every step: indexes, counts and accounts agree with the tasks.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::TaskNo;
use meshfarm_protocol::receipt::Exact;

use crate::fair::Account;
use crate::job::Task;
use crate::step::is_open;

use super::{Jobs, ended_by, refs};

impl Jobs {
    /// Panic if anything disagrees.
    pub(crate) fn check(&self) {
        let mut running: BTreeMap<Account, u64> = BTreeMap::new();
        let mut n_ended = 0;
        for job in self.jobs.values() {
            let listed = self.active.contains(&job.record.job);
            assert_eq!(listed, job.is_active(), "a job would never run, or run after its end");
            for step in &job.steps {
                let leased = step.tasks().iter().filter(|t| matches!(t, Task::Leased { .. }));
                *running.entry(job.account).or_default() += step.cores * leased.count() as u64;
                for (task, attempt) in (0..).zip(step.tasks().iter().map(ended_by)) {
                    let Some(attempt) = attempt else { continue };
                    n_ended += 1;
                    let found = self.ended_by.get(&attempt).map(|at| (at.job, at.task.0));
                    assert_eq!(found, Some((job.record.job, task)), "a log would be refused");
                }
            }
            let open = job.counts().open;
            assert!(job.is_active() || open == 0, "an ended job has open tasks");
            assert!(job.is_active() || job.record.steering.held.is_empty(), "an ended job is held");
            let costs = refs(job.record.job, job, |_| true).into_iter().map(|at| job.cost_of(at));
            let spent = costs.fold(job.record.spent, Exact::plus);
            assert_eq!(job.spent, spent, "a job has lost count of what it owes");
            let urged = job.outlook.slack.is_some();
            let due = job.is_active() && job.deadline().is_some();
            assert!(!urged || due, "a job without a deadline is in a hurry");
            for (n, step) in job.step_numbers().zip(&job.steps) {
                let open = |task: &TaskNo| step.tasks().get(task.0 as usize).is_some_and(is_open);
                let on_record = job.record.steering.held.iter().filter(|(of, ..)| *of == n);
                let on_record = on_record.flat_map(|(_, first, last)| first.0..=last.0);
                let on_record: BTreeSet<_> = on_record.map(TaskNo).filter(open).collect();
                let held = step.held_ranges().into_iter();
                let held = held.flat_map(|(first, last)| first.0..=last.0).map(TaskNo);
                assert_eq!(held.collect::<BTreeSet<_>>(), on_record, "a hold would not survive");
            }
            for (step, spec) in job.steps.iter().zip(&job.spec.steps) {
                assert_eq!(step.tasks().len(), spec.labels.len(), "a step lost tasks");
                step.check();
            }
        }
        assert_eq!(n_ended, self.ended_by.len(), "a try is remembered that has ended nothing");
        self.fair.check(&running);
    }
}
