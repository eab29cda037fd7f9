//! How a jail is tried: as whom, how strong, and what is left out for the controls of the attack tests.

use crate::Level;

/// The job's user and group as the job sees them in a user namespace.
pub(crate) const INSIDE_UID: u32 = 1000;

/// How the job's user comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Started as root: a host user of its own, mapped into a user namespace.
    Tenant(u32),
    /// Started as root where user namespaces do not serve: a host user of its own, no user namespace.
    Plain(u32),
    /// Started as an ordinary user: that user, mapped into a user namespace.
    Myself,
}

impl Identity {
    /// The job's user as the job sees it.
    pub(crate) fn uid(self) -> u32 {
        match self {
            Self::Tenant(_) | Self::Myself => INSIDE_UID,
            Self::Plain(uid) => uid,
        }
    }

    /// Whether the job has a user namespace of its own.
    pub(crate) fn has_user_namespace(self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

/// What one try at a jail uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) identity: Identity,
    /// Whether the jail has a process list.
    pub(crate) with_proc: bool,
    /// The level that this way makes, apart from the disk of its own that S3 has.
    pub(crate) level: Level,
    /// What is left out, which is nothing in the launcher that is installed.
    pub(crate) without: Without,
}

/// Layers that are left out, to show what an attack does where nothing stops it.
///
/// The installed launcher has no way to ask for this: only a program of the attack tests does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Without {
    /// There are no namespaces at all, as on a machine that refuses them: level S1, or S0 without Landlock.
    pub namespaces: bool,
    /// Paths are not restricted by Landlock.
    pub landlock: bool,
    /// Every system call may be made.
    pub seccomp: bool,
    /// Mounts keep no restriction but their place: neither read-only, nor without devices, set-id or exec.
    pub mount_restrictions: bool,
    /// The network namespace is the host's.
    pub net_namespace: bool,
    /// The IPC namespace is the host's.
    pub ipc_namespace: bool,
    /// The process list of the jail shows every process of the jail and the settings of the kernel.
    pub hidden_processes: bool,
    /// No limit on memory, processes, files or time.
    pub limits: bool,
    /// Descriptors of the launcher stay open.
    pub closed_descriptors: bool,
    /// Capabilities inside the user namespace are kept.
    pub capabilities: bool,
    /// The first process of the jail can be read by others of its user.
    pub unreadable_first_process: bool,
}
