//! Logs of tasks: whole, or as they are written.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use meshfarm_core::{JobPhase, JobView, TaskView};
use meshfarm_protocol::id::AttemptId;

use crate::api::Problem;
use crate::cli;

use super::{Desk, Done, Failure};

/// Logs are asked for no more often than this.
const PAUSE: Duration = Duration::from_millis(500);

/// How far the log of an attempt was printed.
#[derive(Default)]
struct Read {
    offset: u64,
    ended: bool,
    /// A line whose end has not come yet.
    open: Vec<u8>,
}

pub(super) async fn logs(desk: &Desk, flags: &cli::Logs) -> Done {
    let mut view = desk.client.job(&flags.which.job, false).await?;
    if let Some(task) = &flags.task {
        check_task(&view, task)?;
    }
    let mut read: BTreeMap<AttemptId, Read> = BTreeMap::new();
    loop {
        let round = Instant::now();
        let ended = view.phase != JobPhase::Active;
        for (label, attempt) in attempts(&view, flags.task.as_deref()) {
            let prefix = flags.task.is_none().then_some(label.as_str());
            let log = read.entry(attempt).or_default();
            drain(desk, attempt, log, prefix).await?;
        }
        if !flags.follow || ended {
            break;
        }
        sleep_until(round + PAUSE).await;
        view = desk.client.job(&flags.which.job, false).await?;
    }
    let prefix = |attempt: &AttemptId| {
        let found = attempts(&view, None).into_iter().find(|(_, a)| a == attempt);
        found.map(|(label, _)| label)
    };
    for (attempt, log) in &mut read {
        if !log.open.is_empty() {
            log.open.push(b'\n');
            let label = prefix(attempt).filter(|_| flags.task.is_none());
            write_lines(&std::mem::take(&mut log.open), label.as_deref())?;
        }
    }
    Ok(())
}

fn matches(task: &TaskView, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| task.label == wanted || task.task.to_string() == wanted)
}

/// Labels and attempts of the wanted tasks that have been tried.
pub(super) fn attempts(view: &JobView, wanted: Option<&str>) -> Vec<(String, AttemptId)> {
    let tasks = view.steps.iter().flat_map(|step| &step.tasks);
    let tried = tasks.filter(|task| matches(task, wanted));
    tried.filter_map(|task| Some((task.label.clone(), task.attempt?))).collect()
}

fn check_task(view: &JobView, wanted: &str) -> Done {
    let mut tasks = view.steps.iter().flat_map(|step| &step.tasks);
    if tasks.any(|task| matches(task, Some(wanted))) {
        return Ok(());
    }
    let detail = format!("there is no task {wanted} in job {}", view.job.short());
    let help = format!("its tasks are listed by: meshfarm job {}", view.job.short());
    Err(Problem::not_found(detail).with_help(help).into())
}

/// Prints what the log of an attempt has beyond what was read; lines of several tasks are not mixed up.
async fn drain(desk: &Desk, attempt: AttemptId, log: &mut Read, prefix: Option<&str>) -> Done {
    while !log.ended {
        let part = match desk.client.log(attempt, log.offset).await {
            Ok(part) => part,
            // An attempt that has not begun has no log yet.
            Err(crate::client::ClientError::Problem(problem)) if problem.status == 404 => break,
            Err(error) => return Err(error.into()),
        };
        log.ended = part.ended && part.bytes.is_empty();
        if part.bytes.is_empty() {
            break;
        }
        log.offset = log.offset.saturating_add(part.bytes.len() as u64);
        log.open.extend_from_slice(&part.bytes);
        let whole = log.open.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let rest = log.open.split_off(whole);
        write_lines(&std::mem::replace(&mut log.open, rest), prefix)?;
    }
    Ok(())
}

fn write_lines(bytes: &[u8], prefix: Option<&str>) -> Done {
    let mut out = io::stdout().lock();
    let text = lines(bytes, prefix, out.is_terminal());
    match out.write_all(&text).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // `| head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Said),
        Err(error) => Err(error.into()),
    }
}

/// Lines behind their task's label. On a terminal nothing of a log may move the cursor: a lender wrote it.
fn lines(bytes: &[u8], prefix: Option<&str>, terminal: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if let Some(label) = prefix {
            text.extend_from_slice(crate::print::clean(label).as_bytes());
            text.extend_from_slice(b" | ");
        }
        if terminal {
            let line = String::from_utf8_lossy(line);
            text.extend_from_slice(crate::print::clean(&line).as_bytes());
            text.push(b'\n');
        } else {
            text.extend_from_slice(line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_cannot_move_the_cursor_of_a_terminal_and_reaches_a_file_as_it_is() {
        let log = b"Frame 1\nev\x1b[2Jil\xff\n";
        let shown = lines(log, Some("Frame=1"), true);
        let want = "Frame=1 | Frame 1\nFrame=1 | ev\u{fffd}[2Jil\u{fffd}\n";
        assert_eq!(String::from_utf8(shown).unwrap(), want);
        assert_eq!(lines(log, None, false), log);
    }
}
