//! `meshfarm sandbox`: any command in a jail of its own, and what this machine's jail withstands.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use meshfarm_sandbox::{
    self as sandbox, Exit, Jail, Killer, Limits, Policy, Programs, Report, Unmet,
};

use crate::api::Problem;
use crate::cli::{JailFlags, SandboxCommand, SandboxRun};
use crate::print::{self, pages};
use crate::session::{Flow, stopped_words};

use super::{Desk, Done, Failure, now};

mod check;
mod folders;
mod plan;
mod program;

pub(super) use plan::{Plan, Room, for_session};

/// Exit code of a command that was ended for a limit: that of a command ended by signal 9, as shells give it.
const ENDED: u8 = 137;

/// A longer line of a limited command is passed on in pieces of this many bytes.
const MAX_PIECE: u64 = 64 << 10;

/// Exit code of a command that a person interrupted, as shells give it.
const INTERRUPTED: u8 = 130;

pub(super) fn sandbox(desk: &Desk, command: SandboxCommand) -> Done {
    match command {
        SandboxCommand::Run(flags) => run(desk, &flags),
        SandboxCommand::Check(flags) => check::check(desk, flags),
    }
}

fn run(desk: &Desk, flags: &SandboxRun) -> Done {
    let programs = programs()?;
    let policy = policy(&flags.jail)?;
    let surroundings = Surroundings::find("meshfarm-sandbox-")?;
    let plan = plan::make(flags, policy, &surroundings.room())?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flow = Mutex::new(Flow::within(plan.log(), now()));
    let exit =
        within(desk, (&plan, flags.report), &programs, |jail| connect(jail, &interrupted, &flow))?;
    let left_out = flow.into_inner().unwrap_or_else(PoisonError::into_inner).note();
    if !desk.quiet {
        drop(io::stderr().write_all(&left_out));
    }
    finish(desk, exit, &plan.spec.limits, interrupted.load(Ordering::Acquire))
}

pub(super) fn programs() -> Result<Programs, Failure> {
    Ok(sandbox::find_programs().map_err(|error| Problem::refused(error.to_string()))?)
}

/// The policy file that the flags name, understood.
pub(super) fn policy(flags: &JailFlags) -> Result<Option<sandbox::Ready>, Failure> {
    let ready = flags.policy.as_ref().map(|file| {
        let ready = Policy::load(file).and_then(|policy| policy.ready(file));
        ready.map_err(|error| Problem::bad_input(error.to_string()))
    });
    Ok(ready.transpose()?)
}

/// What of this process counts for a jail, and a folder that goes when this does.
pub(super) struct Surroundings {
    here: PathBuf,
    path: String,
    home: Option<PathBuf>,
    pub(super) temp: tempfile::TempDir,
}

impl Surroundings {
    pub(super) fn find(prefix: &str) -> Result<Self, Failure> {
        let here = std::env::current_dir()
            .map_err(|error| Problem::bad_input(format!("the current folder: {error}")))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let temp = tempfile::Builder::new().prefix(prefix).tempdir()?;
        Ok(Self { here, path, home, temp })
    }

    pub(super) fn room(&self) -> Room<'_> {
        let home = self.home.as_deref();
        Room { here: &self.here, path: &self.path, home, temp: self.temp.path() }
    }
}

/// Build the jail, `work` with it until it is dead, and take what it has written. What is worth knowing is said
/// before, and what is in force as well where `report` says so.
pub(super) fn within<T>(
    desk: &Desk,
    (plan, report): (&Plan, bool),
    programs: &Programs,
    work: impl FnOnce(&mut Jail) -> Result<T, Failure>,
) -> Result<T, Failure> {
    for note in &plan.notes {
        say(desk, note);
    }
    let mut spec = plan.spec.clone();
    if plan.policy.as_ref().is_none_or(|policy| policy.windows_paths) {
        spec.preload.clone_from(&programs.preload);
    }
    program::check_library(plan.policy.as_ref(), &spec)?;
    let lent = folders::lend(plan)?;
    let jail = sandbox::launch(&programs.launcher, &spec);
    let ended = jail.map_err(|error| refused(&error)).and_then(|mut jail| {
        admit(desk, report, plan, &mut jail)?;
        let ended = work(&mut jail)?;
        folders::take(plan, &jail)?;
        Ok(ended)
    });
    // Whatever came of it: what was lent belongs to whom it did before.
    lent.give_back()?;
    ended
}

pub(super) fn refused(error: &sandbox::SandboxError) -> Failure {
    Problem::refused(error.to_string())
        .with_help("meshfarm doctor says what this machine lacks")
        .into()
}

/// Say what is in force, and end the jail when that is less than the policy requires.
fn admit(desk: &Desk, report: bool, plan: &Plan, jail: &mut Jail) -> Done {
    if report {
        let text = desk.printer.text(&pages::sandbox_report(&jail.report));
        drop(io::stderr().write_all(text.as_bytes()));
    }
    let unmet = plan.policy.as_ref().map_or_else(Vec::new, |policy| policy.unmet(&jail.report));
    if !unmet.is_empty() {
        let degrade = plan.policy.as_ref().is_some_and(|p| p.may_degrade(&jail.report));
        if !degrade {
            drop(jail.kill());
            return Err(not_met(&unmet, &jail.report));
        }
        for unmet in &unmet {
            say(desk, &format!("required and not in force: {unmet}"));
        }
    }
    Ok(())
}

/// Connect the jail with our own streams until it is over.
fn connect(
    jail: &mut Jail,
    interrupted: &Arc<AtomicBool>,
    flow: &Mutex<Flow>,
) -> Result<Exit, Failure> {
    let killer = jail.killer().map_err(|error| refused(&error))?;
    end_on_signal(killer, Arc::clone(interrupted))?;
    if let Some(stdin) = jail.stdin.take() {
        // Ends with this program at the latest: nothing can call it back from a terminal.
        thread::spawn(move || drop(pass(io::stdin().lock(), stdin)));
    }
    let streams = (jail.stdout.take(), jail.stderr.take());
    let exit = thread::scope(|scope| {
        // A stream that nobody takes any more ends the command as a closed pipe does.
        if let Some(from) = streams.0 {
            scope.spawn(move || drop(pass_some(from, io::stdout(), flow)));
        }
        if let Some(from) = streams.1 {
            scope.spawn(move || drop(pass_some(from, io::stderr(), flow)));
        }
        jail.wait()
    });
    exit.map_err(|error| refused(&error))
}

fn not_met(unmet: &[Unmet], report: &Report) -> Failure {
    let lines: Vec<_> = unmet.iter().map(ToString::to_string).collect();
    let better: Vec<_> = unmet.iter().filter_map(|unmet| unmet.better.as_deref()).collect();
    let text = format!(
        "the policy requires what is not in force at {} here: {}",
        report.level,
        lines.join("; ")
    );
    let help = match better.as_slice() {
        [] => "require less, or say on_missing = \"degrade:S2\" in the policy".to_owned(),
        better => better.join("; "),
    };
    Problem::refused(text).with_help(help).into()
}

/// Copy everything at once, without waiting for lines.
fn pass(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..n])?;
        to.flush()?;
    }
}

/// Copy what the policy lets through, line by line; what it does not is read all the same, so that nobody waits.
fn pass_some(from: impl Read, mut to: impl Write, flow: &Mutex<Flow>) -> io::Result<()> {
    if lock(flow).is_endless() {
        return pass(from, to);
    }
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        // A longer line is several.
        if from.by_ref().take(MAX_PIECE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if lock(flow).admits(line.len() as u64, now()) {
            to.write_all(&line)?;
            to.flush()?;
        }
    }
}

fn lock(flow: &Mutex<Flow>) -> MutexGuard<'_, Flow> {
    flow.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Let Ctrl-C and SIGTERM end the jail, in place of this program.
fn end_on_signal(killer: Killer, interrupted: Arc<AtomicBool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        interrupted.store(true, Ordering::Release);
        killer.kill();
    });
    Ok(())
}

fn finish(desk: &Desk, exit: Exit, limits: &Limits, interrupted: bool) -> Done {
    if interrupted {
        return Err(Failure::Exit(INTERRUPTED));
    }
    if let Some(limit) = exit.stopped {
        say(desk, &stopped_words(limit, limits));
        return Err(Failure::Exit(ENDED));
    }
    let code = match (exit.code, exit.signal) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    Err(Failure::Exit(u8::try_from(code).unwrap_or(1)))
}

pub(super) fn say(desk: &Desk, text: &str) {
    if !desk.quiet {
        drop(io::stderr().write_all(format!("meshfarm: {}\n", print::clean(text)).as_bytes()));
    }
}
