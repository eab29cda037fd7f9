//! A million tasks in one site's queues: memory, and the slowest answer to anything that happens.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use meshfarm_core::{Ask, Input, JobPhase, Operation, Tasks};
use meshfarm_protocol::id::JobId;

use super::one_site::{OneSite, job};
use super::{cpu, ms};
use crate::table::{Row, Table};

const JOBS: u64 = 10;
const TASKS: u64 = 100_000;

/// So many jobs with one task each are waited for besides, and so many were done before.
const SMALL_JOBS: u64 = 1000;

/// No answer may take longer, in milliseconds.
const MOST_MS: f64 = 50.0;

/// Submit, run, cancel, retry, look: with a million tasks waiting.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let tasks = u32::try_from(table.scale().of(TASKS))?;
    let small = table.scale().of(SMALL_JOBS);
    // The kernel keeps the most that this process had in memory; from here on it counts anew.
    fs::write("/proc/self/clear_refs", "5").context("the peak of memory cannot be reset")?;
    let before = memory("VmRSS:")?;
    let mut site = OneSite::new(8);
    for n in 0..small {
        site.submit(job(1, &format!("old {}", n % 7))).context("it was not taken")?;
        site.end_one();
    }
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        let spec = job(tasks, &format!("project {}", n % 3));
        jobs.push(site.submit(spec).context("it was not taken")?);
    }
    for n in 0..small {
        site.submit(job(1, &format!("late {}", n % 7))).context("it was not taken")?;
    }
    let done = cpu();
    let n_done = table.scale().of(5000);
    for _ in 0..n_done {
        ensure!(site.end_one(), "nothing runs");
    }
    let each = (cpu() - done) / u32::try_from(n_done)?.max(1);
    let peak = memory("VmHWM:")?.saturating_sub(before);
    let look = looks(&site, jobs[0])?;
    operate(&mut site, &jobs)?;

    let name = |what: &str| format!("farm.queues.{what}");
    let gib = peak as f64 / (1 << 20) as f64;
    table.add(Row::alone(name("memory"), gib, "GiB").at_most(1.0).note(format!(
        "{} tasks in {JOBS} jobs and {} small ones",
        u64::from(tasks) * JOBS,
        2 * small
    )));
    let slowest =
        site.slowest.iter().max_by_key(|(_, took)| **took).context("nothing was asked")?;
    let kinds = site.slowest.iter().map(|(kind, took)| format!("{kind} {:.1}", ms(*took)));
    table.add(
        Row::alone(name("slowest"), ms(*slowest.1), "ms")
            .at_most(MOST_MS)
            .note(format!("of each kind: {}", kinds.collect::<Vec<_>>().join(", "))),
    );
    table.add(
        Row::alone(name("look"), ms(look), "ms").at_most(MOST_MS).note("the list of all jobs"),
    );
    table.add(
        Row::alone(name("task"), ms(each), "ms")
            .note("from one task's end to the next one's start"),
    );
    Ok(())
}

/// What people do to jobs while all those tasks wait.
fn operate(site: &mut OneSite, jobs: &[JobId]) -> Result<()> {
    let ask = |job, operation| Ask::Operate { job, operation };
    let cancel = |job| ask(job, Operation::Cancel { tasks: Tasks::All });
    let all = |job| ask(job, Operation::Retry { tasks: Tasks::All });
    site.give("tick", Input::Tick);
    site.ask("cancel", cancel(jobs[1]));
    site.ask("retry", all(jobs[1]));
    site.ask("cancel", cancel(jobs[2]));
    for _ in 0..100 {
        site.end_one();
    }
    let phase =
        site.site.jobs().into_iter().find(|view| view.job == jobs[2]).map(|view| view.phase);
    ensure!(phase == Some(JobPhase::Canceled), "a job was not canceled: {phase:?}");
    site.give("tick", Input::Tick);
    Ok(())
}

fn looks(site: &OneSite, job: JobId) -> Result<Duration> {
    let began = cpu();
    let listed = site.site.jobs();
    let took = cpu() - began;
    ensure!(listed.iter().any(|view| view.job == job), "a job is not listed");
    Ok(took)
}

/// A line of this process's state, in KiB.
fn memory(line: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|known| known.strip_prefix(line));
    let kib = found.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.with_context(|| format!("the kernel does not tell {line}"))
}
