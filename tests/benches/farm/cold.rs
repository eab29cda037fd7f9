//! How soon a node with 100,000 tasks in its database is there again, and goes on with them.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshfarm::config::Home;
use meshfarm::records;
use meshfarm::store::{Batch, Store};
use meshfarm_core::{Change, Record, Task, TaskRef};
use meshfarm_protocol::id::{AttemptId, Millis, SiteId, StepNo, TaskNo};
use meshfarm_protocol::receipt::Exact;

use super::dispatch::{submit, template, view};
use crate::node::used;
use crate::sites::{Plan, Site, folder};
use crate::table::{Row, Table, percentile};

const TASKS: u64 = 100_000;

/// Of so many tasks every other one is done.
const STARTS: usize = 5;

/// A task has to be begun within that.
const MOST: Duration = Duration::from_secs(30);

/// From the start of the process.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let folder = folder()?;
    let tasks = table.scale().of(TASKS).max(10);
    let template = template(folder.path(), tasks, "sleep 600")?;
    let mut site = Site::init(folder.path(), Plan::new("cold", 1))?;
    site.start()?;
    let job = submit(&site, &template, &["--hold"])?;
    site.stop()?;
    let done = half_done(&site.home)?;
    let (mut ready, mut assigned, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let began = Instant::now();
        ready.push(site.start()?.as_secs_f64());
        cpu.push(used(&site)?);
        loop {
            let view = view(&site, &job)?;
            if view["leased"] != 0 {
                ensure!(view["done"] == done, "of {done} tasks that are done: {view}");
                break;
            }
            ensure!(began.elapsed() < MOST, "after {MOST:?} nothing is begun: {view}");
            thread::sleep(Duration::from_millis(2));
        }
        assigned.push(began.elapsed().as_secs_f64());
        site.kill()?;
    }
    let cpu = percentile(&cpu, 50);
    let note = format!(
        "{tasks} tasks in the database, {done} of them done; after a kill; {cpu:.2} s of processor time"
    );
    let row = Row::alone("farm.cold.ready", percentile(&ready, 50), "s").at_most(1.0);
    table.add(row.note(note));
    let row = Row::alone("farm.cold.assigned", percentile(&assigned, 50), "s").at_most(1.0);
    table.add(row.note("until a task that waited has a lender"));
    Ok(())
}

/// Writes that every other task is done, and that none is held any more. Returns how many are done.
fn half_done(home: &Path) -> Result<u64> {
    let store = Store::open(&Home::find(Some(home.to_owned()))?.store().join("records"))?;
    let mut batch = Batch::new();
    let mut done = 0;
    for record in records::load(&store)? {
        let (job, n) = match record {
            Record::Job(mut record) => {
                record.steering.held.clear();
                records::stage(&Change::Put(Box::new(Record::Job(record))), &mut batch);
                continue;
            }
            Record::Spec(job, spec) => (job, spec.steps[0].n_tasks()),
            _ => continue,
        };
        for n in (0..n).step_by(2) {
            let mut attempt = [1; 16];
            attempt[..4].copy_from_slice(&n.to_be_bytes());
            let (attempt, by, wall) = (AttemptId(attempt), SiteId([1; 32]), Millis(1000));
            let at = Millis::seconds(1_700_000_000);
            let (isolation, cost) = (None, Exact(0));
            let task = Task::Done { attempt, by, at, wall, isolation, cost };
            let of = TaskRef { job, step: StepNo(0), task: TaskNo(n) };
            let record = Record::Task(of, task);
            records::stage(&Change::Put(Box::new(record)), &mut batch);
            done += 1;
        }
    }
    store.commit(batch).context("the tasks cannot be written")?;
    Ok(done)
}
