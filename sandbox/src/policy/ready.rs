//! A policy on this machine: its folders found, its services looked up, its requirements ready to be checked.

use std::{
    net::ToSocketAddrs,
    path::{Path, PathBuf},
};

use super::{Case, Format, JobExec, Map, OnMissing, Policy, PolicyError, demand::Demand};
use crate::{
    Access, CollectLimits, Level, Limits, Mount, Report, Service, Spec, Unmet, WindowsRule,
};

/// What a policy has become on this machine.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Everything but the program, its arguments and its working folder.
    pub spec: Spec,
    /// Which of the written files are taken; none when the program writes into the folders themselves.
    pub outputs: Option<Outputs>,
    /// What is asked of the program that is started.
    pub started: Started,
    /// How much of what it prints is passed on.
    pub log: LogLimits,
    /// Whether the library for windows paths is loaded at all.
    pub windows_paths: bool,
    demands: Vec<Demand>,
    on_missing: OnMissing,
}

/// What a policy asks of the program that is started: it is whoever starts it's to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// It is this one: a name that is looked up in PATH, or a path.
    pub program: Option<PathBuf>,
    /// The SHA-256 sum of its file, in lower-case digits.
    pub sha256: Option<String>,
    /// The library for windows paths is in force in it.
    pub handshake: bool,
}

/// How much is passed on of what a program prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in all; none: any number.
    pub bytes: Option<u64>,
    /// Bytes a second for long; none: any number.
    pub bytes_per_second: Option<u64>,
}

/// Which of the files that a program wrote are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    accept: Vec<String>,
    /// How much is taken at most.
    pub limits: CollectLimits,
}

impl Outputs {
    /// Everything that may be written within these limits.
    #[must_use]
    pub fn all(limits: &Limits) -> Self {
        let usual = CollectLimits::default();
        let limits = CollectLimits {
            bytes: limits.disk_bytes,
            files: limits.disk_files,
            depth: usual.depth,
        };
        Self { accept: Vec::new(), limits }
    }

    /// Whether a file is taken that has this path beneath its folder.
    #[must_use]
    pub fn accepts(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.accept.is_empty() || self.accept.iter().any(|pattern| matches(pattern, name))
    }
}

/// Whether `*` for any part of a name makes `pattern` the same as `name`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else {
            return false;
        };
        left = &left[at + part.len()..];
    }
    left.ends_with(tail)
}

impl Ready {
    /// The required mechanisms that do not hold.
    #[must_use]
    pub fn unmet(&self, report: &Report) -> Vec<Unmet> {
        self.demands.iter().filter_map(|demand| demand.unmet(report)).collect()
    }

    /// Whether the program may run although some of them do not hold.
    #[must_use]
    pub fn may_degrade(&self, report: &Report) -> bool {
        match self.on_missing {
            OnMissing::Refuse => false,
            OnMissing::Degrade(level) => report.level >= level,
        }
    }
}

impl Policy {
    /// What the policy becomes on this machine. `file` is where it was read from: its folders are relative to that.
    ///
    /// # Errors
    /// Names the key whose folder, card or host is not here.
    pub fn ready(&self, file: &Path) -> Result<Ready, PolicyError> {
        let wrong = |(key, problem)| PolicyError::Value { path: file.to_owned(), key, problem };
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        // Program and working folder are whoever starts it's to say.
        let mut spec = Spec::new("/usr/bin/env", "/");
        spec.profile = self.profile;
        spec.floor = self.level.unwrap_or(Level::S2);
        spec.process_list = self.proc.mode;
        spec.env.clone_from(&self.env);
        spec.job_exec = self.exec.allow_job_exec == JobExec::SessionDir;
        spec.limits = self.limits();
        for (n, map) in self.map.iter().enumerate() {
            self.show(&mut spec, map, n + 1, folder).map_err(wrong)?;
        }
        for software in &self.exec.software {
            let found = found(folder, software);
            spec.software.push(found.map_err(|problem| wrong(("exec.software".into(), problem)))?);
        }
        spec.give_cards(self.gpu.devices.iter().map(|name| Path::new("/dev").join(name)).collect());
        for allowed in &self.net.allow {
            let (host, port) = (allowed.host.clone(), allowed.port);
            let mut addresses = (host.as_str(), port).to_socket_addrs().map_err(|error| {
                wrong(("net.allow".to_owned(), format!("{host} cannot be looked up: {error}")))
            })?;
            let address = addresses
                .next()
                .map(|address| address.ip())
                .ok_or_else(|| wrong(("net.allow".to_owned(), format!("{host} has no address"))))?;
            spec.services.push(Service { host, port, address });
        }
        let demands = self.require.iter().map(|text| Demand::parse(text)).collect::<Result<_, _>>();
        let demands = demands.map_err(|problem| wrong(("require".to_owned(), problem)))?;
        let limits = spec.limits;
        let outputs = self.outputs.as_ref().map(|keys| Outputs {
            accept: keys.accept.clone(),
            limits: CollectLimits {
                bytes: limits.disk_bytes,
                files: limits.disk_files,
                depth: keys.max_depth,
            },
        });
        let started = Started {
            program: self.exec.program.clone(),
            sha256: self.exec.sha256.as_ref().map(|sum| sum.to_ascii_lowercase()),
            handshake: self.preload.require_handshake,
        };
        let log = LogLimits {
            bytes: self.limits.log_bytes.map(|size| size.0),
            bytes_per_second: self.limits.log_rate.map(|rate| rate.0),
        };
        let (windows_paths, on_missing) = (self.preload.windows_paths, self.on_missing);
        Ok(Ready { spec, outputs, started, log, windows_paths, demands, on_missing })
    }

    fn show(
        &self,
        spec: &mut Spec,
        map: &Map,
        n: usize,
        folder: &Path,
    ) -> Result<(), (String, String)> {
        let host = map.host.clone().unwrap_or_else(|| map.source.clone().into());
        let key = if map.host.is_some() { "host" } else { "source" };
        let key = format!("map {n} ({}): {key}", map.source);
        let host = found(folder, &host).map_err(|problem| (key, problem))?;
        let at = match map.format {
            Format::Posix => PathBuf::from(&map.source),
            Format::Windows => {
                let id = map.id.clone().unwrap_or_else(|| format!("windows-{n}"));
                Path::new("/mnt").join(id)
            }
        };
        if map.format == Format::Windows {
            let case_insensitive = map.case == Case::Insensitive;
            let source = map.source.clone();
            spec.windows.push(WindowsRule { source, at: at.clone(), case_insensitive });
        }
        spec.mounts.push(Mount { host, at, access: Access::from(map.access), exec: map.exec });
        Ok(())
    }

    fn limits(&self) -> Limits {
        let (usual, given) = (Limits::default(), self.limits);
        let bytes = |given: Option<crate::Size>, usual| given.map_or(usual, |size| size.0);
        Limits {
            memory_bytes: bytes(given.mem, usual.memory_bytes),
            processes: given.pids.unwrap_or(usual.processes),
            processors: given.cpus.map(|cpus| cpus * 1000),
            open_files: given.nofile.unwrap_or(usual.open_files),
            file_bytes: bytes(given.file_bytes, usual.file_bytes),
            disk_bytes: bytes(given.out_bytes, usual.disk_bytes),
            disk_files: given.out_files.unwrap_or(usual.disk_files),
            tmp_bytes: bytes(given.tmp, usual.tmp_bytes),
            wall_seconds: given.wall_s,
            ..usual
        }
    }
}

/// A folder or file of this machine, without links.
fn found(folder: &Path, path: &Path) -> Result<PathBuf, String> {
    let path = folder.join(path);
    path.canonicalize().map_err(|error| {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        format!("{} on this machine: {text}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_part_of_a_name() {
        for (pattern, name, same) in [
            ("*.exr", "f1.exr", true),
            ("*.exr", "f1.exr.tmp", false),
            ("f*.*r", "f1.exr", true),
            ("f1.exr", "f1.exr", true),
            ("*", "anything", true),
            ("a*a", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
        ] {
            assert_eq!(matches(pattern, name), same, "{pattern} {name}");
        }
    }
}
