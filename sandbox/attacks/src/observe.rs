//! The attacker's processes as the host's process list shows them, and what in it should not be.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::MetadataExt,
};

use meshfarm_sandbox::Limits;

/// Kinds of descriptors that no job has.
const FORBIDDEN: [&str; 7] =
    ["io_uring", "bpf", "perf_event", "userfaultfd", "fanotify", "fscontext", "seccomp"];
/// Most places that one job may watch files from; the host's user has 128 in all.
const MOST_WATCHES: usize = 64;
/// Most signals that one job may have waiting.
const MOST_SIGNALS: u64 = 1024;

/// One process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// What must stay as it was before the act.
    fixed: BTreeMap<String, String>,
    threads: u64,
    private: u64,
    shared: u64,
    locked: u64,
    signals: u64,
    files: Vec<String>,
}

/// The living processes below a root from this generation on, and all that have the mark in their command line.
pub(crate) fn members(root: (u32, usize), mark: &str) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut marked = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let mut fields = stat.rsplit(") ").next().unwrap_or("").split(' ');
        let dead = matches!(fields.next(), Some("Z" | "X"));
        let parent = fields.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        // Children of process 2 are the kernel's own.
        if dead || parent == 2 {
            continue;
        }
        children.entry(parent).or_default().push(pid);
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(mark.len()).any(|part| part == mark.as_bytes()) {
            marked.push(pid);
        }
    }
    let (mut generation, mut found) = (vec![root.0], Vec::new());
    let mut depth = 0;
    while !generation.is_empty() {
        if depth >= root.1 {
            found.extend_from_slice(&generation);
        }
        let below = generation.iter().filter_map(|pid| children.get(pid));
        generation = below.flatten().copied().collect();
        depth += 1;
    }
    // The launcher itself is a script of the yard's for a moment, and stays one by its name.
    let above: Vec<u32> = std::iter::once(root.0)
        .chain(children.get(&root.0).cloned().unwrap_or_default())
        .filter(|_| root.1 > 0)
        .collect();
    found.extend(marked.into_iter().filter(|pid| !above.contains(pid)));
    found.sort_unstable();
    found.dedup();
    found
}

impl Process {
    /// What the process list says of it now; nothing if it is gone.
    pub(crate) fn look(pid: u32) -> Option<Self> {
        let at = |name: &str| format!("/proc/{pid}/{name}");
        let status = fs::read_to_string(at("status")).ok()?;
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let number = |name: &str| {
            let text = field(name).unwrap_or_default();
            text.split([' ', '/']).next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        };
        let mut fixed = BTreeMap::new();
        for name in ["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"]
            .into_iter()
            .chain(["Seccomp", "TracerPid"])
        {
            fixed.insert(name.to_owned(), field(name)?.to_owned());
        }
        // A process that seccomp is ending just now: it does nothing any more.
        if fixed.get("Seccomp").is_some_and(|mode| mode == "3") {
            return None;
        }
        for entry in fs::read_dir(at("ns")).into_iter().flatten().filter_map(Result::ok) {
            let name = format!("{} namespace", entry.file_name().to_string_lossy());
            // One that cannot be read shows nothing, and is no change.
            if let Ok(number) = fs::read_link(entry.path()) {
                fixed.insert(name, number.display().to_string());
            }
        }
        if let Ok(root) = fs::read_link(at("root")) {
            fixed.insert("root".to_owned(), root.display().to_string());
        }
        for name in ["mountinfo", "personality"] {
            if let Ok(text) = fs::read_to_string(at(name)) {
                fixed.insert(name.to_owned(), text);
            }
        }
        let stat = fs::read_to_string(at("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
        for (name, place) in [("niceness", 16), ("policy", 38)] {
            fixed.insert(name.to_owned(), fields.get(place).copied().unwrap_or("").to_owned());
        }
        let mut shared = number("RssShmem") << 10;
        let mut files = Vec::new();
        for entry in fs::read_dir(at("fd")).into_iter().flatten().filter_map(Result::ok) {
            let Ok(to) = fs::read_link(entry.path()) else { continue };
            let to = to.display().to_string();
            if to.starts_with("/memfd:") {
                shared += fs::metadata(entry.path()).map_or(0, |m| m.blocks() * 512);
            }
            files.push(to);
        }
        Some(Self {
            pid,
            fixed,
            threads: number("Threads"),
            private: number("RssAnon") << 10,
            shared,
            locked: number("VmLck") << 10,
            signals: number("SigQ"),
            files,
        })
    }
}

/// What should not be, in words: changes since before the act, and more than the limits allow.
pub(crate) fn excesses(before: &[Process], after: &[Process], limits: &Limits) -> Vec<String> {
    let mut found = Vec::new();
    let first = before.first();
    for process in after {
        for (name, value) in &process.fixed {
            let was = first.and_then(|first| first.fixed.get(name));
            // To step back behind others is no attack on them.
            let polite = name == "niceness" && number(value) > was.map_or(0, |was| number(was));
            if let Some(was) = was.filter(|was| *was != value && !polite) {
                found.push(format!("a process changed its {name}{}", shown(was, value)));
            }
        }
        for kind in FORBIDDEN {
            if process.files.iter().any(|f| f.starts_with("anon_inode:") && f.contains(kind)) {
                found.push(format!("a descriptor of kind {kind}"));
            }
        }
        let mut above = |what: &str, n: u64, most: u64| {
            if n > most {
                found.push(format!("{n} {what} in process {}, {most} allowed", process.pid));
            }
        };
        above("open files", process.files.len() as u64, limits.open_files);
        above("bytes of private memory", process.private, limits.memory_bytes);
        above("bytes of locked memory", process.locked, limits.locked_bytes);
        above("waiting signals", process.signals, MOST_SIGNALS);
    }
    let threads: u64 = after.iter().map(|p| p.threads).sum();
    if threads > limits.processes {
        found.push(format!("{threads} processes and threads, {} allowed", limits.processes));
    }
    let memory: u64 = after.iter().map(|p| p.private + p.shared).sum();
    if memory > limits.memory_bytes {
        found.push(format!("{memory} bytes of memory in all, {} allowed", limits.memory_bytes));
    }
    let watches = after.iter().flat_map(|p| &p.files).filter(|f| f.contains("inotify")).count();
    if watches > MOST_WATCHES {
        found.push(format!("{watches} watching places of the host's user are taken"));
    }
    found
}

fn number(text: &str) -> i64 {
    text.parse().unwrap_or(0)
}

/// Two values where they are short enough to read.
fn shown(was: &str, is: &str) -> String {
    let short = was.len() < 80 && is.len() < 80;
    if short { format!(": {was} became {is}") } else { String::new() }
}
