//! A control group of the jail's own: memory, processes and processor time of all its processes together.
//!
//! Version 1 has a folder for each controller, version 2 one for all. In both the jail's folder lies where the
//! node's own limits hold for it too: beneath the node's folder (version 1, or at the root) or beside it (version
//! 2, where a group with processes of its own cannot limit further groups).

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::Limits;

/// How the folders of jails begin; the launcher's process number follows.
const NAME: &str = "meshfarm-jail-";
/// Controllers without which there is no group at all.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// Controllers that are used where they are there.
const WELCOME: [&str; 2] = ["cpu", "cpuacct"];
/// How long the kernel may take to let go of an empty group.
const LINGER: Duration = Duration::from_millis(500);
/// Processes and threads of the launcher, at most.
const LAUNCHER: u64 = 200;
/// The span of time over which processors are shared out, in microseconds.
const PERIOD_US: u64 = 100_000;

/// The folders of one jail's group. They go with [`remove`], when nothing of the jail is left.
#[derive(Debug)]
pub(crate) struct Cgroup {
    version: u8,
    folders: Vec<(String, PathBuf)>,
}

/// Where groups can be made: the folder above the jail's own, by controller.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    version: u8,
    parents: Vec<(String, PathBuf)>,
}

impl Cgroup {
    /// Make a group without limits. In version 1 the launcher joins it, and so does all that it starts.
    /// # Errors
    /// Why there is none, in words.
    pub(crate) fn make() -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let place = place(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)?;
        let mut group = Self { version: place.version, folders: Vec::new() };
        for (controller, parent) in place.parents {
            sweep(&parent);
            let folder = parent.join(format!("{NAME}{}", std::process::id()));
            // Two controllers of version 1 may share a folder.
            let shared = group.folders.iter().any(|(_, made)| *made == folder);
            let made = if shared { Ok(()) } else { fs::create_dir(&folder) };
            let joined = made.and_then(|()| match group.version {
                // Moving is dear; most jobs may use every processor.
                1 if controller != "cpu" => join(&folder),
                _ => Ok(()),
            });
            match joined {
                Ok(()) => group.folders.push((controller, folder)),
                Err(error) => {
                    if !shared {
                        drop(fs::remove_dir(&folder));
                    }
                    if group.version == 2 || NEEDED.contains(&controller.as_str()) {
                        remove(&group.folders());
                        return Err(format!("{}: {}", folder.display(), plain(&error)));
                    }
                }
            }
        }
        Ok(group)
    }

    /// The folders that are to be removed in the end.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|(_, folder)| folder.clone()).collect()
    }

    /// Set the limits.
    ///
    /// # Errors
    /// Why one cannot be set, in words.
    pub(crate) fn hold_to(&self, limits: &Limits) -> Result<(), String> {
        for (controller, folder) in &self.folders {
            match self.limit(controller, folder, limits) {
                Err(error) if self.version == 2 || NEEDED.contains(&controller.as_str()) => {
                    return Err(format!("{}: {}", folder.display(), plain(&error)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn limit(&self, controller: &str, folder: &Path, limits: &Limits) -> io::Result<()> {
        let set = |name: &str, value: &str| fs::write(folder.join(name), value);
        // A kernel without accounting of swap has no such file, and a machine without swap needs none.
        let without_swap = |name: &str, value: &str| match set(name, value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let memory = limits.memory_bytes.to_string();
        let quota = limits.processors.map(|thousandths| PERIOD_US * thousandths / 1000);
        match (self.version, controller) {
            (1, "memory") => {
                set("memory.limit_in_bytes", &memory)?;
                without_swap("memory.memsw.limit_in_bytes", &memory)
            }
            // The launcher and its threads are in the group too; of the job itself the kernel counts each user's.
            (1, "pids") => set("pids.max", &(limits.processes + LAUNCHER).to_string()),
            (1, "cpu") => quota.map_or(Ok(()), |quota| {
                set("cpu.cfs_period_us", &PERIOD_US.to_string())?;
                set("cpu.cfs_quota_us", &quota.to_string())?;
                join(folder)
            }),
            (1, _) => Ok(()),
            _ => {
                set("memory.max", &memory)?;
                without_swap("memory.swap.max", "0")?;
                set("memory.oom.group", "1")?;
                set("pids.max", &limits.processes.to_string())?;
                quota.map_or(Ok(()), |quota| set("cpu.max", &format!("{quota} {PERIOD_US}")))
            }
        }
    }

    /// Put a process into the group, and with it all that it starts later, unless it was started in it.
    pub(crate) fn take_in(&self, pid: i32) -> io::Result<()> {
        if self.version == 1 {
            return Ok(());
        }
        let text = pid.to_string();
        self.folders
            .iter()
            .try_for_each(|(_, folder)| fs::write(folder.join("cgroup.procs"), &text))
    }

    /// Processor time of everything that ever ran in the group: in programs and in the kernel, in milliseconds.
    pub(crate) fn processor_time(&self) -> Option<(u64, u64)> {
        if self.version == 2 {
            let stat = self.read("all", "cpu.stat")?;
            return Some((field(&stat, "user_usec")? / 1000, field(&stat, "system_usec")? / 1000));
        }
        let nanoseconds = |name| self.read("cpuacct", name)?.trim().parse::<u64>().ok();
        Some((
            nanoseconds("cpuacct.usage_user")? / 1_000_000,
            nanoseconds("cpuacct.usage_sys")? / 1_000_000,
        ))
    }

    /// Whether the kernel has killed something in the group for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let kills = match self.version {
            2 => self.read("all", "memory.events").and_then(|text| field(&text, "oom_kill")),
            _ => {
                self.read("memory", "memory.oom_control").and_then(|text| field(&text, "oom_kill"))
            }
        };
        kills.is_some_and(|n| n > 0)
    }

    /// Which controllers hold, for the report.
    pub(crate) fn evidence(&self) -> String {
        let names: Vec<_> = self.folders.iter().map(|(name, _)| name.as_str()).collect();
        let first = self.folders.first().map(|(_, folder)| folder.display().to_string());
        format!("version {}, {}: {}", self.version, names.join(" "), first.unwrap_or_default())
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        let (_, folder) = self.folders.iter().find(|(name, _)| name == controller)?;
        fs::read_to_string(folder.join(file)).ok()
    }
}

/// Move this process into a group.
fn join(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), "0")
}

/// Remove the folders of a group in which nothing is left.
pub(crate) fn remove(folders: &[PathBuf]) {
    let deadline = Instant::now() + LINGER;
    for folder in folders {
        // A process that was just reaped keeps its group for an instant. What stays is swept by the next jail.
        while let Err(error) = fs::remove_dir(folder) {
            if error.kind() == io::ErrorKind::NotFound || Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Remove groups whose launcher was killed. A group that is in use cannot be removed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let launcher = name.to_str().and_then(|n| n.strip_prefix(NAME)?.parse::<u32>().ok());
        if launcher.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(fs::remove_dir(entry.path()));
        }
    }
}

/// Find where groups can be made, from `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn place(own: &str, mounts: &str) -> Result<Place, String> {
    let first = NEEDED.map(|name| folder_v1(own, mounts, name).map(|path| (name.to_owned(), path)));
    if let [Some(memory), Some(pids)] = first {
        let more = WELCOME
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), folder_v1(own, mounts, name)?)));
        return Ok(Place { version: 1, parents: [memory, pids].into_iter().chain(more).collect() });
    }
    let (mount, path) = folder_v2(own, mounts).ok_or("this machine has no control groups")?;
    // Only the root may have processes and limited groups side by side.
    let parent = if path == mount { path } else { path.parent().unwrap_or(&mount).to_path_buf() };
    let enabled = parent.join("cgroup.subtree_control");
    if parent == mount {
        // Refused where we may not, and then the look below says so.
        drop(fs::write(&enabled, "+memory +pids +cpu"));
    }
    let has = fs::read_to_string(&enabled)
        .map_err(|e| format!("{}: {}", enabled.display(), plain(&e)))?;
    let lacks: Vec<_> =
        NEEDED.into_iter().filter(|n| !has.split_whitespace().any(|h| h == *n)).collect();
    if lacks.is_empty() {
        Ok(Place { version: 2, parents: vec![("all".to_owned(), parent)] })
    } else {
        Err(format!("{} does not pass on {}", parent.display(), lacks.join(" and ")))
    }
}

fn folder_v1(own: &str, mounts: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let names = parts.next()?;
        names.split(',').any(|n| n == controller).then(|| parts.next()).flatten()
    })?;
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let (kind, _, options) = (tail.next()?, tail.next()?, tail.next()?);
        let right = kind == "cgroup" && options.split(',').any(|o| o == controller);
        right.then(|| below_mount(head, path)).flatten().map(|(_, path)| path)
    })
}

fn folder_v2(own: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        tail.starts_with("cgroup2 ").then(|| below_mount(head, path)).flatten()
    })
}

/// The mount point of a line of mountinfo, and where a group's path lies beneath it.
fn below_mount(head: &str, path: &str) -> Option<(PathBuf, PathBuf)> {
    let mut fields = head.split(' ').skip(3);
    let (root, at) = (fields.next()?, Path::new(fields.next()?));
    let below = Path::new(path).strip_prefix(root).ok()?;
    let full = if below.as_os_str().is_empty() { at.to_path_buf() } else { at.join(below) };
    Some((at.to_path_buf(), full))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn plain(error: &io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_V1: &str = "\
        25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        26 25 0:23 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        27 25 0:24 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
        28 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

    #[test]
    fn version_1_has_a_folder_for_each_controller_beneath_our_own() {
        let own = "5:cpu,cpuacct:/\n4:memory:/farm/node\n8:pids:/\n0::/\n";
        let place = place(own, MOUNTS_V1).unwrap();
        let expected = [
            ("memory", "/sys/fs/cgroup/memory/farm/node"),
            ("pids", "/sys/fs/cgroup/pids"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        ];
        assert_eq!(place.version, 1);
        assert_eq!(place.parents, expected.map(|(name, path)| (name.into(), path.into())));
    }

    #[test]
    fn version_2_is_used_beside_our_own_group_where_the_controllers_are_passed_on() {
        let room = tempfile::tempdir().unwrap();
        let at = room.path().display();
        let mounts = format!("30 1 0:26 / {at} rw - cgroup2 cgroup2 rw\n");
        fs::create_dir_all(room.path().join("app.slice/node.service")).unwrap();
        let enabled = room.path().join("app.slice/cgroup.subtree_control");
        let own = "0::/app.slice/node.service\n";
        fs::write(&enabled, "cpu memory pids\n").unwrap();
        let found = place(own, &mounts).unwrap();
        assert_eq!(found.parents, [("all".to_owned(), room.path().join("app.slice"))]);
        fs::write(&enabled, "memory\n").unwrap();
        assert!(place(own, &mounts).unwrap_err().ends_with("does not pass on pids"));
        assert!(place("", "").unwrap_err().contains("no control groups"));
    }

    #[test]
    fn version_2_limits_and_counts_by_the_files_of_one_folder() {
        let room = tempfile::tempdir().unwrap();
        let group = Cgroup { version: 2, folders: vec![("all".into(), room.path().into())] };
        let limits = Limits {
            memory_bytes: 1 << 30,
            processes: 64,
            processors: Some(1500),
            ..Limits::default()
        };
        group.hold_to(&limits).unwrap();
        group.take_in(4242).unwrap();
        let read = |name: &str| fs::read_to_string(room.path().join(name)).unwrap();
        for (name, text) in [
            ("memory.max", "1073741824"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "64"),
            ("cpu.max", "150000 100000"),
            ("cgroup.procs", "4242"),
        ] {
            assert_eq!(read(name), text, "{name}");
        }
        let write = |name: &str, text: &str| fs::write(room.path().join(name), text).unwrap();
        assert_eq!((group.processor_time(), group.ran_out_of_memory()), (None, false));
        write("cpu.stat", "usage_usec 30000\nuser_usec 20000\nsystem_usec 10000\n");
        write("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 0\n");
        assert_eq!((group.processor_time(), group.ran_out_of_memory()), (Some((20, 10)), false));
        write("memory.events", "low 0\nmax 7\noom 1\noom_kill 2\n");
        assert!(group.ran_out_of_memory());
        assert!(group.evidence().starts_with("version 2, all: "));
        fs::remove_dir_all(room.path()).unwrap();
        // What cannot be set is no limit, and is said.
        let error = group.hold_to(&limits).unwrap_err();
        assert!(error.contains(&room.path().display().to_string()), "{error}");
    }

    #[test]
    fn a_container_sees_its_part_of_the_tree() {
        let mounts = "26 25 0:23 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = folder_v1("4:memory:/docker/x/y\n", mounts, "memory");
        assert_eq!(found, Some("/sys/fs/cgroup/memory/y".into()));
        assert_eq!(folder_v1("4:memory:/other\n", mounts, "memory"), None);
    }
}
