//! One session: enter the environments once, run tasks on request, leave the environments, always.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use meshfarm_protocol::id::TaskNo;
use meshfarm_protocol::job::PathFormat as Written;
use meshfarm_protocol::session::{
    FromRunner, MAX_OUTPUT_FILES, Outcome, OutputPath, OutputRoot, SESSION_VERSION, Start, ToRunner,
};
use openjd_model::job::{Environment, Step};
use openjd_model::{StepParameterSpaceIterator, TaskParameterSet};
use openjd_sessions::{
    ActionResult, ActionState, ActionStatus, PathFormat, PathMappingRule, Session, SessionConfig,
    SessionState, StickyBitPolicy,
};

use crate::commands::{Commands, Wish};
use crate::job::OpenJob;
use crate::looked::{Notes, check_windows_paths, static_program};
use crate::outputs::Seen;
use crate::speech::{Speech, clip};

/// Outputs are told in lines of about this many bytes.
const OUTPUTS_PER_LINE: usize = 128 << 10;

/// Runs one session from its first command to its end.
pub(crate) async fn run(commands: &mut Commands, speech: &Speech) -> anyhow::Result<()> {
    match commands.next().await {
        Some(Ok(ToRunner::Start(start))) => {
            check_version(start.version)?;
            serve(start, commands, speech).await
        }
        Some(Ok(ToRunner::Play(play))) => {
            check_version(play.version)?;
            crate::play::play(&play, commands, speech).await
        }
        Some(Ok(ToRunner::Run { .. } | ToRunner::Cancel | ToRunner::Finish)) => {
            bail!("the first command must be start or play")
        }
        Some(Err(error)) => bail!("the first command: {error}"),
        None => Ok(()),
    }
}

fn check_version(version: u16) -> anyhow::Result<()> {
    ensure!(
        version == SESSION_VERSION,
        "the node speaks session version {version}, this runner {SESSION_VERSION}",
    );
    Ok(())
}

/// Runs tasks of one step as the node names them.
async fn serve(start: Start, commands: &mut Commands, speech: &Speech) -> anyhow::Result<()> {
    speech.limit_logs(start.log_bytes);
    check_windows_paths(&start.path_mapping)?;
    let mut opened = crate::job::open(&start.job_file)?;
    let index = usize::try_from(start.step.0)?;
    let n_steps = opened.job.steps.len();
    let step = opened.job.steps.get(index).cloned();
    let step = step.with_context(|| format!("step {} of {n_steps}", start.step))?;
    let tasks = tasks_of(&step)?;
    let command = &step.script.actions.on_run.command;
    if command.is_literal()
        && let Some(line) = static_program(&start.path_mapping, command.raw())
    {
        speech.line(line);
    }
    opened.rules.extend(jail_rules(&start));
    let session = open_session(&start.session_dir, &opened, speech, false)?;
    let mut environments = opened.around;
    environments.extend(opened.job.job_environments.unwrap_or_default());
    let mut running = Running {
        session,
        environments,
        n_job_environments: 0,
        step,
        tasks,
        outputs: start.outputs,
        notes: Notes::of(&start.session_dir),
        speech: speech.clone(),
    };
    running.n_job_environments = running.environments.len();
    let inner = running.step.step_environments.clone();
    running.environments.extend(inner.unwrap_or_default());
    let worked = running.work(commands).await;
    let left = running.leave().await;
    running.session.cleanup();
    worked.and(left)
}

/// The step's parameter space; none when the step is a single task.
///
/// The node counted the tasks the same way: an override pins the size of chunks, because the tasks of
/// an adaptive space have no numbers.
pub(crate) fn tasks_of(step: &Step) -> anyhow::Result<Option<StepParameterSpaceIterator>> {
    let Some(space) = &step.parameter_space else {
        return Ok(None);
    };
    let pinned = StepParameterSpaceIterator::new(space)?.chunks_default_task_count();
    Ok(Some(StepParameterSpaceIterator::new_with_chunk_override(space, pinned)?))
}

/// The rules by which the jail shows the artist's paths.
fn jail_rules(start: &Start) -> impl Iterator<Item = PathMappingRule> {
    start.path_mapping.iter().map(|rule| PathMappingRule {
        source_path_format: match rule.format {
            Written::Posix => PathFormat::Posix,
            Written::Windows => PathFormat::Windows,
        },
        source_path: rule.source.clone(),
        destination_path: rule.destination.clone(),
    })
}

/// A session of `opened` whose folders are made beneath `folder`, and stay when it is over if `keep` says so.
pub(crate) fn open_session(
    folder: &str,
    opened: &OpenJob,
    speech: &Speech,
    keep: bool,
) -> anyhow::Result<Session> {
    let rules = opened.rules.clone();
    let heard = speech.clone();
    let told = std::sync::Mutex::new((None, None));
    let config = SessionConfig {
        session_id: "session".into(),
        job_parameter_values: opened.values.clone(),
        path_mapping_rules: (!rules.is_empty()).then_some(rules),
        retain_working_dir: keep,
        callback: Some(Box::new(move |_, status: &ActionStatus| {
            let now = (status.progress.map(permille), status.status_message.clone());
            let mut told = told.lock().expect("nothing panics while it is held");
            if *told != now {
                told.clone_from(&now);
                if now != (None, None) {
                    heard.progress(now.0, now.1);
                }
            }
        })),
        os_env_vars: None,
        session_root_directory: Some(PathBuf::from(folder)),
        user: None,
        profile: Some(opened.profile.clone()),
        cancel_token: None,
        // The jail has no other users.
        sticky_bit_policy: StickyBitPolicy::Disabled,
        debug_collect_stdout: false,
        echo_openjd_directives: true,
    };
    Session::with_config(config).with_context(|| format!("making the session's folder in {folder}"))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is clamped to 0..=1000 first; a NaN becomes zero"
)]
fn permille(percent: f64) -> u16 {
    (percent * 10.0).clamp(0.0, 1000.0) as u16
}

/// A session between its first environment and its last.
struct Running {
    session: Session,
    /// Job environments, then step environments, in the order of entering.
    environments: Vec<Environment>,
    n_job_environments: usize,
    step: Step,
    tasks: Option<StepParameterSpaceIterator>,
    outputs: Vec<OutputRoot>,
    notes: Notes,
    speech: Speech,
}

impl Running {
    /// Enters the environments and runs tasks until the node or a failure says stop.
    async fn work(&mut self, commands: &mut Commands) -> anyhow::Result<()> {
        self.enter(commands).await?;
        if commands.wish == Wish::GoOn {
            self.speech.say(FromRunner::Ready { version: SESSION_VERSION });
        }
        while commands.wish == Wish::GoOn {
            match commands.next().await {
                Some(Ok(ToRunner::Run { task })) => {
                    if self.run_task(task, commands).await != Outcome::Done {
                        break;
                    }
                }
                Some(Ok(ToRunner::Start(_) | ToRunner::Play(_))) => bail!("start came twice"),
                Some(Err(error)) => bail!("the node's command: {error}"),
                None | Some(Ok(ToRunner::Finish | ToRunner::Cancel)) => break,
            }
        }
        match &commands.wish {
            Wish::Broken(error) => bail!("the node's command: {error}"),
            Wish::GoOn | Wish::Finish | Wish::Cancel => Ok(()),
        }
    }

    async fn enter(&mut self, commands: &mut Commands) -> anyhow::Result<()> {
        let handle = self.session.cancel_handle();
        for (i, environment) in self.environments.iter().enumerate() {
            let symbols = if i < self.n_job_environments {
                &environment.resolved_symtab
            } else {
                &self.step.resolved_symtab
            };
            let id = i.to_string();
            let entering =
                self.session.enter_environment(environment, symbols.as_ref(), Some(&id), None);
            let entered = commands.during(&handle, entering).await;
            if matches!(commands.wish, Wish::Cancel | Wish::Broken(_)) {
                return Ok(());
            }
            if entered.is_err() {
                say_exit(&self.session, &self.speech);
            }
            entered.with_context(|| format!("entering the environment {}", environment.name))?;
        }
        Ok(())
    }

    /// Leaves every environment that was entered, the last one first; each is left whatever the others say.
    async fn leave(&mut self) -> anyhow::Result<()> {
        let mut first_error = Ok(());
        while let Some(id) = self.session.environments_entered().last().cloned() {
            let i: usize = id.parse().expect("we chose the numbers as ids");
            let symbols = if i < self.n_job_environments {
                &self.environments[i].resolved_symtab
            } else {
                &self.step.resolved_symtab
            };
            let symbols = symbols.clone();
            let left = self.session.exit_environment(&id, symbols.as_ref(), false, None).await;
            if left.is_err() {
                say_exit(&self.session, &self.speech);
            }
            if first_error.is_ok() {
                let name = &self.environments[i].name;
                first_error =
                    left.map(drop).with_context(|| format!("leaving the environment {name}"));
            }
            if self.session.environments_entered().last() == Some(&id) {
                // It could not even be tried; the others stand beneath it.
                break;
            }
        }
        first_error
    }

    async fn run_task(&mut self, task: TaskNo, commands: &mut Commands) -> Outcome {
        self.speech.say(FromRunner::TaskStarted { task });
        let (outcome, mut outputs) = match self.try_task(task, commands).await {
            Ok(ended) => ended,
            Err(error) => (failed(None, &format!("{error:#}")), Vec::new()),
        };
        for line in self.notes.missing(&outputs) {
            self.speech.line(line);
        }
        while outputs.len() > 1 {
            let rest = outputs.split_off(fitting(&outputs));
            let files = std::mem::replace(&mut outputs, rest);
            if outputs.is_empty() {
                outputs = files;
                break;
            }
            self.speech.say(FromRunner::Outputs { task, files });
        }
        self.speech.say(FromRunner::TaskEnded { task, outcome: outcome.clone(), outputs });
        outcome
    }

    async fn try_task(
        &mut self,
        task: TaskNo,
        commands: &mut Commands,
    ) -> anyhow::Result<(Outcome, Vec<OutputPath>)> {
        let parameters = self.parameters_of(task)?;
        let before = Seen::look(&self.outputs)?;
        let handle = self.session.cancel_handle();
        let action = self.session.run_task(
            &self.step.name,
            &self.step.script,
            parameters.as_ref(),
            self.step.resolved_symtab.as_ref(),
            None,
        );
        let ran = commands.during(&handle, action).await;
        let outputs = Seen::look(&self.outputs)?.since(&before);
        ensure!(
            outputs.len() <= MAX_OUTPUT_FILES,
            "it left {} files, at most {MAX_OUTPUT_FILES} are taken",
            outputs.len()
        );
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => return Ok((failed(None, &error.to_string()), outputs)),
        };
        let outcome = outcome_of(&self.session, &ran);
        if outcome != Outcome::Done {
            say_exit(&self.session, &self.speech);
        }
        Ok((outcome, outputs))
    }

    /// The parameters of `task`; none in a step that is a single task.
    fn parameters_of(&self, task: TaskNo) -> anyhow::Result<Option<TaskParameterSet>> {
        ensure!(self.session.state() == SessionState::Ready, "the session can run no more tasks");
        let index = usize::try_from(task.0)?;
        let Some(tasks) = &self.tasks else {
            ensure!(index == 0, "task {task} of 1");
            return Ok(None);
        };
        let found = tasks.get(index);
        let found = found.with_context(|| format!("task {task} of {}", tasks.len()))?;
        Ok(Some(found))
    }
}

/// How the action that ran last has ended.
pub(crate) fn outcome_of(session: &Session, ran: &ActionResult) -> Outcome {
    let said = session.action_status().and_then(|status| status.fail_message);
    let code = ran.exit_code;
    match ran.state {
        ActionState::Success => Outcome::Done,
        ActionState::Canceled => Outcome::Canceled,
        ActionState::Timeout => failed(code, "the action ran longer than its timeout"),
        ActionState::Failed | ActionState::Running => {
            let plain = code.map_or_else(
                || "the action was killed".to_owned(),
                |code| format!("the action exited with code {code}"),
            );
            failed(code, &said.unwrap_or(plain))
        }
    }
}

/// Puts the exit code of the action that ran last into the log, in the words of the standard's own runner.
pub(crate) fn say_exit(session: &Session, speech: &Speech) {
    if let Some(code) = session.action_status().and_then(|status| status.exit_code) {
        speech.line(format!("Process exited with code: {code}"));
    }
}

pub(crate) fn failed(exit_code: Option<i32>, message: &str) -> Outcome {
    Outcome::Failed { exit_code, message: clip(message) }
}

/// How many of `outputs` go into one line, at least one.
fn fitting(outputs: &[OutputPath]) -> usize {
    let mut n_bytes = 0;
    let fits = outputs.iter().take_while(|output| {
        n_bytes += output.root.len() + output.path.len() + 32;
        n_bytes <= OUTPUTS_PER_LINE
    });
    fits.count().max(1)
}
