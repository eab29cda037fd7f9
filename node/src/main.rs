//! The program `meshfarm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshfarm::command::main(&meshfarm::node::Node)
}
