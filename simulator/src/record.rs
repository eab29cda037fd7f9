//! The folder of a run: written aside and renamed, so that one that is there is whole.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bug::Bug;
use crate::outcome::{Outcome, judge};
use crate::plan::Plan;
use crate::report;
use crate::seen::{Class, Fate, Seen, What};
use crate::story::{Span, Story};
use crate::watch::Watch;
use crate::world;

/// The scenario with everything drawn and counted out.
pub const EXPANDED: &str = "scenario.expanded.toml";

/// The figures.
pub const RESULT: &str = "result.json";

/// Longer runs write their first events only.
const MAX_EVENTS: u64 = 2_000_000;

/// More transfers than this are not drawn in the trace.
const MAX_MOVES: usize = 50_000;

/// Why a run's folder was not written. Nothing stands where it should.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Something is there already.
    #[error("{0} is there already: name another folder, or remove it")]
    Exists(PathBuf),
    /// It cannot be written.
    #[error("{0}: {1}")]
    Unwritable(PathBuf, io::Error),
}

/// Whether a folder is that of a run that was finished.
#[must_use]
pub fn is_whole(folder: &Path) -> bool {
    let aside = folder.to_string_lossy().ends_with(ASIDE);
    !aside && folder.join(RESULT).is_file() && folder.join(EXPANDED).is_file()
}

const ASIDE: &str = ".unfinished";

/// Write an expanded scenario.
///
/// # Errors
/// When the file cannot be written.
pub fn write_plan(plan: &Plan, to: &Path) -> Result<(), RecordError> {
    let unwritable = |error| RecordError::Unwritable(to.to_owned(), error);
    let text = toml::to_string(plan).map_err(|error| unwritable(io::Error::other(error)))?;
    fs::write(to, text).map_err(unwritable)
}

/// Run a plan and keep everything about it in `folder`. `words` reproduce it.
///
/// # Errors
/// When the folder is there already or cannot be written.
pub fn run(
    plan: &Plan,
    bug: Option<Bug>,
    folder: &Path,
    words: &str,
) -> Result<Outcome, RecordError> {
    if folder.exists() {
        return Err(RecordError::Exists(folder.to_owned()));
    }
    let aside = PathBuf::from(format!("{}{ASIDE}", folder.display()));
    let unwritable = |error| RecordError::Unwritable(aside.clone(), error);
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(unwritable)?;
    }
    fs::create_dir_all(&aside).map_err(unwritable)?;
    write_plan(plan, &aside.join(EXPANDED))?;
    let mut events = BufWriter::new(File::create(aside.join("events.jsonl")).map_err(unwritable)?);
    let (mut wrong, mut n) = (None, 0);
    let mut listener = |seen: &Seen| {
        n += 1;
        // Messages are many and say little by themselves: their effects are all there.
        if n <= MAX_EVENTS && !matches!(seen.what, What::Said { .. }) {
            let written = serde_json::to_writer(&mut events, seen).map_err(io::Error::from);
            wrong = written.and_then(|()| events.write_all(b"\n")).err().or_else(|| wrong.take());
        }
    };
    let (ran, watch) = world::run(plan, Watch::new(plan, Some(&mut listener)), bug);
    let Watch { story, checks, .. } = &watch;
    let outcome = judge(plan, &ran, (story, watch.broken()), checks.results.n_results());
    let until = ran.ended.0;
    let pages = [
        ("jobs.csv", jobs_csv(plan, story, until)),
        ("schedule.csv", schedule_csv(plan, &outcome, story)),
        ("trace.json", trace(plan, story, until)),
        ("report.html", report::page(plan, &outcome, story, words)),
        ("audit.txt", format!("{}\nmeshfarm-sim {}\n", outcome.audit, env!("CARGO_PKG_VERSION"))),
        (
            "repro.sh",
            format!(
                "#!/bin/sh\n# Runs this again and compares.\ncd \"$(dirname \"$0\")\" && exec meshfarm-sim replay . --quiet\n# From the scenario: {words}\n"
            ),
        ),
        (RESULT, serde_json::to_string_pretty(&outcome).unwrap_or_default()),
    ];
    drop(watch);
    if let Some(error) = wrong {
        return Err(unwritable(error));
    }
    events.flush().map_err(unwritable)?;
    for (name, text) in pages {
        fs::write(aside.join(name), text).map_err(unwritable)?;
    }
    fs::rename(&aside, folder)
        .map_err(|error| RecordError::Unwritable(folder.to_owned(), error))?;
    Ok(outcome)
}

/// Batsim's columns, one row for each try of a frame, so that its tools draw them.
fn jobs_csv(plan: &Plan, story: &Story, until: u64) -> String {
    let mut text = String::from(
        "job_id,workload_name,profile,submission_time,requested_number_of_resources,requested_time,success,final_state,\
         starting_time,execution_time,finish_time,waiting_time,turnaround_time,stretch,allocated_resources,consumed_energy,metadata\n",
    );
    let mut offsets = vec![0usize];
    for site in &plan.site {
        offsets.push(offsets.last().unwrap_or(&0) + site.slots as usize);
    }
    let seconds = |ms: u64| ms as f64 / 1000.0;
    for span in &story.spans {
        let due = story.jobs.get(&span.job).map_or(0, |job| job.due);
        let (end, ran) = (span.end.unwrap_or(until), span.ms(until));
        let (wait, around) = (span.begin.saturating_sub(due), end.saturating_sub(due));
        let success = u8::from(span.accepted);
        let state = if span.accepted { "COMPLETED_SUCCESSFULLY" } else { "COMPLETED_KILLED" };
        let home = &plan.site[span.home].name;
        let slot = offsets[span.site] + span.lane;
        let _ = writeln!(
            text,
            "{}.{}.{}!{},{home},frame,{},1,-1,{success},{state},{},{},{},{},{},{:.3},{slot},-1,{}",
            span.job,
            span.step,
            span.task,
            span.attempt.short(),
            seconds(due),
            seconds(span.begin),
            seconds(ran),
            seconds(end),
            seconds(wait),
            seconds(around),
            around as f64 / ran.max(1) as f64,
            plan.site[span.site].name,
        );
    }
    text
}

/// Batsim's summary of a schedule.
fn schedule_csv(plan: &Plan, outcome: &Outcome, story: &Story) -> String {
    let machines: u64 = plan.site.iter().map(|site| u64::from(site.slots)).sum();
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let ended = story.jobs.values().filter(|job| job.ended.is_some()).count();
    format!(
        "batsim_version,makespan,max_turnaround_time,mean_turnaround_time,mean_waiting_time,nb_computing_machines,nb_jobs,\
         nb_jobs_finished,nb_jobs_success,success_rate,simulation_time\nmeshfarm-sim,{},{},{},{},{machines},{},{ended},{},{},{}\n",
        seconds(outcome.makespan_ms.unwrap_or(outcome.ended_ms)),
        seconds(outcome.turnaround_max_ms),
        seconds(outcome.turnaround_ms),
        seconds(outcome.waiting_ms),
        outcome.jobs.0,
        outcome.jobs.1,
        outcome.jobs.1 as f64 / outcome.jobs.0.max(1) as f64,
        seconds(outcome.ended_ms),
    )
}

/// What people call a try.
pub(crate) fn frame_name(span: &Span) -> String {
    format!(
        "job {} frame {}{}",
        span.job,
        span.task + 1,
        if span.step > 0 { format!(" of step {}", span.step) } else { String::new() }
    )
}

/// Chrome's trace format, which Perfetto opens: a process for each site, a thread for each lane and line, one for faults.
fn trace(plan: &Plan, story: &Story, until: u64) -> String {
    let mut events = Vec::new();
    let row = |(name, category): (&str, &str),
               (pid, tid): (usize, usize),
               (begin, end): (u64, u64),
               args: serde_json::Value| {
        json!({ "name": name, "cat": category, "ph": "X", "ts": begin * 1000, "dur": end.saturating_sub(begin) * 1000, "pid": pid, "tid": tid, "args": args })
    };
    let used: std::collections::BTreeSet<usize> = story
        .spans
        .iter()
        .map(|span| span.site)
        .chain(story.moves.iter().map(|moved| moved.to))
        .collect();
    for site in used {
        events.push(json!({ "name": "process_name", "ph": "M", "pid": site, "args": { "name": plan.site[site].name } }));
    }
    for span in &story.spans {
        let category = match (span.accepted, span.fate) {
            (true, _) => "accepted",
            (false, Some(Fate::Failed)) => "failed",
            (false, Some(Fate::Died)) => "died",
            (false, _) => "lost",
        };
        let args = json!({ "home": plan.site[span.home].name, "attempt": span.attempt });
        events.push(row(
            (&frame_name(span), category),
            (span.site, span.lane),
            (span.begin, span.end.unwrap_or(until)),
            args,
        ));
    }
    for moved in story.moves.iter().take(MAX_MOVES) {
        let (name, lane) = match moved.class {
            Class::Scene => ("scene", 9000),
            Class::Shared => ("scene from a lender", 9000),
            Class::Output => ("frame", 9001),
            Class::Wasted => ("in vain", 9002),
        };
        let args = json!({ "from": plan.site[moved.from].name, "bytes": moved.bytes });
        events.push(row((name, "transfer"), (moved.to, lane), (moved.since, moved.at), args));
    }
    let faults = plan.site.len();
    events.push(
        json!({ "name": "process_name", "ph": "M", "pid": faults, "args": { "name": "faults" } }),
    );
    for (n, (told, planned)) in story.faults.iter().zip(&plan.fault).enumerate() {
        if let Some(begin) = told.begin {
            let args = json!({ "sites": planned.sites });
            events.push(row(
                (planned.what.name(), "fault"),
                (faults, n),
                (begin, told.end.unwrap_or(until)),
                args,
            ));
        }
    }
    json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
}
