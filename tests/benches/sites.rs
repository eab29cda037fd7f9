//! Sites as real processes in a temporary folder: started, asked through the command line and the local API, ended with
//! the value.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::farm::SESSIONS;

/// How long anything may take that should happen at once: a busy machine is slow, not broken.
const SOON: Duration = Duration::from_secs(60);

/// How often a condition is looked at that nobody tells us of.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The folder of the built programs: that of this program, unless the environment names another.
pub(crate) fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("MESHFARM_PROGRAMS") {
        return Ok(folder.into());
    }
    let me = std::env::current_exe()?;
    let folder = me.ancestors().nth(2).context("cargo puts benchmarks into deps/")?;
    ensure!(
        folder.join("meshfarm").exists(),
        "{} holds no meshfarm: use tests/bench.sh, which builds it",
        folder.display()
    );
    Ok(folder.to_owned())
}

/// A new folder with a short path: that of a socket may have 107 bytes.
pub(crate) fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("mf").tempdir_in("/tmp")?)
}

/// What a site is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    name: String,
    slots: u32,
    listen: String,
    /// Words in front of the node's own, such as those that enter a network.
    within: Vec<String>,
    /// What stands in for its sessions, when this program is its node.
    sessions: Option<&'static str>,
}

impl Plan {
    /// A site on this machine. One with slots lends them; one without sends everything away.
    pub(crate) fn new(name: &str, slots: u32) -> Self {
        let listen = "/ip4/127.0.0.1/tcp/0".to_owned();
        Self { name: name.to_owned(), slots, listen, within: Vec::new(), sessions: None }
    }

    /// The same with something in place of sessions in jails.
    pub(crate) fn instead(self, sessions: &'static str) -> Self {
        Self { sessions: Some(sessions), ..self }
    }

    /// The same behind words that enter a network, listening at an address of that.
    pub(crate) fn within(self, words: Vec<String>, address: &str) -> Self {
        Self { within: words, listen: format!("/ip4/{address}/tcp/0"), ..self }
    }
}

/// One site: its home and, while it runs, its node.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) home: PathBuf,
    program: PathBuf,
    within: Vec<String>,
    sessions: Option<&'static str>,
    node: Option<(Child, BufReader<ChildStdout>)>,
}

impl Site {
    /// A home beneath `folder`.
    pub(crate) fn init(folder: &Path, plan: Plan) -> Result<Self> {
        let Plan { name, slots, listen, within, sessions } = plan;
        let program = programs()?.join("meshfarm");
        let site = Self { home: folder.join(&name), program, within, sessions, node: None };
        let (lend, place) = if slots > 0 { ("--lend", "local") } else { ("--no-lend", "remote") };
        let slots = slots.to_string();
        let mut flags = vec!["init", "--name", &name, "--slots", &slots, lend, "--where", place];
        flags.extend(["--listen", &listen, "--no-mdns"]);
        site.run(&flags)?;
        Ok(site)
    }

    /// Starts the node; returns how long it took from there to its ready line.
    pub(crate) fn start(&mut self) -> Result<Duration> {
        let log = self.log_file();
        let said = File::options().create(true).append(true).open(&log)?;
        let mut command = self.node_command()?;
        command.arg("node").stdout(Stdio::piped()).stderr(said);
        ends_with_us(&mut command);
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut said = BufReader::new(child.stdout.take().context("it is a pipe")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let took = began.elapsed();
        self.node = Some((child, said));
        if !line.starts_with("ready") {
            let log = fs::read_to_string(log).unwrap_or_default();
            bail!("the node of {} is not ready: {line}{log}", self.home.display());
        }
        Ok(took)
    }

    /// Ends the node as a service manager does, and waits until it has ended.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some((mut child, _said)) = self.node.take() else {
            return Ok(());
        };
        terminate(child.id())?;
        child.wait()?;
        Ok(())
    }

    /// Ends the node as a failing machine does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some((mut child, _said)) = self.node.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn log_file(&self) -> PathBuf {
        self.home.with_extension("log")
    }

    /// The node's process.
    pub(crate) fn pid(&self) -> Result<u32> {
        let (child, _) = self.node.as_ref().context("the node does not run")?;
        Ok(child.id())
    }

    /// Runs a command of the command line to its end; returns what it printed.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.command(&self.program, &[]).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "meshfarm {}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        let args = [&["--json"], args].concat();
        let said = self.run(&args)?;
        serde_json::from_str(&said).with_context(|| format!("meshfarm {}", args.join(" ")))
    }

    /// What the local API answers.
    pub(crate) fn api(&self, path: &str) -> Result<Value> {
        let body = get(&self.home.join("api.sock"), path, "")?;
        serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
    }

    /// The node's program: the built one, or this one around other sessions, with the built programs beside it.
    fn node_command(&self) -> Result<Command> {
        let Some(sessions) = self.sessions else {
            return Ok(self.command(&self.program, &self.within));
        };
        let mut command = self.command(&std::env::current_exe()?, &self.within);
        let folder = programs()?;
        command.env(SESSIONS, sessions);
        command.env("MESHFARM_SANDBOX", folder.join("meshfarm-sandbox"));
        command.env("MESHFARM_SESSION", folder.join("meshfarm-session"));
        Ok(command)
    }

    fn command(&self, program: &Path, within: &[String]) -> Command {
        let program = program.as_os_str().to_owned();
        let mut words = within.iter().map(Into::into).chain([program]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("--home").arg(&self.home);
        command.env_remove("MESHFARM_HOME").env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// How many other sites are connected and have said what they offer.
    fn n_known(&self) -> Result<usize> {
        let sites = self.json(&["sites"])?;
        let there = |site: &&Value| {
            site["own"] == false && site["connected"] == true && site["profile"].is_object()
        };
        Ok(sites.as_array().into_iter().flatten().filter(there).count())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.node.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The body of the answer of a server on a Unix socket. `head` is further lines of the request's head.
pub(crate) fn get(socket: &Path, path: &str, head: &str) -> Result<String> {
    ask(socket, &format!("GET {path}"), head, "")
}

/// The same for any method.
pub(crate) fn ask(socket: &Path, what: &str, head: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    // HTTP/1.0: the answer ends with the connection and has no pieces.
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.0\r\nHost: localhost\r\n{head}Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "{what} is answered with {status}: {body}");
    Ok(body.to_owned())
}

/// Has the kernel end what this command starts when the thread that starts it ends, even if that is killed.
pub(crate) fn ends_with_us(command: &mut Command) {
    #[expect(unsafe_code, reason = "what a killed measurement started must end too")]
    // SAFETY: what runs between fork and exec is one system call, which allocates and locks nothing.
    unsafe {
        command.pre_exec(die_with_us);
    }
}

/// Have the kernel end this process when the thread that started it ends.
fn die_with_us() -> io::Result<()> {
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: it takes numbers and changes nothing but the calling process.
    let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn terminate(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    #[expect(unsafe_code, reason = "the standard library only kills")]
    // SAFETY: the call takes two numbers, and the process is a child that was not waited for.
    let sent = unsafe { libc::kill(pid, libc::SIGTERM) };
    ensure!(sent == 0, "cannot end process {pid}: {}", io::Error::last_os_error());
    Ok(())
}

/// Sites that run in one mesh and know each other; the first one founded it.
#[derive(Debug)]
pub(crate) struct Mesh {
    sites: Vec<Site>,
    // After the sites: their nodes end before the folder goes.
    folder: TempDir,
}

impl Mesh {
    /// Sites of these names and numbers of slots, on this machine.
    pub(crate) fn of(plans: &[(&str, u32)]) -> Result<Self> {
        Self::planned(plans.iter().map(|(name, slots)| Plan::new(name, *slots)).collect())
    }

    /// Sites of these plans.
    pub(crate) fn planned(plans: Vec<Plan>) -> Result<Self> {
        let folder = folder()?;
        let mut sites = Vec::new();
        for plan in plans {
            let mut site = Site::init(folder.path(), plan)?;
            site.start()?;
            sites.push(site);
        }
        let mesh = Self { sites, folder };
        mesh.join()?;
        Ok(mesh)
    }

    fn join(&self) -> Result<()> {
        let (founder, others) = self.split_first().context("a mesh has a site")?;
        founder.run(&["mesh", "create", "bench"])?;
        if others.is_empty() {
            return Ok(());
        }
        let invited = founder.json(&["invite", "--uses", &others.len().to_string()])?;
        let ticket = invited["ticket"].as_str().context("an invitation has a ticket")?;
        for site in others {
            site.run(&["join", ticket])?;
        }
        self.wait_known()
    }

    /// Waits until every site is connected to every other one.
    pub(crate) fn wait_known(&self) -> Result<()> {
        let others = self.len() - 1;
        for site in &self.sites {
            wait_until("the sites know each other", || Ok(site.n_known()? == others))?;
        }
        Ok(())
    }

    /// A folder for the artist's files, beside the homes.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until no slot of any site is held, so that the next job meets an idle mesh.
    pub(crate) fn wait_idle(&self) -> Result<()> {
        for site in &self.sites {
            wait_until("all slots are free", || {
                let slots = site.json(&["slots"])?;
                Ok(slots["free"] == slots["host"]["slots"])
            })?;
        }
        Ok(())
    }
}

impl Deref for Mesh {
    type Target = [Site];

    fn deref(&self) -> &[Site] {
        &self.sites
    }
}

impl DerefMut for Mesh {
    fn deref_mut(&mut self) -> &mut [Site] {
        &mut self.sites
    }
}

/// Waits until `so` holds.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + SOON;
    while !so()? {
        ensure!(Instant::now() < end, "after {SOON:?} still not so: {what}");
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
