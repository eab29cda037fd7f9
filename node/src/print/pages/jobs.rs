//! The pages of jobs: lists, one job, what a submission would be, and how a job ended.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use meshfarm_core::{JobPhase, JobView, LeaseView, Queue, StepView, TaskView};
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::job::Place;

use super::deadline;
use crate::api::{DryRun, FilePlan, JobBytes, Outputs, Submitted};
use crate::print::{Cell, Page, Tone, bytes, faint, moment, plain, ranges, span, strong};

/// So many tasks of a step are listed one by one; a longer step is summed up.
const LISTED: usize = 400;

fn phase(phase: &JobPhase) -> Cell {
    match phase {
        JobPhase::Active => Cell::new("active", Tone::Busy),
        JobPhase::Done => Cell::new("done", Tone::Good),
        JobPhase::Failed(_) => Cell::new("failed", Tone::Bad),
        JobPhase::Canceled => Cell::new("canceled", Tone::Faint),
    }
}

/// How a job stands, and that it is held.
fn state(job: &JobView) -> Cell {
    match job.queue {
        Queue::Held => Cell::new("held", Tone::Plain),
        Queue::New | Queue::Active | Queue::Outsourced | Queue::Done => phase(&job.phase),
    }
}

fn queue(queue: Queue) -> &'static str {
    match queue {
        Queue::New => "new",
        Queue::Active => "active",
        Queue::Outsourced => "outsourced",
        Queue::Held => "held",
        Queue::Done => "done",
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Local => "on this site only".to_owned(),
        Place::Auto => "wherever it finishes first".to_owned(),
        Place::Remote => "on other sites".to_owned(),
        Place::Site(name) => format!("on {name}"),
    }
}

/// What to say when other sites may render, and so read, a scene.
#[must_use]
pub fn reads(place: &Place) -> Option<String> {
    match place {
        Place::Local => None,
        Place::Auto | Place::Remote => {
            Some("a site that renders it can read the scene and its files".to_owned())
        }
        Place::Site(name) => {
            Some(format!("{name} renders it, and so can read the scene and its files"))
        }
    }
}

/// A list of jobs, and batches of other sites that were asked for with it.
#[must_use]
pub fn jobs(jobs: &[JobView], lent: &[LeaseView], now: Millis) -> Page {
    let mut page = Page::of(&jobs);
    page.quiet = jobs.iter().map(|job| job.job.to_string()).collect();
    if jobs.is_empty() && lent.is_empty() {
        page.line([plain("no jobs here; submit one: meshfarm submit scene.pov --frames 1-20")]);
    }
    let due = jobs.iter().any(|job| job.deadline.is_some());
    let mut head = vec![
        "JOB",
        "NAME",
        "STATE",
        "QUEUE",
        ">DONE",
        ">RUNNING",
        ">FAILED",
        ">PRIORITY",
        "SUBMITTED",
    ];
    head.extend(due.then_some("DEADLINE"));
    page.table(
        &head,
        jobs.iter().map(|job| {
            let failed = if job.failed > 0 { Tone::Bad } else { Tone::Plain };
            let mut row = vec![
                strong(job.job.short()),
                plain(&job.name),
                state(job),
                plain(queue(job.queue)),
                plain(format!("{}/{}", job.done, job.tasks)),
                plain(job.running.to_string()),
                Cell::new(job.failed.to_string(), failed),
                plain(job.priority.to_string()),
                faint(moment(job.submitted)),
            ];
            let deadline = job.deadline.as_ref().map(|view| deadline::short(view, now));
            row.extend(due.then(|| deadline.unwrap_or_else(|| plain(""))));
            row
        }),
    );
    if !lent.is_empty() {
        page.gap();
        page.line([strong("Batches of other sites")]);
    }
    let rows = lent.iter().map(|lease| {
        vec![
            plain(lease.lease.short()),
            plain(&lease.borrower),
            plain(lease.tenant.short()),
            plain(lease.runs_on.as_deref().unwrap_or("here")),
            plain(lease.running.to_string()),
            plain(lease.queued.to_string()),
        ]
    });
    page.table(&["LEASE", "BORROWER", "TENANT", "RUNS ON", ">RUNNING", ">QUEUED"], rows);
    page
}

/// One job with its tasks, and why those that wait do so.
#[must_use]
pub fn job(job: &JobView, outputs: &Outputs, now: Millis) -> Page {
    #[derive(Serialize)]
    struct Whole<'a> {
        #[serde(flatten)]
        job: &'a JobView,
        outputs: &'a [PathBuf],
    }
    let mut page = Page::of(&Whole { job, outputs: &outputs.folders });
    page.quiet = vec![job.job.to_string()];
    page.line([strong(&job.name), state(job), faint(job.job.to_string())]);
    if let JobPhase::Failed(reason) = &job.phase {
        page.line([Cell::new(reason, Tone::Bad)]);
    }
    page.line([faint(format!(
        "by {} for {}, priority {}, runs {}, submitted {}, {} of content",
        job.user,
        job.project,
        job.priority,
        place(&job.place),
        moment(job.submitted),
        bytes(job.bytes)
    ))]);
    if let Some(view) = &job.deadline {
        page.line([deadline::deadline(view, job.ended, now), faint(moment(view.at))]);
    }
    for folder in &outputs.folders {
        page.line([faint("outputs in"), plain(folder.display().to_string())]);
    }
    page.line([plain(counts(job))]);
    match (job.budget, job.spent) {
        (Some(budget), spent) => {
            page.line([plain(format!("owes {spent} of a budget of {budget}"))]);
        }
        (None, spent) if !spent.is_zero() => page.line([plain(format!("owes {spent}"))]),
        (None, _) => {}
    }
    for step in &job.steps {
        page.gap();
        page.line([strong(&step.name)]);
        step_tasks(step, &mut page);
        step_why(step, &mut page);
    }
    page
}

/// How many tasks stand how, in a few words.
#[must_use]
pub fn counts(job: &JobView) -> String {
    let mut text = format!("{} of {} tasks done", job.done, job.tasks);
    let over = job.done + job.failed + job.canceled;
    let waits = job.tasks.saturating_sub(over + job.leased + job.held);
    let active = job.phase == JobPhase::Active;
    let words = [
        (job.running, "running"),
        (job.leased.saturating_sub(job.running), "at a site"),
        (if active { waits } else { 0 }, "waiting"),
        (job.held, "held"),
        (job.failed, "failed"),
        (job.canceled, "canceled"),
    ];
    for (n, word) in words.into_iter().filter(|(n, _)| *n > 0) {
        text.push_str(&format!(", {n} {word}"));
    }
    text
}

fn step_tasks(step: &StepView, page: &mut Page) {
    if step.tasks.len() > LISTED {
        let mut states: BTreeMap<&str, u32> = BTreeMap::new();
        for task in &step.tasks {
            *states.entry(&task.state).or_default() += 1;
        }
        let rows = states.iter().map(|(state, n)| vec![state_cell(state), plain(n.to_string())]);
        page.table(&["STATE", ">TASKS"], rows);
        page.line([faint("too many tasks to list: --json has them all")]);
        return;
    }
    let rows = step.tasks.iter().map(|task| {
        let wall = task.wall.map(span).unwrap_or_default();
        let failures = if task.failures > 0 { task.failures.to_string() } else { String::new() };
        vec![
            plain(task.task.to_string()),
            plain(&task.label),
            state_cell(&task.state),
            plain(task.site.as_deref().unwrap_or("")),
            faint(task.isolation.map(|level| level.to_string()).unwrap_or_default()),
            plain(wall),
            Cell::new(failures, Tone::Bad),
            faint(task.reason.as_deref().unwrap_or("")),
        ]
    });
    let head = [">TASK", "LABEL", "STATE", "SITE", "ISOLATION", ">TIME", ">FAILURES", "REASON"];
    page.table(&head, rows);
}

fn state_cell(state: &str) -> Cell {
    let tone = match state {
        "done" => Tone::Good,
        "failed" => Tone::Bad,
        "running" | "returning" | "leased" => Tone::Busy,
        "canceled" => Tone::Faint,
        _ => Tone::Plain,
    };
    Cell::new(state, tone)
}

fn step_why(step: &StepView, page: &mut Page) {
    if step.why.is_empty() {
        return;
    }
    let fits = step.why.iter().any(|why| why.misfits.is_empty());
    page.gap();
    page.line([match fits {
        true => strong("Why tasks wait, site by site"),
        false => Cell::new(
            "No site meets what this step asks for; it waits for one that does",
            Tone::Bad,
        ),
    }]);
    for why in &step.why {
        match (&why.reason, why.misfits.is_empty()) {
            (None, true) => page.line([plain(" "), plain(&why.site), faint("will be asked")]),
            (Some(reason), true) => page.line([plain(" "), plain(&why.site), faint(reason)]),
            (_, false) => {
                let misfits: Vec<_> = why.misfits.iter().map(ToString::to_string).collect();
                page.line([plain(" "), plain(&why.site), faint(misfits.join("; "))]);
            }
        }
    }
}

/// How a watched job has ended.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The job's id.
    pub job: String,
    /// Its name.
    pub name: String,
    /// `done`, `failed` or `canceled`; `active` when nobody waited for the end.
    pub state: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// Where its outputs are.
    pub outputs: Vec<PathBuf>,
    /// From submission to end, in milliseconds.
    pub makespan_ms: u64,
    /// Who rendered what.
    pub sites: Vec<Share>,
    /// Bytes sent to lenders; none when nobody counted.
    pub bytes_sent: Option<u64>,
    /// Bytes received from them.
    pub bytes_received: Option<u64>,
}

/// What one site did for a job.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// The site's name.
    pub site: String,
    /// Labels of the tasks that it did.
    pub tasks: Vec<String>,
    /// How long they ran, one after the other, in milliseconds.
    pub wall_ms: u64,
    /// The longest, in milliseconds.
    pub longest_ms: u64,
}

impl Summary {
    /// Sums up a job with its steps.
    #[must_use]
    pub fn new(job: &JobView, outputs: &Outputs, moved: Option<&JobBytes>) -> Self {
        let (state, reason) = match &job.phase {
            JobPhase::Active => ("active", None),
            JobPhase::Done => ("done", None),
            JobPhase::Failed(reason) => ("failed", Some(reason.clone())),
            JobPhase::Canceled => ("canceled", None),
        };
        let mut sites: BTreeMap<&str, Share> = BTreeMap::new();
        let done = |task: &&TaskView| task.state == "done";
        for task in job.steps.iter().flat_map(|step| &step.tasks).filter(done) {
            let site = task.site.as_deref().unwrap_or("?");
            let share = sites.entry(site).or_insert_with(|| Share {
                site: site.to_owned(),
                tasks: Vec::new(),
                wall_ms: 0,
                longest_ms: 0,
            });
            let wall = task.wall.unwrap_or_default().0;
            share.tasks.push(task.label.clone());
            share.wall_ms = share.wall_ms.saturating_add(wall);
            share.longest_ms = share.longest_ms.max(wall);
        }
        Self {
            job: job.job.to_string(),
            name: job.name.clone(),
            state: state.to_owned(),
            reason,
            outputs: outputs.folders.clone(),
            makespan_ms: job.ended.map_or(0, |ended| ended.since(job.submitted).0),
            sites: sites.into_values().collect(),
            bytes_sent: moved.map(|moved| moved.sent),
            bytes_received: moved.map(|moved| moved.received),
        }
    }
}

/// How fast a job's content moves, to how many sites, and how long that will take: the words beside a bar.
#[must_use]
pub fn speed(moved: &JobBytes) -> String {
    let busy = moved.peers.iter().filter(|peer| peer.sending + peer.receiving > 0).count();
    let mut words = vec![format!("out, {} in", bytes(moved.received))];
    if moved.sending + moved.receiving > 0 {
        let sites = if busy == 1 { "site" } else { "sites" };
        let rates = format!("{}/s out, {}/s in", bytes(moved.sending), bytes(moved.receiving));
        words.push(format!("now {rates}, {busy} {sites}"));
    }
    if let Some(seconds) = moved.seconds_left {
        words.push(format!("{} left", span(Millis(seconds.saturating_mul(1000)))));
    }
    words.join("; ")
}

/// How a watched job has ended, for people.
#[must_use]
pub fn summary(job: &JobView, summary: &Summary) -> Page {
    let mut page = Page::of(summary);
    page.quiet = vec![summary.job.clone()];
    let took = span(Millis(summary.makespan_ms));
    let (name, words) = (strong(&job.name), plain(counts(job)));
    page.line([name, phase(&job.phase), plain(format!("after {took}:")), words]);
    if let Some(reason) = &summary.reason {
        page.line([Cell::new(reason, Tone::Bad)]);
    }
    for folder in &summary.outputs {
        page.line([plain("outputs in"), strong(folder.display().to_string())]);
    }
    let rows = summary.sites.iter().map(|share| {
        let n = u64::try_from(share.tasks.len()).unwrap_or(u64::MAX).max(1);
        vec![
            plain(&share.site),
            plain(share.tasks.len().to_string()),
            plain(span(Millis(share.wall_ms / n))),
            plain(span(Millis(share.longest_ms))),
            plain(span(Millis(share.wall_ms))),
            faint(labels(&share.tasks)),
        ]
    });
    page.table(&["SITE", ">TASKS", ">EACH", ">LONGEST", ">IN ALL", "WHICH"], rows);
    if let (Some(sent), Some(received)) = (summary.bytes_sent, summary.bytes_received) {
        let moved = format!("moved {} out and {} in", bytes(sent), bytes(received));
        page.line([plain(moved)]);
    }
    page
}

/// Labels in few words: `Frame=1-7,9` where they are numbers of one parameter.
fn labels(labels: &[String]) -> String {
    let split = |label: &String| {
        let (name, value) = label.split_once('=')?;
        Some((name.to_owned(), value.parse::<u32>().ok()?))
    };
    let numbers: Option<Vec<_>> = labels.iter().map(split).collect();
    match numbers.as_deref() {
        Some([(first, _), rest @ ..]) if rest.iter().all(|(name, _)| name == first) => {
            let name = first.clone();
            let mut values: Vec<_> = numbers.iter().flatten().map(|(_, value)| *value).collect();
            values.sort_unstable();
            format!("{name}={}", ranges(values))
        }
        _ => labels.join(", "),
    }
}

/// A job that was accepted.
#[must_use]
pub fn submitted(submitted: &Submitted) -> Page {
    let mut page = Page::of(submitted);
    page.quiet = vec![submitted.job.to_string()];
    for warning in &submitted.warnings {
        page.line([Cell::new("warning:", Tone::Busy), plain(warning)]);
    }
    let size =
        format!("{} tasks, {} files, {}", submitted.tasks, submitted.files, bytes(submitted.bytes));
    let id = strong(submitted.job.short());
    page.line([plain("job"), id, plain(&submitted.name), faint(format!("({size})"))]);
    page.line([faint(format!("runs {}", place(&submitted.place)))]);
    if let Some(reads) = reads(&submitted.place) {
        page.line([faint(reads)]);
    }
    if submitted.held {
        let release =
            format!("starts when it is released: meshfarm release {}", submitted.job.short());
        page.line([plain(release)]);
    }
    for folder in &submitted.outputs {
        page.line([faint("outputs go to"), plain(folder.display().to_string())]);
    }
    page
}

/// What a submission would be.
#[must_use]
pub fn dry_run(plan: &DryRun) -> Page {
    let mut page = Page::of(plan);
    let tasks: usize = plan.steps.iter().map(|step| step.tasks.len()).sum();
    page.quiet = vec![tasks.to_string()];
    for warning in &plan.warnings {
        page.line([Cell::new("warning:", Tone::Busy), plain(warning)]);
    }
    page.line([strong(&plan.name), plain(format!("would run {}", place(&plan.place)))]);
    if let Some(reads) = reads(&plan.place) {
        page.line([faint(reads)]);
    }
    for step in &plan.steps {
        page.gap();
        let n = format!("{} tasks:", step.tasks.len());
        page.line([strong(&step.name), plain(n), faint(labels(&step.tasks))]);
        for line in &step.requires {
            page.line([faint("  asks"), plain(line)]);
        }
    }
    page.gap();
    let total: u64 = plan.files.iter().map(|file| file.bytes).sum();
    page.line([strong(format!("{} files, {}", plan.files.len(), bytes(total)))]);
    let files = plan.files.iter().take(LISTED);
    let row =
        |file: &FilePlan| vec![plain(bytes(file.bytes)), plain(file.path.display().to_string())];
    page.table(&[">SIZE", "TRAVELS"], files.map(row));
    for folder in &plan.outputs {
        page.line([faint("outputs would go to"), plain(folder.display().to_string())]);
    }
    page.gap();
    let sites = plan.sites.iter().map(|site| match site.blocks.is_empty() {
        true => vec![plain(&site.site), Cell::new("yes", Tone::Good), plain("")],
        false => vec![plain(&site.site), Cell::new("no", Tone::Bad), faint(site.blocks.join("; "))],
    });
    page.table(&["SITE", "MATCHES", "WHAT BLOCKS"], sites);
    page.line([plain("nothing was submitted")]);
    page
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
