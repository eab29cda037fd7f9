//! What a decision costs: the core must not be what a job of many tasks waits for.

use std::time::{Duration, Instant};

use meshfarm_core::JobPhase;

use crate::mesh::{Mesh, frames};

/// Ten times what a task costs on one slow core, so that a busy machine does not fail the test and a walk
/// through all tasks for each decision does.
const MOST_PER_TASK: Duration = Duration::from_millis(1);

#[test]
#[expect(clippy::disallowed_methods, reason = "the core has no clock; a measurement needs one")]
fn ten_thousand_null_tasks_cost_little_each() {
    let n = 10_000;
    let mut mesh = Mesh::new([("oslo", 8)]);
    mesh.checks = false;
    let begin = Instant::now();
    let job = mesh.submit(0, frames(n));
    while mesh.n_running(0) > 0 {
        mesh.finish(0, None);
    }
    let each = begin.elapsed() / n;
    assert_eq!(mesh.phase(0, job), JobPhase::Done);
    println!("{each:?} for each task");
    assert!(each < MOST_PER_TASK, "{each:?} for each task");
}
