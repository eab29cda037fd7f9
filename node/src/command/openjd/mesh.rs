//! A job through the mesh: submitted to the node, watched to its end, its logs printed as one session's would be.

use std::time::Duration;

use meshfarm_core::{JobPhase, JobView, Operation, Tasks};
use meshfarm_protocol::id::{AttemptId, JobId};
use tokio::time::{Instant, sleep};

use crate::api::{self, DryRun, Problem};
use crate::cli::OpenjdRun;
use crate::client::ClientError;
use crate::job_bundle::PlayRequest;

use super::super::{Desk, Failure, text_of, user};
use super::{Journal, Ran};

/// How often the node is asked.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the end of a log is waited for when its task has ended: it travels by itself.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// Submit the job, and print what it says when it has ended. Ctrl-C cancels it.
pub(super) async fn run(
    desk: &Desk,
    flags: &OpenjdRun,
    request: &PlayRequest,
    journal: &mut Journal,
) -> Result<Ran, Failure> {
    let submit = api::Submit {
        source: text_of(&request.cwd.join(&request.template))?,
        folder: request.cwd.clone(),
        user: user(),
        parameters: Vec::new(),
        frames: None,
        resolution: None,
        output: None,
        inputs: Vec::new(),
        place: flags.place.clone(),
        priority: None,
        // As in a session alone: what fails has failed, and nothing is begun after it.
        retries: Some(0),
        timeout: None,
        silence: None,
        deadline: None,
        hops: None,
        order: None,
        max_price: None,
        budget: None,
        hold: false,
        environments: request.environments.iter().map(|path| request.cwd.join(path)).collect(),
        path_mapping: request.path_mapping.clone(),
        arguments: request.parameters.clone(),
        max_failed_tasks: Some(0),
    };
    check_sites(&desk.client.dry_run(&submit).await?)?;
    let submitted = desk.client.submit(&submit, |_| {}).await?;
    journal.print([format!("Running job '{}' ({})", submitted.name, submitted.job).as_str()])?;
    let ended = tokio::select! {
        biased;
        ended = wait(desk, submitted.job) => ended?,
        _ = tokio::signal::ctrl_c() => {
            let cancel = Operation::Cancel { tasks: Tasks::All };
            desk.client.operate(submitted.job, &cancel).await?;
            return Ok(Ran { failed: Some("it was interrupted".to_owned()), ..Ran::default() });
        }
    };
    let mut n_tasks = 0;
    for step in &ended.steps {
        journal.print([format!("--------- Running Step: {}", step.name).as_str()])?;
        for attempt in step.tasks.iter().filter_map(|task| task.attempt) {
            n_tasks += 1;
            journal.print(["--------- Running Task"])?;
            let log = whole_log(desk, attempt).await?;
            journal.print(String::from_utf8_lossy(&log).lines())?;
        }
    }
    let failed = match &ended.phase {
        JobPhase::Done => None,
        JobPhase::Failed(reason) => Some(reason.clone()),
        JobPhase::Canceled => Some("it was canceled".to_owned()),
        JobPhase::Active => Some("it has not ended".to_owned()),
    };
    Ok(Ran { n_tasks, failed, preserved: None })
}

/// A queue waits for a host that serves; who waits for a result wants to hear that there is none.
fn check_sites(plan: &DryRun) -> Result<(), Failure> {
    if plan.sites.iter().any(|site| site.blocks.is_empty()) {
        return Ok(());
    }
    let sites = plan.sites.iter().map(|site| format!("{}: {}", site.site, site.blocks.join(", ")));
    let sites: Vec<_> = sites.collect();
    Err(Problem::refused(format!("no site can run it now; {}", sites.join("; "))).into())
}

async fn wait(desk: &Desk, job: JobId) -> Result<JobView, Failure> {
    let name = job.to_string();
    loop {
        if desk.client.job(&name, true).await?.phase != JobPhase::Active {
            return Ok(desk.client.job(&name, false).await?);
        }
        sleep(PAUSE).await;
    }
}

/// The log of an attempt that has ended, to its end or as far as it comes in good time.
async fn whole_log(desk: &Desk, attempt: AttemptId) -> Result<Vec<u8>, Failure> {
    let end = Instant::now() + LOG_PATIENCE;
    let mut log = Vec::new();
    loop {
        let offset = u64::try_from(log.len()).unwrap_or(u64::MAX);
        let (more, ended) = match desk.client.log(attempt, offset).await {
            Ok(part) => (part.bytes, part.ended),
            // It has not come yet.
            Err(ClientError::Problem(problem)) if problem.status == 404 => (Vec::new(), false),
            Err(error) => return Err(error.into()),
        };
        if more.is_empty() && (ended || Instant::now() > end) {
            return Ok(log);
        }
        if more.is_empty() {
            sleep(PAUSE).await;
        }
        log.extend_from_slice(&more);
    }
}
