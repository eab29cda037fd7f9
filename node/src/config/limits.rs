//! The settings of jails: how much of the machine a task may use, and the weakest isolation that it gets.

use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use meshfarm_protocol::job::JailProfile;
use meshfarm_protocol::profile::{Amount, Level};
use meshfarm_sandbox::{Limits, Size};

/// The least memory of a task, whatever the machine has, in bytes.
const LEAST_MEMORY: u64 = 1 << 30;

/// The largest private folder in memory unless said otherwise, in bytes.
const USUAL_TMP: u64 = 4 << 30;

/// How much of the machine one task may use: the table `[limits]` of `meshfarm.toml`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitConfig {
    /// Memory of all its processes, at least 64 MiB. None: the machine's divided by its slots, at least 1 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Its processes and threads: 16 to 4194304. None: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Its processors, 1 to 4096. None: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processors: Option<u64>,
    /// What it may write to the disk, at least 16 MiB. None: 64 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Files and folders that it may make: 100 to 100000000. None: 200000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_files: Option<u64>,
    /// Each of its private folders in memory, such as `/tmp`: at least 1 MiB, at most `memory`. None: half of
    /// `memory`, at most 4 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp: Option<Size>,
}

/// How strongly tasks are isolated: the table `[isolation]` of `meshfarm.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IsolationConfig {
    /// The weakest isolation that a task gets here, as far as the machine reaches it: S2 or S3. A job that asks
    /// for more gets more.
    pub floor: Level,
    /// The most that jails of other sites' tasks allow, by the kind of program that needs it. A job that names a
    /// narrower kind gets that.
    pub profile: JailProfile,
    /// Folders outside of `/usr` with renderers, plug-ins and drivers, which tasks see at their own paths and may run.
    pub software: Vec<PathBuf>,
}

impl Default for IsolationConfig {
    fn default() -> Self {
        Self { floor: Level::S2, profile: JailProfile::Command, software: Vec::new() }
    }
}

/// What sessions are held to, beside what they were promised.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    usual: Limits,
    /// Whether the owner has said how much memory a task may use.
    said: bool,
}

impl SessionLimits {
    /// What a session is held to that was promised so much memory, in MiB. It may use that, unless the owner has
    /// said how much a task may use.
    #[must_use]
    pub fn with_memory(&self, promised: Amount) -> Limits {
        let promised = (promised.0 / 1000).saturating_mul(1 << 20);
        let most = if self.said { 0 } else { promised };
        Limits { memory_bytes: self.usual.memory_bytes.max(most), ..self.usual }
    }
}

impl LimitConfig {
    /// What sessions are held to on a machine with so much memory, in bytes, and so many slots.
    #[must_use]
    pub fn of_sessions(&self, machine_memory: u64, slots: u32) -> SessionLimits {
        SessionLimits { usual: self.limits(machine_memory, slots), said: self.memory.is_some() }
    }

    fn limits(&self, machine_memory: u64, slots: u32) -> Limits {
        let usual = Limits::default();
        // Whole MiB, because people read it.
        let share = (machine_memory / u64::from(slots.max(1))) >> 20 << 20;
        let memory_bytes = self.memory.map_or_else(|| share.max(LEAST_MEMORY), |size| size.0);
        let tmp = self.tmp.map_or_else(|| (memory_bytes / 2).min(USUAL_TMP), |size| size.0);
        Limits {
            memory_bytes,
            processes: self.processes.unwrap_or(usual.processes),
            processors: self.processors.map(|n| n * 1000),
            disk_bytes: self.disk.map_or(usual.disk_bytes, |size| size.0),
            disk_files: self.disk_files.unwrap_or(usual.disk_files),
            tmp_bytes: tmp,
            ..usual
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("limits.memory", self.memory, 64 << 20),
            ("limits.disk", self.disk, 16 << 20),
            ("limits.tmp", self.tmp, 1 << 20),
        ];
        for (key, given, least) in sizes {
            if given.is_some_and(|size| size.0 < least) {
                return Err((key, format!("at least {} is wanted", Size(least))));
            }
        }
        let counts = [
            ("limits.processes", self.processes, 16, 4_194_304),
            ("limits.processors", self.processors, 1, 4096),
            ("limits.disk_files", self.disk_files, 100, 100_000_000),
        ];
        for (key, given, least, most) in counts {
            if given.is_some_and(|n| !(least..=most).contains(&n)) {
                return Err((key, format!("{least} to {most} is possible")));
            }
        }
        match (self.tmp, self.memory) {
            (Some(tmp), Some(memory)) if tmp > memory => {
                Err(("limits.tmp", format!("at most {memory} (that is memory) is possible")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn to_text(self) -> String {
        let line = |key: &str, value: Option<String>, usual: &str| match value {
            Some(value) => format!("{key} = {value}\n"),
            None => format!("# {key} = {usual}\n"),
        };
        let size = |size: Option<Size>| size.map(|size| format!("\"{size}\""));
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        [
            "# How much of this machine one task may use; a task that uses more is ended and has failed.\n[limits]\n"
                .to_owned(),
            "# Memory of all its processes. Unless said: the machine's divided by its slots, at least 1 GiB, or more if it asks.\n"
                .to_owned(),
            line("memory", size(self.memory), "\"8 GiB\""),
            line("processes", number(self.processes), "1024"),
            "# Processors of each task; all of them unless said. Held only where tasks have control groups.\n"
                .to_owned(),
            line("processors", number(self.processors), "4"),
            "# What it may write, in bytes on the disk and in files.\n".to_owned(),
            line("disk", size(self.disk), "\"64 GiB\""),
            line("disk_files", number(self.disk_files), "200000"),
            "# Each of its private folders in memory, such as /tmp.\n".to_owned(),
            line("tmp", size(self.tmp), "\"4 GiB\""),
        ]
        .concat()
    }
}

impl IsolationConfig {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let odd = |path: &&PathBuf| {
            let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
            !path.is_absolute() || !plain || path.parent().is_none()
        };
        if let Some(odd) = self.software.iter().find(odd) {
            let text = format!("{} is no folder by an absolute path", odd.display());
            return Err(("isolation.software", text));
        }
        match self.floor {
            Level::S2 | Level::S3 => Ok(()),
            weak @ (Level::S0 | Level::S1) => {
                Err(("isolation.floor", format!("{weak} is no jail: S2 or S3 is possible")))
            }
        }
    }

    pub(super) fn to_text(&self) -> String {
        let software: Vec<_> =
            self.software.iter().map(|path| path.display().to_string()).collect();
        format!(
            "# The weakest isolation that a task gets here. S3 gives each a disk of its own, of fixed size: it needs root\n\
             # and costs a task some fifty milliseconds. A job that asks for more than this gets more.\n\
             [isolation]\nfloor = \"{}\"\n\
             # The most that other sites' tasks may do, by the kind of program that needs it: povray, python, blender-cpu,\n\
             # blender-gpu or command. A job that names a narrower kind gets that.\n\
             profile = \"{}\"\n\
             # Folders outside of /usr with renderers, plug-ins and drivers, such as \"/opt/blender\": tasks see and run them.\n\
             software = {software:?}\n",
            self.floor, self.profile
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_among_the_slots_and_never_less_than_a_gibibyte() {
        let config = LimitConfig::default();
        assert_eq!(config.limits(32 << 30, 4).memory_bytes, 8 << 30);
        assert_eq!(config.limits(32 << 30, 4).tmp_bytes, 4 << 30);
        assert_eq!(config.limits((8 << 30) + 4097, 2).memory_bytes, 4 << 30);
        assert_eq!(config.limits(4 << 30, 16).memory_bytes, 1 << 30);
        assert_eq!(config.limits(0, 0).memory_bytes, 1 << 30);
        let set = LimitConfig { memory: Some(Size(3 << 30)), processors: Some(2), ..config };
        let limits = set.limits(32 << 30, 4);
        assert_eq!((limits.memory_bytes, limits.tmp_bytes), (3 << 30, 3 << 29));
        assert_eq!(limits.processors, Some(2000));
    }

    #[test]
    fn a_task_may_use_the_memory_that_it_was_promised_unless_the_owner_says_how_much() {
        let memory = |config: LimitConfig, promised| {
            config.of_sessions(32 << 30, 4).with_memory(Amount::whole(promised)).memory_bytes
        };
        let usual = LimitConfig::default();
        assert_eq!(memory(usual, 0), 8 << 30);
        assert_eq!(memory(usual, 1024), 8 << 30);
        assert_eq!(memory(usual, 20 << 10), 20 << 30);
        let said = LimitConfig { memory: Some(Size(3 << 30)), ..usual };
        assert_eq!(memory(said, 20 << 10), 3 << 30);
    }
}
