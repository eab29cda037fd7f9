//! Which try has ended which task, so that the rest of a log is known when it comes, without a walk through all tasks.

use meshfarm_protocol::id::{AttemptId, SiteId};

use crate::door::TaskRef;
use crate::job::Task;

use super::Jobs;

impl Jobs {
    /// A task is about to stand so: which try has ended it, if one has.
    pub(super) fn index(&mut self, at: TaskRef, task: &Task) {
        if let Some(old) = self.task(at).and_then(ended_by) {
            self.ended_by.remove(&old);
        }
        if self.task(at).is_some() {
            self.ended_by.extend(ended_by(task).map(|attempt| (attempt, at)));
        }
    }

    /// Whether `by` has ended a task of ours with this try.
    pub(crate) fn was_ended(&self, attempt: AttemptId, by: SiteId) -> bool {
        let task = self.ended_by.get(&attempt).and_then(|at| self.task(*at));
        match task {
            Some(Task::Done { attempt: ours, by: of, .. }) => *ours == attempt && *of == by,
            Some(Task::Failed { attempt: ours, failed_on, .. }) => {
                *ours == attempt && failed_on.last() == Some(&by)
            }
            Some(Task::Waiting { .. } | Task::Leased { .. } | Task::Canceled) | None => false,
        }
    }
}

/// The try that has ended a task.
pub(super) const fn ended_by(task: &Task) -> Option<AttemptId> {
    match task {
        Task::Done { attempt, .. } | Task::Failed { attempt, .. } => Some(*attempt),
        Task::Waiting { .. } | Task::Leased { .. } | Task::Canceled => None,
    }
}
