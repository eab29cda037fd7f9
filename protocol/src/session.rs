//! What a node and the session runner in its jail say to each other: JSON lines over the runner's stdin and stdout.
//!
//! The runner lives with the job, so everything it says is the tenant's word: the node bounds it,
//! never acts on a claim about usage, and checks every path before it touches a disk.
//!
//! A session goes `Start` -> `Ready` -> any number of (`Run` -> `TaskStarted` -> `TaskEnded`) ->
//! `Finish` or `Cancel` -> `Ended`. A task that does not end as `Done` ends its session too, as Open
//! Job Description demands: the runner leaves the environments and says `Ended`.
//!
//! A whole job can also be played in one session: `Play` -> any number of (`TaskStarted` -> `TaskEnded`) -> `Ended`.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::{StepNo, TaskNo};
use crate::job::{Layout, PathFormat, Root};

/// The version of these messages. Both sides refuse any other.
pub const SESSION_VERSION: u16 = 1;

/// A longer line is refused, in bytes without its line feed.
pub const MAX_LINE: usize = 1 << 20;

/// More new files than this from one task are refused: the task fails.
pub const MAX_OUTPUT_FILES: usize = 100_000;

/// The file of a job's content that carries the template, beside its roots in the manifest.
pub const JOB_FILE: &str = "job.json";

/// What the node tells the runner, one line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToRunner {
    /// First, and once: read the job and enter its environments.
    Start(Start),
    /// First, and once, in place of `Start`: run these steps in one session, and end.
    Play(Play),
    /// Run this task. One at a time, after `Ready` or the last `TaskEnded`.
    Run {
        /// Index into the step's parameter space.
        task: TaskNo,
    },
    /// Stop what runs, leave the environments, end.
    Cancel,
    /// Leave the environments and end. The end of the input in mid-task means `Cancel`, else `Finish`.
    Finish,
}

/// How a session begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// [`SESSION_VERSION`].
    pub version: u16,
    /// Where the job's [`JobFile`] lies, as the runner sees it.
    pub job_file: String,
    /// A folder that may hold programs: working folder and embedded files are made beneath it.
    pub session_dir: String,
    /// The step whose tasks this session runs.
    pub step: StepNo,
    /// Open Job Description's path mapping rules. Empty where the jail shows the artist's own paths.
    pub path_mapping: Vec<PathRule>,
    /// Folders in which new and changed files are a task's outputs.
    pub outputs: Vec<OutputRoot>,
    /// At most this many bytes of one task's log are sent on; the rest is counted.
    pub log_bytes: u64,
}

/// A job that is run whole, its steps one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Play {
    /// [`SESSION_VERSION`].
    pub version: u16,
    /// Where the job's [`JobFile`] lies, as the runner sees it.
    pub job_file: String,
    /// A folder that may hold programs: working folder and embedded files are made beneath it.
    pub session_dir: String,
    /// What is run, in this order. Tasks are counted through from zero in what is said of them.
    pub steps: Vec<PlayedStep>,
    /// Whether the working folder stays when the session is over.
    pub keep: bool,
}

/// Tasks of one step of a job that is run whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlayedStep {
    /// Which step.
    pub step: StepNo,
    /// Which of its tasks.
    pub tasks: PlayedTasks,
}

/// Which tasks of a step are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlayedTasks {
    /// All, but no more than so many.
    First(u32),
    /// These, in this order.
    These(Vec<TaskNo>),
}

/// One path mapping rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// How `source` is written.
    pub format: PathFormat,
    /// The artist's folder.
    pub source: String,
    /// Where the jail shows it.
    pub destination: String,
}

/// Where the jail shows `root`: at the artist's own path, or where that is a Windows path, at a place of ours.
#[must_use]
pub fn jail_path(root: &Root) -> String {
    match root.format {
        PathFormat::Posix => root.source.clone(),
        PathFormat::Windows => format!("/mnt/{}", root.id),
    }
}

/// The path mapping rules of a job: none for the roots that the jail shows at the artist's own paths.
#[must_use]
pub fn path_rules(layout: &Layout) -> Vec<PathRule> {
    let mapped = layout.roots.iter().filter(|root| jail_path(root) != root.source);
    let rules = mapped.map(|root| PathRule {
        format: root.format,
        source: root.source.clone(),
        destination: jail_path(root),
    });
    rules.collect()
}

/// A folder in which a task leaves its outputs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputRoot {
    /// The root's id in the job's layout.
    pub id: String,
    /// Where the jail shows it.
    pub path: String,
}

/// What the runner tells the node, one line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromRunner {
    /// The environments are entered; tasks may run.
    Ready {
        /// [`SESSION_VERSION`].
        version: u16,
    },
    /// A task's action is about to start.
    TaskStarted {
        /// Which.
        task: TaskNo,
    },
    /// What the job printed, in order, at most a quarter of a second old.
    Log {
        /// Whose it is; none while environments are entered and left.
        task: Option<TaskNo>,
        /// The lines, without line feeds. None when lines were printed and all of them were left out.
        lines: Vec<String>,
    },
    /// How far the action says it is (`openjd_progress`, `openjd_status`).
    Progress {
        /// Which task; none in an environment's action.
        task: Option<TaskNo>,
        /// Progress in thousandths, at most 1000.
        permille: Option<u16>,
        /// The newest status text.
        status: Option<String>,
    },
    /// Outputs that do not fit into the line of `TaskEnded`, which follows.
    Outputs {
        /// Whose they are.
        task: TaskNo,
        /// The files.
        files: Vec<OutputPath>,
    },
    /// A task is over.
    TaskEnded {
        /// Which.
        task: TaskNo,
        /// How.
        outcome: Outcome,
        /// New and changed files beneath the output roots since it began (the last of them).
        outputs: Vec<OutputPath>,
    },
    /// The last line: the session is over and its environments are left.
    Ended {
        /// Why it could not go on. None after `Finish`, `Cancel`, or a task that failed by itself.
        error: Option<String>,
    },
}

impl FromRunner {
    /// Whether it shows that a task goes on: its action has started, or printed something.
    #[must_use]
    pub const fn is_sign_of_life(&self) -> bool {
        match self {
            Self::TaskStarted { .. } | Self::Log { .. } | Self::Progress { .. } => true,
            Self::Ready { .. }
            | Self::Outputs { .. }
            | Self::TaskEnded { .. }
            | Self::Ended { .. } => false,
        }
    }
}

/// How a task ended, as the runner saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// Its action exited with zero.
    Done,
    /// Its action failed, timed out, or could not start.
    Failed {
        /// The exit code, where there was a process that exited.
        exit_code: Option<i32>,
        /// What the action or the runner says about it.
        message: String,
    },
    /// It was stopped on request.
    Canceled,
}

/// One file beneath an output root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputPath {
    /// The root's id.
    pub root: String,
    /// Path beneath it, with `/` between components.
    pub path: String,
}

/// [`JOB_FILE`]: the template as its author wrote it, and the values that the borrower gave its parameters.
///
/// It travels encrypted with the job's content and is read in the jail only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// [`SESSION_VERSION`].
    pub version: u16,
    /// How `template` is written.
    pub format: TemplateFormat,
    /// The whole template.
    pub template: String,
    /// Every job parameter with its resolved value as text; lists as JSON arrays. Paths are absolute.
    pub parameters: BTreeMap<String, String>,
    /// Environment templates whose environments stand around the job's own, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<EnvironmentFile>,
    /// Path mapping rules that the submitter gave, beside those of the jail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path_mapping: Vec<MappingRule>,
}

/// An environment template as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentFile {
    /// How `template` is written.
    pub format: TemplateFormat,
    /// The whole template.
    pub template: String,
}

/// A path mapping rule in the words of the standard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingRule {
    /// How `source_path` is written.
    pub source_path_format: MappedFormat,
    /// Paths at and beneath this one are mapped.
    pub source_path: String,
    /// What they become.
    pub destination_path: String,
}

/// How a path that is mapped is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MappedFormat {
    /// With slashes.
    #[serde(alias = "posix", alias = "Posix")]
    Posix,
    /// With a drive letter or a server's name.
    #[serde(alias = "windows", alias = "Windows")]
    Windows,
    /// A scheme, a colon and two slashes in front.
    #[serde(alias = "uri", alias = "Uri")]
    Uri,
}

/// How a template is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateFormat {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Why a line means nothing. Nothing was changed; end the session.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE`].
    #[error("a line of {0} bytes where at most {MAX_LINE} are allowed")]
    TooLong(usize),
    /// Not one of the messages.
    #[error("malformed session message")]
    Malformed(#[from] serde_json::Error),
}

/// The line of `message`, with its line feed.
///
/// # Errors
/// When the message is too long for one line; nothing was written.
pub fn to_line<T: Serialize>(message: &T) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message)?;
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong(line.len()));
    }
    line.push(b'\n');
    Ok(line)
}

/// The message in `line`, with or without its line feed.
///
/// # Errors
/// When the line is too long or holds something else.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong(line.len()));
    }
    Ok(serde_json::from_slice(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_its_line() {
        let messages = [
            FromRunner::Ready { version: 1 },
            FromRunner::Log { task: None, lines: vec!["a\nb".into(), "\u{fffd}".into()] },
            FromRunner::TaskEnded {
                task: TaskNo(3),
                outcome: Outcome::Failed { exit_code: Some(-9), message: String::new() },
                outputs: vec![OutputPath { root: "r1".into(), path: "a/b.png".into() }],
            },
            FromRunner::Ended { error: None },
        ];
        for message in messages {
            let line = to_line(&message).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(from_line::<FromRunner>(&line).unwrap(), message);
        }
        let run = to_line(&ToRunner::Run { task: TaskNo(12) }).unwrap();
        assert_eq!(run, b"{\"run\":{\"task\":12}}\n");
        assert_eq!(to_line(&ToRunner::Cancel).unwrap(), b"\"cancel\"\n");
    }

    #[test]
    fn only_windows_paths_are_mapped() {
        let root = |id: &str, source: &str, format| Root {
            id: id.into(),
            source: source.into(),
            format,
            access: crate::job::Access::In,
        };
        let layout = Layout {
            roots: vec![
                root("r0", "/show/shot", PathFormat::Posix),
                root("r1", r"S:\show\tex", PathFormat::Windows),
            ],
        };
        let rule = PathRule {
            format: PathFormat::Windows,
            source: r"S:\show\tex".into(),
            destination: "/mnt/r1".into(),
        };
        assert_eq!(path_rules(&layout), [rule]);
    }

    #[test]
    fn strange_lines_are_refused() {
        for bad in [
            &b""[..],
            b"{}",
            b"\"stop\"",
            b"{\"run\":{\"task\":-1}}",
            b"{\"run\":{\"task\":1,\"and\":2}}",
            b"{\"run\":{\"task\":1}} {}",
        ] {
            assert!(from_line::<ToRunner>(bad).is_err());
        }
        let deep = "[".repeat(100_000);
        assert!(from_line::<FromRunner>(deep.as_bytes()).is_err());
        let long = vec![b' '; MAX_LINE + 1];
        assert!(matches!(from_line::<ToRunner>(&long), Err(LineError::TooLong(_))));
        let message = FromRunner::Ended { error: Some("x".repeat(MAX_LINE)) };
        assert!(matches!(to_line(&message), Err(LineError::TooLong(_))));
    }
}
