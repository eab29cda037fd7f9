//! What holds a jail to its limits beyond each single process, and the report of all that is in force.

use std::{path::PathBuf, rc::Rc};

use crate::{
    Level, Limits, Mechanism, Report, SandboxError, Step, bare,
    cgroup::Cgroup,
    layout::{Layout, writable},
    report::During,
    root::base_of,
    spec::Spec,
    sys,
    volume::Volume,
    watchdog::Watchdog,
    way::{Identity, Way, Without},
};

/// A control group for the jail, or why it has none.
///
/// Only where the policy needs one: to move a process into a group takes up to fifteen milliseconds.
pub(crate) fn group(spec: &Spec, without: Without) -> Result<Cgroup, String> {
    if without.limits {
        Err("left out".to_owned())
    } else if spec.floor < Level::S3 && spec.limits.processors.is_none() {
        Err(NOT_ASKED.to_owned())
    } else {
        Cgroup::make()
    }
}

/// Why there is no group where nothing needs one.
const NOT_ASKED: &str = "level S3 and a limit of processors have one";

/// The group and the disk of one jail, as far as they can be had.
#[derive(Debug)]
pub(crate) struct Resources {
    /// The group, or why there is none.
    pub(crate) cgroup: Rc<Result<Cgroup, String>>,
    /// The disk, made only for level S3.
    pub(crate) volume: Option<Volume>,
}

impl Resources {
    /// Make what the policy asks for and the machine allows.
    ///
    /// # Errors
    /// [`Step::Cgroup`] or [`Step::Volume`] when level S3 is asked for and cannot be had.
    pub(crate) fn make(
        spec: &Spec,
        way: Way,
        layout: &mut Layout,
        cgroup: Rc<Result<Cgroup, String>>,
    ) -> Result<Self, SandboxError> {
        let mut volume = None;
        if spec.floor >= Level::S3 {
            if let Err(reason) = cgroup.as_ref() {
                let text = format!("level S3 needs one: {reason}");
                return Err(SandboxError::new(Step::Cgroup, "", std::io::Error::other(text)));
            }
            let made = Volume::make(&base_of(spec), &spec.limits)?;
            let owner = match way.identity {
                Identity::Tenant(uid) | Identity::Plain(uid) => uid,
                Identity::Myself => sys::effective_uid(),
            };
            layout.put_on(&made, spec, owner)?;
            volume = Some(made);
        }
        Ok(Self { cgroup, volume })
    }

    /// Put the jail's first process under the group, before it does anything.
    ///
    /// # Errors
    /// [`Step::Cgroup`]: the group that was just made does not take it.
    pub(crate) fn take_in(&self, pid: i32) -> Result<(), SandboxError> {
        match self.cgroup.as_ref() {
            Ok(group) => group.take_in(pid).during(Step::Cgroup, ""),
            Err(_) => Ok(()),
        }
    }

    /// What the kernel does not hold is watched.
    pub(crate) fn watchdog(&self, spec: &Spec, way: Way, pid: i32) -> Watchdog {
        if way.without.limits {
            let limits = Limits { wall_seconds: None, ..spec.limits };
            return Watchdog::new(limits, None, Vec::new());
        }
        let memory_of = self.cgroup.is_err().then_some(pid);
        let folders = match self.volume {
            Some(_) => Vec::new(),
            None => writable(spec).into_iter().map(|place| place.host).collect(),
        };
        Watchdog::new(spec.limits, memory_of, folders)
    }

    /// Everything that is in force around the jail, and the level that it makes.
    pub(crate) fn report(
        &self,
        spec: &Spec,
        inside: Vec<Mechanism>,
        way: Way,
        ambiguous: &[[PathBuf; 2]],
    ) -> Report {
        let whole = self.cgroup.is_ok() && self.volume.is_some();
        let level = if way.level == Level::S2 && whole { Level::S3 } else { way.level };
        let mut mechanisms = vec![user(way.identity)];
        mechanisms.extend(inside);
        if level < Level::S2 {
            mechanisms.extend(bare::missing(level));
        }
        mechanisms.push(match self.cgroup.as_ref() {
            Ok(group) => Mechanism::held("cgroup", group.evidence()),
            Err(reason) => Mechanism {
                asked: reason != NOT_ASKED,
                ..Mechanism::missing(
                    "cgroup",
                    format!("each process is limited, and a watchdog looks at their sum; {reason}"),
                    "run the node as root, or as a service of systemd with Delegate=yes",
                )
            },
        });
        mechanisms.push(match &self.volume {
            Some(_) => Mechanism::held("quota", Volume::evidence(&spec.limits)),
            None => Mechanism {
                asked: false,
                ..Mechanism::missing(
                    "quota",
                    "a watchdog looks at the job's folders",
                    "level S3 gives each job a disk of its own: needs root, loop devices and mkfs.ext4",
                )
            },
        });
        if !spec.devices.is_empty() {
            let names: Vec<_> = spec.devices.iter().map(|d| d.display().to_string()).collect();
            mechanisms.push(Mechanism::held("graphics cards", names.join(" ")));
        }
        if !spec.services.is_empty() {
            let names: Vec<_> =
                spec.services.iter().map(|s| format!("{}:{}", s.host, s.port)).collect();
            let text = format!("through the launcher to {}", names.join(" "));
            mechanisms.push(Mechanism::held("services", text));
        }
        if !spec.windows.is_empty() {
            mechanisms.push(windows_paths(spec, ambiguous));
        }
        Report { level, mechanisms }
    }
}

fn user(identity: Identity) -> Mechanism {
    match identity {
        Identity::Tenant(uid) => {
            let text = format!("host user {uid}, mapped to {}", identity.uid());
            Mechanism::held("tenant user", text)
        }
        Identity::Plain(uid) => {
            Mechanism::held("tenant user", format!("host user {uid}, without a user namespace"))
        }
        Identity::Myself => Mechanism::missing(
            "tenant user",
            format!("host user {}, the node's own", sys::effective_uid()),
            "start the node as root to give each tenant a host user of its own",
        ),
    }
}

/// A convenience and no isolation, but a job with Windows paths wants to know.
fn windows_paths(spec: &Spec, ambiguous: &[[PathBuf; 2]]) -> Mechanism {
    let n_rules = spec.windows.len();
    let alike = ambiguous.first().map_or_else(String::new, |[one, other]| {
        let (one, other, n) = (one.display(), other.display(), ambiguous.len());
        format!("; only case tells {one} from {other} ({n} such pairs)")
    });
    match &spec.preload {
        Some(_) => Mechanism::held(
            "windows paths",
            format!(
                "{n_rules} rules in /etc/ld.so.preload's library, for dynamically linked programs{alike}"
            ),
        ),
        None => Mechanism::missing(
            "windows paths",
            format!("{n_rules} rules, of which only the drives' alias folders hold"),
            "install libmeshfarm_preload.so beside meshfarm",
        ),
    }
}
