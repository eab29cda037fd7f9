//! The jail's own root: mounts, process list and names, built in fresh namespaces, then the only one there is.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use crate::{
    Mechanism, SandboxError, Step,
    layout::{Layout, MEMORY, Source},
    report::During,
    root::Root,
    spec::{ProcessList, Spec},
    sys,
    way::{Way, Without},
};

/// Every namespace but the user's, without those that are left out.
pub(crate) fn kinds(without: Without) -> i32 {
    let mut kinds = sys::CLONE_NEWNS | sys::CLONE_NEWPID | sys::CLONE_NEWUTS | sys::CLONE_NEWCGROUP;
    if !without.net_namespace {
        kinds |= sys::CLONE_NEWNET;
    }
    if !without.ipc_namespace {
        kinds |= sys::CLONE_NEWIPC;
    }
    kinds
}

/// A copy of a host mount, with its restrictions, that is attached nowhere yet.
#[derive(Debug)]
pub(crate) struct Held(OwnedFd);

/// Take hold of everything that the jail will show: the empty root first, then the sources in order.
///
/// Done as real root outside the namespaces (the job's user need not be able to reach the folders),
/// or by an ordinary user inside its own user namespace.
///
/// # Errors
/// [`Step::Source`] with the path.
pub(crate) fn hold_all(
    layout: &Layout,
    root: &Root,
    without: Without,
) -> Result<Vec<Held>, SandboxError> {
    let root = Source {
        host: root.path().to_path_buf(),
        at: "".into(),
        attributes: sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC,
        given: false,
        linked: true,
    };
    std::iter::once(&root).chain(&layout.sources).map(|source| hold(source, without)).collect()
}

fn hold(source: &Source, without: Without) -> Result<Held, SandboxError> {
    let named = || source.host.display();
    let (mount, below) = match sys::clone_mount(&source.host, false, source.linked) {
        // In a user namespace the kernel will not uncover what lies under a mount: take it along.
        Err(e) if e.raw_os_error() == Some(sys::EINVAL) => (
            sys::clone_mount(&source.host, true, source.linked).during(Step::Source, named())?,
            true,
        ),
        other => (other.during(Step::Source, named())?, false),
    };
    if !without.mount_restrictions {
        let attributes = source.attributes;
        sys::restrict_mount(mount.as_fd(), attributes, below).during(Step::Source, named())?;
    }
    Ok(Held(mount))
}

/// Build the jail's root out of held mounts and make it the only root.
///
/// # Errors
/// The step that was refused.
pub(crate) fn enter(
    spec: &Spec,
    layout: &Layout,
    held: Vec<Held>,
    way: Way,
) -> Result<(), SandboxError> {
    let owner = way.identity.uid();
    let mut held = held.into_iter().map(|h| h.0);
    let root = held.next().ok_or_else(|| {
        SandboxError::new(Step::Mount, "root", std::io::ErrorKind::InvalidInput.into())
    })?;
    // Any folder that everybody can reach serves: the pivot below removes it from sight.
    let seat = sys::open_name(Path::new("/tmp"), sys::NAME).during(Step::Mount, "/tmp")?;
    sys::attach_mount(root.as_fd(), seat.as_fd()).during(Step::Mount, "root")?;
    sys::enter(root.as_fd()).during(Step::Mount, "root")?;
    for name in MEMORY {
        let size = spec.limits.tmp_bytes;
        let data = format!("size={size},nr_inodes=262144,mode=1777,uid={owner},gid={owner}");
        sys::mount(c"tmpfs", Path::new(name), sys::MOUNT_DATA, &data).during(Step::Mount, name)?;
    }
    for (source, mount) in layout.sources.iter().zip(held) {
        attach(&root, &mount, &source.at, MEMORY.iter().any(|m| source.at.starts_with(m)))?;
    }
    for (at, alias) in &layout.aliases {
        let copy = sys::clone_mount(at, true, false).during(Step::Mount, alias.display())?;
        attach(&root, &copy, alias, false)?;
    }
    if way.with_proc {
        mount_proc(way, spec.process_list).during(Step::Proc, "")?;
    }
    sys::pivot_root_here().during(Step::PivotRoot, "")?;
    sys::unmount(Path::new(".")).during(Step::PivotRoot, "")?;
    std::env::set_current_dir("/").during(Step::PivotRoot, "")?;
    sys::restrict_mount(root.as_fd(), sys::ATTR_RDONLY, false).during(Step::PivotRoot, "")
}

/// Attach a mount without following any link: what lies above the place may be the job's own files.
fn attach(root: &OwnedFd, mount: &OwnedFd, at: &Path, may_make: bool) -> Result<(), SandboxError> {
    let named = || at.display();
    let path = sys::c_path(at).during(Step::Mount, named())?;
    let open = || sys::open_below(root.as_fd(), &path, sys::NAME, sys::RESOLVE_PLAIN);
    let place = match open() {
        Err(e) if may_make && e.raw_os_error() == Some(sys::ENOENT) => {
            make_place(mount, at).and_then(|()| open()).during(Step::Mount, named())?
        }
        other => other.during(Step::Mount, named())?,
    };
    sys::attach_mount(mount.as_fd(), place.as_fd()).during(Step::Mount, named())
}

/// Make what a mount is attached to in a private folder: a file for a file.
fn make_place(mount: &OwnedFd, at: &Path) -> std::io::Result<()> {
    if fs::File::from(mount.try_clone()?).metadata()?.is_dir() {
        return fs::create_dir_all(at);
    }
    at.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::File::create(at).map(drop)
}

/// Files of a full process list that tell about the machine or other jobs.
const TELLING: [&str; 22] = [
    "acpi",
    "asound",
    "bus",
    "cmdline",
    "config.gz",
    "diskstats",
    "fs",
    "interrupts",
    "irq",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "modules",
    "pressure",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
];

/// Most places that a job may watch files from. They count as the host user's too, who has 128 in all.
const MOST_WATCHING_PLACES: &str = "32";

/// Mount the jail's process list; in a user namespace of its own after a moment with the full one, to forbid
/// further namespaces and limit what counts as the host user's.
fn mount_proc(way: Way, list: ProcessList) -> std::io::Result<()> {
    let at = Path::new("proc");
    if way.without.hidden_processes {
        return sys::mount(c"proc", at, sys::MOUNT_DATA, "");
    }
    match list {
        ProcessList::Subset => {
            if way.identity.has_user_namespace() {
                sys::mount(c"proc", at, sys::MOUNT_DATA, "")?;
                forbid_more();
                sys::unmount(at)?;
            }
            sys::mount(c"proc", at, sys::MOUNT_DATA, "subset=pid,hidepid=invisible")
        }
        ProcessList::Compat => {
            sys::mount(c"proc", at, sys::MOUNT_DATA, "hidepid=invisible")?;
            for name in TELLING {
                cover(&at.join(name))?;
            }
            let settings = sys::clone_mount(&at.join("sys"), false, false)?;
            let place = sys::open_name(&at.join("sys"), sys::NAME)?;
            sys::attach_mount(settings.as_fd(), place.as_fd())?;
            if way.identity.has_user_namespace() {
                forbid_more();
            }
            sys::restrict_mount(settings.as_fd(), sys::ATTR_RDONLY, false)
        }
    }
}

/// From here on nobody in the user namespace makes a namespace (a detached copy of a mount has one too).
///
/// The limits belong to the user namespace of who writes them: without one of our own they would be the host's.
fn forbid_more() {
    drop(fs::write("proc/sys/user/max_inotify_instances", MOST_WATCHING_PLACES));
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"] {
        // A second lock beside seccomp: a kernel without one of these files still has the other.
        drop(fs::write(format!("proc/sys/user/max_{kind}_namespaces"), "0"));
    }
}

/// Lay something empty over a file or folder of the jail, if it is there.
fn cover(at: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() => {
            sys::mount(c"tmpfs", at, sys::MOUNT_DATA | sys::MOUNT_READ_ONLY, "size=0,mode=555")
        }
        Ok(_) => {
            let nothing = sys::clone_mount(Path::new("dev/null"), false, false)?;
            sys::attach_mount(nothing.as_fd(), sys::open_name(at, sys::NAME)?.as_fd())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The numbers of this process's namespaces, by kind; empty where there is no process list.
pub(crate) fn numbers() -> Vec<(String, String)> {
    ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]
        .into_iter()
        .filter_map(|kind| {
            let link = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
            Some((kind.to_owned(), link.display().to_string()))
        })
        .collect()
}

/// Say of each namespace whether it is the jail's own, by comparing its number with the host's.
pub(crate) fn compare(host: &[(String, String)], own_user: bool) -> Vec<Mechanism> {
    let ours = numbers();
    host.iter()
        .filter(|(kind, _)| own_user || kind != "user")
        .map(|(kind, outside)| {
            let name = format!("{kind} namespace");
            match ours.iter().find(|(k, _)| k == kind) {
                Some((_, inside)) if inside != outside => Mechanism::held(&name, inside.as_str()),
                Some(_) => {
                    Mechanism::missing(&name, "shared with the host", "report this as a fault")
                }
                None => Mechanism::held(&name, "created; no process list to read its number from"),
            }
        })
        .collect()
}
