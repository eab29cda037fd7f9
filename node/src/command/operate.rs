//! What people do to jobs and to their site while it runs: a selection of tasks, an operation, and what came of it.

use meshfarm_core::{JobView, Operation, SiteOperation, Tasks};
use meshfarm_protocol::id::{Millis, StepNo, TaskNo};

use crate::api::{Changed, Problem};
use crate::cli::{After, Operate, Outsource, Pause, Selection};
use crate::print::{Page, faint, plain, strong};

use super::{Desk, Done, Failure};

pub(super) async fn operate(desk: &Desk, command: Operate) -> Done {
    match command {
        Operate::Cancel(flags) => cancel(desk, &flags).await,
        Operate::Hold(flags) => {
            let (job, tasks) = selected(desk, &flags.selection, Tasks::All).await?;
            let hold = Operation::Hold { tasks, give_back: flags.give_back };
            let changed = desk.client.operate(job.job, &hold).await?;
            touched(desk, changed, "held")
        }
        Operate::Release(flags) => {
            let (job, tasks) = selected(desk, &flags, Tasks::All).await?;
            let changed = desk.client.operate(job.job, &Operation::Release { tasks }).await?;
            touched(desk, changed, "released")
        }
        Operate::Retry(flags) => {
            let default = if flags.all { Tasks::All } else { Tasks::Failed };
            let (job, tasks) = selected(desk, &flags.selection, default).await?;
            let changed = desk.client.operate(job.job, &Operation::Retry { tasks }).await?;
            touched(desk, changed, "wait again")
        }
        Operate::Kill(flags) => {
            let (job, tasks) = selected(desk, &flags.selection, Tasks::All).await?;
            let kill = Operation::Kill { tasks, fail: flags.fail };
            let changed = desk.client.operate(job.job, &kill).await?;
            touched(desk, changed, "stopped; they run again")
        }
        Operate::Priority(flags) => {
            let job = desk.client.job(&flags.which.job, true).await?;
            desk.client.operate(job.job, &Operation::Priority(flags.priority)).await?;
            let json = serde_json::json!({"job": job.job, "priority": flags.priority});
            said(desk, &job, &json, &format!("has priority {} now", flags.priority))
        }
        Operate::Budget(flags) => {
            let job = desk.client.job(&flags.which.job, true).await?;
            desk.client.operate(job.job, &Operation::Budget(flags.amount)).await?;
            let json = serde_json::json!({"job": job.job, "budget": flags.amount});
            let text = format!("may owe {} in all; it owes {}", flags.amount, job.spent);
            said(desk, &job, &json, &text)
        }
        Operate::Outsource(flags) => outsource(desk, flags).await,
        Operate::Recall(flags) => {
            let job = desk.client.job(&flags.job, true).await?;
            let changed = desk.client.operate(job.job, &Operation::Recall).await?;
            let json = serde_json::json!({"job": job.job, "tasks": changed.tasks});
            said(desk, &job, &json, &format!("runs here only; {} tasks come home", changed.tasks))
        }
        Operate::Pause(flags) => pause(desk, flags).await,
        Operate::Resume(flags) => {
            let (operation, text) = match flags.site {
                Some(site) => {
                    let text = format!("tasks are sent to {site} again");
                    (SiteOperation::Reopen(site), text)
                }
                None => (SiteOperation::Resume, "this site takes tasks again".to_owned()),
            };
            site(desk, &operation, false, &text).await
        }
    }
}

async fn cancel(desk: &Desk, flags: &Selection) -> Done {
    let (job, tasks) = selected(desk, flags, Tasks::All).await?;
    let whole = tasks == Tasks::All;
    let changed = desk.client.operate(job.job, &Operation::Cancel { tasks }).await?;
    if !whole {
        return touched(desk, changed, "canceled");
    }
    let mut page = Page::of(&serde_json::json!({"canceled": job.job, "tasks": changed.tasks}));
    page.quiet = vec![job.job.to_string()];
    page.line([plain("stopped"), strong(job.job.short()), plain(&job.name)]);
    desk.show(&page)
}

async fn outsource(desk: &Desk, flags: Outsource) -> Done {
    let job = desk.client.job(&flags.which.job, true).await?;
    let to = flags.to.clone().unwrap_or_else(|| "other sites".to_owned());
    let changed = desk.client.operate(job.job, &Operation::Outsource(flags.to)).await?;
    let json = serde_json::json!({"job": job.job, "to": to, "tasks": changed.tasks});
    said(desk, &job, &json, &format!("goes to {to}; who renders it can read its scene"))
}

async fn pause(desk: &Desk, flags: Pause) -> Done {
    if let Some(name) = flags.site {
        let text = format!("no tasks are sent to {name}; what it has, it keeps");
        return site(desk, &SiteOperation::Shut(name), true, &text).await;
    }
    let give_back = match (flags.after, flags.grace) {
        (After::Finish, None) => None,
        (After::Finish, Some(_)) => {
            let detail = "--grace: what runs is returned with --after return only";
            return Err(Problem::bad_input(detail).into());
        }
        (After::Return, grace) => Some(grace.unwrap_or(Millis(0))),
    };
    let whose = if flags.own { "no tasks, own ones neither" } else { "no tasks of other sites" };
    let then = match give_back {
        None => "what runs goes on to its end".to_owned(),
        Some(Millis(0)) => "what ran goes back".to_owned(),
        Some(grace) => format!("what runs goes back after {}", crate::print::span(grace)),
    };
    let text = format!("this site takes {whose}; {then}");
    site(desk, &SiteOperation::Pause { own: flags.own, give_back }, true, &text).await
}

async fn site(desk: &Desk, operation: &SiteOperation, paused: bool, text: &str) -> Done {
    desk.client.operate_site(operation).await?;
    let mut page = Page::of(&serde_json::json!({"paused": paused}));
    page.line([plain(text)]);
    if paused {
        page.line([faint("until: meshfarm resume")]);
    }
    desk.show(&page)
}

fn said(desk: &Desk, job: &JobView, json: &serde_json::Value, text: &str) -> Done {
    let mut page = Page::of(json);
    page.quiet = vec![job.job.to_string()];
    page.line([strong(job.job.short()), plain(&job.name), plain(text)]);
    desk.show(&page)
}

fn touched(desk: &Desk, changed: Changed, how: &str) -> Done {
    let mut page = Page::of(&changed);
    page.quiet = vec![changed.tasks.to_string()];
    page.line([plain(format!("{} tasks {how}", changed.tasks))]);
    desk.show(&page)
}

/// The job and the tasks that a person means; `otherwise` when they name no step and no tasks.
async fn selected(
    desk: &Desk,
    selection: &Selection,
    otherwise: Tasks,
) -> Result<(JobView, Tasks), Failure> {
    let whole = selection.step.is_none() && selection.tasks.is_none();
    let job = desk.client.job(&selection.which.job, whole).await?;
    if whole {
        return Ok((job, otherwise));
    }
    let step = match &selection.step {
        Some(name) => job.steps.iter().position(|step| step.name == *name),
        None if job.steps.len() == 1 => Some(0),
        None => None,
    };
    let names: Vec<_> = job.steps.iter().map(|step| step.name.as_str()).collect();
    let step = step.ok_or_else(|| {
        let named = selection.step.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        Problem::bad_input(format!("--step{named}: name one of {}", names.join(", ")))
    })?;
    let number = StepNo(u32::try_from(step).unwrap_or(u32::MAX));
    let Some(list) = &selection.tasks else {
        return Ok((job, Tasks::Step(number)));
    };
    let n = job.steps[step].tasks.len();
    if let Some(odd) = list.0.iter().find(|task| **task as usize >= n) {
        let last = n.saturating_sub(1);
        let detail = format!("--tasks {odd}: {} has tasks 0 to {last}", names[step]);
        return Err(Problem::bad_input(detail).into());
    }
    let these = list.0.iter().copied().map(TaskNo).collect();
    Ok((job, Tasks::These(number, these)))
}
