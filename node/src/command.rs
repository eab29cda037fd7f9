//! What each subcommand does: a thin client of the node, apart from `init`, `node` and `doctor`.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use meshfarm_core::{JobView, Queue};
use meshfarm_protocol::id::Millis;

use crate::api::{self, BackedUp, Problem, Status, causes};
use crate::cli::{self, Cli, Command, MeshCommand};
use crate::client::{Client, ClientError};
use crate::config::{Config, ConfigError, Home, LogFormat};
use crate::doctor::{self, Found};
use crate::print::{self, Page, Printer, pages};
use crate::sheet::{self, Decode};

mod explain;
mod hosts;
mod ledger;
mod logs;
mod missing;
mod openjd;
mod operate;
mod sandbox;
mod store;
mod watch;

/// A longer ticket on standard input is refused, in bytes.
const MAX_TICKET: u64 = 64 << 10;

/// What the commands that need no running node ask of the rooms beneath them.
pub trait Rooms {
    /// Make the node's keys in `home`, or keep those that are there.
    ///
    /// # Errors
    /// When they cannot be written, or are there and of no use.
    fn create_keys(&self, home: &Home) -> Result<(), Problem>;

    /// Run the node until it is told to end; `ready` is called once, when it answers and listens. The
    /// caller holds the home's lock and has started the log.
    ///
    /// # Errors
    /// When it cannot start, or breaks.
    fn run_node(&self, home: &Home, config: Config, ready: &dyn Fn(&Status))
    -> Result<(), Problem>;

    /// Write a backup of a home whose node does not run to a new file. The caller holds the home's lock.
    ///
    /// # Errors
    /// When the file exists, or something cannot be read or written.
    fn backup(&self, home: &Home, file: &Path) -> Result<BackedUp, Problem>;

    /// Make a home, which is empty or not there, of a backup.
    ///
    /// # Errors
    /// When the home is not empty, or the file is no whole backup.
    fn restore(&self, home: &Home, file: &Path) -> Result<BackedUp, Problem>;

    /// Look at the machine: its sandbox and its renderers. Takes a second or two.
    fn look(&self, home: &Home) -> Found;
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Problem(#[from] Problem),
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// Everything was said already.
    #[error("it failed")]
    Said,
    /// As [`Failure::Said`], with an exit code of its own.
    #[error("it failed")]
    Exit(u8),
}

impl Failure {
    fn text(&self) -> String {
        match self {
            // What the system says of an absent socket would only distract.
            Self::Client(error @ ClientError::NotReachable { source, .. })
                if source.kind() != io::ErrorKind::PermissionDenied =>
            {
                error.to_string()
            }
            failure => causes(failure),
        }
    }

    fn exit(&self) -> u8 {
        match self {
            Self::Client(ClientError::NotReachable { .. }) => 3,
            Self::Client(ClientError::Problem(problem)) | Self::Problem(problem) => {
                if (400..500).contains(&problem.status) { 2 } else { 1 }
            }
            Self::Config(ConfigError::Io { .. }) => 1,
            Self::Config(_) => 2,
            Self::Client(ClientError::Broken(_)) | Self::Output(_) | Self::Said => 1,
            Self::Exit(code) => *code,
        }
    }

    fn help(&self, home: Option<&Home>) -> Option<String> {
        match self {
            Self::Client(ClientError::NotReachable { source, .. }) => {
                if source.kind() == io::ErrorKind::PermissionDenied {
                    return Some("the home belongs to another user: run as that user".to_owned());
                }
                let start = match home {
                    Some(home) if !home.exists() => "make this machine a site first: meshfarm init",
                    _ => "start it: meshfarm node",
                };
                Some(format!("{start} (--home or MESHFARM_HOME names another home)"))
            }
            Self::Client(ClientError::Problem(problem)) | Self::Problem(problem) => {
                problem.help.clone()
            }
            Self::Config(error) => Some(error.help()),
            Self::Client(ClientError::Broken(_)) => Some("look at the node's log".to_owned()),
            Self::Output(_) | Self::Said | Self::Exit(_) => None,
        }
    }
}

type Done = Result<(), Failure>;

/// What every command has at hand.
struct Desk {
    home: Home,
    client: Client,
    printer: Box<dyn Printer>,
    json: bool,
    quiet: bool,
}

impl Desk {
    fn show(&self, page: &Page) -> Done {
        Ok(print::out(&self.printer.text(page))?)
    }
}

/// Parse the command line and do what it says; complain on standard error when that fails.
#[must_use]
pub fn main(rooms: &dyn Rooms) -> ExitCode {
    let cli = Cli::parse_from(cli::spell_out(std::env::args_os()));
    let home = match Home::find(cli.home) {
        Ok(home) => home,
        Err(error) => return fail(&error.into(), None),
    };
    let desk = Desk {
        client: Client::new(home.socket()),
        printer: print::printer(cli.json, cli.quiet),
        json: cli.json,
        quiet: cli.quiet,
        home,
    };
    match dispatch(rooms, &desk, cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, Some(&desk.home)),
    }
}

fn fail(failure: &Failure, home: Option<&Home>) -> ExitCode {
    if !matches!(failure, Failure::Said | Failure::Exit(_)) {
        print::complain(&failure.text(), failure.help(home).as_deref());
    }
    ExitCode::from(failure.exit())
}

fn dispatch(rooms: &dyn Rooms, desk: &Desk, command: Command) -> Done {
    match command {
        Command::Init(flags) => init(rooms, desk, flags),
        Command::Node(flags) => node(rooms, desk, flags.log_format),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshfarm", &mut script);
            Ok(print::out(&String::from_utf8_lossy(&script))?)
        }
        Command::Doctor => {
            let found = rooms.look(&desk.home);
            block_on(doctor(desk, &found))
        }
        Command::Sandbox(flags) => sandbox::sandbox(desk, flags.command),
        Command::Backup(flags) => hosts::backup(rooms, desk, &flags.file),
        Command::Restore(flags) => hosts::restore(rooms, desk, &flags.file),
        Command::Openjd(flags) => openjd::openjd(desk, flags.command),
        Command::Ledger(cli::Ledger { command: Some(cli::LedgerCommand::Verify(flags)) }) => {
            ledger::verify(desk, &flags.file)
        }
        Command::DecodeFrames => Ok(sheet::serve(io::stdin().lock(), io::stdout().lock())?),
        command => block_on(ask(desk, command)),
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

async fn ask(desk: &Desk, command: Command) -> Done {
    let client = &desk.client;
    match command {
        Command::Profile => desk.show(&pages::profile(&client.profile().await?)),
        Command::Mesh(mesh) => match mesh.command {
            None => desk.show(&pages::meshes(&client.meshes().await?)),
            Some(MeshCommand::Create { name }) => {
                let mesh = client.mesh_create(name).await?;
                desk.show(&pages::meshes(std::slice::from_ref(&mesh)))
            }
        },
        Command::Invite(flags) => {
            let invite = api::Invite {
                mesh: flags.mesh,
                role: flags.role.into(),
                uses: flags.uses,
                expires_in: flags.expires,
            };
            desk.show(&pages::invited(&client.invite(&invite).await?))
        }
        Command::Join(flags) => {
            let join = api::Join { ticket: ticket(flags.ticket)?, name: flags.name };
            let mesh = client.join(&join).await?;
            desk.show(&pages::meshes(std::slice::from_ref(&mesh)))
        }
        Command::Sites => desk.show(&pages::sites(&client.sites().await?, now())),
        Command::Hosts(flags) => hosts::hosts(desk, flags.command).await,
        Command::Submit(flags) => submit(desk, flags).await,
        Command::Jobs(flags) => jobs(desk, flags).await,
        Command::Job(flags) => job(desk, &flags).await,
        Command::Watch(flags) => watch::watch(desk, &flags.job).await,
        Command::Logs(flags) => logs::logs(desk, &flags).await,
        Command::Missing(flags) => missing::missing(desk, &flags).await,
        Command::Explain(flags) => explain::explain(desk, &flags).await,
        Command::Operate(command) => operate::operate(desk, command).await,
        Command::Store(store) => store::store(desk, store.command).await,
        Command::Ledger(flags) => ledger::ledger(desk, flags.command).await,
        Command::Statement(flags) => ledger::statement(desk, flags).await,
        Command::Slots => desk.show(&pages::slots(&client.slots().await?)),
        Command::Init(_)
        | Command::Node(_)
        | Command::Doctor
        | Command::Sandbox(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Openjd(_)
        | Command::DecodeFrames
        | Command::Completions { .. } => {
            unreachable!("dispatch keeps what needs no node")
        }
    }
}

fn now() -> Millis {
    let at = jiff::Timestamp::now().as_millisecond();
    Millis(u64::try_from(at).unwrap_or(0))
}

/// The ticket itself, from standard input when it is `-`: what stands on a command line is seen by others.
fn ticket(text: String) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text);
    }
    let mut text = String::new();
    let read = io::stdin().take(MAX_TICKET).read_to_string(&mut text);
    read.map_err(|error| Problem::bad_input(format!("the ticket on standard input: {error}")))?;
    Ok(text)
}

fn init(rooms: &dyn Rooms, desk: &Desk, flags: cli::Init) -> Done {
    if desk.home.exists() {
        return Err(ConfigError::HomeExists(desk.home.root().to_owned()).into());
    }
    let ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    let mut config = Config::new(&host_name());
    let (name, place) = (flags.name, flags.place);
    config.name = answer(ask, name, "Name of this site", &config.name);
    (config.lend, config.slots) = match (flags.lend, flags.no_lend) {
        (Some(n), _) => (true, n.or(flags.slots)),
        (None, true) => (false, flags.slots),
        (None, false) if flags.slots == Some(0) => (false, Some(0)),
        (None, false) => {
            let said =
                answer(ask, None, "Lend this machine's slots to other sites (yes or no)", "no");
            (matches!(said.as_str(), "y" | "yes"), flags.slots)
        }
    };
    let question = "Where do jobs run that do not say: local, auto, remote or a site's name";
    config.place = answer(ask, place, question, &config.place);
    if !flags.listen.is_empty() {
        config.listen = flags.listen;
    }
    config.mdns = !flags.no_mdns;
    // Everything is checked before the first file is made, and the settings come last: a home has keys.
    if let Err(error) = Config::parse(&desk.home.config(), &config.to_text()) {
        let detail = match error {
            ConfigError::Value { key, problem, .. } => format!("--{key} {problem}"),
            other => other.to_string(),
        };
        return Err(Problem::bad_input(detail).into());
    }
    rooms.create_keys(&desk.home)?;
    desk.home.create(&config)?;
    let mut page = Page::of(&serde_json::json!({"home": desk.home.root(), "config": &config}));
    page.quiet = vec![desk.home.root().display().to_string()];
    let root = desk.home.root().display().to_string();
    page.line([print::strong(&config.name), print::plain("has its home in"), print::plain(root)]);
    let lends = if config.lend { "lent to other sites" } else { "for its own jobs only" };
    let slots = format!("{} slots, {lends}; jobs run {}", config.n_slots(), config.place);
    page.line([print::plain(slots)]);
    page.line([print::faint("next: meshfarm node; then meshfarm mesh create NAME or join TICKET")]);
    desk.show(&page)
}

fn answer(ask: bool, given: Option<String>, question: &str, default: &str) -> String {
    if let Some(given) = given {
        return given;
    }
    if ask {
        let mut line = String::new();
        eprint!("{question} [{default}]: ");
        let read = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut line));
        if read.is_ok() && !line.trim().is_empty() {
            return line.trim().to_owned();
        }
    }
    default.to_owned()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().split('.').next().unwrap_or("").to_owned();
    if meshfarm_protocol::membership::is_name(&name) { name } else { "site".to_owned() }
}

fn node(rooms: &dyn Rooms, desk: &Desk, log_format: Option<LogFormat>) -> Done {
    let config = desk.home.load()?;
    let format = log_format.unwrap_or(config.log_format);
    start_log(format);
    let _lock = desk.home.lock()?;
    let ready = |status: &Status| {
        // A closed standard output must not end a node.
        drop(print::out(&ready_line(format, status)));
    };
    Ok(rooms.run_node(&desk.home, config, &ready)?)
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESHFARM_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The one line that a node prints when it is ready.
#[must_use]
pub fn ready_line(format: LogFormat, status: &Status) -> String {
    match format {
        LogFormat::Text => format!(
            "ready: {} (process {}) listens on {}\n",
            print::clean(&status.name),
            status.pid,
            status.listen.join(" ")
        ),
        LogFormat::Json => {
            let mut line = serde_json::to_value(status).unwrap_or_default();
            line["ready"] = true.into();
            format!("{line}\n")
        }
    }
}

async fn doctor(desk: &Desk, found: &Found) -> Done {
    let (running, slots) = (desk.client.status().await.ok(), desk.client.slots().await.ok());
    let examination = doctor::examine(&desk.home, found, running.as_ref(), slots.as_ref());
    desk.show(&pages::examination(&examination))?;
    if doctor::is_broken(&examination) { Err(Failure::Said) } else { Ok(()) }
}

async fn submit(desk: &Desk, flags: cli::Submit) -> Done {
    let folder = std::env::current_dir()
        .map_err(|error| Problem::bad_input(format!("the current folder: {error}")))?;
    let source = if flags.source.starts_with("bundle:") {
        flags.source
    } else {
        text_of(&folder.join(&flags.source))?
    };
    let submit = api::Submit {
        source,
        user: user(),
        parameters: flags.parameters,
        frames: flags.frames,
        resolution: flags.resolution,
        output: flags.output.map(|path| folder.join(path)),
        inputs: flags.inputs.iter().map(|path| folder.join(path)).collect(),
        place: flags.place,
        priority: flags.priority,
        retries: flags.retries,
        timeout: flags.timeout,
        silence: flags.silence,
        deadline: flags.deadline,
        hops: flags.hops,
        order: flags.order.map(Into::into),
        max_price: flags.max_price,
        budget: flags.budget,
        hold: flags.hold,
        folder,
        environments: Vec::new(),
        path_mapping: None,
        arguments: Vec::new(),
        max_failed_tasks: None,
    };
    if flags.dry_run {
        return desk.show(&pages::dry_run(&desk.client.dry_run(&submit).await?));
    }
    let bar = watch::HashingBar::new(desk.quiet);
    let submitted = desk.client.submit(&submit, |progress| bar.show(progress)).await;
    bar.finish();
    let submitted = submitted?;
    if !flags.watch {
        return desk.show(&pages::submitted(&submitted));
    }
    let mut page = pages::submitted(&submitted);
    if desk.json {
        print::out(&format!("{}\n", page.json))?;
    } else {
        // The summary at the end names the job to scripts.
        page.quiet.clear();
        desk.show(&page)?;
    }
    watch::watch(desk, &submitted.job.to_string()).await
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    let bad = || Problem::bad_input(format!("{}: the name is not UTF-8", path.display()));
    Ok(text.ok_or_else(bad)?)
}

fn user() -> String {
    let set = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let known = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    set("USER")
        .or_else(|| set("LOGNAME"))
        .or_else(|| known().map(|user| user.name))
        .unwrap_or_else(|| "unknown".to_owned())
}

async fn jobs(desk: &Desk, flags: cli::Jobs) -> Done {
    let mut jobs = desk.client.jobs().await?;
    let Some(queue) = flags.queue.map(Queue::from) else {
        return desk.show(&pages::jobs(&jobs, &[], now()));
    };
    jobs.retain(|job| job.queue == queue);
    let mut lent = Vec::new();
    if queue == Queue::Active {
        lent = desk.client.slots().await?.leases;
        lent.retain(|lease| !lease.own);
    }
    desk.show(&pages::jobs(&jobs, &lent, now()))
}

async fn job(desk: &Desk, flags: &cli::Job) -> Done {
    let view = desk.client.job(&flags.which.job, false).await?;
    let outputs = desk.client.outputs(view.job).await?;
    let Some(file) = &flags.sheet else {
        return desk.show(&pages::job(&view, &outputs, now()));
    };
    let done = view.steps.iter().flat_map(|step| &step.tasks).filter(|task| task.state == "done");
    let number = |label: &str| label.rsplit('=').next().and_then(|value| value.parse().ok());
    let numbers: Vec<u64> = done.filter_map(|task| number(&task.label)).collect();
    let pictures = sheet::find_frames(&outputs.folders, view.submitted);
    let frames = sheet::numbered(pictures, &numbers);
    let mut decoder = decoder(desk, &view).await?;
    let made = sheet::write(&frames, file, &mut *decoder).map_err(|error| {
        Problem::bad_input(format!("--sheet {}: {}", file.display(), causes(&error)))
    })?;
    let path = std::path::absolute(file).unwrap_or_else(|_odd| PathBuf::from(file));
    let mut page = Page::of(&serde_json::json!({
        "sheet": path, "frames": made.frames, "unreadable": made.unreadable,
    }));
    page.quiet = vec![path.display().to_string()];
    let what = format!("contact sheet of {} frames in", made.frames);
    page.line([print::plain(what), print::strong(path.display().to_string())]);
    if made.unreadable > 0 {
        let text = format!("{} of them cannot be shown", made.unreadable);
        page.line([print::Cell::new(text, print::Tone::Bad)]);
    }
    desk.show(&page)
}

/// What decodes a job's frames: a jail, or this process when no jail stands here and no other site rendered any.
async fn decoder(desk: &Desk, view: &JobView) -> Result<Box<dyn Decode>, Failure> {
    let error = match sheet::Jailed::start() {
        Ok(jailed) => return Ok(Box::new(jailed)),
        Err(error) => error,
    };
    let sites = desk.client.sites().await?;
    let own = sites.iter().find(|site| site.own).map(|site| site.name.as_str());
    let mut tasks = view.steps.iter().flat_map(|step| &step.tasks);
    match tasks.find_map(|task| task.site.as_deref().filter(|site| Some(*site) != own)) {
        None => Ok(Box::new(sheet::Here)),
        Some(site) => {
            let text = format!(
                "frames of {site} are decoded in a jail only, and none stands here: {error}"
            );
            let help = "meshfarm doctor says what this machine lacks";
            Err(Problem::refused(text).with_help(help).into())
        }
    }
}

#[cfg(test)]
#[path = "command/tests.rs"]
mod tests;
