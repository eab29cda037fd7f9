//! What of a policy says which programs may run: the one that is started, and those that the job makes itself.

use std::path::PathBuf;

use serde::Deserialize;

/// What may run, beside the programs of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    /// Folders outside of `/usr` whose programs may run, read-only at their own paths, such as `/opt/blender`.
    pub software: Vec<PathBuf>,
    /// The only program that may be started: a name that is looked up in PATH, or a path. It may start others.
    pub program: Option<PathBuf>,
    /// The SHA-256 sum of the started program's file.
    pub sha256: Option<String>,
    /// Which programs of its own making the job may run.
    pub allow_job_exec: JobExec,
}

/// Which programs of its own making a job may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum JobExec {
    /// Those in its session folder, and in nameless memory.
    #[default]
    SessionDir,
    /// None.
    No,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Flag(bool),
    Place(String),
}

impl TryFrom<Written> for JobExec {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Flag(false) => Ok(Self::No),
            Written::Place(place) if place == "session-dir" => Ok(Self::SessionDir),
            Written::Flag(true) | Written::Place(_) => {
                Err("\"session-dir\" or false is possible".to_owned())
            }
        }
    }
}

impl Exec {
    /// Refuse what means nothing, by its key.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let digits = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        if self.sha256.as_deref().is_some_and(|sum| !digits(sum)) {
            let problem = "64 hexadecimal digits are wanted, as sha256sum prints them";
            return Err(("exec.sha256".to_owned(), problem.to_owned()));
        }
        let relative = |path: &PathBuf| !path.is_absolute() && path.components().count() != 1;
        if self.program.as_ref().is_some_and(relative) {
            let problem = "a name or an absolute path is wanted";
            return Err(("exec.program".to_owned(), problem.to_owned()));
        }
        Ok(())
    }
}
