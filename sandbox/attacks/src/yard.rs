//! The yard: what belongs to another tenant, and the folders of the attacking job beside it.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use meshfarm_sandbox::{
    Access, KeptRoots, Limits, Mount, Spec, TENANT_UID_BASE, WORK_AT, WindowsRule, changed_roots,
};

use crate::{attack::Prepare, tenant::Tenant};

/// Where the job sees its inputs; its outputs lie in `render` beneath.
const SHOW: &str = "/home/artist/show";
/// The folders of the job.
const OWN: [&str; 7] = ["work", "in", "out", "tmp", "memory", "home", "base"];

/// Facts about what must not change, by what they are about.
pub(crate) type Facts = BTreeMap<String, String>;

/// Another tenant's belongings in a folder of their own, and a job's folders.
#[derive(Debug)]
pub struct Yard {
    folder: PathBuf,
    secret: String,
    moment: u64,
    uid: Option<u32>,
    /// There until the yard goes, and first to go.
    tenant: Option<Tenant>,
}

impl Yard {
    /// Plant everything below this folder. As root, tenant and job are one host user of the yard's own: the
    /// hardest case, in which no file mode stands between them. `slot` keeps yards apart.
    ///
    /// # Errors
    /// When a canary cannot be planted.
    pub fn plant(below: &Path, attacker: &Path, slot: u32) -> io::Result<Self> {
        let (number, moment) = (random()?, 1_000_000_000 + random()? % 500_000_000);
        let secret = format!("canary-{number:016x}");
        let folder = below.join(format!("yard-{slot}-{:08x}", random()? >> 32));
        let root = fs::metadata("/proc/self")?.uid() == 0;
        let uid = root.then_some(TENANT_UID_BASE + 500 + slot);
        let theirs = folder.join("another-tenant");
        fs::create_dir_all(theirs.join("empty"))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        for (name, text) in [
            ("secret.txt", format!("{secret}-file\n")),
            ("spare.txt", format!("{secret}-spare\n")),
            (&format!("{secret}-name"), String::new()),
        ] {
            fs::write(theirs.join(name), text)?;
        }
        symlink(format!("{secret}-link"), theirs.join("link"))?;
        let file = fs::File::options().write(true).open(theirs.join("secret.txt"))?;
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(moment))?;
        drop(file);
        give(&theirs, uid)?;
        fs::create_dir(folder.join("roots"))?;
        copy_programs(&folder, attacker, uid)?;
        let tenant = Tenant::start(&folder.join("attacker"), &theirs, &secret, uid)?;
        Ok(Self { folder, secret, moment, uid, tenant: Some(tenant) })
    }

    /// A path in the yard.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What stands in the command line of everything that the job starts.
    pub(crate) fn mark(&self) -> String {
        self.folder.display().to_string()
    }

    /// The host user of tenant and job, if they have one of their own.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.uid
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// A word that the tenant told, such as an address.
    pub(crate) fn told(&self, key: &str) -> &str {
        self.tenant.as_ref().and_then(|tenant| tenant.told().get(key)).map_or("", String::as_str)
    }

    /// Whether any secret stands in these bytes.
    pub(crate) fn is_in(&self, bytes: &[u8]) -> bool {
        let moment = self.moment.to_string();
        [self.secret.as_bytes(), moment.as_bytes()]
            .iter()
            .any(|secret| bytes.windows(secret.len()).any(|part| part == *secret))
    }

    /// Fresh folders for a job.
    pub(crate) fn furnish(&self, prepare: Prepare) -> io::Result<()> {
        for name in OWN {
            match fs::remove_dir_all(self.path(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => fs::create_dir(self.path(name))?,
            }
        }
        fs::write(self.path("in/scene.txt"), "a scene")?;
        fs::create_dir(self.path("in/render"))?;
        symlink(self.path("another-tenant/secret.txt"), self.path("in/link"))?;
        fs::hard_link(self.path("tool"), self.path("in/tool"))?;
        for name in OWN {
            give(&self.path(name), self.uid)?;
        }
        match prepare {
            Prepare::Device => fs::rename(self.device()?, self.path("in/device")),
            Prepare::SetUserId => {
                fs::hard_link(self.path("set-user-id"), self.path("in/set-user-id"))
            }
            Prepare::Nothing | Prepare::LeakyNode | Prepare::WindowsPaths | Prepare::LittleTime => {
                Ok(())
            }
        }
    }

    /// A device that reads as zeros.
    fn device(&self) -> io::Result<PathBuf> {
        let path = self.path("device");
        let done =
            Command::new("mknod").args(["-m", "666"]).arg(&path).args(["c", "1", "5"]).status()?;
        if done.success() { Ok(path) } else { Err(io::Error::other("mknod was refused")) }
    }

    /// How much a job of these attacks may use: little, so that more is quickly seen.
    #[allow(clippy::needless_update, reason = "a limit that is added later has its default")]
    pub(crate) fn limits(prepare: Prepare) -> Limits {
        const MIB: u64 = 1 << 20;
        Limits {
            memory_bytes: 64 * MIB,
            processes: 32,
            open_files: 128,
            file_bytes: 16 * MIB,
            tmp_bytes: 8 * MIB,
            cpu_seconds: if prepare == Prepare::LittleTime { 1 } else { 30 },
            locked_bytes: 64 << 10,
            ..Limits::default()
        }
    }

    /// The policy of a job.
    pub(crate) fn spec(&self, prepare: Prepare, preload: Option<&Path>) -> Spec {
        let mount = |name: &str, at: &str, access| Mount {
            host: self.path(name),
            at: at.into(),
            access,
            exec: false,
        };
        let rule = |source: &str, at: &str| WindowsRule {
            source: source.to_owned(),
            at: at.into(),
            case_insensitive: false,
        };
        let mut spec = Spec::new(self.path("attacker"), self.path("work"));
        spec.base = Some(self.path("base"));
        let (folder, owner) = (self.path("roots"), "attacker".to_owned());
        spec.roots = Some(KeptRoots { folder, owner });
        spec.limits = Self::limits(prepare);
        spec.tenant_uid = self.uid;
        let render = Self::outputs_at().display().to_string();
        spec.mounts = vec![mount("in", SHOW, Access::Read), mount("out", &render, Access::Write)];
        spec.windows = vec![
            rule(r"C:\show", SHOW),
            rule(r"C:\show\render", &render),
            rule(r"\\nas\projects", SHOW),
        ];
        if prepare == Prepare::WindowsPaths {
            spec.preload = preload.map(Path::to_path_buf);
        }
        spec
    }

    /// Where the job sees its outputs.
    pub(crate) fn outputs_at() -> PathBuf {
        Path::new(SHOW).join("render")
    }

    /// What the attacker is told: the job's folders as it sees them, and where the tenant's belongings are.
    pub(crate) fn arguments(&self, jailed: bool) -> Vec<String> {
        let disk = fs::metadata("/").map(|m| m.dev()).unwrap_or(0);
        let (major, minor) = ((disk >> 8) & 0xfff, disk & 0xff);
        let folders = if jailed {
            let render = Self::outputs_at().display().to_string();
            [
                ("work", WORK_AT.to_owned()),
                ("in", SHOW.to_owned()),
                ("out", render),
                ("tmp", "/tmp".to_owned()),
                ("memory", "/dev/shm".to_owned()),
                ("home", "/home/render".to_owned()),
                ("alias", "/c/show".to_owned()),
                ("program", "/run/meshfarm/attacker".to_owned()),
            ]
        } else {
            [
                ("work", self.text("work")),
                ("in", self.text("in")),
                ("out", self.text("out")),
                ("tmp", self.text("tmp")),
                ("memory", self.text("memory")),
                ("home", self.text("home")),
                ("alias", self.text("in")),
                ("program", self.text("attacker")),
            ]
        };
        let of_tenant = [
            ("tenant", self.text("another-tenant")),
            ("secret", self.text("another-tenant/secret.txt")),
            ("disk", format!("{major}:{minor}")),
        ];
        let fixed = folders.into_iter().chain(of_tenant).map(|(k, v)| format!("{k}={v}"));
        let told = self.tenant.iter().flat_map(Tenant::told);
        fixed.chain(told.map(|(k, v)| format!("{k}={v}"))).collect()
    }

    /// Everything that must be the same after an attack.
    pub(crate) fn facts(&mut self) -> Facts {
        let mut facts = Facts::new();
        for name in ["another-tenant", "in", "attacker"] {
            look(&self.path(name), name, &mut facts);
        }
        let shared = Path::new("/dev/shm").join(self.told("shared"));
        look(&shared, "shared memory file", &mut facts);
        for name in ["kernel/hostname", "kernel/domainname", "kernel/core_pattern"]
            .into_iter()
            .chain(["user/max_user_namespaces", "user/max_inotify_instances"])
        {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
            facts.insert(format!("setting {name}"), value);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = mounts.lines().filter(|line| line.contains(&self.mark())).count();
        facts.insert("mounts of the job on the host".to_owned(), ours.to_string());
        let base = fs::read_dir(self.path("base")).map_or(0, Iterator::count);
        facts.insert("roots of the job on the host".to_owned(), base.to_string());
        let changed = changed_roots(&self.path("roots"));
        facts.insert("kept roots that have changed".to_owned(), format!("{changed:?}"));
        facts.extend(self.tenant.iter_mut().flat_map(Tenant::state));
        facts
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        drop(self.tenant.take());
        // What an attack that broke out has started may still be writing here while it is killed. The folder is below
        // a temporary one of the caller's, who sees if it stays.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir_all(&self.folder).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Copies of the programs, made by another process: a file that a thread of ours has open for writing
/// cannot be started, and a fork of another thread keeps it open for a moment longer.
fn copy_programs(folder: &Path, attacker: &Path, uid: Option<u32>) -> io::Result<()> {
    let script = "cd \"$1\" && cp \"$2\" attacker && chmod 755 attacker && cp /usr/bin/id set-user-id && \
        printf '#!/bin/sh\\necho got: it ran\\n' > tool && chmod 755 tool";
    let copied =
        Command::new("sh").args(["-c", script, "sh"]).arg(folder).arg(attacker).status()?;
    if !copied.success() {
        return Err(io::Error::other("the attacker's program cannot be copied"));
    }
    if let Some(uid) = uid {
        lchown(folder.join("attacker"), Some(uid), Some(uid))?;
        lchown(folder.join("set-user-id"), Some(uid + 1000), Some(uid + 1000))?;
        let mode = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(folder.join("set-user-id"), mode)?;
    }
    Ok(())
}

/// Give a tree to a user.
fn give(path: &Path, uid: Option<u32>) -> io::Result<()> {
    if uid.is_none() {
        return Ok(());
    }
    lchown(path, uid, uid)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

/// Note everything about a tree but when it was read.
fn look(path: &Path, name: &str, facts: &mut Facts) {
    let Ok(found) = fs::symlink_metadata(path) else {
        facts.insert(name.to_owned(), "is not there".to_owned());
        return;
    };
    let content = if found.is_symlink() {
        fs::read_link(path).map(|to| to.display().to_string()).unwrap_or_default()
    } else if found.is_file() && found.len() < 4096 {
        fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    } else {
        String::new()
    };
    facts.insert(
        name.to_owned(),
        format!(
            "mode {:o}, user {}, group {}, {} names, {} bytes, changed {}.{:09}, touched {}.{:09}: {content}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.nlink(),
            found.len(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec(),
        ),
    );
    if let (true, Ok(entries)) = (found.is_dir(), fs::read_dir(path)) {
        for entry in entries.filter_map(Result::ok) {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            look(&entry.path(), &name, facts);
        }
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
