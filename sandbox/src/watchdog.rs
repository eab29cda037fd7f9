//! The watchdog: ends a jail that uses more than its limits where the kernel does not hold it to them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{Limits, sys};

/// How often it looks when looking costs nothing.
const RHYTHM: Duration = Duration::from_millis(200);
/// It looks for at most one part in so many of the time.
const SHARE: u32 = 25;
/// Deepest folder that is looked into; deeper ones count as a breach.
const DEEPEST: usize = 256;

/// The limit that ended a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// It used more memory than it may.
    #[error("it used more memory than its limit")]
    Memory,
    /// It wrote more to the disk than it may.
    #[error("it wrote more bytes to the disk than its limit")]
    DiskBytes,
    /// It made more files than it may.
    #[error("it made more files than its limit")]
    DiskFiles,
    /// It ran longer than it may.
    #[error("it ran longer than its limit")]
    Time,
}

/// What is watched of one jail.
#[derive(Debug)]
pub(crate) struct Watchdog {
    limits: Limits,
    begun: Instant,
    /// The first process of the jail, when no cgroup counts its memory.
    memory_of: Option<i32>,
    /// Host folders that the job writes to, when no filesystem of fixed size holds them.
    folders: Vec<PathBuf>,
    pause: Duration,
}

/// What lies in some folders.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Found {
    bytes: u64,
    files: u64,
}

impl Watchdog {
    pub(crate) fn new(limits: Limits, memory_of: Option<i32>, folders: Vec<PathBuf>) -> Self {
        Self { limits, begun: Instant::now(), memory_of, folders, pause: RHYTHM }
    }

    /// How long to wait until the next look, in milliseconds; negative: for ever.
    pub(crate) fn pause_ms(&self) -> i32 {
        let mut pause = None;
        if self.memory_of.is_some() || !self.folders.is_empty() {
            pause = Some(self.pause);
        }
        if let Some(seconds) = self.limits.wall_seconds {
            let left = Duration::from_secs(seconds).saturating_sub(self.begun.elapsed());
            pause = Some(pause.map_or(left, |p| p.min(left)) + Duration::from_millis(1));
        }
        pause.map_or(-1, |p| i32::try_from(p.as_millis()).unwrap_or(i32::MAX))
    }

    /// Look once.
    pub(crate) fn look(&mut self) -> Option<Stopped> {
        let begun = Instant::now();
        if self.limits.wall_seconds.is_some_and(|s| self.begun.elapsed() >= Duration::from_secs(s))
        {
            return Some(Stopped::Time);
        }
        if self.memory_of.is_some_and(|pid| memory_of(pid) > self.limits.memory_bytes) {
            return Some(Stopped::Memory);
        }
        let mut found = Found::default();
        for folder in &self.folders {
            found = count(folder, found, self.limits.disk_files, 0);
        }
        self.pause = RHYTHM.max(begun.elapsed() * SHARE);
        if found.files > self.limits.disk_files {
            Some(Stopped::DiskFiles)
        } else if found.bytes > self.limits.disk_bytes {
            Some(Stopped::DiskBytes)
        } else {
            None
        }
    }
}

/// Memory that a process and all its descendants hold, in bytes, shared memory counted in shares.
fn memory_of(first: i32) -> u64 {
    let processes = family(first);
    let rough: u64 = processes.iter().map(|pid| resident(*pid)).sum();
    // Shares are exact and cost a walk over the memory: only worth it when the simple sum is high.
    let shares = || processes.iter().map(|pid| share(*pid).unwrap_or_else(|| resident(*pid))).sum();
    let mapped = if rough > 64 << 20 { shares() } else { rough };
    mapped + unnamed(&processes)
}

fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&text, "RssAnon:").unwrap_or(0) + kilobytes(&text, "RssShmem:").unwrap_or(0)
}

/// Files in memory that these processes hold open: what is in them and mapped nowhere counts nowhere else.
fn unnamed(processes: &[i32]) -> u64 {
    let mut seen = BTreeSet::new();
    let files = processes.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
    let bytes = files.flatten().flatten().filter_map(|file| {
        let path = file.path();
        let target = fs::read_link(&path).ok()?;
        let in_memory = target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:");
        let data = in_memory.then(|| fs::metadata(&path).ok()).flatten()?;
        seen.insert(data.ino()).then_some(data.blocks() * 512)
    });
    bytes.sum()
}

/// Processor time of a process, its descendants, and those among them that were waited for: in programs and in
/// the kernel, in milliseconds.
pub(crate) fn processor_time(first: i32) -> (u64, u64) {
    let tick_ms = 1000 / sys::ticks_per_second();
    let times = family(first).into_iter().filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it is the job's choice, and may hold anything but a last parenthesis.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |n: usize| fields.get(n)?.parse::<u64>().ok();
        Some((ticks(11)? + ticks(13)?, ticks(12)? + ticks(14)?))
    });
    times.fold((0, 0), |(user, system), (u, s)| (user + u * tick_ms, system + s * tick_ms))
}

fn share(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(kilobytes(&text, "Pss_Anon:")? + kilobytes(&text, "Pss_Shmem:")?)
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A process and its descendants. In a jail nobody escapes this: its first process inherits every orphan.
fn family(first: i32) -> Vec<i32> {
    let mut all = vec![first];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|n| n.parse::<i32>().ok()));
        }
    }
    all
}

/// Count on from `found`; stops when there are more files than `most`. Follows no link: a name is read, not opened.
fn count(folder: &Path, mut found: Found, most: u64, depth: usize) -> Found {
    if depth > DEEPEST {
        return Found { files: u64::MAX, ..found };
    }
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        if found.files > most {
            return found;
        }
        found.files += 1;
        let Ok(data) = entry.metadata() else {
            continue;
        };
        found.bytes += data.blocks() * 512;
        // A folder that became a link since is a link for the kernel too: what is beneath is then counted wrongly,
        // and nothing is read of it but sizes.
        if data.is_dir() {
            found = count(&entry.path(), found, most, depth + 1);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_their_bytes_on_the_disk_are_counted_without_following_links() {
        let room = tempfile::tempdir().unwrap();
        fs::create_dir(room.path().join("a")).unwrap();
        fs::write(room.path().join("a/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", room.path().join("link")).unwrap();
        let sparse = fs::File::create(room.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let found = count(room.path(), Found::default(), 1000, 0);
        assert_eq!(found.files, 4);
        assert!((100_000..1_000_000).contains(&found.bytes), "{found:?}");
        assert_eq!(count(room.path(), Found::default(), 2, 0).files, 3);
    }

    #[test]
    fn processor_time_of_a_process_is_read() {
        let own = i32::try_from(std::process::id()).unwrap();
        let begun = Instant::now();
        while processor_time(own).0 == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }

    #[test]
    fn a_breach_is_named_and_time_is_looked_at_when_it_is_over() {
        let room = tempfile::tempdir().unwrap();
        fs::write(room.path().join("file"), vec![1; 100_000]).unwrap();
        let look = |limits| Watchdog::new(limits, None, vec![room.path().into()]).look();
        let wide = Limits::default();
        assert_eq!(look(wide), None);
        assert_eq!(look(Limits { disk_bytes: 1000, ..wide }), Some(Stopped::DiskBytes));
        assert_eq!(look(Limits { disk_files: 0, ..wide }), Some(Stopped::DiskFiles));
        assert_eq!(look(Limits { wall_seconds: Some(0), ..wide }), Some(Stopped::Time));
        let own = i32::try_from(std::process::id()).unwrap();
        let small = Limits { memory_bytes: 1000, ..wide };
        assert_eq!(Watchdog::new(small, Some(own), Vec::new()).look(), Some(Stopped::Memory));
        let idle = Watchdog::new(wide, None, Vec::new());
        assert_eq!(idle.pause_ms(), -1);
    }
}
