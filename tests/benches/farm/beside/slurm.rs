//! Slurm of Debian on this one machine, on loopback, as quick as its settings make it: its daemons begin and end with the value.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::{MOST, Other, noted};
use crate::sites::{ends_with_us, wait_until};

/// What has to be installed.
const PROGRAMS: [&str; 6] = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo"];

/// Where its daemons lie, which are in no user's path.
const FOLDERS: [&str; 3] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"];

/// A munge key.
const KEY_BYTES: usize = 128;

/// The first of its programs that is nowhere.
pub(super) fn missing() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|name| find(name).is_none())
}

fn find(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// A controller and a node.
pub(super) struct Slurm {
    folder: PathBuf,
    daemons: Vec<Child>,
}

impl Slurm {
    /// Starts everything in a new folder beneath this one, with so many slots.
    pub(super) fn start(beneath: &Path, slots: u32) -> Result<Self> {
        let folder = beneath.join(format!("slurm-{slots}"));
        for name in ["state", "spool"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let mut key = fs::File::options();
        std::os::unix::fs::OpenOptionsExt::mode(key.write(true).create_new(true), 0o600);
        // It guards nothing but this folder's own daemons, while they are measured.
        key.open(folder.join("key"))?.write_all(&[7; KEY_BYTES])?;
        fs::write(folder.join("slurm.conf"), settings(&folder, slots)?)?;
        let mut slurm = Self { folder, daemons: Vec::new() };
        let in_folder = |name: &str| slurm.folder.join(name).display().to_string();
        let munge = [
            "--foreground".to_owned(),
            format!("--key-file={}", in_folder("key")),
            format!("--socket={}", in_folder("munge.sock")),
            format!("--pid-file={}", in_folder("munge.pid")),
            format!("--seed-file={}", in_folder("munge.seed")),
            format!("--log-file={}", in_folder("munge.log")),
        ];
        slurm.daemon("munged", &munge)?;
        let socket = slurm.folder.join("munge.sock");
        wait_until("munge listens", || Ok(socket.exists()))?;
        slurm.daemon("slurmctld", &["-D".to_owned()])?;
        slurm.daemon("slurmd", &["-D".to_owned()])?;
        wait_until("Slurm's node is idle", || {
            let said = slurm.command("sinfo", &["--noheader", "--format", "%T"])?.output()?;
            Ok(said.status.success() && said.stdout.starts_with(b"idle"))
        })?;
        Ok(slurm)
    }

    fn daemon(&mut self, name: &str, args: &[String]) -> Result<()> {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut command = self.command(name, &args)?;
        let log = fs::File::create(self.folder.join(format!("{name}.out")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        ends_with_us(&mut command);
        self.daemons.push(command.spawn().with_context(|| format!("{command:?}"))?);
        Ok(())
    }

    fn command(&self, name: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(find(name).with_context(|| format!("{name} is nowhere"))?);
        command.args(args).env("SLURM_CONF", self.folder.join("slurm.conf"));
        command.current_dir(&self.folder);
        Ok(command)
    }

    fn submit(&self, args: &[&str]) -> Result<()> {
        let args = [&["--quiet", "--output=/dev/null"], args].concat();
        let said = self.command("sbatch", &args)?.output()?;
        let error = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "sbatch: {error}");
        Ok(())
    }

    fn wait_empty(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let said = self.command("squeue", &["--noheader"])?.output()?;
            if said.status.success() && said.stdout.is_empty() {
                return Ok(());
            }
            ensure!(began.elapsed() < MOST, "after {MOST:?} Slurm is not through with its tasks");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Other for Slurm {
    fn through(&mut self, tasks: u64) -> Result<f64> {
        let began = Instant::now();
        self.submit(&[&format!("--array=1-{tasks}"), "--wrap", "true"])?;
        self.wait_empty()?;
        Ok(tasks as f64 / began.elapsed().as_secs_f64())
    }

    fn first(&mut self, file: &Path) -> Result<f64> {
        self.wait_empty()?;
        let began = SystemTime::now();
        self.submit(&["--wrap", &format!("date +%s.%N > {}", file.display())])?;
        noted(file, began)
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // The one that was started last ends first: each needs those before it.
        for daemon in self.daemons.iter_mut().rev() {
            drop(crate::sites::terminate(daemon.id()));
            drop(daemon.wait());
        }
    }
}

/// Its settings: it looks for work as often as it can be told to.
fn settings(folder: &Path, slots: u32) -> Result<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let host = host.trim().split('.').next().unwrap_or_default().to_owned();
    let user = user_name()?;
    // Both are held until both are known, so that they differ.
    let (a, b) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (controller, node) = (a.local_addr()?.port(), b.local_addr()?.port());
    let folder = folder.display();
    Ok(format!(
        "ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={slots} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"
    ))
}

/// The name of the user that we are.
fn user_name() -> Result<String> {
    let said = Command::new("id").arg("-un").output().context("id is nowhere")?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}
