//! The program `meshfarm`.

use std::process::ExitCode;

use meshfarm::api::{Problem, Status};
use meshfarm::command::Rooms;
use meshfarm::config::{Config, Home};
use meshfarm::doctor::Found;

/// The rooms beneath the command line.
struct Node;

impl Rooms for Node {
    fn create_keys(&self, _home: &Home) -> Result<(), Problem> {
        Ok(())
    }

    fn run_node(&self, _: &Home, _: Config, _: &dyn Fn(&Status)) -> Result<(), Problem> {
        Err(Problem::refused("this program was built without a node"))
    }

    fn look(&self, _home: &Home) -> Found {
        Found::default()
    }
}

fn main() -> ExitCode {
    meshfarm::command::main(&Node)
}
