//! A node whose sessions are over at once, or are one plain process each: what everything around a jail costs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use meshfarm::api::{BackedUp, Problem, Status};
use meshfarm::command::{self, Rooms};
use meshfarm::config::{Config, Home};
use meshfarm::doctor::Found;
use meshfarm::node::{Node, run_with};
use meshfarm::session::{Driver, Left, Listen, Plan, Ran, Stop};
use meshfarm_protocol::lease::{Outcome, Usage};

/// Names to this program what stands in for sessions; it is a node then.
pub(crate) const SESSIONS: &str = "MESHFARM_BENCH_SESSIONS";

/// Every task is done as soon as it is begun.
pub(crate) const NOTHING: &str = "nothing";

/// Every task is the program `true`, without a jail.
pub(crate) const PROCESS: &str = "process";

/// The node around a driver.
struct Around(Driver);

/// What `meshfarm` does, with other sessions.
pub(crate) fn node(sessions: &str) -> ExitCode {
    match sessions {
        NOTHING => command::main(&Around(nothing)),
        PROCESS => command::main(&Around(process)),
        other => {
            eprintln!("error: {SESSIONS} is {other}: there are {NOTHING} and {PROCESS}");
            ExitCode::from(2)
        }
    }
}

fn nothing(plan: &Plan, _: &Stop, listen: &dyn Listen) -> Left {
    each(plan, listen, || Outcome::Done)
}

fn process(plan: &Plan, _: &Stop, listen: &dyn Listen) -> Left {
    each(plan, listen, || match Command::new("true").status() {
        Ok(ended) if ended.success() => Outcome::Done,
        Ok(ended) => Outcome::Failed(ended.to_string()),
        Err(error) => Outcome::Failed(error.to_string()),
    })
}

fn each(plan: &Plan, listen: &dyn Listen, run: impl Fn() -> Outcome) -> Left {
    let ran = plan.run.iter().map(|task| {
        listen.started(task.attempt);
        let (attempt, usage, files) = (task.attempt, Usage::default(), Vec::new());
        Ran { attempt, outcome: run(), usage, files }
    });
    Left { ran: ran.collect(), untried: Vec::new(), written: BTreeMap::new() }
}

impl Rooms for Around {
    fn create_keys(&self, home: &Home) -> Result<(), Problem> {
        Node.create_keys(home)
    }

    fn run_node(
        &self,
        home: &Home,
        config: Config,
        ready: &dyn Fn(&Status),
    ) -> Result<(), Problem> {
        run_with(home, config, self.0, ready)
    }

    fn backup(&self, home: &Home, file: &Path) -> Result<BackedUp, Problem> {
        Node.backup(home, file)
    }

    fn restore(&self, home: &Home, file: &Path) -> Result<BackedUp, Problem> {
        Node.restore(home, file)
    }

    fn look(&self, home: &Home) -> Found {
        Node.look(home)
    }
}
