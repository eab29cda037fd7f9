//! From an instantiated Open Job Description job to the steps that sites see.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{Millis, StepNo};
use meshfarm_protocol::job::{MAX_STEPS, MAX_TASKS, StepSpec};
use meshfarm_protocol::profile::{Amount, AmountNeed, AttributeNeed, Requirement};
use openjd_model::job::{HostRequirements, Job, Step, TaskParameter};
use openjd_model::{ModelError, StepParameterSpaceIterator, TaskParameterSet};

use super::error::BundleError;

/// A longer target of a chunk counts as this, in seconds: a day.
const MAX_TARGET: u64 = 86_400;

/// A longer label is cut, in characters.
const MAX_LABEL: usize = 200;

/// Why steps cannot be counted out.
pub(super) enum StepsError {
    /// More than a job may have.
    Bundle(BundleError),
    /// The model refuses a parameter space.
    Model(ModelError),
}

impl From<ModelError> for StepsError {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

/// The steps of `job`, with a label for each task. `around` says whether environments stand around all of them.
pub(super) fn steps(job: &Job, around: bool) -> Result<Vec<StepSpec>, StepsError> {
    let too_many = |what, count, max| StepsError::Bundle(BundleError::TooMany { what, count, max });
    if job.steps.len() > MAX_STEPS {
        return Err(too_many("steps", job.steps.len(), MAX_STEPS));
    }
    let max = usize::try_from(MAX_TASKS).unwrap_or(usize::MAX);
    let mut n_tasks = 0_usize;
    let mut steps = Vec::new();
    for step in &job.steps {
        let tasks = tasks_of(step)?;
        n_tasks = n_tasks.saturating_add(tasks.as_ref().map_or(1, StepParameterSpaceIterator::len));
        if n_tasks > max {
            return Err(too_many("tasks", n_tasks, max));
        }
        let inner = step.step_environments.as_ref();
        let outer = job.job_environments.as_ref();
        steps.push(StepSpec {
            name: step.name.clone(),
            requirement: requirement(step.host_requirements.as_ref()),
            labels: labels(step, tasks.as_ref()),
            needs: needs(job, step),
            environments: around || inner.or(outer).is_some(),
            session: target(step),
        });
    }
    Ok(steps)
}

/// The step's parameter space; none when the step is a single task.
///
/// An override pins the size of chunks, because the tasks of an adaptive space have no numbers. The
/// session runner does the same: the numbers must mean the same tasks there.
pub(super) fn tasks_of(step: &Step) -> Result<Option<StepParameterSpaceIterator>, ModelError> {
    let Some(space) = &step.parameter_space else {
        return Ok(None);
    };
    let pinned = StepParameterSpaceIterator::new(space)?.chunks_default_task_count();
    StepParameterSpaceIterator::new_with_chunk_override(space, pinned).map(Some)
}

/// How long a chunk of the step shall run, where its template says that.
///
/// The tasks are chunks of the size that the template gives, because they have numbers before any has run. So as many of
/// them as are expected to take that long together run in one session, one after the other.
fn target(step: &Step) -> Option<Millis> {
    let mut parameters =
        step.parameter_space.iter().flat_map(|s| s.task_parameter_definitions.values());
    parameters.find_map(|parameter| match parameter {
        TaskParameter::ChunkInt { chunks, .. } => {
            let seconds = u64::try_from(chunks.target_runtime_seconds?).ok()?;
            (seconds > 0).then_some(Millis::seconds(seconds.min(MAX_TARGET)))
        }
        TaskParameter::Int { .. }
        | TaskParameter::Float { .. }
        | TaskParameter::String { .. }
        | TaskParameter::Path { .. } => None,
    })
}

fn labels(step: &Step, tasks: Option<&StepParameterSpaceIterator>) -> Vec<String> {
    let Some(tasks) = tasks else {
        return vec![step.name.clone()];
    };
    let space = step.parameter_space.iter();
    let names = space.flat_map(|space| space.task_parameter_definitions.keys());
    let names: Vec<&String> = names.collect();
    let all = (0..tasks.len()).filter_map(|i| tasks.get(i));
    all.map(|parameters| label(&names, &parameters)).collect()
}

/// The values of a task's parameters, in the order in which the template defines them.
fn label(names: &[&String], parameters: &TaskParameterSet) -> String {
    let parts = names.iter().filter_map(|name| {
        let value = &parameters.get(*name)?.value;
        Some(format!("{name}={}", value.to_display_string()))
    });
    let label = parts.collect::<Vec<_>>().join(",");
    match label.char_indices().nth(MAX_LABEL) {
        Some((end, _)) => label[..end].to_owned(),
        None => label,
    }
}

fn needs(job: &Job, step: &Step) -> Vec<StepNo> {
    let names = step.dependencies.iter().flatten();
    let numbers = names.filter_map(|needed| {
        let found = job.steps.iter().position(|step| step.name == needed.depends_on);
        found.and_then(|i| u32::try_from(i).ok()).map(StepNo)
    });
    let numbers: BTreeSet<StepNo> = numbers.collect();
    numbers.into_iter().collect()
}

fn requirement(asked: Option<&HostRequirements>) -> Requirement {
    let mut requirement = Requirement::default();
    let Some(asked) = asked else {
        return requirement;
    };
    for amount in asked.amounts.iter().flatten() {
        let need = AmountNeed {
            min: Amount::from_f64(amount.min.unwrap_or(0.0)),
            max: amount.max.map(Amount::from_f64),
        };
        requirement.amounts.insert(amount.name.clone(), need);
    }
    for attribute in asked.attributes.iter().flatten() {
        let set = |values: &Option<Vec<String>>| values.iter().flatten().cloned().collect();
        let need = AttributeNeed { any_of: set(&attribute.any_of), all_of: set(&attribute.all_of) };
        requirement.attributes.insert(attribute.name.clone(), need);
    }
    requirement
}
