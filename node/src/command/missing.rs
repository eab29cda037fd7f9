//! Which files the tasks of a job have looked for in vain, gathered from their logs.

use std::collections::BTreeMap;

use serde::Serialize;

use meshfarm_core::JobView;
use meshfarm_protocol::id::AttemptId;

use crate::cli;
use crate::print::{self, Page};

use super::{Desk, Done, logs};

/// How the line of a log begins that names a missing file; the session's runner writes it.
const NOT_FOUND: &str = "meshfarm: not found: ";

/// More files than this are counted and not named.
const MOST_NAMED: usize = 1000;

/// A line of a log is looked at no further than this: paths are shorter.
const LONGEST_LINE: usize = 8192;

/// So many labels of tasks stand on a line.
const SHOWN_TASKS: usize = 4;

/// A file that was not there.
#[derive(Debug, Serialize)]
struct Missing {
    /// As the scene names it.
    path: String,
    /// Labels of the tasks that looked for it.
    tasks: Vec<String>,
}

/// What is missing from one job.
#[derive(Debug, Default)]
struct Report {
    files: BTreeMap<String, Vec<String>>,
    /// Files beyond those that are named.
    more: usize,
}

pub(super) async fn missing(desk: &Desk, flags: &cli::JobArg) -> Done {
    let view = desk.client.job(&flags.job, false).await?;
    let mut report = Report::default();
    for (label, attempt) in logs::attempts(&view, None) {
        read(desk, attempt, &label, &mut report).await?;
    }
    desk.show(&page(&view, report))
}

async fn read(desk: &Desk, attempt: AttemptId, label: &str, report: &mut Report) -> Done {
    let (mut offset, mut line) = (0_u64, Vec::new());
    loop {
        let part = match desk.client.log(attempt, offset).await {
            Ok(part) => part,
            // An attempt that has not begun has no log yet.
            Err(crate::client::ClientError::Problem(problem)) if problem.status == 404 => break,
            Err(error) => return Err(error.into()),
        };
        if part.bytes.is_empty() {
            break;
        }
        offset = offset.saturating_add(part.bytes.len() as u64);
        for byte in part.bytes {
            if byte == b'\n' {
                report.note(&line, label);
                line.clear();
            } else if line.len() < LONGEST_LINE {
                line.push(byte);
            }
        }
    }
    report.note(&line, label);
    Ok(())
}

impl Report {
    fn note(&mut self, line: &[u8], label: &str) {
        let line = String::from_utf8_lossy(line);
        let Some(path) = line.strip_prefix(NOT_FOUND) else {
            return;
        };
        if self.files.len() >= MOST_NAMED && !self.files.contains_key(path) {
            self.more += 1;
            return;
        }
        let tasks = self.files.entry(path.to_owned()).or_default();
        if tasks.last().is_none_or(|last| last != label) {
            tasks.push(label.to_owned());
        }
    }
}

fn page(view: &JobView, report: Report) -> Page {
    let Report { files, more } = report;
    let files: Vec<_> = files.into_iter().map(|(path, tasks)| Missing { path, tasks }).collect();
    let mut page = Page::of(&serde_json::json!({"job": view.job, "missing": files, "more": more}));
    page.quiet = files.iter().map(|file| print::clean(&file.path)).collect();
    if files.is_empty() {
        page.line([print::plain("no task has looked for a file in vain")]);
        return page;
    }
    let rows = files.iter().map(|file| {
        let mut tasks = file.tasks[..file.tasks.len().min(SHOWN_TASKS)].join(", ");
        if file.tasks.len() > SHOWN_TASKS {
            tasks.push_str(&format!(" and {} more", file.tasks.len() - SHOWN_TASKS));
        }
        vec![print::plain(&file.path), print::faint(tasks)]
    });
    page.table(&["FILE", "LOOKED FOR BY"], rows);
    if more > 0 {
        page.line([print::plain(format!("and {more} more lines about other files"))]);
    }
    page.gap();
    let help = "a path that a renderer only tries is nothing to worry about; for one that the scene needs:";
    page.line([print::faint(help)]);
    page.line([print::faint("submit again with --input FILE-OR-FOLDER")]);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_named_once_with_the_tasks_that_looked_for_it() {
        let mut report = Report::default();
        report.note(b"meshfarm: not found: /show/a.png", "Frame=1");
        report.note(b"meshfarm: not found: /show/a.png", "Frame=1");
        report.note(b"Parsing meshfarm: not found: /show/b.png", "Frame=1");
        report.note(b"meshfarm: not found: /show/a.png", "Frame=2");
        let tasks: Vec<_> = report.files.into_iter().collect();
        let both = vec!["Frame=1".to_owned(), "Frame=2".to_owned()];
        assert_eq!(tasks, [("/show/a.png".to_owned(), both)]);
    }

    #[test]
    fn a_log_full_of_names_does_not_fill_the_memory() {
        let mut report = Report::default();
        for n in 0..MOST_NAMED + 7 {
            report.note(format!("{NOT_FOUND}/show/{n}").as_bytes(), "Frame=1");
        }
        assert_eq!((report.files.len(), report.more), (MOST_NAMED, 7));
    }
}
