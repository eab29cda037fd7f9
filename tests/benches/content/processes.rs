//! Processes that are started for a measurement and end with it, and the processor time that they and the commands used.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::sites::{ends_with_us, terminate, wait_until};

/// How often a command that may hang is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How much of what a command said is shown when it failed.
const SHOWN: usize = 2000;

/// A process that ends with this value, and with this program.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts a command whose output goes to files beside `said`: `.out` and `.err`.
    pub(crate) fn start(mut command: Command, said: &Path) -> Result<Self> {
        let out = File::create(said.with_extension("out"))?;
        let err = File::create(said.with_extension("err"))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        ends_with_us(&mut command);
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as a service manager does, and waits until it has ended.
    pub(crate) fn stop(mut self) -> Result<()> {
        terminate(self.id())?;
        wait_until("a process has ended", || Ok(self.0.try_wait()?.is_some()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The processes that one has started and not yet waited for.
pub(crate) fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // It may end while we look.
        let list = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Waits until a server has waited for all that it started: their processor time is among its own then.
pub(crate) fn settle(server: u32) -> Result<()> {
    wait_until("a server has ended its processes", || Ok(children(server)?.is_empty()))
}

/// Runs a command to its end, which must come before `patience` has passed; returns how long it took. What it says goes
/// to files beside `said`.
pub(crate) fn run(command: Command, said: &Path, patience: Duration) -> Result<Duration> {
    let shown = format!("{command:?}");
    let began = Instant::now();
    let mut running = Running::start(command, said)?;
    let ended = loop {
        if let Some(ended) = running.0.try_wait()? {
            break ended;
        }
        ensure!(began.elapsed() < patience, "after {patience:?} it still runs: {shown}");
        std::thread::sleep(LOOK_EVERY);
    };
    let took = began.elapsed();
    if !ended.success() {
        let said = fs::read_to_string(said.with_extension("err")).unwrap_or_default();
        let from = said.ceil_char_boundary(said.len().saturating_sub(SHOWN));
        bail!("{shown} ended with {ended}: {}", said[from..].trim());
    }
    Ok(took)
}

/// Counts the processor time of servers and of the commands that this program runs to their end.
#[derive(Debug)]
pub(crate) struct Processors {
    servers: Vec<u32>,
    before: f64,
}

impl Processors {
    /// Counts from now on. `servers` must live as long as this.
    pub(crate) fn watch(servers: Vec<u32>) -> Result<Self> {
        let before = used(&servers)?;
        Ok(Self { servers, before })
    }

    /// Seconds since then, of all processors together, with the children of the servers that have ended.
    pub(crate) fn seconds(&self) -> Result<f64> {
        Ok(used(&self.servers)? - self.before)
    }
}

fn used(servers: &[u32]) -> Result<f64> {
    let mut seconds = of_our_children()?;
    for pid in servers {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in brackets may have spaces. What follows it: state, then numbers; the times are fields 14 to 17.
        let (_, numbers) = stat.rsplit_once(") ").context("a process has a name")?;
        let times = numbers.split(' ').skip(11).take(4);
        let ticks: f64 = times.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        seconds += ticks / ticks_per_second();
    }
    Ok(seconds)
}

fn ticks_per_second() -> f64 {
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: it takes a number and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    ticks as f64
}

/// Seconds that children of this program have used until they ended and were waited for.
fn of_our_children() -> Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: the pointer is to a place of the right size that outlives the call.
    let got = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    ensure!(got == 0, "getrusage: {}", io::Error::last_os_error());
    #[expect(unsafe_code, reason = "the call above has filled it")]
    // SAFETY: it was zeroed, which is a value, and then filled.
    let usage = unsafe { usage.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

/// A figure of `/proc/PID/status` in megabytes of 10^6 bytes, such as `VmHWM`.
pub(crate) fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = line.context("a process has a size")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}
