//! How a job's program ended, and what it used.

use serde::{Deserialize, Serialize};

use crate::Stopped;

/// How the job's program ended and what the jail used. Exactly one of code and signal is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The program's exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, if one did; 9 when the jail was killed.
    pub signal: Option<i32>,
    /// The limit that it was ended for, if it was.
    pub stopped: Option<Stopped>,
    /// Measured from outside.
    pub usage: Usage,
}

/// What a jail used, counted by the kernel: for all its processes where there is a cgroup, and otherwise for the first
/// process of the jail and all that were waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in the programs, in milliseconds.
    pub user_ms: u64,
    /// Processor time in the kernel for them, in milliseconds.
    pub system_ms: u64,
    /// The most memory that a single process had resident, in bytes.
    pub peak_memory_bytes: u64,
    /// Bytes to and from the services of the policy.
    #[serde(default)]
    pub service_bytes: u64,
}

impl Exit {
    /// Whether the program ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}
