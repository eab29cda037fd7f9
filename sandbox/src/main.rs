//! The launcher program: started by `meshfarm_sandbox::launch`, never by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshfarm_sandbox::launcher::run()
}
