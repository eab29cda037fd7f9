//! The barrier around one session: a policy in, a jailed program out.
//!
//! The kernel is the barrier (namespaces, Landlock, seccomp, no capabilities, limits); the preload library
//! is a convenience, and a job that is rid of it reaches nothing more. `launch` runs the launcher program
//! of this package, because nothing may be set up between fork and exec of a program with threads.

#[cfg(not(target_os = "linux"))]
compile_error!("the sandbox is made of Linux mechanisms; submit from other systems without it");

mod collect;
mod jail;
mod policy;
mod probe;
mod report;
mod size;
mod spec;

mod bare;
mod cgroup;
mod command_line;
mod control;
mod exit;
mod gpu;
mod inside;
mod landlock;
/// The launcher program's own code, for its `main` alone.
#[doc(hidden)]
pub mod launcher;
mod layout;
mod limits;
mod namespaces;
mod pinned;
mod resources;
mod root;
mod seccomp;
mod services;
mod sys;
mod table;
mod turns;
mod volume;
mod watchdog;
mod way;

pub use collect::{CollectLimits, Collected, Reason, Skipped, collect};
pub use exit::{Exit, Usage};
pub use jail::{Jail, Killer, Programs, find_launcher, find_programs, launch};
pub use limits::Limits;
pub use policy::{LogLimits, OnMissing, Outputs, Policy, PolicyError, Ready, Started, Unmet};
pub use probe::{probe, probe_with};
pub use report::{Level, Mechanism, Report, SandboxError, Step};
pub use root::changed_roots;
pub use size::Size;
pub use spec::{
    Access, KeptRoots, Mount, OWN_AT, Pinned, ProcessList, Profile, RECORDS_AT, SPEC_VERSION,
    Service, Spec, TENANT_UID_BASE, WORK_AT, WindowsRule,
};
pub use table::Relocation;
pub use watchdog::Stopped;
