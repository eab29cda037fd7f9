//! A whole job in one session: its steps one after the other, as `meshfarm openjd run` wants it.

use anyhow::{Context, bail};
use meshfarm_protocol::id::TaskNo;
use meshfarm_protocol::session::{FromRunner, Outcome, Play, PlayedTasks};
use openjd_model::TaskParameterSet;
use openjd_model::job::{Environment, EnvironmentActions, Step};
use openjd_sessions::Session;

use crate::commands::{Commands, Wish};
use crate::job::OpenJob;
use crate::session::{failed, open_session, outcome_of, say_exit, tasks_of};
use crate::speech::Speech;

/// Runs the steps that `play` names, unless one fails or the node says stop; leaves every environment in any case.
pub(crate) async fn play(
    play: &Play,
    commands: &mut Commands,
    speech: &Speech,
) -> anyhow::Result<()> {
    let opened = crate::job::open(&play.job_file)?;
    let session = open_session(&play.session_dir, &opened, speech, play.keep)?;
    let mut playing = Playing {
        session,
        entered: Vec::new(),
        n_tasks: 0,
        speech: speech.clone(),
        end: End::None,
    };
    let played = playing.job(play, &opened, commands).await;
    let left = playing.leave_down_to(0).await;
    if play.keep {
        // The session's folders go with it, whatever it is told of keeping them.
        std::mem::forget(playing.session);
    } else {
        playing.session.cleanup();
    }
    played.and(left)
}

/// Whether a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It does.
    None,
    /// A task failed, or the node said stop.
    Now,
}

/// A session in the middle of a job.
struct Playing {
    session: Session,
    /// What was entered, the innermost last, with the step that it belongs to; none around all steps.
    entered: Vec<(Environment, Option<Step>)>,
    n_tasks: u32,
    speech: Speech,
    end: End,
}

impl Playing {
    async fn job(
        &mut self,
        play: &Play,
        opened: &OpenJob,
        commands: &mut Commands,
    ) -> anyhow::Result<()> {
        let inner = opened.job.job_environments.iter().flatten();
        for environment in opened.around.iter().chain(inner) {
            self.enter(environment, None, commands).await?;
        }
        for played in &play.steps {
            if self.end == End::Now {
                break;
            }
            let n_steps = opened.job.steps.len();
            let step = opened.job.steps.get(usize::try_from(played.step.0)?);
            let step = step.with_context(|| format!("step {} of {n_steps}", played.step))?;
            let outer = self.entered.len();
            self.speech.line(format!("--------- Running Step: {}", step.name));
            let ran = self.step(step, &played.tasks, commands).await;
            let left = self.leave_down_to(outer).await;
            ran.and(left)?;
        }
        match &commands.wish {
            Wish::Broken(error) => bail!("the node's command: {error}"),
            Wish::GoOn | Wish::Finish | Wish::Cancel => Ok(()),
        }
    }

    async fn step(
        &mut self,
        step: &Step,
        wanted: &PlayedTasks,
        commands: &mut Commands,
    ) -> anyhow::Result<()> {
        for environment in step.step_environments.iter().flatten() {
            self.enter(environment, Some(step), commands).await?;
        }
        let Some(tasks) = tasks_of(step)? else {
            return self.task(step, None, commands).await;
        };
        let numbers: Box<dyn Iterator<Item = u32>> = match wanted {
            PlayedTasks::First(n) => Box::new(0..u32::try_from(tasks.len())?.min(*n)),
            PlayedTasks::These(numbers) => Box::new(numbers.iter().map(|number| number.0)),
        };
        for number in numbers {
            let parameters = tasks.get(usize::try_from(number)?);
            let parameters = parameters.with_context(|| format!("task {number} of the step"))?;
            self.task(step, Some(&parameters), commands).await?;
            if self.end == End::Now {
                break;
            }
        }
        Ok(())
    }

    async fn enter(
        &mut self,
        environment: &Environment,
        step: Option<&Step>,
        commands: &mut Commands,
    ) -> anyhow::Result<()> {
        if self.stopped(commands) {
            return Ok(());
        }
        self.speech.line(format!("--------- Entering Environment: {}", environment.name));
        // What the names of a step's environments mean stands in the step.
        let symbols =
            step.map_or(&environment.resolved_symtab, |step| &step.resolved_symtab).clone();
        let id = self.entered.len().to_string();
        let handle = self.session.cancel_handle();
        let entering =
            self.session.enter_environment(environment, symbols.as_ref(), Some(&id), None);
        let entered = commands.during(&handle, entering).await;
        // One whose action failed is left all the same.
        if self.session.environments_entered().len() > self.entered.len() {
            self.entered.push((environment.clone(), step.cloned()));
        }
        if acts(environment, |actions| actions.on_enter.is_some()) {
            say_exit(&self.session, &self.speech);
        }
        if self.stopped(commands) {
            return Ok(());
        }
        entered.with_context(|| format!("entering the environment {}", environment.name))?;
        Ok(())
    }

    /// Leaves the environments beyond the first `n`, the last one first; each is left whatever the others say.
    async fn leave_down_to(&mut self, n: usize) -> anyhow::Result<()> {
        let mut first_error = Ok(());
        while self.entered.len() > n
            && let Some((environment, step)) = self.entered.pop()
        {
            self.speech.line(format!("--------- Leaving Environment: {}", environment.name));
            let own = &environment.resolved_symtab;
            let symbols = step.as_ref().map_or(own, |step| &step.resolved_symtab).clone();
            let id = self.entered.len().to_string();
            let left = self.session.exit_environment(&id, symbols.as_ref(), true, None).await;
            if acts(&environment, |actions| actions.on_exit.is_some()) {
                say_exit(&self.session, &self.speech);
            }
            if first_error.is_ok() {
                let name = &environment.name;
                first_error =
                    left.map(drop).with_context(|| format!("leaving the environment {name}"));
            }
        }
        first_error
    }

    async fn task(
        &mut self,
        step: &Step,
        parameters: Option<&TaskParameterSet>,
        commands: &mut Commands,
    ) -> anyhow::Result<()> {
        if self.stopped(commands) {
            return Ok(());
        }
        let task = TaskNo(self.n_tasks);
        self.n_tasks = self.n_tasks.checked_add(1).context("there are too many tasks")?;
        self.speech.say(FromRunner::TaskStarted { task });
        self.speech.line("--------- Running Task".to_owned());
        let handle = self.session.cancel_handle();
        let running = self.session.run_task(
            &step.name,
            &step.script,
            parameters,
            step.resolved_symtab.as_ref(),
            None,
        );
        let outcome = match commands.during(&handle, running).await {
            Ok(ran) => {
                say_exit(&self.session, &self.speech);
                outcome_of(&self.session, &ran)
            }
            Err(error) => failed(None, &error.to_string()),
        };
        if outcome != Outcome::Done {
            self.end = End::Now;
        }
        self.speech.say(FromRunner::TaskEnded { task, outcome, outputs: Vec::new() });
        self.stopped(commands);
        Ok(())
    }

    /// Whether the session goes no further, which the node may have said by now.
    fn stopped(&mut self, commands: &Commands) -> bool {
        if commands.wish != Wish::GoOn {
            self.end = End::Now;
        }
        self.end == End::Now
    }
}

fn acts(environment: &Environment, on: impl Fn(&EnvironmentActions) -> bool) -> bool {
    environment.script.as_ref().is_some_and(|script| on(&script.actions))
}
