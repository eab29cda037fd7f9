//! Many jails, sixteen at once, for five hundred rounds: how slow the slowest starts are, and what is left of them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};
use meshfarm_sandbox::{Level, launch};

use super::ours::{Room, Took};
use crate::table::{Row, Table, percentile};

const AT_ONCE: usize = 16;
const JAILS: usize = 500;

/// What the machine has of which a jail could leave something.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    processes: BTreeSet<String>,
    mounts: usize,
    groups: usize,
    loops: usize,
    shared: usize,
}

impl Traces {
    fn now() -> Result<Self> {
        let named = |word: &str, text: &str| text.lines().filter(|l| l.contains(word)).count();
        let mut processes = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains("meshfarm-sandbox") {
                processes.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let groups = Command::new("find")
            .args(["/sys/fs/cgroup", "-maxdepth", "6", "-name", "meshfarm-jail-*"])
            .output()?;
        let disks = fs::read_to_string("/proc/partitions")?;
        Ok(Self {
            processes,
            mounts: mounts.lines().count(),
            groups: String::from_utf8_lossy(&groups.stdout).lines().count(),
            loops: named("loop", &disks),
            shared: fs::read_dir("/dev/shm")?.count(),
        })
    }
}

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    let before = Traces::now()?;
    let began = Took::begin()?;
    let (next, starts, failed) =
        (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(None::<String>));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < JAILS {
                    match one(&room) {
                        Ok(ms) => starts.lock().expect("no thread panics").push(ms),
                        Err(error) => {
                            *failed.lock().expect("no thread panics") = Some(format!("{error:#}"));
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(why) = failed.into_inner().expect("no thread panics") {
        return Err(anyhow!(why));
    }
    let cpu = 1e3 * began.end()?.cpu / JAILS as f64;
    let starts = starts.into_inner().expect("no thread panics");
    table.add(Row::alone("sandbox.cycles.start.p50", percentile(&starts, 50), "ms"));
    table.add(Row::alone("sandbox.cycles.start.p99", percentile(&starts, 99), "ms").at_most(60.0));
    let row = Row::alone("sandbox.cycles.cpu", cpu, "ms");
    table.add(row.note("of processors, for each jail from its start to its end"));
    let after = Traces::now()?;
    let left = room.left()? + usize::from(after != before);
    let row = Row::alone("sandbox.cycles.left", left as f64, "things").at_most(0.0);
    let all = "processes, mounts, control groups, loop devices, shared memory, folders";
    table.add(if after == before { row.note(all) } else { row.note(format!("{after:?}")) });
    Ok(())
}

/// One jail that starts a process in the background, and is killed.
fn one(room: &Room) -> Result<f64> {
    let script = "(setsid sleep 600 &) ; : > /dev/shm/x; : > /tmp/x; echo up; exec sleep 600";
    let began = Instant::now();
    let mut jail = launch(&room.launcher(), &room.spec("/bin/sh", &["-c", script], Level::S2))?;
    let took = 1e3 * began.elapsed().as_secs_f64();
    if let Some(mut stdout) = jail.stdout.take() {
        std::io::Read::read_exact(&mut stdout, &mut [0; 3])?;
    }
    jail.kill()?;
    Ok(took)
}
