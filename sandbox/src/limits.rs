//! Resource limits of each process of the job.

use crate::{SandboxError, Step, report::During, spec::Limits, sys};

/// Largest stack, address space and the like stay as they are: drivers and interpreters reserve
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
