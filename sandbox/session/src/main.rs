//! The session runner: the one program that the launcher starts in the jail. It runs one Open Job
//! Description session at its node's request and reports over its standard output.

mod commands;
mod job;
mod looked;
mod outputs;
mod play;
mod session;
mod speech;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Context;
use meshfarm_protocol::session::FromRunner;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshfarm-session: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (input, output) = take_channel().context("taking over standard input and output")?;
    let (speech, speaker) = speech::start(output);
    speech::capture_actions(&speech)?;
    let mut commands = commands::listen(input);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(session::run(&mut commands, &speech));
    let error = ended.err().map(|error| speech::clip(&format!("{error:#}")));
    speech.say(FromRunner::Ended { error });
    speech.close();
    speaker.finish();
    // The thread that listens may still wait for its node; the process ends without it.
    Ok(())
}

/// Takes the channel to the node off the numbers 0 and 1, so that no action inherits it: actions are
/// started with the runner's standard input, and would eat the node's commands.
fn take_channel() -> io::Result<(File, File)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing)?;
    nix::unistd::dup2_stdout(&nothing)?;
    Ok((File::from(input), File::from(output)))
}
