//! Watching a job: progress bars on a terminal, lines elsewhere, and a summary at the end.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout_at};

use meshfarm_core::{JobPhase, JobView};
use meshfarm_protocol::id::JobId;

use crate::api::{JobBytes, Outputs, Phase, Progress};
use crate::client::{ClientError, Lines};
use crate::print::{self, pages};

use super::{Desk, Done, Failure};

/// The node is asked no more often than this, however much happens.
const PAUSE: Duration = Duration::from_millis(250);

/// The node is asked at least this often, for what no event tells: bytes on their way.
const REFRESH: Duration = Duration::from_secs(1);

/// The bar of a submission, while files are read, hashed and encrypted, or of a verification.
pub(super) struct HashingBar(ProgressBar);

impl HashingBar {
    pub(super) fn new(hidden: bool) -> Self {
        let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::no_length() };
        bar.set_style(bytes_style("hashing "));
        Self(bar)
    }

    pub(super) fn verifying(hidden: bool) -> Self {
        let bar = Self::new(hidden);
        bar.0.set_style(bytes_style("verifying"));
        bar
    }

    pub(super) fn show(&self, progress: &Progress) {
        match progress.phase {
            Phase::Loading => self.0.set_message("finding the files"),
            Phase::Hashing | Phase::Verifying => self.0.set_message(""),
        }
        if let Some(total) = progress.total {
            self.0.set_length(total);
        }
        self.0.set_position(progress.done);
    }

    pub(super) fn finish(&self) {
        self.0.abandon();
    }
}

fn bytes_style(name: &str) -> ProgressStyle {
    style(&format!("{name} {{bar:36.cyan/dim}} {{bytes}} of {{total_bytes}} {{msg}}"))
}

fn style(template: &str) -> ProgressStyle {
    let style =
        ProgressStyle::with_template(template).expect("the templates of this file are right");
    style.progress_chars("━━╌")
}

/// Shows how a job stands.
struct Bars {
    frames: ProgressBar,
    transfer: ProgressBar,
    /// The last line where there is no terminal; none on one.
    line: Option<String>,
    hidden: bool,
    _all: MultiProgress,
}

impl Bars {
    fn new(hidden: bool) -> Self {
        let all = MultiProgress::new();
        let line = (!stderr().is_terminal()).then(String::new);
        let bar = |style| {
            let bar =
                if hidden { ProgressBar::hidden() } else { all.add(ProgressBar::no_length()) };
            bar.set_style(style);
            bar
        };
        let transfer = bar(bytes_style("transfer"));
        let frames = bar(style("frames   {bar:36.green/dim} {pos} of {len} {msg} {elapsed}"));
        Self { frames, transfer, line, hidden, _all: all }
    }

    fn show(&mut self, job: &JobView, moved: Option<&JobBytes>) {
        self.frames.set_length(u64::try_from(job.tasks).unwrap_or(u64::MAX));
        self.frames.set_position(u64::try_from(job.done).unwrap_or(u64::MAX));
        let failed =
            if job.failed > 0 { format!(", {} failed", job.failed) } else { String::new() };
        self.frames.set_message(format!("({} running{failed})", job.running));
        if let Some(moved) = moved {
            self.transfer.set_length(moved.wanted.unwrap_or(moved.sent).max(moved.sent));
            self.transfer.set_position(moved.sent);
            self.transfer.set_message(pages::speed(moved));
        }
        let Some(last) = &mut self.line else { return };
        let line = pages::counts(job);
        if !self.hidden && *last != line {
            eprintln!("{line}");
            *last = line;
        }
    }

    fn finish(&self) {
        self.transfer.abandon();
        self.frames.abandon();
    }
}

/// Watch the job whose id begins with `name` until it ends; fails when the job does.
pub(super) async fn watch(desk: &Desk, name: &str) -> Done {
    // Listen before looking: what happens in between is not missed.
    let mut events = desk.client.events().await?;
    let mut view = desk.client.job(name, true).await?;
    let id = view.job;
    let mut bars = Bars::new(desk.quiet || desk.json);
    loop {
        let moved = moved(desk, id).await?;
        bars.show(&view, moved.as_ref());
        if view.phase != JobPhase::Active {
            break;
        }
        let asked = Instant::now();
        if let Err(failure) = next_change(desk, &mut events, id, asked + REFRESH).await {
            bars.finish();
            return Err(failure);
        }
        sleep_until(asked + PAUSE).await;
        view = desk.client.job(&id.to_string(), true).await?;
    }
    bars.finish();
    let view = desk.client.job(&id.to_string(), false).await?;
    let outputs = desk.client.outputs(id).await.unwrap_or_else(|_gone| Outputs::default());
    let moved = moved(desk, id).await?;
    let summary = pages::Summary::new(&view, &outputs, moved.as_ref());
    let page = pages::summary(&view, &summary);
    if desk.json {
        // One line, because it follows lines of events.
        print::out(&format!("{}\n", page.json))?;
    } else {
        desk.show(&page)?;
    }
    match view.phase {
        JobPhase::Done => Ok(()),
        JobPhase::Active | JobPhase::Failed(_) | JobPhase::Canceled => Err(Failure::Said),
    }
}

async fn moved(desk: &Desk, job: JobId) -> Result<Option<JobBytes>, Failure> {
    let transfers = desk.client.transfers().await?;
    Ok(transfers.jobs.into_iter().find(|moved| moved.job == job))
}

/// Waits until something happens to the job, or until `end`.
async fn next_change(desk: &Desk, events: &mut Lines, job: JobId, end: Instant) -> Done {
    loop {
        let Ok(line) = timeout_at(end, events.next()).await else {
            return Ok(());
        };
        let Some(line) = line? else {
            let text = "it was stopped; the job goes on when it is started again".to_owned();
            return Err(ClientError::Broken(text).into());
        };
        if concerns(&line, job) {
            if desk.json {
                print::out(&format!("{}\n", String::from_utf8_lossy(&line)))?;
            }
            return Ok(());
        }
    }
}

/// Whether an event is about the job, or about events that were missed.
pub(super) fn concerns(line: &[u8], job: JobId) -> bool {
    let Ok(event) = serde_json::from_slice::<Value>(line) else {
        return true;
    };
    let id = job.to_string();
    let about = event.get("job").or_else(|| event.pointer("/task/job")).and_then(Value::as_str);
    about == Some(id.as_str()) || event["event"] == "missed"
}
