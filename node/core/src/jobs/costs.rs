//! What is learned of the costs of a job's tasks.

use meshfarm_protocol::id::{JobId, StepNo};
use meshfarm_protocol::receipt::{Money, Used};

use crate::door::TaskRef;

use super::Jobs;

impl Jobs {
    /// A task of a step has used so much.
    pub(crate) fn learn_use(&mut self, at: TaskRef, used: &Used) {
        if let Some(job) = self.jobs.get_mut(&at.job) {
            let known = job.used.entry(at.step).or_default();
            *known = known.plus(used);
        }
    }

    /// A task of a step costs more than that.
    pub(crate) fn costs_more(&mut self, (id, step): (JobId, StepNo), cost: Money) {
        if let Some(job) = self.jobs.get_mut(&id) {
            let known = job.costs_more.entry(step).or_default();
            *known = cost.max(*known);
        }
    }
}
