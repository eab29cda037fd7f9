//! What lies where in the jail: the names of its empty root, its synthetic `/etc`, and what is shown in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    SandboxError, Step, gpu,
    landlock::{Rights, Rule},
    report::During,
    root::Names,
    services,
    spec::{Access, OWN_AT, Spec, WORK_AT},
    sys, table,
    volume::Volume,
};

/// Folders at the root that hold programs and their libraries.
pub(crate) const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Devices that no program can do harm with and most programs need.
pub(crate) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Private memory-backed folders of the jail.
pub(crate) const MEMORY: [&str; 3] = ["tmp", "home/render", "dev/shm"];
/// Host files and folders that are shown where they are, if they exist: fonts and links to chosen programs.
const SHARED: [&str; 3] = ["etc/fonts", "etc/alternatives", "var/cache/fontconfig"];
/// Where loaders look up which libraries the drivers of graphics cards are. The libraries themselves lie in `/usr`, or in
/// the policy's `software`.
const DRIVER_LISTS: [&str; 3] = ["etc/OpenCL", "etc/vulkan", "etc/glvnd"];
/// Where the preload library lies in the jail.
pub(crate) const PRELOAD_AT: &str = "run/meshfarm/libmeshfarm_preload.so";
/// POV-Ray's own file checks would refuse the artist's paths; the jail is the barrier.
const POVRAY_CONF: &str = "[File I/O Security]\nnone\n\n[Shellout Security]\nforbidden\n";

/// A host file or folder and how it is shown in the jail.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) host: PathBuf,
    /// Relative to the jail's root.
    pub(crate) at: PathBuf,
    /// `sys::ATTR_*`.
    pub(crate) attributes: u64,
    /// Whether the job owns it, as far as the daemon may give files away.
    pub(crate) given: bool,
    /// Whether the path may be a link: not where jobs have been before.
    pub(crate) linked: bool,
}

/// The names of the empty root and the list of what comes into it. Nothing is made yet.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) names: Names,
    pub(crate) sources: Vec<Source>,
    /// Jail paths that are shown a second time: (where it is, where it is shown too).
    pub(crate) aliases: Vec<(PathBuf, PathBuf)>,
    pub(crate) rules: Vec<Rule>,
    /// Files whose names a look-up without case cannot tell apart.
    pub(crate) ambiguous: Vec<[PathBuf; 2]>,
}

impl Layout {
    /// Lay out the jail of this policy; `uid` is the job's user as the job sees it.
    ///
    /// # Errors
    /// [`Step::Skeleton`] or [`Step::Table`] with the path.
    pub(crate) fn make(spec: &Spec, uid: u32) -> Result<Self, SandboxError> {
        let mut layout = Self::default();
        layout.system().during(Step::Skeleton, "system folders")?;
        layout.devices().during(Step::Skeleton, "devices")?;
        layout.graphics(&spec.devices).during(Step::Skeleton, "graphics cards")?;
        layout.etc(uid, &services::hosts(&spec.services)).during(Step::Skeleton, "etc")?;
        layout.own(spec).during(Step::Skeleton, "program")?;
        for mount in spec.mounts_in_order() {
            layout.artist(mount).during(Step::Skeleton, mount.at.display())?;
        }
        layout.windows(spec)?;
        Ok(layout)
    }

    fn system(&mut self) -> io::Result<()> {
        let attributes = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV;
        for name in SYSTEM {
            let host = Path::new("/").join(name);
            match fs::symlink_metadata(&host) {
                Ok(found) if found.is_symlink() => {
                    self.names.link(Path::new(name), fs::read_link(&host)?)?;
                }
                Ok(found) if found.is_dir() => {
                    self.show_folder(&host, attributes)?;
                    self.allow(name, Rights::RUN);
                }
                _ => {}
            }
        }
        for name in ["proc", "home", "home/render", "tmp", "var", "var/cache", "etc"] {
            self.names.folder(Path::new(name))?;
        }
        self.names.link(Path::new("var/tmp"), "../tmp")?;
        for name in SHARED {
            let host = Path::new("/").join(name);
            let attributes = attributes | sys::ATTR_NOEXEC;
            if host.is_dir() {
                self.show_folder(&host, attributes)?;
            }
        }
        for name in ["etc", "var"] {
            self.allow(name, Rights::READ);
        }
        for name in MEMORY {
            self.allow(name, Rights::SCRATCH);
        }
        Ok(())
    }

    fn devices(&mut self) -> io::Result<()> {
        self.names.folder(Path::new("dev/shm"))?;
        for name in DEVICES {
            let at = Path::new("dev").join(name);
            self.show_file(&Path::new("/").join(&at), &at, sys::ATTR_NOSUID | sys::ATTR_NOEXEC)?;
            self.rules.push(Rule { path: Path::new("/").join(&at), rights: Rights::WRITE });
        }
        let links = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ];
        for (name, target) in links {
            self.names.link(&Path::new("dev").join(name), target)?;
        }
        Ok(())
    }

    fn graphics(&mut self, devices: &[PathBuf]) -> io::Result<()> {
        if devices.is_empty() {
            return Ok(());
        }
        let root = Path::new("/");
        devices.iter().try_for_each(|device| gpu::present(device))?;
        for device in gpu::with_drivers(devices, root) {
            let at = relative(&device).to_path_buf();
            self.show_file(&device, &at, sys::ATTR_NOSUID | sys::ATTR_NOEXEC)?;
            self.rules.push(Rule { path: device, rights: Rights::DEVICE });
        }
        if self.names.has(Path::new("dev/dri")) {
            // Some drivers list it. In the jail nothing else is in it.
            self.allow("dev/dri", Rights::READ);
        }
        let seen = gpu::Seen::of(devices, root);
        let attributes = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
        self.names.folder(Path::new("sys"))?;
        for folder in seen.folders {
            self.show_folder(&root.join(folder), attributes)?;
        }
        for (at, target) in seen.links {
            self.names.link(&at, target)?;
        }
        self.allow("sys", Rights::READ);
        for name in DRIVER_LISTS {
            let host = root.join(name);
            if host.is_dir() {
                self.show_folder(&host, attributes)?;
            }
        }
        Ok(())
    }

    fn etc(&mut self, uid: u32, services: &str) -> io::Result<()> {
        let etc = Path::new("etc");
        let person = format!("render:x:{uid}:{uid}:render:/home/render:/bin/sh\n");
        let group = format!("render:x:{uid}:\nnogroup:x:65534:\n");
        let passwd = format!("{person}nobody:x:65534:65534:nobody:/:/bin/false\n");
        let hosts = format!("127.0.0.1 localhost render\n::1 localhost\n{services}");
        let files = [
            ("passwd", passwd.as_str()),
            ("group", &group),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
            ("hosts", &hosts),
            ("hostname", "render\n"),
            ("machine-id", "00000000000000000000000000000001\n"),
            ("povray/3.7/povray.conf", POVRAY_CONF),
        ];
        for (name, text) in files {
            self.names.text(&etc.join(name), text)?;
        }
        for name in ["ld.so.cache", "povray/3.7/povray.ini"] {
            match fs::read(Path::new("/etc").join(name)) {
                Ok(text) => self.names.text(&etc.join(name), text)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn own(&mut self, spec: &Spec) -> io::Result<()> {
        self.names.folder(Path::new("run/meshfarm"))?;
        let read_only = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV;
        let at = program_at(spec);
        self.show_file(&spec.program, at.strip_prefix("/").unwrap_or(&at), read_only)?;
        self.rules.push(Rule { path: OWN_AT.into(), rights: Rights::RUN });
        for prefix in spec.software.iter().filter(|p| !p.starts_with("/usr")) {
            self.show_folder(prefix, read_only)?;
            self.rules.push(Rule { path: prefix.clone(), rights: Rights::RUN });
        }
        unlinked(&spec.work)?;
        let at = PathBuf::from(WORK_AT.trim_start_matches('/'));
        self.names.folder(&at)?;
        let noexec = if spec.job_exec { 0 } else { sys::ATTR_NOEXEC };
        let attributes = sys::ATTR_NOSUID | sys::ATTR_NODEV | noexec;
        self.sources.push(Source {
            host: spec.work.clone(),
            at,
            attributes,
            given: true,
            linked: false,
        });
        let rights = Rights { exec: spec.job_exec, ..Rights::SCRATCH };
        self.rules.push(Rule { path: WORK_AT.into(), rights });
        Ok(())
    }

    fn artist(&mut self, mount: &crate::spec::Mount) -> io::Result<()> {
        let at = relative(&mount.at).to_path_buf();
        // Beneath another mount or a memory folder the root of the jail is not what is seen there.
        let covered = self.sources.iter().any(|s| at.starts_with(&s.at))
            || MEMORY.iter().any(|m| at.starts_with(m));
        let folder = unlinked(&mount.host)?.is_dir();
        if !covered && folder {
            self.names.folder(&at)?;
        } else if !covered {
            self.names.place(&at)?;
        }
        let mut attributes = sys::ATTR_NOSUID | sys::ATTR_NODEV;
        let mut rights = Rights::READ;
        let given = mount.access == Access::Write;
        if given {
            rights = Rights::WRITE;
        } else {
            attributes |= sys::ATTR_RDONLY;
        }
        if mount.exec {
            rights.exec = true;
        } else {
            attributes |= sys::ATTR_NOEXEC;
        }
        self.sources.push(Source {
            host: mount.host.clone(),
            at,
            attributes,
            given,
            linked: false,
        });
        self.rules.push(Rule { path: mount.at.clone(), rights });
        Ok(())
    }

    fn windows(&mut self, spec: &Spec) -> Result<(), SandboxError> {
        let mut wanted: Vec<(PathBuf, &Path)> =
            spec.windows.iter().filter_map(|r| Some((r.alias()?, r.at.as_path()))).collect();
        wanted.sort();
        for (alias, at_rule) in wanted {
            // What an artist's own mount or a shallower alias shows there needs no second mount.
            let shown = self.aliases.iter().any(|(at, shallow)| {
                let deeper = relative(&alias).strip_prefix(shallow);
                deeper.is_ok_and(|deeper| at.join(deeper) == relative(at_rule))
            });
            if shown || spec.mount_of(&alias).is_some() {
                continue;
            }
            let at = relative(&alias).to_path_buf();
            self.names.folder(&at).during(Step::Skeleton, alias.display())?;
            let mount = spec.mount_of(at_rule).map(|m| m.at.clone());
            let rights = self.rules.iter().find(|r| Some(&r.path) == mount.as_ref());
            let rights = rights.map_or(Rights::READ, |r| r.rights);
            self.aliases.push((relative(at_rule).to_path_buf(), at));
            self.rules.push(Rule { path: alias, rights });
        }
        let Some(library) = &spec.preload else {
            return Ok(());
        };
        let attributes = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV;
        self.show_file(library, Path::new(PRELOAD_AT), attributes)
            .during(Step::Skeleton, library.display())?;
        let built = table::build(spec).during(Step::Table, "")?;
        self.ambiguous = built.ambiguous;
        let map = Path::new("run/meshfarm/map.bin");
        self.names.text(map, built.bytes).during(Step::Table, "map.bin")?;
        let (list, line) = (Path::new("etc/ld.so.preload"), format!("/{PRELOAD_AT}\n"));
        self.names.text(list, line).during(Step::Table, "ld.so.preload")
    }

    /// Let everything that the job writes lie on a volume, filled with what is there now.
    ///
    /// # Errors
    /// [`Step::Volume`] with the folder that could not be copied.
    pub(crate) fn put_on(
        &mut self,
        volume: &Volume,
        spec: &Spec,
        owner: u32,
    ) -> Result<(), SandboxError> {
        for place in writable(spec) {
            let at = relative(&place.at).to_path_buf();
            let filled = volume.fill(&place.name, &place.host, owner);
            let host = filled.during(Step::Volume, place.host.display())?;
            for source in self.sources.iter_mut().filter(|s| s.given && s.at == at) {
                source.host.clone_from(&host);
            }
        }
        Ok(())
    }

    fn show_folder(&mut self, host: &Path, attributes: u64) -> io::Result<()> {
        let at = relative(host).to_path_buf();
        self.names.folder(&at)?;
        self.sources.push(Source {
            host: host.to_path_buf(),
            at,
            attributes,
            given: false,
            linked: true,
        });
        Ok(())
    }

    fn show_file(&mut self, host: &Path, at: &Path, attributes: u64) -> io::Result<()> {
        self.names.place(at)?;
        let at = at.to_path_buf();
        self.sources.push(Source {
            host: host.to_path_buf(),
            at,
            attributes,
            given: false,
            linked: true,
        });
        Ok(())
    }

    fn allow(&mut self, name: &str, rights: Rights) {
        self.rules.push(Rule { path: Path::new("/").join(name), rights });
    }
}

/// A place of the jail that the job may write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writable {
    /// Where the job sees it.
    pub(crate) at: PathBuf,
    /// The host folder or file.
    pub(crate) host: PathBuf,
    /// Its name on a volume.
    pub(crate) name: String,
}

/// Every writable place of a policy: the session folder first.
pub(crate) fn writable(spec: &Spec) -> Vec<Writable> {
    let mounts = spec.mounts_in_order().into_iter().filter(|m| m.access == Access::Write);
    let mounts = mounts.map(|m| (m.at.clone(), m.host.clone()));
    std::iter::once((WORK_AT.into(), spec.work.clone()))
        .chain(mounts)
        .enumerate()
        .map(|(n, (at, host))| Writable { at, host, name: n.to_string() })
        .collect()
}

/// The jail path of the started program.
pub(crate) fn program_at(spec: &Spec) -> PathBuf {
    Path::new(OWN_AT).join(spec.program.file_name().unwrap_or_default())
}

/// What a host path is, if it is no link: a link could have been left there by an earlier job.
fn unlinked(host: &Path) -> io::Result<fs::Metadata> {
    let found = fs::symlink_metadata(host)?;
    if found.is_symlink() {
        let text = format!("{} is a link: name the folder itself", host.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(found)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
