//! Sites as real processes: homes in temporary folders, nodes started, killed and started again, the
//! command line run as people run it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that should happen soon: a busy machine with two cores is slow, not wrong.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How long a small job may take.
pub(crate) const A_JOB: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Lines of a node's log that a failed test shows.
const SHOWN_LINES: usize = 25;

/// The first port that a test takes: beneath those that the system gives to outgoing connections.
const FIRST_PORT: u16 = 10_000;
const LAST_PORT: u16 = 32_000;

/// Waits until `look` finds something, and fails the test when that takes longer than `patience`.
#[track_caller]
pub(crate) fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "after {patience:?} still not so: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// The folder of the built programs, which is that of the test's own program; they are built when they
/// are not there.
pub(crate) fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let me = std::env::current_exe().expect("a process knows its program");
        let beside = me.ancestors().nth(2).expect("cargo puts tests into deps/").to_owned();
        let all = ["meshfarm", "meshfarm-sandbox", "meshfarm-session", "libmeshfarm_preload.so"];
        if all.iter().all(|name| beside.join(name).exists()) {
            return beside;
        }
        let target = beside.parent().expect("a profile's folder lies in the target folder");
        build(target);
        target.join("release")
    })
}

fn build(target: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for flags in
        [&["--release", "--bins"][..], &["--profile", "preload", "--package", "meshfarm-preload"]]
    {
        let mut command = Command::new(&cargo);
        command.arg("build").args(flags).arg("--target-dir").arg(target).current_dir(&root);
        assert!(command.status().expect("cargo starts").success(), "{command:?}");
    }
    let library = "libmeshfarm_preload.so";
    let to = target.join("release").join(library);
    fs::copy(target.join("preload").join(library), to).expect("the library was built");
}

/// A port that nobody listens on and no other test takes.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = LAST_PORT - FIRST_PORT;
    // Two runs of the tests at once begin at different ports.
    let offset = u16::try_from(std::process::id() % u32::from(span)).expect("less than the span");
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + offset.wrapping_add(step) % span;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// A process that ends with this value, and with the thread that started it.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts a command.
    pub(crate) fn start(command: &mut Command) -> Self {
        #[allow(unsafe_code, reason = "a process of a killed test must end too")]
        // SAFETY: what runs between fork and exec is one system call, which allocates and locks nothing.
        unsafe {
            command.pre_exec(die_with_the_test);
        }
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn has_ended(&mut self) -> Option<i32> {
        let ended = self.0.try_wait().expect("it is our own process")?;
        Some(ended.code().unwrap_or(-1))
    }

    /// What `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Have the kernel end this process when the thread that started it ends.
fn die_with_the_test() -> io::Result<()> {
    #[allow(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: it takes numbers and changes nothing but the calling process.
    let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a command of the command line said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It ended with `code`, and its complaint names all of `words`.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not named: {self:?}");
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }
}

/// What a site is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    name: &'static str,
    slots: u32,
    lend: bool,
    place: &'static str,
    /// Programs in front of the node's own, such as one that enters a network.
    pub(crate) within: Vec<String>,
    pub(crate) mdns: bool,
    /// None: a free port of 127.0.0.1.
    pub(crate) listen: Option<String>,
}

/// A site without slots, which sends all its work away.
pub(crate) fn borrower(name: &'static str) -> Plan {
    Plan { slots: 0, lend: false, place: "remote", ..lender(name, 0) }
}

/// A site that renders for others.
pub(crate) fn lender(name: &'static str, slots: u32) -> Plan {
    let (within, listen) = (Vec::new(), None);
    Plan { name, slots, lend: true, place: "local", within, mdns: false, listen }
}

/// A site for itself.
pub(crate) fn alone(name: &'static str, slots: u32) -> Plan {
    Plan { lend: false, ..lender(name, slots) }
}

/// One site: its home and, while it runs, its node.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: &'static str,
    pub(crate) home: PathBuf,
    /// The home as this process sees it.
    seen: PathBuf,
    /// Beginning of the names of the files that keep what the node says.
    said: PathBuf,
    /// Port and address, where the plan left them to us.
    pub(crate) port: u16,
    pub(crate) within: Vec<String>,
    node: Option<Running>,
}

impl Site {
    /// A home beneath `folder`; its node is not running.
    pub(crate) fn init(folder: &Path, plan: Plan) -> Self {
        let port = free_port();
        let site = Self {
            name: plan.name,
            home: folder.join(plan.name),
            seen: folder.join(plan.name),
            said: folder.join(plan.name),
            port,
            within: plan.within,
            node: None,
        };
        let listen = plan.listen.unwrap_or_else(|| format!("/ip4/127.0.0.1/tcp/{port}"));
        let slots = plan.slots.to_string();
        let mut flags = vec!["init", "--name", plan.name, "--slots", &slots, "--where", plan.place];
        flags.extend(["--listen", &listen, if plan.lend { "--lend" } else { "--no-lend" }]);
        flags.extend((!plan.mdns).then_some("--no-mdns"));
        let made = site.run(&flags);
        assert_eq!(made.code, 0, "{made:?}");
        site
    }

    fn log_file(&self) -> PathBuf {
        self.said.with_extension("log")
    }

    /// Everything that the node has logged since the site was made.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn program(&self) -> Command {
        let mut words: Vec<PathBuf> = self.within.iter().map(PathBuf::from).collect();
        words.push(programs().join("meshfarm"));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--home").arg(&self.home);
        command.env_remove("MESHFARM_HOME").stdin(Stdio::null());
        command
    }

    /// Starts the node and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        if let Err(ended) = self.try_start() {
            panic!("the node of {} ended with {ended}:\n{}", self.name, self.log());
        }
    }

    /// Starts the node and waits until it is ready, or has ended with an exit code.
    pub(crate) fn try_start(&mut self) -> Result<Value, i32> {
        assert!(self.node.is_none(), "{} runs", self.name);
        let said = self.said.with_extension("ready");
        let ready = File::create(&said).expect("the folder is ours");
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.expect("the folder is ours");
        let mut command = self.program();
        command.args(["node", "--log-format", "json"]).stdout(ready).stderr(log);
        // With an event for each task.
        command.env("MESHFARM_LOG", "info,meshfarm::daemon=debug");
        let mut node = Running::start(&mut command);
        let what = format!("{} is ready", self.name);
        let line = wait_until(&what, SOON, || {
            let text = fs::read_to_string(&said).expect("the file is ours");
            match serde_json::from_str(&text) {
                Ok(line) => Some(Ok(line)),
                Err(_) => node.has_ended().map(Err),
            }
        })?;
        self.node = Some(node);
        Ok(line)
    }

    /// What `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.node.take().unwrap_or_else(|| panic!("{} does not run", self.name)).kill();
    }

    /// Ends the node as a service manager does.
    pub(crate) fn stop(&mut self) {
        let mut node = self.node.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        signal(node.id(), libc::SIGTERM);
        let code = wait_until("the node stops", SOON, || node.has_ended());
        assert_eq!(code, 0, "{}", self.log());
    }

    /// The node's process.
    pub(crate) fn pid(&self) -> u32 {
        self.node.as_ref().expect("the node runs").id()
    }

    /// Whether the node has not ended by itself.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.node.as_mut().is_some_and(|node| node.has_ended().is_none())
    }

    /// Runs a command of the command line to its end.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        let mut command = self.program();
        command.args(args);
        finish(&mut command)
    }

    /// Runs a command of the command line with `--json`.
    #[track_caller]
    pub(crate) fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> Value {
        let mut command = self.program();
        command.arg("--json").args(args);
        finish(&mut command).json()
    }

    /// Submits and gives the job's id.
    #[track_caller]
    pub(crate) fn submit<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let mut command = self.program();
        command.args(["--json", "submit"]).args(args);
        let submitted = finish(&mut command).json();
        text(&submitted["job"]).to_owned()
    }

    /// The job with its steps and tasks, as `job --json` prints it.
    #[track_caller]
    pub(crate) fn job(&self, id: &str) -> Value {
        self.json(&["job", id])
    }

    /// Waits until the job is done and gives it with its tasks.
    #[track_caller]
    pub(crate) fn wait_done(&self, id: &str) -> Value {
        let ended = self.wait_ended(id);
        assert_eq!(ended["phase"], "done", "{ended:#}");
        ended
    }

    /// Waits until the job has ended in whatever way.
    #[track_caller]
    pub(crate) fn wait_ended(&self, id: &str) -> Value {
        let what = format!("job {id} of {} has ended", self.name);
        let path = format!("/v1/jobs/{id}?brief=true");
        let end = Instant::now() + A_JOB;
        while self.api(&path)["phase"] == "active" {
            assert!(
                Instant::now() < end,
                "after {A_JOB:?} still not so: {what}: {:#}",
                self.job(id)
            );
            thread::sleep(LOOK_EVERY);
        }
        self.job(id)
    }

    /// One answer of the local API, without starting a program.
    #[track_caller]
    pub(crate) fn api(&self, path: &str) -> Value {
        let (head, body) = self.ask(path).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    fn ask(&self, path: &str) -> io::Result<(String, String)> {
        let mut stream = UnixStream::connect(self.seen.join("api.sock"))?;
        stream.set_read_timeout(Some(SOON))?;
        // HTTP/1.0: the answer ends with the connection and has no pieces.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: meshfarm\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        Ok((head.replace("HTTP/1.0", "HTTP/1.1"), body.to_owned()))
    }

    /// Names of the other sites that are connected and have said what they offer.
    pub(crate) fn known(&self) -> Vec<String> {
        let sites = self.api("/v1/sites");
        let there = |site: &&Value| {
            site["own"] == false && site["connected"] == true && site["profile"].is_object()
        };
        let mut names: Vec<_> =
            list(&sites).iter().filter(there).map(|site| text(&site["name"]).to_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!("--- the log of {} ends with:\n{}", self.name, shown.join("\n"));
        }
    }
}

/// Runs a command to its end, which must come soon.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(command);
    let (out, err) = (running.0.stdout.take(), running.0.stderr.take());
    let out = thread::spawn(move || read_all(out.expect("it is a pipe")));
    let err = thread::spawn(move || read_all(err.expect("it is a pipe")));
    let code = wait_until(&format!("{command:?} has ended"), A_JOB, || running.has_ended());
    let text = |bytes: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&bytes.join().expect("reading does not panic")).into_owned()
    };
    Ran { code, out: text(out), err: text(err) }
}

fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A pipe that breaks has said what it said.
    drop(from.read_to_end(&mut bytes));
    bytes
}

/// Sends a signal to a process of ours.
pub(crate) fn signal(pid: u32, number: i32) {
    let pid = i32::try_from(pid).expect("process numbers are small");
    #[allow(unsafe_code, reason = "the standard library only kills")]
    // SAFETY: the call takes two numbers, and the process is a child that was not waited for.
    let sent = unsafe { libc::kill(pid, number) };
    assert_eq!(sent, 0, "{}", io::Error::last_os_error());
}

/// Sites that know each other, in a folder of their own.
#[derive(Debug)]
pub(crate) struct Mesh {
    sites: Vec<Site>,
    // After the sites: their nodes end before the folder goes.
    folder: TempDir,
}

/// A folder with a short path: that of a socket may have 107 bytes.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("mf").tempdir_in("/tmp").expect("/tmp can be written")
}

impl Mesh {
    /// Sites that run, all members of one mesh that the first one founded, and connected to each other.
    #[track_caller]
    pub(crate) fn of(plans: Vec<Plan>) -> Self {
        let mut mesh = Self::apart(plans);
        mesh.join();
        mesh
    }

    /// Sites that run and do not know each other.
    #[track_caller]
    pub(crate) fn apart(plans: Vec<Plan>) -> Self {
        let folder = folder();
        let sites = plans.into_iter().map(|plan| Site::init(folder.path(), plan)).collect();
        let mut mesh = Self { folder, sites };
        for site in &mut mesh.sites {
            site.start();
        }
        mesh
    }

    /// Adds a running site whose home lies in `folder`, which we see at `seen`.
    #[track_caller]
    pub(crate) fn add_on(&mut self, plan: Plan, folder: &Path, seen: PathBuf) {
        let mut site = Site::init(folder, plan);
        site.seen = seen.join(site.name);
        site.said = self.folder.path().join(site.name);
        site.start();
        self.sites.push(site);
    }

    /// Makes the sites members of one mesh.
    #[track_caller]
    pub(crate) fn join(&mut self) {
        let (founder, others) = self.sites.split_first().expect("there is a site");
        founder.json(&["mesh", "create", "demo"]);
        if !others.is_empty() {
            let uses = others.len().to_string();
            let invited = founder.json(&["invite", "--uses", &uses]);
            for site in others {
                site.json(&["join", text(&invited["ticket"])]);
            }
        }
        self.wait_known();
    }

    /// Waits until every site is connected to every other one.
    #[track_caller]
    pub(crate) fn wait_known(&self) {
        for site in &self.sites {
            let what = format!("{} knows the others", site.name);
            let others = self.sites.len() - 1;
            wait_until(&what, SOON, || (site.known().len() == others).then_some(()));
        }
    }

    /// The folder of the sites' homes, for files of the test too.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder with this name.
    pub(crate) fn new_folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).expect("the folder is ours");
        path
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

/// The text of a JSON value that is one.
#[track_caller]
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The items of a JSON value that is a list.
#[track_caller]
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

/// Every task of a job as `job --json` prints it.
pub(crate) fn tasks(job: &Value) -> Vec<&Value> {
    list(&job["steps"]).iter().flat_map(|step| list(&step["tasks"])).collect()
}

/// Names of the files in a folder, in order.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.expect("the folder is ours").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// A file with this text, and the folders above it.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("it is ours");
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
