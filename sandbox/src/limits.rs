//! Resource limits of each process of the job.

use crate::{
    SandboxError, Step,
    report::During,
    spec::Limits,
    sys::{self, Resource},
};

/// Largest stack, address space and the like stay as they are: drivers and interpreters reserve
/// hundreds of gigabytes of addresses that they never use.
///
/// # Errors
/// Step [`Step::Limits`] with the limit's name.
pub(crate) fn apply(limits: &Limits) -> Result<(), SandboxError> {
    let all = [
        (Resource::Core, 0),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Data, limits.memory_bytes),
        (Resource::FileSize, limits.file_bytes),
        (Resource::LockedMemory, limits.locked_bytes),
        (Resource::MessageQueues, 0),
        (Resource::Nice, 0),
        (Resource::OpenFiles, limits.open_files),
        (Resource::Processes, limits.processes),
        (Resource::RealTime, 0),
        (Resource::Signals, 1024),
    ];
    for (resource, most) in all {
        match sys::limit(resource, most) {
            // The machine's own hard limit is lower, which keeps the promise as well.
            Err(e) if e.raw_os_error() == Some(sys::EPERM) && most > 0 => {}
            other => other.during(Step::Limits, format!("{resource:?}"))?,
        }
    }
    Ok(())
}
