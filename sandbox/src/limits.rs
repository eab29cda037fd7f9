//! How much of the machine a job may use, and the part of it that the kernel holds each process to.

use serde::{Deserialize, Serialize};

use crate::{SandboxError, Step, report::During, sys};

/// How much of the machine the job may use.
///
/// Memory, processes and processors hold for the whole job at level S3; otherwise each process is limited, and a
/// watchdog ends the job when their sum exceeds the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory in bytes; what lies in the private folders counts only at level S3.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Processors in thousandths; `None` is all of them. Held by a cgroup only.
    pub processors: Option<u64>,
    /// Open files of each process. Blender and USD scenes need more than 1024.
    pub open_files: u64,
    /// The longest file, in bytes.
    pub file_bytes: u64,
    /// What the job may write to its session folder and its output folders together, in bytes on the disk.
    pub disk_bytes: u64,
    /// Files and folders that it may make there.
    pub disk_files: u64,
    /// The size of each of the private `/tmp`, `/dev/shm` and home folder, in bytes (held in memory).
    pub tmp_bytes: u64,
    /// Time by the clock from the start of the program, in seconds.
    pub wall_seconds: Option<u64>,
    /// Processor time of each process, in seconds: a backstop behind the clock.
    pub cpu_seconds: u64,
    /// Memory that each process may lock, in bytes.
    pub locked_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            memory_bytes: 16 * GIB,
            processes: 1024,
            processors: None,
            open_files: 4096,
            file_bytes: 16 * GIB,
            disk_bytes: 64 * GIB,
            disk_files: 200_000,
            tmp_bytes: 4 * GIB,
            wall_seconds: None,
            cpu_seconds: 7 * 24 * 3600,
            locked_bytes: 64 << 20,
        }
    }
}

/// Limit this process. Address space and the like stay as they are: drivers and interpreters reserve
/// hundreds of gigabytes of addresses that they never use.
///
/// # Errors
/// Step [`Step::Limits`] with the limit's name.
pub(crate) fn apply(limits: &Limits) -> Result<(), SandboxError> {
    let all = [
        ("core file", sys::RLIMIT_CORE, 0),
        ("processor time", sys::RLIMIT_CPU, limits.cpu_seconds),
        ("memory", sys::RLIMIT_DATA, limits.memory_bytes),
        ("file size", sys::RLIMIT_FSIZE, limits.file_bytes),
        ("locked memory", sys::RLIMIT_MEMLOCK, limits.locked_bytes),
        ("message queues", sys::RLIMIT_MSGQUEUE, 0),
        ("priority", sys::RLIMIT_NICE, 0),
        ("open files", sys::RLIMIT_NOFILE, limits.open_files),
        ("processes", sys::RLIMIT_NPROC, limits.processes),
        ("real-time priority", sys::RLIMIT_RTPRIO, 0),
        ("waiting signals", sys::RLIMIT_SIGPENDING, 1024),
    ];
    for (name, resource, most) in all {
        match sys::limit(resource, most) {
            // The machine's own hard limit is lower, which keeps the promise as well.
            Err(e) if e.raw_os_error() == Some(sys::EPERM) && most > 0 => {}
            other => other.during(Step::Limits, name)?,
        }
    }
    Ok(())
}
