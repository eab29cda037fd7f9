//! Why tasks of a job wait.

use meshfarm_core::JobView;
use meshfarm_protocol::id::{StepNo, TaskNo};

use crate::api::Problem;
use crate::cli;
use crate::print::pages;

use super::{Desk, Done, now};

pub(super) async fn explain(desk: &Desk, flags: &cli::Explain) -> Done {
    let brief = flags.task.is_none();
    let view = desk.client.job(&flags.which.job, brief).await?;
    let task = match &flags.task {
        Some(task) => Some(find(&view, task)?),
        None => None,
    };
    desk.show(&pages::explain(&desk.client.explain(view.job, task).await?, now()))
}

/// The task of this number or label.
fn find(view: &JobView, wanted: &str) -> Result<(StepNo, TaskNo), Problem> {
    let steps = (0..).map(StepNo).zip(&view.steps);
    let mut found = steps.flat_map(|(step, view)| {
        let is = move |label: &str, task: TaskNo| label == wanted || task.to_string() == wanted;
        let tasks = view.tasks.iter().filter(move |task| is(&task.label, task.task));
        tasks.map(move |task| (step, task.task, &task.label))
    });
    let help = format!("its tasks are listed by: meshfarm job {}", view.job.short());
    match (found.next(), found.next()) {
        (Some((step, task, _)), None) => Ok((step, task)),
        (Some((_, _, one)), Some((_, _, other))) => {
            let detail = format!("{wanted} is the task {one} of one step and {other} of another");
            Err(Problem::bad_input(detail).with_help("write a label that only one of them has"))
        }
        (None, _) => {
            let detail = format!("there is no task {wanted} in job {}", view.job.short());
            Err(Problem::not_found(detail).with_help(help))
        }
    }
}
