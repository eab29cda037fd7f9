//! What an attack is: a name, what it tries, which layers stop it, and how to see that it would work without them.

use std::fmt;

use meshfarm_sandbox::Level;

/// One attempt on the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attack {
    /// Stable, in words with dashes.
    pub name: &'static str,
    /// What it is aimed at.
    pub family: Family,
    /// One line for people.
    pub tries: &'static str,
    /// The layers that are meant to stop it, each of which may be enough.
    pub stopped_by: &'static [Layer],
    /// How its success is shown.
    pub control: Control,
    /// The lowest level that promises to stop it.
    pub promised: Level,
    /// What must lie ready for it.
    pub prepare: Prepare,
}

/// What attacks are aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Files of others, inputs, programs, devices.
    Files,
    /// Namespaces, capabilities, other processes, the kernel's own settings.
    Privilege,
    /// Everything by which processes speak to each other, on the machine and beyond.
    Contact,
    /// More than the job's share, for longer than its time.
    Resources,
    /// What is left for the node to collect.
    Outputs,
    /// The mapping of the artist's paths.
    Relocation,
}

/// A part of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// The jail's own root, in which nothing of others is mounted.
    OwnRoot,
    /// Read-only, without devices, set-id bits or programs where that is not needed.
    MountRestrictions,
    /// Paths allowed by Landlock.
    Landlock,
    /// System calls allowed by seccomp.
    Seccomp,
    /// A host user without any capability.
    NoCapabilities,
    /// The process namespace.
    ProcessNamespace,
    /// The process list shows the job's own, and no settings; further namespaces are forbidden through it.
    HiddenProcesses,
    /// The first process of the jail lets nobody read it.
    UnreadableFirstProcess,
    /// The network namespace.
    NetNamespace,
    /// The IPC namespace.
    IpcNamespace,
    /// Limits of each process and of the job.
    Limits,
    /// Private folders in memory, of a limited size.
    PrivateFolders,
    /// No inherited descriptor.
    ClosedDescriptors,
    /// An environment built from nothing.
    OwnEnvironment,
    /// Outputs are collected after the end, without links, by descriptors.
    Collector,
}

/// How it is shown that an attack would work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// In a jail that lacks these layers.
    Without(&'static [Layer]),
    /// Outside of any jail, as the same host user.
    Unconfined,
    /// Outside of any jail, as root in a few private namespaces, so that no harm is done.
    AsRoot,
    /// Not at all, and why.
    Impossible(&'static str),
}

/// What must lie ready for an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepare {
    /// The yard and the job's folders are enough.
    Nothing,
    /// A device file among the inputs. Needs root.
    Device,
    /// A program with the set-user-id bit of another user among the inputs. Needs root.
    SetUserId,
    /// A node that leaks descriptors and has a secret in its environment.
    LeakyNode,
    /// The preload library and rules for Windows paths.
    WindowsPaths,
    /// A second of processor time.
    LittleTime,
}

impl Attack {
    /// An attack of this family that every jail of level S2 must stop.
    pub(crate) const fn new(
        family: Family,
        name: &'static str,
        tries: &'static str,
        stopped_by: &'static [Layer],
        control: Control,
    ) -> Self {
        let (promised, prepare) = (Level::S2, Prepare::Nothing);
        Self { name, family, tries, stopped_by, control, promised, prepare }
    }

    /// With this lying ready.
    pub(crate) const fn with(self, prepare: Prepare) -> Self {
        Self { prepare, ..self }
    }

    /// Only promised from this level on.
    pub(crate) const fn only_from(self, promised: Level) -> Self {
        Self { promised, ..self }
    }
}

impl Layer {
    /// Its name for people and for the weakened launcher.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OwnRoot => "own-root",
            Self::MountRestrictions => "mount-restrictions",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::NoCapabilities => "no-capabilities",
            Self::ProcessNamespace => "process-namespace",
            Self::HiddenProcesses => "hidden-processes",
            Self::UnreadableFirstProcess => "unreadable-first-process",
            Self::NetNamespace => "net-namespace",
            Self::IpcNamespace => "ipc-namespace",
            Self::Limits => "limits",
            Self::PrivateFolders => "private-folders",
            Self::ClosedDescriptors => "closed-descriptors",
            Self::OwnEnvironment => "own-environment",
            Self::Collector => "collector",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "file system",
            Self::Privilege => "namespaces and privilege",
            Self::Contact => "IPC and network",
            Self::Resources => "resources",
            Self::Outputs => "outputs and names",
            Self::Relocation => "relocation",
        })
    }
}
