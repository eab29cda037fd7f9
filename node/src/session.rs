//! One session on a slot: a jail around the session runner, what the two say, and what is left when it is over.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use meshfarm_protocol::id::{AttemptId, Millis, TaskNo};
use meshfarm_protocol::job::{Access, JailProfile, SessionSpec};
use meshfarm_protocol::lease::{Assignment, MAX_REASON, Outcome, Usage};
use meshfarm_protocol::session::{
    self as speech, FromRunner, JOB_FILE, MAX_OUTPUT_FILES, OutputPath, OutputRoot,
    SESSION_VERSION, Start, ToRunner,
};
use meshfarm_sandbox::{self as sandbox, Jail, KeptRoots, Killer, Level, Limits, Programs, Report};

use crate::config::ServiceConfig;
use crate::net::Clock;
use crate::probe::Cards;

mod flow;
mod limit;
mod lines;
mod prepare;
mod words;

pub(crate) use flow::Flow;
use limit::Limit;
pub(crate) use lines::{read_lines, read_some};
pub(crate) use prepare::prefer_software;
use prepare::prepare;
pub use prepare::private_folder;
pub(crate) use words::stopped as stopped_words;

/// Where the runner finds its working folder in the jail.
const SESSION_AT: &str = "/session";

/// More bytes than this of one task's log are not kept.
pub const MAX_LOG: u64 = 16 << 20;

/// How often a waiting session looks whether its time is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// So many lines of the runner may wait to be read.
const LINES: usize = 256;

/// What one session is made of.
pub struct Plan {
    /// The session's own folder, which must not exist yet and is removed by the caller.
    pub folder: PathBuf,
    /// The job's content, laid out: one folder for each root, and the job file.
    pub content: PathBuf,
    /// What the jail is built from.
    pub session: SessionSpec,
    /// What it runs, in order.
    pub run: Vec<Assignment>,
    /// The weakest isolation that will do.
    pub floor: Level,
    /// How much of the machine it may use.
    pub limits: Limits,
    /// What kind of program its jail is for.
    pub profile: JailProfile,
    /// Folders of programs that it sees and may run, beside the system's.
    pub software: Vec<PathBuf>,
    /// The graphics cards of this machine.
    pub cards: Arc<Cards>,
    /// Which of them are its own.
    pub gpus: Vec<u32>,
    /// What of the network it may reach.
    pub services: Vec<ServiceConfig>,
    /// Host uid of the tenant, when we are root.
    pub tenant_uid: Option<u32>,
    /// Where empty roots stay for further sessions of the same borrower.
    pub roots: KeptRoots,
    /// Programs of this installation.
    pub programs: Programs,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({} with {} tasks)", self.folder.display(), self.run.len())
    }
}

/// What a session tells while it runs. Called from threads of its own; must not wait long.
pub trait Listen: Sync {
    /// The runner has begun with an attempt.
    fn started(&self, attempt: AttemptId);
    /// More of an attempt's log.
    fn log(&self, attempt: AttemptId, text: &[u8]);
    /// What is in force around the jail of these attempts.
    fn isolated(&self, attempts: &[Assignment], report: &Report);
}

/// How one attempt of a session ended, and which files it left beneath the output folders.
#[derive(Debug)]
pub struct Ran {
    /// The attempt.
    pub attempt: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// What it used. Processor time and memory are the session's, shared evenly.
    pub usage: Usage,
    /// Its files, as the runner named them: not to be believed before they were found.
    pub files: Vec<OutputPath>,
}

/// Ends a session from outside.
#[derive(Debug, Default)]
pub struct Stop(Mutex<Halt>);

#[derive(Debug, Default)]
struct Halt {
    stopped: bool,
    killer: Option<Killer>,
}

impl Stop {
    /// End it now, or as soon as it starts.
    pub fn stop(&self) {
        let mut halt = self.lock();
        halt.stopped = true;
        if let Some(killer) = &halt.killer {
            killer.kill();
        }
    }

    fn arm(&self, killer: Killer) {
        let mut halt = self.lock();
        if halt.stopped {
            killer.kill();
        }
        halt.killer = Some(killer);
    }

    fn stopped(&self) -> bool {
        self.lock().stopped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Halt> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What is left of a session whose jail is dead.
#[derive(Debug)]
pub struct Left {
    /// How each attempt ended that was tried.
    pub ran: Vec<Ran>,
    /// What was not tried, because an earlier task of the session failed: it has a claim to a session of its own.
    pub untried: Vec<Assignment>,
    /// The folder behind each output root, by the root's id. Where the jail had a disk of its own the outputs lie
    /// there and nowhere else, and that disk lives as long as these are open.
    pub written: BTreeMap<String, OwnedFd>,
}

fn output_folder(folder: &Path, root: &str) -> PathBuf {
    folder.join("out").join(root)
}

/// What runs a session: [`run`], unless somebody measures what everything around it costs.
pub type Driver = fn(&Plan, &Stop, &dyn Listen) -> Left;

/// Run a session to its end. Blocks. When it returns, nothing of its jail is left but what it has written.
pub fn run(plan: &Plan, stop: &Stop, listen: &dyn Listen) -> Left {
    let mut written = BTreeMap::new();
    let mut talk = Talk::new(plan, listen);
    let result = prepare(plan).map_err(|error| format!("preparing the session: {error}"));
    let result = result.and_then(|mut spec| {
        // A job without a network of its own gets none at all.
        for service in plan.services.iter().filter(|_| plan.floor >= Level::S2) {
            match service.resolve() {
                Ok(service) => spec.services.push(service),
                // Not every task needs it.
                Err(reason) => talk.say(&format!("meshfarm: {reason}")),
            }
        }
        let jail = sandbox::launch(&plan.programs.launcher, &spec);
        let mut jail = jail.map_err(|error| error.to_string())?;
        tracing::debug!(folder = %plan.folder.display(), "the jail stands");
        talk.say_isolation(&jail.report);
        stop.arm(jail.killer().map_err(|error| error.to_string())?);
        let said = talk.hold(&mut jail, stop);
        // Whatever was said: the jail is dead before anything of it is looked at.
        let exit = if said.is_ok() { jail.wait() } else { jail.kill() };
        let exit = exit.map_err(|error| error.to_string())?;
        tracing::debug!(folder = %plan.folder.display(), "the jail is dead");
        talk.share(exit.usage);
        written = outputs_of(plan, &jail)?;
        if let Some(limit) = exit.stopped {
            // What the runner says of it is that a process of the task, or the runner itself, was killed.
            let reason = words::stopped(limit, &spec.limits);
            talk.blame(&reason);
            return Err(reason);
        }
        said
    });
    if let Err(reason) = result {
        talk.fail_rest(&reason);
    }
    let untried = std::mem::take(&mut talk.untried);
    let ran = talk.finish();
    Left { ran, untried, written }
}

/// The folders that the jail wrote its outputs to, opened.
fn outputs_of(plan: &Plan, jail: &Jail) -> Result<BTreeMap<String, OwnedFd>, String> {
    let roots = plan.session.layout.roots.iter().filter(|root| root.access == Access::Out);
    let opened = roots.map(|root| {
        let folder = jail.written(Path::new(&speech::jail_path(root)));
        folder.map(|folder| (root.id.clone(), folder)).map_err(|error| error.to_string())
    });
    opened.collect()
}

/// The conversation with the runner of one session, and what has come of it so far.
struct Talk<'a> {
    plan: &'a Plan,
    listen: &'a dyn Listen,
    done: Vec<Ran>,
    /// What is not tried in this session any more.
    untried: Vec<Assignment>,
    /// How much each attempt has logged.
    flows: BTreeMap<AttemptId, Flow>,
    /// When the current task began, and what the runner has named of its outputs.
    current: Option<(Assignment, Millis, Vec<OutputPath>)>,
}

impl<'a> Talk<'a> {
    fn new(plan: &'a Plan, listen: &'a dyn Listen) -> Self {
        let (done, untried) = (Vec::new(), Vec::new());
        Self { plan, listen, done, untried, flows: BTreeMap::new(), current: None }
    }

    /// Speak with the runner until it has run everything, or an error says why it cannot.
    fn hold(&mut self, jail: &mut Jail, stop: &Stop) -> Result<(), String> {
        let mut stdin = jail.stdin.take();
        let stdout = jail.stdout.take().ok_or("the runner has no output")?;
        let stderr = jail.stderr.take();
        let (line_tx, line_rx) = mpsc::sync_channel(LINES);
        thread::scope(|scope| {
            scope.spawn(move || read_lines(stdout, &line_tx));
            let complaints = scope.spawn(move || stderr.map(read_some).unwrap_or_default());
            let result = self.converse(&mut stdin, &line_rx, stop);
            drop(stdin);
            if result.is_err() {
                // The readers end when the jail does.
                stop.stop_reading(jail);
            }
            drop(line_rx);
            let said = complaints.join().unwrap_or_default();
            result.map_err(|reason| {
                let said = said.trim();
                if said.is_empty() { reason } else { format!("{reason}: {said}") }
            })
        })
    }

    fn converse(
        &mut self,
        stdin: &mut Option<io::PipeWriter>,
        lines: &mpsc::Receiver<Vec<u8>>,
        stop: &Stop,
    ) -> Result<(), String> {
        let outputs = self.plan.session.layout.roots.iter();
        let outputs = outputs
            .filter(|root| root.access == Access::Out)
            .map(|root| OutputRoot { id: root.id.clone(), path: speech::jail_path(root) });
        let start = Start {
            version: SESSION_VERSION,
            job_file: format!("{SESSION_AT}/{JOB_FILE}"),
            session_dir: SESSION_AT.to_owned(),
            step: self.plan.session.step,
            path_mapping: speech::path_rules(&self.plan.session.layout),
            outputs: outputs.collect(),
            log_bytes: MAX_LOG,
        };
        say(stdin, &ToRunner::Start(start))?;
        let ready = self.listen_until(lines, stop, Limit::READY, |said| {
            matches!(said, FromRunner::Ready { .. })
        });
        ready?;
        tracing::debug!(folder = %self.plan.folder.display(), "the runner is ready");
        let limit = Limit::of_task(&self.plan.session);
        for assignment in self.plan.run.clone() {
            let before = self.done.len();
            self.current = Some((assignment, self.plan.clock.now(), Vec::new()));
            say(stdin, &ToRunner::Run { task: assignment.task })?;
            self.listen_until(lines, stop, limit, |said| {
                matches!(said, FromRunner::TaskEnded { .. })
            })?;
            let failed = self.done.get(before).is_none_or(|ran| ran.outcome != Outcome::Done);
            if failed && self.done.len() < self.plan.run.len() {
                // A failed task ends its session, and the runner leaves it by itself.
                self.untried = self.plan.run[self.done.len()..].to_vec();
                break;
            }
        }
        tracing::debug!(folder = %self.plan.folder.display(), "every task has ended");
        if self.untried.is_empty() {
            say(stdin, &ToRunner::Finish)?;
        }
        self.listen_until(lines, stop, Limit::FINISH, |said| {
            matches!(said, FromRunner::Ended { .. })
        })
    }

    /// Take what the runner says until `last` comes.
    fn listen_until(
        &mut self,
        lines: &mpsc::Receiver<Vec<u8>>,
        stop: &Stop,
        limit: Limit,
        last: impl Fn(&FromRunner) -> bool,
    ) -> Result<(), String> {
        let begun = self.plan.clock.now();
        let mut heard = begun;
        loop {
            if stop.stopped() {
                return Err("stopped".to_owned());
            }
            let now = self.plan.clock.now();
            limit.check(now.since(begun), now.since(heard))?;
            let line = match lines.recv_timeout(LOOK_EVERY.min(limit.whole)) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err("the session runner ended unexpectedly".to_owned());
                }
            };
            let said: FromRunner = speech::from_line(&line).map_err(|error| error.to_string())?;
            if said.is_sign_of_life() {
                heard = self.plan.clock.now();
            }
            if last(&said) {
                return self.take(said);
            }
            if let FromRunner::Ended { error } = said {
                return Err(error.unwrap_or_else(|| "the session ended early".to_owned()));
            }
            self.take(said)?;
        }
    }

    fn take(&mut self, said: FromRunner) -> Result<(), String> {
        match said {
            FromRunner::Ready { version } if version != SESSION_VERSION => {
                Err(format!("the session runner speaks version {version}"))
            }
            FromRunner::Ready { .. } | FromRunner::Progress { .. } => Ok(()),
            FromRunner::TaskStarted { task } => {
                let now = self.plan.clock.now();
                let current = self.current.as_mut().filter(|(a, ..)| a.task == task);
                let (assignment, begun, _) = current.ok_or("the runner started another task")?;
                *begun = now;
                self.listen.started(assignment.attempt);
                Ok(())
            }
            FromRunner::Log { task, lines } => {
                self.log(task, &lines);
                Ok(())
            }
            FromRunner::Outputs { task, files } => self.name_outputs(task, files),
            FromRunner::TaskEnded { task, outcome, outputs } => {
                self.name_outputs(task, outputs)?;
                self.end(outcome)
            }
            FromRunner::Ended { error: Some(error) }
                if self.done.len() + self.untried.len() < self.plan.run.len() =>
            {
                Err(error)
            }
            FromRunner::Ended { .. } => Ok(()),
        }
    }

    fn name_outputs(&mut self, task: TaskNo, files: Vec<OutputPath>) -> Result<(), String> {
        let current = self.current.as_mut().filter(|(a, ..)| a.task == task);
        let (_, _, named) = current.ok_or("the runner speaks of another task")?;
        if named.len() + files.len() > MAX_OUTPUT_FILES {
            return Err(format!("the task wrote more than {MAX_OUTPUT_FILES} files"));
        }
        named.extend(files);
        Ok(())
    }

    fn end(&mut self, outcome: speech::Outcome) -> Result<(), String> {
        let (assignment, begun, files) = self.current.take().ok_or("the runner ended no task")?;
        let outcome = match outcome {
            speech::Outcome::Done => Outcome::Done,
            speech::Outcome::Failed { exit_code, message } => {
                let code = exit_code.map(|code| format!("exited with code {code}"));
                let parts = [code, Some(message).filter(|message| !message.is_empty())];
                let parts: Vec<_> = parts.into_iter().flatten().collect();
                Outcome::Failed(clip(&parts.join(": ")))
            }
            speech::Outcome::Canceled => Outcome::Failed("canceled".to_owned()),
        };
        let wall = self.plan.clock.now().since(begun);
        let usage = Usage { wall, ..Usage::default() };
        self.done.push(Ran { attempt: assignment.attempt, outcome, usage, files });
        Ok(())
    }

    /// Keep log lines. What environments print belongs to the task that follows or runs.
    fn log(&mut self, task: Option<TaskNo>, lines: &[String]) {
        let by_task = |a: &&Assignment| task.is_none_or(|task| a.task == task);
        let after = self.done.len().min(self.plan.run.len().saturating_sub(1));
        let attempt = self.plan.run[after..].iter().find(by_task).or_else(|| self.plan.run.last());
        let Some(attempt) = attempt.map(|a| a.attempt) else {
            return;
        };
        let now = self.plan.clock.now();
        let text = self.flows.entry(attempt).or_insert_with(|| Flow::new(now)).take(lines, now);
        if !text.is_empty() {
            self.listen.log(attempt, &text);
        }
    }

    /// The first line of every log, before the runner has said anything.
    fn say_isolation(&self, report: &Report) {
        self.listen.isolated(&self.plan.run, report);
        self.say(&words::isolation(report, self.plan.profile));
    }

    /// Put a line of ours into every log.
    fn say(&self, line: &str) {
        let line = format!("{line}\n");
        for assignment in &self.plan.run {
            self.listen.log(assignment.attempt, line.as_bytes());
        }
    }

    /// A limit ended the jail: that is why the tasks have failed that are said to have failed.
    fn blame(&mut self, reason: &str) {
        for ran in &mut self.done {
            if let Outcome::Failed(said) = &mut ran.outcome {
                let text = format!("meshfarm: {reason}\n");
                self.listen.log(ran.attempt, text.as_bytes());
                *said = clip(reason);
            }
        }
    }

    /// How every attempt ended, when their logs are complete.
    fn finish(mut self) -> Vec<Ran> {
        for (attempt, flow) in &mut self.flows {
            let note = flow.note();
            if !note.is_empty() {
                self.listen.log(*attempt, &note);
            }
        }
        self.done
    }

    fn share(&mut self, used: sandbox::Usage) {
        let n = self.done.len().max(1) as u64;
        for ran in &mut self.done {
            ran.usage.cpu = Millis((used.user_ms + used.system_ms) / n);
            ran.usage.peak_memory = used.peak_memory_bytes;
        }
    }

    /// What has not ended yet has failed.
    fn fail_rest(&mut self, reason: &str) {
        let reason = clip(reason);
        let begun = self.current.take();
        for assignment in &self.plan.run {
            let over = self.done.iter().any(|ran| ran.attempt == assignment.attempt);
            if over || self.untried.contains(assignment) {
                continue;
            }
            let begun = begun.as_ref().filter(|(current, ..)| current == assignment);
            let wall = begun.map_or(Millis(0), |(_, begun, _)| self.plan.clock.now().since(*begun));
            let text = format!("meshfarm: {reason}\n");
            self.listen.log(assignment.attempt, text.as_bytes());
            self.done.push(Ran {
                attempt: assignment.attempt,
                outcome: Outcome::Failed(reason.clone()),
                usage: Usage { wall, ..Usage::default() },
                files: Vec::new(),
            });
        }
    }
}

impl Stop {
    /// End the jail because its runner does not speak sense.
    fn stop_reading(&self, jail: &Jail) {
        if let Ok(killer) = jail.killer() {
            killer.kill();
        }
    }
}

fn say(stdin: &mut Option<io::PipeWriter>, message: &ToRunner) -> Result<(), String> {
    let line = speech::to_line(message).map_err(|error| error.to_string())?;
    let pipe = stdin.as_mut().ok_or("the runner's input is closed")?;
    pipe.write_all(&line).map_err(|error| format!("the session runner does not listen: {error}"))
}

fn clip(reason: &str) -> String {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}
