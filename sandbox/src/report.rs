//! What was asked of the kernel, what is in force, and the evidence; errors that name the step.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// How strong the isolation is. The order is the strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// No isolation: paths are only redirected.
    S0,
    /// Landlock, seccomp and resource limits, without namespaces.
    S1,
    /// All namespaces, Landlock, seccomp and no capabilities; limits are per process or watched.
    S2,
    /// As S2, and the kernel accounts and limits the job as a whole (cgroup and quota).
    S3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::S0 => "S0",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
        })
    }
}

/// What the kernel has in force around one jail, or could have on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The level reached.
    pub level: Level,
    /// Every mechanism, whether it was asked for and whether it holds.
    pub mechanisms: Vec<Mechanism>,
}

/// One mechanism of isolation and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mechanism {
    /// Short stable name, such as `landlock`.
    pub name: String,
    /// Whether the launcher tried to have it.
    pub asked: bool,
    /// Whether it holds.
    pub in_force: bool,
    /// What shows that: a version, a namespace number, a line of the kernel, or why it does not hold.
    pub evidence: String,
    /// What would make it better, in words for the machine's owner.
    pub better: Option<String>,
}

impl Report {
    /// Whether a mechanism holds.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.mechanisms.iter().any(|m| m.name == name && m.in_force)
    }
}

impl Mechanism {
    pub(crate) fn held(name: &str, evidence: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            asked: true,
            in_force: true,
            evidence: evidence.into(),
            better: None,
        }
    }

    pub(crate) fn missing(name: &str, evidence: impl Into<String>, better: &str) -> Self {
        Self { in_force: false, better: Some(better.to_owned()), ..Self::held(name, evidence) }
    }
}

/// A step of the launch, in the order in which the steps are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Reading and checking the policy.
    Policy,
    /// Starting the launcher program, or talking to it.
    Launcher,
    /// Making the empty root folder on the host.
    Skeleton,
    /// Making the jail's own disk.
    Volume,
    /// Making the jail's control group.
    Cgroup,
    /// Taking hold of a host file or folder.
    Source,
    /// Writing the table of the preload library.
    Table,
    /// Creating the namespaces.
    Namespaces,
    /// Mapping the tenant's user into the user namespace.
    UserMap,
    /// Becoming the tenant's user.
    Identity,
    /// Attaching a mount in the jail.
    Mount,
    /// Mounting the jail's own process list.
    Proc,
    /// Making the new root the only one.
    PivotRoot,
    /// Network and names of the jail.
    Network,
    /// Resource limits.
    Limits,
    /// Dropping every capability.
    Capabilities,
    /// Forbidding new privileges.
    NoNewPrivs,
    /// Restricting paths.
    Landlock,
    /// Restricting system calls.
    Seccomp,
    /// Starting the program.
    Exec,
    /// Reaching the level that the policy asks for.
    Level,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Launcher => "launcher",
            Self::Skeleton => "root folder",
            Self::Volume => "disk of its own",
            Self::Cgroup => "control group",
            Self::Source => "open for the jail",
            Self::Table => "path table",
            Self::Namespaces => "namespaces",
            Self::UserMap => "user map",
            Self::Identity => "become the tenant's user",
            Self::Mount => "mount",
            Self::Proc => "process list",
            Self::PivotRoot => "pivot root",
            Self::Network => "network",
            Self::Limits => "limits",
            Self::Capabilities => "drop capabilities",
            Self::NoNewPrivs => "no new privileges",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Exec => "start the program",
            Self::Level => "isolation level",
        })
    }
}

/// Why no jail stands. Nothing of the job has run.
#[derive(Debug, thiserror::Error)]
#[error("sandbox: {step}{}: {}", spaced(subject), plain(source))]
pub struct SandboxError {
    /// The step that was refused.
    pub step: Step,
    /// What the step was about, such as a path; may be empty.
    pub subject: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl SandboxError {
    pub(crate) fn new(step: Step, subject: impl fmt::Display, source: io::Error) -> Self {
        Self { step, subject: subject.to_string(), source }
    }
}

/// Adds the step to a system call's error.
pub(crate) trait During<T> {
    /// Name the step.
    fn during(self, step: Step, subject: impl fmt::Display) -> Result<T, SandboxError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: Step, subject: impl fmt::Display) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::new(step, subject, source))
    }
}

fn spaced(subject: &str) -> String {
    if subject.is_empty() { String::new() } else { format!(" {subject}") }
}

/// The system's words without the number, starting in lower case.
fn plain(source: &io::Error) -> String {
    let text = source.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_step_and_speaks_in_lower_case() {
        let error = SandboxError::new(Step::PivotRoot, "", crate::sys::errno(1));
        assert_eq!(error.to_string(), "sandbox: pivot root: operation not permitted");
        let error = SandboxError::new(Step::Mount, "/home/artist", crate::sys::errno(2));
        assert_eq!(error.to_string(), "sandbox: mount /home/artist: no such file or directory");
    }

    #[test]
    fn levels_are_ordered_by_strength() {
        assert!(Level::S3 > Level::S2 && Level::S2 > Level::S1 && Level::S1 > Level::S0);
    }
}
