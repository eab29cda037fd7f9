//! The program `meshfarm-sim`: run scenarios, sweep seeds, replay and shrink what fails, and show what happened.

mod cli;
mod command;

use std::process::ExitCode;

use clap::Parser;

/// Exit status when the simulator itself could not do what was asked.
const HARNESS_ERROR: u8 = 3;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(help) => {
            let code = if help.use_stderr() { HARNESS_ERROR } else { 0 };
            return match help.print() {
                Ok(()) => ExitCode::from(code),
                Err(_closed) => ExitCode::from(HARNESS_ERROR),
            };
        }
    };
    match command::perform(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(HARNESS_ERROR)
        }
    }
}
