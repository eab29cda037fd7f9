//! Networks of a measurement's own: one with nothing but its loopback, or several joined by a bridge, whose traffic is counted
//! and whose links can be shaped. Nothing in them reaches the world outside, nor is reached from it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::processes::Running;
use crate::sites::wait_until;

/// Bytes that a queue of a shaped link takes at once: a jumbo of the kernel's, four times.
const BURST: &str = "256kb";

/// How long bytes may wait in a shaped link. What comes then is dropped, as in a real one.
const QUEUE: &str = "50ms";

/// A network, kept by a process that sleeps in it.
#[derive(Debug)]
pub(crate) struct Network {
    holder: Running,
}

/// What has passed a device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) bytes: f64,
    pub(crate) frames: f64,
}

pub(crate) fn is_root() -> bool {
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: it takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    user == 0
}

impl Network {
    /// A network with nothing but its loopback. `folder` is for what its process says.
    pub(crate) fn alone(folder: &Path) -> Result<Self> {
        let network = Self::new(folder, "alone")?;
        network.shell("ip link set lo up")?;
        Ok(network)
    }

    fn new(folder: &Path, name: &str) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args((!is_root()).then_some("--map-root-user"));
        let holder = Running::start(
            {
                command.args(["--net", "sleep", "infinity"]);
                command
            },
            &folder.join(format!("network-{name}")),
        )?;
        let line = format!("/proc/{}/cmdline", holder.id());
        wait_until("the network is there (unshare --net)", || {
            Ok(fs::read(&line).unwrap_or_default().starts_with(b"sleep\0"))
        })?;
        Ok(Self { holder })
    }

    /// The words in front of a command that is to run inside.
    pub(crate) fn enter(&self) -> Vec<String> {
        let mut words =
            vec!["nsenter".to_owned(), "--target".to_owned(), self.holder.id().to_string()];
        if !is_root() {
            words.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        words.push("--net".to_owned());
        words
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }

    /// Runs a shell command inside.
    pub(crate) fn shell(&self, script: &str) -> Result<()> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script}: {}", said.trim());
        Ok(())
    }

    /// What this network's side of a device has sent so far.
    pub(crate) fn sent(&self, device: &str) -> Result<Passed> {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", self.holder.id()))?;
        let line =
            table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let line = line.with_context(|| format!("the network has no {device}"))?;
        let numbers: Vec<f64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        ensure!(numbers.len() >= 10, "{line} is no line of /proc/net/dev");
        // Eight numbers of what came, then bytes and frames that went.
        Ok(Passed { bytes: numbers[8], frames: numbers[9] })
    }
}

/// Networks with addresses 10.77.0.1 and so on, joined by a bridge.
#[derive(Debug)]
pub(crate) struct Bridged {
    pub(crate) ends: Vec<Network>,
    bridge: Network,
}

impl Bridged {
    pub(crate) fn of(folder: &Path, n: usize) -> Result<Self> {
        let bridge = Network::new(folder, "bridge")?;
        bridge.shell("ip link add br0 type bridge mcast_snooping 0; ip link set br0 up")?;
        let mut ends = Vec::new();
        for i in 1..=n {
            let end = Network::new(folder, &i.to_string())?;
            let pid = end.holder.id();
            bridge.shell(&format!(
                "ip link add port{i} type veth peer name eth0 netns {pid}; ip link set port{i} master br0 up"
            ))?;
            let address = Self::address(i - 1);
            end.shell(&format!(
                "ip link set lo up; ip address add {address}/24 dev eth0; ip link set eth0 up"
            ))?;
            ends.push(end);
        }
        Ok(Self { ends, bridge })
    }

    /// The address of one of the networks, counted from 0.
    pub(crate) fn address(n: usize) -> String {
        format!("10.77.0.{}", n + 1)
    }

    /// Gives every link the same rate in each direction, in bits a second, by a token bucket.
    pub(crate) fn shape(&self, rate: f64) -> Result<()> {
        let bucket = format!("root tbf rate {rate:.0}bit burst {BURST} latency {QUEUE}");
        for (i, end) in (1..).zip(&self.ends) {
            end.shell(&format!("tc qdisc replace dev eth0 {bucket}"))?;
            self.bridge.shell(&format!("tc qdisc replace dev port{i} {bucket}"))?;
        }
        Ok(())
    }
}
