//! `meshfarm openjd`: the command line of the standard's own runner, on this machine alone or through the mesh.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::api::Problem;
use crate::cli::{OpenjdCheck, OpenjdCommand, OpenjdRun, ResultFormat, StampFormat};
use crate::job_bundle::{self, BundleError, PlayRequest, WantedTasks};
use crate::print;

use super::{Desk, Done, Failure};

mod alone;
mod mesh;

pub(super) fn openjd(desk: &Desk, command: OpenjdCommand) -> Done {
    let done = match command {
        OpenjdCommand::Check(flags) => check(desk, &flags),
        OpenjdCommand::Run(flags) => run(desk, &flags),
    };
    match done {
        // Every failure of the standard's own command line is 1, and bad input is one.
        Err(failure) if failure.exit() == 2 => {
            print::complain(&failure.text(), failure.help(Some(&desk.home)).as_deref());
            Err(Failure::Said)
        }
        done => done,
    }
}

fn check(desk: &Desk, flags: &OpenjdCheck) -> Done {
    let path = here()?.join(&flags.path);
    job_bundle::check(&path, flags.extensions.as_deref()).map_err(wrong)?;
    let message = format!("Template at '{}' passes validation checks.", flags.path.display());
    if as_json(desk, flags.output) {
        let result = serde_json::json!({"status": "success", "message": message});
        return Ok(print::out(&format!("{result:#}\n"))?);
    }
    Ok(print::out(&format!("{}\n", print::clean(&message)))?)
}

fn run(desk: &Desk, flags: &OpenjdRun) -> Done {
    let request = request(flags)?;
    // Looked at here in any case: what is wrong with a template is said before anything starts.
    let playable = job_bundle::prepare(&request).map_err(wrong)?;
    let begun = Instant::now();
    let mut journal = Journal { format: flags.timestamp_format, begun };
    let ran = if flags.mesh {
        super::block_on(mesh::run(desk, flags, &request, &mut journal))?
    } else {
        alone::run(desk, flags, &playable, &mut journal)?
    };
    let succeeded = ran.failed.is_none();
    let result = RunResult {
        status: if succeeded { "success" } else { "error" },
        message: match ran.failed {
            None => "Session ended successfully".to_owned(),
            Some(reason) => format!("Session ended with errors: {reason}"),
        },
        job_name: playable.name,
        step_name: playable.step,
        duration: begun.elapsed().as_secs_f64(),
        tasks_run: ran.n_tasks,
        preserved: ran.preserved,
    };
    result.print(as_json(desk, flags.output))?;
    if succeeded { Ok(()) } else { Err(Failure::Said) }
}

fn here() -> Result<PathBuf, Failure> {
    Ok(std::env::current_dir()
        .map_err(|error| Problem::bad_input(format!("the current folder: {error}")))?)
}

fn wrong(error: BundleError) -> Failure {
    Problem::bad_input(crate::api::causes(&error)).into()
}

fn as_json(desk: &Desk, format: ResultFormat) -> bool {
    desk.json || matches!(format, ResultFormat::Json | ResultFormat::Yaml)
}

fn request(flags: &OpenjdRun) -> Result<PlayRequest, Failure> {
    let first = flags.maximum_tasks.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let tasks = match (&flags.tasks, first) {
        (Some(list), _) => WantedTasks::Listed(list.clone()),
        (None, Some(n)) => WantedTasks::First(n),
        (None, None) if flags.task_params.is_empty() => WantedTasks::All,
        (None, None) => WantedTasks::One(flags.task_params.clone()),
    };
    Ok(PlayRequest {
        template: flags.path.clone(),
        cwd: here()?,
        parameters: flags.parameters.clone(),
        environments: flags.environments.clone(),
        path_mapping: flags.path_mapping_rules.clone(),
        extensions: flags.extensions.clone(),
        step: flags.step.clone(),
        dependencies: flags.run_dependencies && !flags.no_run_dependencies,
        tasks,
    })
}

/// What came of a run.
#[derive(Debug, Default)]
struct Ran {
    /// Tasks that were begun.
    n_tasks: usize,
    /// Why it failed, if it did.
    failed: Option<String>,
    /// Where the session's folder is, when it was kept.
    preserved: Option<PathBuf>,
}

/// What is printed at the end.
#[derive(Debug, Serialize)]
struct RunResult {
    status: &'static str,
    message: String,
    job_name: String,
    step_name: Option<String>,
    duration: f64,
    tasks_run: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    preserved: Option<PathBuf>,
}

impl RunResult {
    fn print(&self, json: bool) -> Done {
        if json {
            let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
            return Ok(print::out(&format!("{text}\n"))?);
        }
        let mut text =
            format!("\n--- Results of session ---\n\n{}\n\n", print::clean(&self.message));
        let mut line = |name: &str, value: &str| {
            text.push_str(&format!("{name}: {}\n", print::clean(value)));
        };
        line("Job", &self.job_name);
        if let Some(step) = &self.step_name {
            line("Step", step);
        }
        line("Duration", &format!("{:.3} seconds", self.duration));
        line("Tasks run", &self.tasks_run.to_string());
        if let Some(folder) = &self.preserved {
            line("Working folder kept at", &folder.display().to_string());
        }
        Ok(print::out(&text)?)
    }
}

/// Where lines of the session are printed, each behind its moment.
#[derive(Debug)]
struct Journal {
    format: StampFormat,
    begun: Instant,
}

impl Journal {
    /// Prints lines. Where they are shown on a terminal, nothing of them can move its cursor.
    fn print<'l>(&mut self, lines: impl IntoIterator<Item = &'l str>) -> Done {
        let stamp = self.stamp();
        let mut out = io::stdout().lock();
        let terminal = out.is_terminal();
        let mut text = String::new();
        for line in lines {
            let line = if terminal { print::clean(line) } else { line.to_owned() };
            text.push_str(&format!("{stamp}\t{line}\n"));
        }
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // `| head` has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Said),
            Err(error) => Err(error.into()),
        }
    }

    fn stamp(&self) -> String {
        let now = jiff::Zoned::now();
        match self.format {
            StampFormat::Relative => since(self.begun.elapsed()),
            StampFormat::Local => now.strftime("%Y-%m-%dT%H:%M:%S%.3f").to_string(),
            StampFormat::Utc => {
                let now = now.with_time_zone(jiff::tz::TimeZone::UTC);
                now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
            }
        }
    }
}

/// A span as hours, minutes and seconds: `0:01:30.500`.
fn since(span: Duration) -> String {
    let seconds = span.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}.{:03}", seconds % 60, span.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_a_session_is_printed_as_the_standards_own_runner_does() {
        assert_eq!(since(Duration::from_millis(90_500)), "0:01:30.500");
        assert_eq!(since(Duration::from_secs(36_061)), "10:01:01.000");
    }
}
