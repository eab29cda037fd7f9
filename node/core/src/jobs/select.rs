//! Which tasks of a job a person means.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{JobId, StepNo, TaskNo};

use crate::door::{TaskRef, Tasks};
use crate::job::Task;

use super::{Jobs, refs};

impl Jobs {
    /// The tasks that a person means, however they stand.
    ///
    /// # Errors
    /// There is no such job, step or task: which, and what there is.
    pub(crate) fn select(&self, id: JobId, tasks: &Tasks) -> Result<Vec<TaskRef>, String> {
        let job = self.get(id).ok_or_else(|| format!("no job {id}"))?;
        let of_step = |step: StepNo| {
            let n = job.steps.len().saturating_sub(1);
            let spec = job.step_spec(step);
            let spec = spec.ok_or_else(|| format!("step {step}: job {id} has steps 0 to {n}"))?;
            Ok::<_, String>((spec.name.as_str(), spec.n_tasks()))
        };
        let at = |step, task| TaskRef { job: id, step, task };
        match tasks {
            Tasks::All => Ok(refs(id, job, |_| true)),
            // What was stopped with the job is wanted too; what was taken out of one that goes on is not.
            Tasks::Failed if job.is_active() => {
                Ok(refs(id, job, |task| matches!(task, Task::Failed { .. })))
            }
            Tasks::Failed => {
                let failed = |task: &Task| matches!(task, Task::Failed { .. } | Task::Canceled);
                Ok(refs(id, job, failed))
            }
            Tasks::Step(step) => {
                let (_, n) = of_step(*step)?;
                Ok((0..n).map(|task| at(*step, TaskNo(task))).collect())
            }
            Tasks::These(step, these) => {
                let (name, n) = of_step(*step)?;
                if let Some(odd) = these.iter().find(|task| task.0 >= n) {
                    let last = n.saturating_sub(1);
                    return Err(format!("task {odd}: step {name} has tasks 0 to {last}"));
                }
                let these: BTreeSet<_> = these.iter().copied().collect();
                Ok(these.into_iter().map(|task| at(*step, task)).collect())
            }
        }
    }
}
