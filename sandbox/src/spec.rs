//! What one jailed program may see and use: the policy that the node hands to the launcher.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Level, Limits, SandboxError, Step, gpu};

/// The version of the policy that this crate writes and reads.
pub const SPEC_VERSION: u32 = 1;

/// The working directory of the jailed program: the host folder [`Spec::work`], writable, exec allowed.
pub const WORK_AT: &str = "/session";

/// Where the started program, the preload library and its table lie in the jail.
pub const OWN_AT: &str = "/run/meshfarm";

/// Where the preload library notes what programs of the job looked for: one line per path.
pub const RECORDS_AT: &str = "/session/.meshfarm-paths";

/// First host user id for tenants when the daemon runs as root: slot n takes this number plus n.
///
/// Far above the ranges that distributions hand out to people, services and subordinate ids.
pub const TENANT_UID_BASE: u32 = 3_000_001_000;

/// Longest list of mounts, software prefixes, rules, arguments or variables that is accepted.
const MOST_ENTRIES: usize = 4096;

/// Names at the root that belong to the jail itself. An artist's path may not lie there.
const RESERVED: [&str; 13] = [
    "usr", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sys", "dev", "bin", "sbin", "run",
    "session",
];

/// Everything that the launcher needs to know to start one program in one jail.
///
/// Folders that are writable in the jail, and `work`, must lie below a host folder that only the
/// node's user may enter: files in them carry modes that the job chose. No host path may be a link, or lead
/// through a folder that a job can write.
/// When the daemon runs as root, the files of readable mounts must be readable by every user (the
/// folders above them need not be), because the job runs as a user id of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Always [`SPEC_VERSION`].
    pub version: u32,
    /// Host path of the one program that starts in the jail, as `/run/meshfarm/<file name>`.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment, beside the defaults that [`Spec::environment`] lists; nothing is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Host files and folders, shown at the artist's own paths.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Host folder of the session, at [`WORK_AT`]: readable, writable, exec allowed.
    pub work: PathBuf,
    /// Further read-only host prefixes whose programs may run, at their own paths, such as `/opt/blender`.
    #[serde(default)]
    pub software: Vec<PathBuf>,
    /// Windows paths of the job and where they lie in the jail.
    #[serde(default)]
    pub windows: Vec<WindowsRule>,
    /// Host path of the preload library; without it Windows rules have only their alias folders.
    #[serde(default)]
    pub preload: Option<PathBuf>,
    /// What kind of program it is.
    #[serde(default)]
    pub profile: Profile,
    /// Programs that must have the contents which the policy names, or nothing runs.
    #[serde(default)]
    pub pinned: Vec<Pinned>,
    /// Whether programs may run that the job writes: into [`WORK_AT`], or into memory without a name. Code that an
    /// interpreter reads is not held back, nor what a program makes in its own memory.
    #[serde(default = "yes")]
    pub job_exec: bool,
    /// Device files of graphics cards that are this job's alone while it runs, such as `/dev/nvidia0`:
    /// [`Spec::give_cards`] adds what belongs to them.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// The only network that there is.
    #[serde(default)]
    pub services: Vec<Service>,
    /// What `/proc` shows.
    #[serde(default)]
    pub process_list: ProcessList,
    /// How much of the machine the job may use.
    #[serde(default)]
    pub limits: Limits,
    /// Host user and group id of the job, used when started as root. One tenant at a time per id.
    #[serde(default)]
    pub tenant_uid: Option<u32>,
    /// The lowest isolation that is acceptable: below it the launcher refuses. A hard limit on the disk (level S3)
    /// costs some fifty milliseconds at the start and is made only when it is asked for here.
    pub floor: Level,
    /// Host folder for what is made for this jail alone, best on a disk; the temporary folder when absent.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Where empty roots stay for further jails that show the same places. When absent, the root is made in `base` and
    /// goes with the jail, which costs ten to fifty milliseconds.
    #[serde(default)]
    pub roots: Option<KeptRoots>,
}

fn yes() -> bool {
    true
}

/// A program, and what its file must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Where the job sees it.
    pub path: PathBuf,
    /// Its SHA-256 sum in lower-case hexadecimal digits.
    pub sha256: String,
}

/// Where empty roots are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptRoots {
    /// Host folder with nothing else in it, best on a disk, that only the launcher's user can write to.
    pub folder: PathBuf,
    /// Whose jails share them: jails of others never do, because a lock on a file can be seen by all who read it.
    pub owner: String,
}

/// A host file or folder and where the job sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What is shown.
    pub host: PathBuf,
    /// The artist's path. Beneath another mount, the caller has made this folder in that mount's host folder.
    pub at: PathBuf,
    /// Whether the job may change it.
    pub access: Access,
    /// Whether programs in it may run.
    #[serde(default)]
    pub exec: bool,
}

/// What a job may do with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Look.
    Read,
    /// Look and change.
    Write,
}

/// A Windows path of the job and the jail path that it stands for.
///
/// A drive rule (`C:\show`) is also visible at the path that Blender makes of it (`/c/show`).
/// A UNC rule (`\\nas\show`) has no such alias: `/nas/show` could hide a folder of the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowsRule {
    /// `X:\a\b` or `\\server\share\a`; `/` serves as well as `\`.
    pub source: String,
    /// The jail path, at or beneath a mount.
    pub at: PathBuf,
    /// Whether names are looked up without regard to case, against the files found at the start.
    #[serde(default)]
    pub case_insensitive: bool,
}

/// What kind of program the jail is for: what it may do beyond reading, writing and running.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// POV-Ray: no socket, no watch on folders, no memory that has no name.
    Povray,
    /// Python and tools written in it: semaphores, sockets within the jail.
    Python,
    /// Blender without graphics card: as Python, and memory policies.
    BlenderCpu,
    /// Blender with graphics cards. What those need comes with [`Spec::devices`], whatever the profile.
    BlenderGpu,
    /// Any command: everything that one of the above needs, but devices.
    #[default]
    Command,
}

/// What the jail shows of its processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessList {
    /// The job's own processes and nothing else beneath `/proc`.
    #[default]
    Subset,
    /// Also what the kernel tells about itself, with the telling files covered: some drivers look there.
    Compat,
}

/// A service outside, such as a licence server, that the job may reach at `127.0.0.1` and by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name that the job looks up: `lic.studio.example`.
    pub host: String,
    /// The port, inside and outside.
    pub port: u16,
    /// Where connections go, whatever the name stands for by then.
    pub address: std::net::IpAddr,
}

impl Spec {
    /// A policy with nothing but a program and its working folder, at the default floor S2.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, work: impl Into<PathBuf>) -> Self {
        Self {
            version: SPEC_VERSION,
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            mounts: Vec::new(),
            work: work.into(),
            software: Vec::new(),
            windows: Vec::new(),
            preload: None,
            profile: Profile::default(),
            pinned: Vec::new(),
            job_exec: true,
            devices: Vec::new(),
            services: Vec::new(),
            process_list: ProcessList::default(),
            limits: Limits::default(),
            tenant_uid: None,
            floor: Level::S2,
            base: None,
            roots: None,
        }
    }

    /// Give the job these graphics cards, and tell its programs which numbers they have in the jail. What the policy says
    /// of such a variable stays.
    pub fn give_cards(&mut self, devices: Vec<PathBuf>) {
        for (name, numbers) in gpu::variables(&devices, Path::new("/")) {
            self.env.entry(name.to_owned()).or_insert(numbers);
        }
        if devices.iter().any(|device| gpu::is_nvidia(device)) {
            // Its driver looks into `/proc/driver`.
            self.process_list = ProcessList::Compat;
        }
        if !devices.is_empty() {
            // Drivers lock what they hand to a card.
            self.limits.locked_bytes = self.limits.locked_bytes.max(self.limits.memory_bytes);
        }
        self.devices = devices;
    }

    /// Refuse what the launcher could not honour.
    ///
    /// # Errors
    /// Step [`Step::Policy`], with what is wrong as the source.
    pub fn check(&self) -> Result<(), SandboxError> {
        if self.version != SPEC_VERSION {
            return Err(wrong(format!("policy version {} is not {SPEC_VERSION}", self.version)));
        }
        let most = [self.args.len(), self.env.len(), self.mounts.len(), self.software.len()];
        let few = [self.windows.len(), self.devices.len(), self.services.len(), self.pinned.len()];
        if most.into_iter().any(|n| n > MOST_ENTRIES) || few.into_iter().any(|n| n > 64) {
            return Err(wrong("a list of the policy is too long".to_owned()));
        }
        // Our own files lie beside the program.
        let own = ["map.bin", "libmeshfarm_preload.so"];
        if self.program.file_name().is_none_or(|name| own.iter().any(|o| name == *o)) {
            return Err(wrong("the program has no file name of its own".to_owned()));
        }
        for path in [&self.program, &self.work].into_iter().chain(&self.software) {
            plain_absolute(path)?;
        }
        for mount in &self.mounts {
            plain_absolute(&mount.host)?;
            plain_absolute(&mount.at)?;
            not_reserved(&mount.at)?;
        }
        for pinned in &self.pinned {
            plain_absolute(&pinned.path)?;
        }
        for device in &self.devices {
            gpu::check(device).map_err(wrong)?;
        }
        for service in &self.services {
            service.check().map_err(wrong)?;
        }
        for rule in &self.windows {
            plain_absolute(&rule.at)?;
            if self.mount_of(&rule.at).is_none() {
                return Err(wrong(format!("{} lies in no mount", rule.at.display())));
            }
            if let Some(alias) = rule.alias() {
                plain_absolute(&alias)?;
                not_reserved(&alias)?;
            }
        }
        let bad = |s: &String| s.contains('\0');
        if self.args.iter().any(bad)
            || self.env.iter().any(|(k, v)| bad(k) || bad(v) || k.contains('='))
        {
            return Err(wrong("an argument or variable holds a NUL or its name a `=`".to_owned()));
        }
        Ok(())
    }

    /// The environment of the program: defaults first, then [`Spec::env`]. `LD_*` is never passed on.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let defaults = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/home/render"),
            ("USER", "render"),
            ("LOGNAME", "render"),
            ("SHELL", "/bin/sh"),
            ("TMPDIR", "/tmp"),
            ("LANG", "C.UTF-8"),
            // A decimal comma breaks the parsers of scene formats made of text.
            ("LC_NUMERIC", "C"),
            ("TZ", "UTC"),
        ];
        defaults
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .chain(self.env.clone())
            .filter(|(name, _)| !name.starts_with("LD_"))
            .collect()
    }

    /// The mounts, shallow ones first, so that each finds the one that it lies in.
    #[must_use]
    pub fn mounts_in_order(&self) -> Vec<&Mount> {
        let mut mounts: Vec<&Mount> = self.mounts.iter().collect();
        mounts.sort_by_key(|m| m.at.components().count());
        mounts
    }

    /// The deepest mount that a jail path lies in.
    #[must_use]
    pub fn mount_of(&self, path: &Path) -> Option<&Mount> {
        self.mounts
            .iter()
            .filter(|m| path.starts_with(&m.at))
            .max_by_key(|m| m.at.components().count())
    }
}

impl Service {
    fn check(&self) -> Result<(), String> {
        let name = &self.host;
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 253 || !name.chars().all(fit) {
            return Err(format!("{name:?} is no host name"));
        }
        if self.port == 0 {
            return Err(format!("the service at {name} has no port"));
        }
        Ok(())
    }
}

impl WindowsRule {
    /// The path that Blender makes of a drive path before the system sees it: `C:\show` is `/c/show`.
    #[must_use]
    pub fn alias(&self) -> Option<PathBuf> {
        let bytes = self.source.as_bytes();
        let drive = bytes.first().filter(|b| b.is_ascii_alphabetic())?;
        if bytes.get(1) != Some(&b':') {
            return None;
        }
        let mut alias = PathBuf::from(format!("/{}", char::from(drive.to_ascii_lowercase())));
        for part in self.source[2..].split(['/', '\\']).filter(|p| !p.is_empty()) {
            alias.push(part);
        }
        Some(alias)
    }
}

fn wrong(what: String) -> SandboxError {
    SandboxError::new(Step::Policy, "", std::io::Error::new(std::io::ErrorKind::InvalidInput, what))
}

fn plain_absolute(path: &Path) -> Result<(), SandboxError> {
    let mut parts = path.components();
    let absolute = parts.next() == Some(Component::RootDir);
    let plain = absolute && parts.all(|c| matches!(c, Component::Normal(_)));
    let text = path.to_str().filter(|t| t.len() < 3000 && !t.contains(char::is_control));
    if plain && text.is_some() {
        Ok(())
    } else {
        Err(wrong(format!("{} is no plain absolute path", path.display())))
    }
}

fn not_reserved(at: &Path) -> Result<(), SandboxError> {
    let first = at.components().nth(1).map(Component::as_os_str);
    // The places that the jail itself mounts may hold deeper mounts, but not be replaced.
    let own = ["/tmp", "/home", "/home/render", "/var"].iter().any(|p| at == Path::new(p));
    let reserved = own || first.is_none_or(|f| RESERVED.iter().any(|r| f == *r));
    if reserved {
        Err(wrong(format!(
            "{} is kept for the system: choose another folder or a path mapping rule",
            at.display()
        )))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec::new("/bin/true", "/srv/work")
    }

    fn with_mount(at: &str) -> Spec {
        let mut spec = spec();
        spec.mounts.push(Mount {
            host: "/srv/show".into(),
            at: at.into(),
            access: Access::Read,
            exec: false,
        });
        spec
    }

    #[test]
    fn an_artists_path_is_accepted_and_a_system_path_is_not() {
        for good in ["/home/artist/show", "/mnt/show", "/tmp/show", "/usrx/a", "/srv/share"] {
            with_mount(good).check().unwrap();
        }
        for bad in [
            "/",
            "/usr",
            "/usr/share/x",
            "/etc",
            "/proc/1",
            "/dev/shm",
            "/lib64",
            "/run/x",
            "/session",
            "/tmp",
            "/home/render",
            "/home",
            "show",
            "/a/../etc",
            "/a\n/b",
        ] {
            assert!(with_mount(bad).check().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_survives_json_and_unknown_fields_do_not() {
        let spec = with_mount("/mnt/show");
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert!(text.contains("\"floor\":\"S2\""));
        let extended = text.replacen('{', "{\"extra\":1,", 1);
        assert!(serde_json::from_str::<Spec>(&extended).is_err());
    }

    #[test]
    fn the_environment_holds_defaults_and_no_loader_variables() {
        let mut spec = spec();
        spec.env.insert("HOME".into(), "/elsewhere".into());
        spec.env.insert("LD_PRELOAD".into(), "/evil.so".into());
        let env = spec.environment();
        assert_eq!(env["HOME"], "/elsewhere");
        assert_eq!(env["LC_NUMERIC"], "C");
        assert!(!env.contains_key("LD_PRELOAD"));
    }

    #[test]
    fn a_drive_rule_has_the_alias_that_blender_makes_and_a_unc_rule_has_none() {
        let rule = |source: &str| WindowsRule {
            source: source.into(),
            at: "/mnt/show".into(),
            case_insensitive: false,
        };
        assert_eq!(rule(r"C:\\show\tex").alias(), Some("/c/show/tex".into()));
        assert_eq!(rule(r"\\nas\show").alias(), None);
    }
}
