//! A job in one session on this machine: the runner in a jail, or without one where that is asked for.

use std::fs;
use std::io::{self, PipeWriter, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use meshfarm_protocol::session::{
    self as speech, FromRunner, JOB_FILE, Outcome, Play, SESSION_VERSION, ToRunner,
};
use meshfarm_sandbox::Jail;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::Problem;
use crate::cli::OpenjdRun;
use crate::job_bundle::Playable;
use crate::session::{read_lines, read_some, stopped_words};

use super::super::sandbox::{self, Surroundings};
use super::super::{Desk, Failure};
use super::{Journal, Ran};

/// So many lines of the runner may wait to be read.
const LINES: usize = 256;

/// Where the runner finds its working folder in the jail.
const SESSION_AT: &str = "/session";

/// Run the job to its end.
pub(super) fn run(
    desk: &Desk,
    flags: &OpenjdRun,
    playable: &Playable,
    journal: &mut Journal,
) -> Result<Ran, Failure> {
    journal.print([format!("Running job '{}'", playable.name).as_str()])?;
    let mut surroundings = Surroundings::find("meshfarm-openjd-")?;
    let mut ran = if flags.no_sandbox {
        sandbox::say(
            desk,
            "without a jail: the job may do on this machine whatever this user may do",
        );
        unheld(playable, flags.preserve, surroundings.temp.path(), journal)?
    } else {
        jailed(desk, flags, playable, (&surroundings, journal))?
    };
    if flags.preserve {
        surroundings.temp.disable_cleanup(true);
        ran.preserved = Some(surroundings.temp.path().join("session"));
    }
    Ok(ran)
}

fn jailed(
    desk: &Desk,
    flags: &OpenjdRun,
    playable: &Playable,
    (surroundings, journal): (&Surroundings, &mut Journal),
) -> Result<Ran, Failure> {
    let programs = sandbox::programs()?;
    let policy = sandbox::policy(&flags.jail)?;
    let template = std::path::absolute(&flags.path)?;
    let room = surroundings.room();
    let inside = (programs.session.as_path(), template.as_path(), playable.paths.as_slice());
    let plan = sandbox::for_session(&flags.jail, policy, &room, inside)?;
    fs::write(plan.spec.work.join(JOB_FILE), &playable.job_json)?;
    let play = play(playable, SESSION_AT, flags.preserve);
    sandbox::within(desk, (&plan, flags.verbose), &programs, |jail| {
        let mut ran = talk_to(jail, &play, journal)?;
        let exit = jail.wait().map_err(|error| sandbox::refused(&error))?;
        if let Some(limit) = exit.stopped {
            ran.failed = Some(stopped_words(limit, &plan.spec.limits));
        }
        Ok(ran)
    })
}

fn talk_to(jail: &mut Jail, play: &Play, journal: &mut Journal) -> Result<Ran, Failure> {
    let killer = jail.killer().map_err(|error| sandbox::refused(&error))?;
    let streams = (jail.stdin.take(), jail.stdout.take(), jail.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
        return Err(Problem::refused("the session runner has no streams").into());
    };
    talk(play, (stdin, stdout, stderr), move || killer.kill(), journal)
}

fn unheld(
    playable: &Playable,
    keep: bool,
    temp: &Path,
    journal: &mut Journal,
) -> Result<Ran, Failure> {
    let folder = temp.join("session");
    crate::session::private_folder(&folder)?;
    fs::write(folder.join(JOB_FILE), &playable.job_json)?;
    let text = folder.to_str().ok_or_else(|| Problem::bad_input("the folder's name is not UTF-8"));
    let play = play(playable, text?, keep);
    let (theirs, stdin) = io::pipe()?;
    let mut command = Command::new(sandbox::programs()?.session);
    command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    drop(command);
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Problem::refused("the session runner has no streams").into());
    };
    let child = Arc::new(Mutex::new(child));
    let killed = Arc::clone(&child);
    // Its actions end with their pipes at the latest.
    let kill = move || drop(killed.lock().unwrap_or_else(PoisonError::into_inner).kill());
    let ran = talk(&play, (stdin, stdout, stderr), kill, journal);
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    if ran.is_err() {
        drop(child.kill());
    }
    child.wait()?;
    ran
}

fn play(playable: &Playable, folder: &str, keep: bool) -> Play {
    Play {
        version: SESSION_VERSION,
        job_file: format!("{folder}/{JOB_FILE}"),
        session_dir: folder.to_owned(),
        steps: playable.steps.clone(),
        keep,
    }
}

/// The runner's input, which a signal writes to as well.
type Input = Arc<Mutex<Option<PipeWriter>>>;

fn tell(input: &Input, message: &ToRunner) -> Result<(), Failure> {
    let line = speech::to_line(message).map_err(|error| Problem::bad_input(error.to_string()))?;
    let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = input.as_mut().ok_or_else(|| Problem::refused("the session is over"))?;
    Ok(pipe.write_all(&line)?)
}

/// Speak with the runner until its session is over.
fn talk(
    play: &Play,
    (stdin, stdout, stderr): (PipeWriter, impl Read + Send + 'static, std::process::ChildStderr),
    kill: impl Fn() + Send + 'static,
    journal: &mut Journal,
) -> Result<Ran, Failure> {
    let input: Input = Arc::new(Mutex::new(Some(stdin)));
    stop_on_signal(Arc::clone(&input), kill)?;
    tell(&input, &ToRunner::Play(play.clone()))?;
    let (line_tx, line_rx) = mpsc::sync_channel(LINES);
    thread::spawn(move || read_lines(stdout, &line_tx));
    let complaints = thread::spawn(move || read_some(stderr));
    let mut ran = Ran::default();
    let mut over = false;
    let listened = line_rx.iter().try_for_each(|line| {
        let said = speech::from_line(&line).map_err(|error| Problem::refused(error.to_string()))?;
        take(said, &mut ran, &mut over, journal)
    });
    // Its end is the end of the session, whatever was said.
    drop(input.lock().unwrap_or_else(PoisonError::into_inner).take());
    listened?;
    if !over {
        let said = complaints.join().unwrap_or_default();
        let reason = format!("the session runner ended unexpectedly {}", said.trim());
        ran.failed.get_or_insert_with(|| reason.trim_end().to_owned());
    }
    Ok(ran)
}

fn take(
    said: FromRunner,
    ran: &mut Ran,
    over: &mut bool,
    journal: &mut Journal,
) -> Result<(), Failure> {
    match said {
        FromRunner::Ready { .. } | FromRunner::Progress { .. } | FromRunner::Outputs { .. } => {}
        FromRunner::TaskStarted { .. } => ran.n_tasks += 1,
        FromRunner::Log { lines, .. } => journal.print(lines.iter().map(String::as_str))?,
        FromRunner::TaskEnded { outcome, .. } => match outcome {
            Outcome::Done => {}
            Outcome::Failed { message, .. } => ran.failed = Some(message),
            Outcome::Canceled => ran.failed = Some("it was interrupted".to_owned()),
        },
        FromRunner::Ended { error } => {
            *over = true;
            if let Some(error) = error {
                journal.print([format!("ERROR: {error}").as_str()])?;
                ran.failed.get_or_insert(error);
            }
        }
    }
    Ok(())
}

/// Let Ctrl-C and SIGTERM cancel the session, which leaves its environments, and a second one end it.
fn stop_on_signal(input: Input, kill: impl Fn() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    thread::spawn(move || {
        let mut next = || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
        };
        next();
        if tell(&input, &ToRunner::Cancel).is_ok() {
            next();
        }
        kill();
    });
    Ok(())
}
