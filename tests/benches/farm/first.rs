//! How soon a job's first process runs, on a free slot, while a million other tasks are queued that have to wait for another site.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::dispatch::{submit, template};
use crate::demo::first_process;
use crate::sites::Mesh;
use crate::table::{Row, Table, percentile};

const SUBMISSIONS: usize = 15;

/// Jobs that wait, and tasks of each.
const JOBS: u64 = 10;
const TASKS: u64 = 100_000;

/// How long taking in all of them may take.
const MOST: Duration = Duration::from_secs(120);

/// On an own slot and on another site's, with nothing queued and with very much.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let (own, other) = ("bergen", "lyon");
    let mesh = Mesh::of(&[(own, 1), (other, 1)])?;
    let bergen = &mesh[0];
    let tasks = table.scale().of(TASKS).max(1);
    for queued in [0, JOBS] {
        let folder = mesh.folder().join(format!("first-{queued}"));
        std::fs::create_dir_all(&folder)?;
        let template = template(&folder, tasks, "true")?;
        let began = Instant::now();
        for _ in 0..queued {
            submit(bergen, &template, &["--where", "nowhere"])?;
            ensure!(began.elapsed() < MOST, "after {MOST:?} not all jobs are taken");
        }
        let each = began.elapsed().as_secs_f64() / queued.max(1) as f64;
        let note = match queued {
            0 => "nothing else is queued".to_owned(),
            n => format!("{} tasks wait; each of {n} jobs was taken in {each:.2} s", n * tasks),
        };
        let kind = if queued == 0 { "idle" } else { "million" };
        for (place, name, most) in [("local", "own", 100.0), (other, "other", 500.0)] {
            let flags = ["--where", place];
            let waits = || mesh.wait_idle();
            let times = first_process(bergen, (&folder.join(name), &flags), SUBMISSIONS, waits)?;
            let name = |what: &str| format!("farm.first.{kind}.{name}.{what}");
            table.add(Row::alone(name("p50"), percentile(&times, 50), "ms").note(note.clone()));
            table.add(Row::alone(name("p95"), percentile(&times, 95), "ms").at_most(most));
        }
    }
    Ok(())
}
