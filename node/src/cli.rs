//! Every subcommand and flag of `meshfarm`, with an example each.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::job::Order;
use meshfarm_protocol::membership::{Role, is_name};
use meshfarm_protocol::receipt::Money;

use crate::config::{LogFormat, MAX_SLOTS, bad_name};
use crate::job_bundle::Deadline;

mod hosts;
mod ledger;
mod openjd;
mod operate;
mod sandbox;
mod store;

pub use hosts::{BackupFile, HostArg, Hosts, HostsCommand};
pub use ledger::{ExportFile, Ledger, LedgerCommand, Statement, VerifyFile};
pub use openjd::{
    Openjd, OpenjdCheck, OpenjdCommand, OpenjdRun, ResultFormat, StampFormat, spell_out,
};
pub use operate::{
    After, Budget, Hold, Jobs, Kill, Operate, Outsource, Pause, Priority, QueueName, Resume, Retry,
    Selection,
};
pub use sandbox::{IsolationLevel, JailFlags, Sandbox, SandboxCheck, SandboxCommand, SandboxRun};
pub use store::{Store, StoreCommand};

/// What the exit codes mean; printed beneath `meshfarm --help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed: the watched job failed or was canceled, the node broke, a check of doctor failed
  2  bad input: a flag, a file, a name or a ticket is wrong; nothing was changed
  3  no node is running on this home

Start here:
  meshfarm init --name oslo
  meshfarm node &
  meshfarm submit scene.pov --frames 1-20 --watch";

/// A render farm for people who do not share a building.
#[derive(Debug, Parser)]
#[command(
    name = "meshfarm",
    version,
    after_help = EXIT_CODES,
    propagate_version = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Folder of the node's home [default: ~/.local/share/meshfarm]
    #[arg(long, global = true, env = "MESHFARM_HOME", value_name = "DIR", hide_env_values = true,
          value_hint = ValueHint::DirPath)]
    pub home: Option<PathBuf>,

    /// Print data as JSON
    #[arg(long, global = true, conflicts_with = "quiet")]
    pub json: bool,

    /// Print ids only, or nothing
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make this machine a site: a home with its keys and settings
    #[command(after_help = "\
Examples:
  meshfarm init --name oslo --lend 8 --where auto
  meshfarm init --name laptop --slots 0 --where remote

Asks for what is not given when it runs in a terminal. Without a terminal the site takes the machine's \
name, lends nothing, and renders its own jobs only.")]
    Init(Init),

    /// Run the node in the foreground
    #[command(after_help = "\
Example:
  meshfarm node --log-format json 2>node.log

Prints one line when it is ready. Ends at Ctrl-C or SIGTERM; a job goes on when it is started again.")]
    Node(Node),

    /// Say what works on this machine and what would make it better
    #[command(after_help = "Example:\n  meshfarm doctor --json")]
    Doctor,

    /// Show what this site offers the mesh
    #[command(after_help = "Example:\n  meshfarm profile")]
    Profile,

    /// List the meshes of this site, or found one
    #[command(after_help = "Examples:\n  meshfarm mesh\n  meshfarm mesh create consortium")]
    Mesh(Mesh),

    /// Print a ticket that lets others join the mesh, or machines of ours this site
    #[command(after_help = "\
Examples:
  meshfarm invite --uses 2 --expires 7d
  meshfarm invite --role host --uses 20

Whoever has the ticket can join: send it as you would send a password.")]
    Invite(Invite),

    /// Join a mesh, or become a host of a site, with a ticket
    #[command(after_help = "Example:\n  meshfarm join meshfarm1ezuwk... --name lyon")]
    Join(Join),

    /// List the sites of the mesh and what they offer
    #[command(after_help = "Example:\n  meshfarm sites")]
    Sites,

    /// List the machines of this site, or stop and start one
    #[command(after_help = "\
Examples:
  meshfarm hosts
  meshfarm hosts stop render01
  meshfarm hosts start render01

A machine becomes a host with a ticket of `meshfarm invite --role host`. It runs jobs of this site and of nobody else.")]
    Hosts(Hosts),

    /// Render a scene, a bundle or a template
    #[command(after_help = "\
Examples:
  meshfarm submit shot.blend --frames 1-240 --watch
  meshfarm submit animation.ini --resolution 1280x720 --output ~/frames --where remote
  meshfarm submit shot.blend --frames 1-240 --deadline 6h
  meshfarm submit bundle/ -p Quality=9 --dry-run
  meshfarm submit shot.blend --where oslo --hops 1

SOURCE is a scene file, a job bundle (folder or .tar) of Open Job Description, its template, or \
bundle:NAME for a built-in bundle. A site that renders a job can read its scene.")]
    Submit(Submit),

    /// List jobs, all or those of one queue
    #[command(after_help = "Examples:\n  meshfarm jobs --json\n  meshfarm jobs --queue outsourced")]
    Jobs(Jobs),

    /// Show one job: its frames, who has them, and why others wait
    #[command(
        after_help = "Examples:\n  meshfarm job 3fa8\n  meshfarm job 3fa8 --sheet contact.png"
    )]
    Job(Job),

    /// Watch a job until it ends
    #[command(after_help = "\
Example:
  meshfarm watch 3fa8

Exit code 0 when every frame is done, 1 when the job failed or was canceled. Ctrl-C stops watching; the \
job goes on. With --json every event is printed as a line, and the summary as the last one.")]
    Watch(JobArg),

    /// Print the log of a task, or of all tasks of a job
    #[command(
        after_help = "Examples:\n  meshfarm logs 3fa8 Frame=12\n  meshfarm logs 3fa8 --follow"
    )]
    Logs(Logs),

    /// Say why a job's tasks wait: what they ask, what each site has of it, and what stands in the way
    #[command(after_help = "Examples:\n  meshfarm explain 3fa8\n  meshfarm explain 3fa8 Frame=12")]
    Explain(Explain),

    /// List the files that tasks of a job have looked for in vain
    #[command(after_help = "\
Example:
  meshfarm missing 3fa8

Every file that a task asks for is the job's own or is not there: nothing is taken from the machine that renders.")]
    Missing(JobArg),

    /// What is done to jobs and sites at any time
    #[command(flatten)]
    Operate(Operate),

    /// Show the slots of this site and its hosts, and who holds them
    #[command(after_help = "Example:\n  meshfarm slots")]
    Slots,

    /// Show what this site owes and is owed; disputes, export, and verification of an export
    #[command(after_help = "\
Examples:
  meshfarm ledger
  meshfarm ledger disputes
  meshfarm ledger export oslo.ledger
  meshfarm ledger verify oslo.ledger

A lender is paid for tasks whose results its borrower took, and for nothing else: not for failed, lost or stopped ones. \
Both sites sign every receipt. What a borrower contests counts at the borrower's figures; both are kept.")]
    Ledger(Ledger),

    /// Show what was used and is owed in a span of time
    #[command(after_help = "\
Examples:
  meshfarm statement --from 2026-03-01 --to 2026-03-31
  meshfarm statement --by month --csv

Days and months are those of UTC, by the lender's clock, so that both sites get the same. Receipts that are not signed \
by both are not in it; `meshfarm ledger` shows how many there are.")]
    Statement(Statement),

    /// Show, verify or clean the store of encrypted chunks
    #[command(after_help = "\
Examples:
  meshfarm store stat
  meshfarm store verify
  meshfarm store gc --dry-run

Content in use is never removed. Unused content stays for as long as meshfarm.toml says.")]
    Store(Store),

    /// Write this site's keys, settings, records and the content of its open jobs to a file
    #[command(after_help = "\
Example:
  meshfarm backup /mnt/safe/oslo.backup

The node may run meanwhile. Whoever has the file is this site: keep it as you keep its keys. Not in it: content of \
other sites, logs, and renderers' folders.")]
    Backup(BackupFile),

    /// Make a new home of a backup
    #[command(after_help = "\
Example:
  meshfarm --home /srv/meshfarm restore /mnt/safe/oslo.backup

The home must be empty or absent. Never run two nodes of one backup: they are one site. What was done after the \
backup was written is rendered again.")]
    Restore(BackupFile),

    /// Run a command in the sandbox
    #[command(after_help = "\
Example:
  meshfarm sandbox run --report -- povray scene.pov +O/session/frame.png")]
    Sandbox(Sandbox),

    /// Check or run a template of Open Job Description, as the standard's own command line does
    #[command(after_help = "\
Examples:
  meshfarm openjd check template.yaml
  meshfarm openjd run template.yaml -p Frames=1-3")]
    Openjd(Openjd),

    /// Decode frames: what the contact sheet starts in a jail
    #[command(hide = true, name = crate::sheet::SUBCOMMAND, after_help = "Example:\n  meshfarm decode-frames")]
    DecodeFrames,

    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  meshfarm completions bash > ~/.local/share/bash-completion/completions/meshfarm"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Flags of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Name of the site, as others will see it [default: the machine's name]
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Lend slots to other sites; N of them where it is given
    #[arg(long, value_name = "N", num_args = 0..=1, conflicts_with = "no_lend",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SLOTS)))]
    pub lend: Option<Option<u32>>,
    /// Lend nothing to other sites
    #[arg(long)]
    pub no_lend: bool,
    /// Tasks that run at once on this machine; 0 for a site that only submits [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_SLOTS)))]
    pub slots: Option<u32>,
    /// Where jobs run that do not say: local, auto, remote or a site's name
    #[arg(long = "where", value_name = "PLACE", value_parser = place)]
    pub place: Option<String>,
    /// Address to listen on, such as /ip4/0.0.0.0/tcp/4510; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<String>,
    /// Do not look for members on the local network
    #[arg(long)]
    pub no_mdns: bool,
}

/// Flags of `node`.
#[derive(Debug, Args)]
pub struct Node {
    /// How the log and the ready line are written [default: as meshfarm.toml says, else text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// What to do with meshes.
#[derive(Debug, Args)]
pub struct Mesh {
    /// Nothing: list them
    #[command(subcommand)]
    pub command: Option<MeshCommand>,
}

/// What to do with a mesh.
#[derive(Debug, Subcommand)]
pub enum MeshCommand {
    /// Found a mesh; this site holds its root key
    #[command(after_help = "Example:\n  meshfarm mesh create consortium")]
    Create {
        /// Name of the mesh
        #[arg(value_parser = name)]
        name: String,
    },
}

/// Flags of `invite`.
#[derive(Debug, Args)]
pub struct Invite {
    /// What the invited may do
    #[arg(long, value_enum, default_value = "site")]
    pub role: Invited,
    /// How many sites or machines may use the ticket
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// How long the ticket counts, such as 12h or 7d
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = span)]
    pub expires: Millis,
    /// Which mesh, when this site founded several
    #[arg(long, value_name = "NAME")]
    pub mesh: Option<String>,
}

/// What an invited site may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Invited {
    /// Lend and borrow
    Site,
    /// Lend to this site only: a machine of ours
    Host,
    /// Borrow only
    Submitter,
}

impl From<Invited> for Role {
    fn from(invited: Invited) -> Self {
        match invited {
            Invited::Site => Self::Site,
            Invited::Host => Self::Host,
            Invited::Submitter => Self::Submitter,
        }
    }
}

/// Flags of `join`.
#[derive(Debug, Args)]
pub struct Join {
    /// The ticket, or - to read it from standard input
    pub ticket: String,
    /// The name to have in the mesh, or as a host [default: the site's own]
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
}

/// Flags of `submit`.
#[derive(Debug, Args)]
pub struct Submit {
    /// Scene file, bundle folder or .tar, template, or bundle:NAME
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: String,
    /// A job parameter; may be repeated
    #[arg(short, long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
    /// Frames, such as 1-20 or 1,5,9-12 or 1-99:2
    #[arg(long, value_name = "RANGE", value_parser = frames, allow_hyphen_values = true)]
    pub frames: Option<String>,
    /// Size of a frame in pixels
    #[arg(long, value_name = "WxH", value_parser = resolution)]
    pub resolution: Option<(u32, u32)>,
    /// Folder that the frames go to [default: beside the scene]
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    /// A further file or folder that the scene needs; may be repeated
    #[arg(long = "input", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub inputs: Vec<PathBuf>,
    /// Where it may run: local, auto, remote or a site's name [default: as the bundle or the site says]
    #[arg(long = "where", value_name = "PLACE", value_parser = place)]
    pub place: Option<String>,
    /// 0 to 100; 100 is most urgent [default: 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub priority: Option<u8>,
    /// How often a failed task is tried again [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub retries: Option<u32>,
    /// Stop a task after this long, such as 10m [default: never]
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub timeout: Option<Millis>,
    /// Stop a task whose log has said nothing for so long, such as 10m [default: never]
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub silence: Option<Millis>,
    /// When the job shall be done: 90m, 2h, 3d from now, or a moment such as '2026-11-30 18:00' [default: none]
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<Deadline>,
    /// Through how many further sites a site may pass its tasks on, which then see the scene too [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=4))]
    pub hops: Option<u8>,
    /// In which order tasks start [default: given]
    #[arg(long, value_enum, value_name = "ORDER")]
    pub order: Option<TaskOrder>,
    /// What it may owe other sites, such as 12.50; it waits, or goes on here, before that is exceeded [default: any sum]
    #[arg(long, value_name = "AMOUNT")]
    pub budget: Option<Money>,
    /// Use no site that asks more for an hour of a processor, such as 0.05 [default: any price]
    #[arg(long, value_name = "AMOUNT")]
    pub max_price: Option<Money>,
    /// Start nothing until the job is released
    #[arg(long)]
    pub hold: bool,
    /// Show tasks, requirements, files and matching sites, and submit nothing
    #[arg(long, conflicts_with = "watch")]
    pub dry_run: bool,
    /// Watch the job until it ends
    #[arg(long)]
    pub watch: bool,
}

/// In which order tasks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskOrder {
    /// As they are numbered
    Given,
    /// First, last, middle, then the rest: an early look at the whole range
    FirstLastMiddle,
}

impl From<TaskOrder> for Order {
    fn from(order: TaskOrder) -> Self {
        match order {
            TaskOrder::Given => Self::Given,
            TaskOrder::FirstLastMiddle => Self::FirstLastMiddle,
        }
    }
}

/// Flags of `job`.
#[derive(Debug, Args)]
pub struct Job {
    /// Which
    #[command(flatten)]
    pub which: JobArg,
    /// Write a contact sheet of its frames to this PNG
    #[arg(long, value_name = "FILE.png", value_hint = ValueHint::FilePath)]
    pub sheet: Option<PathBuf>,
}

/// A job.
#[derive(Debug, Args)]
pub struct JobArg {
    /// Id of the job, or its beginning
    #[arg(value_name = "JOB", value_parser = job_id)]
    pub job: String,
}

/// Flags of `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Which
    #[command(flatten)]
    pub which: JobArg,
    /// Number or label of a task, such as 3 or Frame=3 [default: all]
    pub task: Option<String>,
    /// Go on while the job runs
    #[arg(long, short)]
    pub follow: bool,
}

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Which
    #[command(flatten)]
    pub which: JobArg,
    /// Number or label of a task, such as 3 or Frame=3 [default: all]
    pub task: Option<String>,
}

/// Numbers of tasks as a person wrote them, in rising order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskList(pub Vec<u32>);

fn name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(bad_name(text)) }
}

fn place(text: &str) -> Result<String, String> {
    match text {
        "local" | "auto" | "remote" => Ok(text.to_owned()),
        name if is_name(name) => Ok(text.to_owned()),
        _ => Err("local, auto, remote or a site's name is wanted".to_owned()),
    }
}

fn job_id(text: &str) -> Result<String, String> {
    let is_id = !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let wanted =
        "a job id or its beginning is wanted: hexadecimal digits, as `meshfarm jobs` lists them";
    is_id.then(|| text.to_ascii_lowercase()).ok_or_else(|| wanted.to_owned())
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.to_owned()))
        }
        _ => Err("NAME=VALUE is wanted".to_owned()),
    }
}

fn resolution(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|n| (1..=65_536).contains(n));
    text.split_once(['x', 'X', '×'])
        .and_then(|(width, height)| Some((side(width)?, side(height)?)))
        .ok_or_else(|| "width and height are wanted, such as 1920x1080, each 1 to 65536".to_owned())
}

/// Frames in the notation of the standard: `1-20`, `1,5,9-12`, `1-99:2`. Only the shape is looked at here.
fn frames(text: &str) -> Result<String, String> {
    let wanted = "frames are wanted such as 1-20, 1,5,9-12 or 1-99:2";
    for part in text.split(',') {
        let part = part.trim();
        let (span, step) = part.split_once(':').unwrap_or((part, "1"));
        // A minus in front belongs to the number, so the dash is looked for behind the first character.
        let dash = span.char_indices().skip(1).find(|(_, c)| *c == '-').map(|(i, _)| i);
        let (from, to) = dash.map_or((span, span), |i| (&span[..i], &span[i + 1..]));
        let (from, to) = (from.trim().parse::<i64>(), to.trim().parse::<i64>());
        match (from, to, step.trim().parse::<i64>()) {
            (Ok(from), Ok(to), Ok(step)) if step != 0 => {
                if (to < from) != (step < 0) && to != from {
                    return Err(format!("{part}: it runs backwards; {wanted}"));
                }
            }
            _ => return Err(format!("{part}: {wanted}")),
        }
    }
    Ok(text.split_whitespace().collect())
}

/// A time as people write it.
pub(crate) fn span(text: &str) -> Result<Millis, String> {
    let wanted = || "a time is wanted, such as 90s, 10m, 12h or 7d".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wanted()),
    };
    // A hundred years: more is a slip, and would not be a moment that a clock can show.
    let most = 100 * 366 * 86_400;
    let number = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds));
    match number.filter(|n| (1..=most).contains(n)) {
        Some(n) => Ok(Millis::seconds(n)),
        None => Err(wanted()),
    }
}

fn task_list(text: &str) -> Result<TaskList, String> {
    let wanted = || "task numbers are wanted such as 3,5-7".to_owned();
    let mut tasks = std::collections::BTreeSet::new();
    for part in text.split(',') {
        let part = part.trim();
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let ends = from.trim().parse::<u32>().ok().zip(to.trim().parse::<u32>().ok());
        let (from, to) = ends.filter(|(from, to)| from <= to).ok_or_else(wanted)?;
        if to - from >= meshfarm_protocol::job::MAX_TASKS {
            return Err(wanted());
        }
        tasks.extend(from..=to);
    }
    Ok(TaskList(tasks.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        let words = std::iter::once("meshfarm").chain(line.split_whitespace());
        Cli::try_parse_from(spell_out(words.map(Into::into))).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        fn look(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("meshfarm "), "{} has no example", sub.get_name());
                assert!(sub.get_about().is_some(), "{}", sub.get_name());
                look(sub);
            }
        }
        look(&Cli::command());
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("Exit codes") && help.contains("MESHFARM_HOME"), "{help}");
    }

    #[test]
    fn every_example_parses() {
        fn examples(command: &clap::Command, into: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            into.extend(
                help.lines().filter_map(|l| l.strip_prefix("  meshfarm ")).map(str::to_owned),
            );
            for sub in command.get_subcommands() {
                examples(sub, into);
            }
        }
        let mut lines = Vec::new();
        examples(&Cli::command(), &mut lines);
        assert!(lines.len() > 20, "{lines:?}");
        for line in lines {
            let end = line.find([&'>', &'&'].map(|c| *c)).unwrap_or(line.len());
            // A shell takes the quotes off.
            let line = line[..end].trim_end_matches(['2', ' ']).replace('\'', "");
            let parsed = parse(&line);
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn a_submission_is_read_whole() {
        let cli = parse(
            "submit shot.blend --frames 1-240:2 --resolution 1920x1080 -p A=b=c -p D= --where lyon \
             --priority 100 --retries 0 --timeout 10m --silence 90s --deadline 3d --hops 2 --order first-last-middle --hold --input tex --input a.png -o out --watch --json",
        );
        let cli = cli.unwrap();
        assert!(cli.json);
        let Command::Submit(submit) = cli.command else { panic!("{cli:?}") };
        assert_eq!(submit.frames.as_deref(), Some("1-240:2"));
        assert_eq!(submit.resolution, Some((1920, 1080)));
        let pairs = [("A", "b=c"), ("D", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(submit.parameters, pairs);
        assert_eq!(submit.timeout, Some(Millis::seconds(600)));
        assert_eq!((submit.silence, submit.hold), (Some(Millis::seconds(90)), true));
        assert_eq!(submit.deadline, Some(Deadline::In(Millis::seconds(3 * 86_400))));
        assert_eq!((submit.order, submit.hops), (Some(TaskOrder::FirstLastMiddle), Some(2)));
        assert_eq!((submit.priority, submit.retries), (Some(100), Some(0)));
        assert_eq!(submit.inputs.len(), 2);
    }

    #[test]
    fn bad_input_names_the_flag_and_what_would_be_right() {
        for (line, words) in [
            ("submit a --frames 1-", ["--frames", "1-20"]),
            ("submit a --frames 9-1", ["--frames", "backwards"]),
            ("submit a --frames 1-9:0", ["--frames", "1-99:2"]),
            ("submit a --resolution 1920", ["--resolution", "1920x1080"]),
            ("submit a --resolution 0x5", ["--resolution", "1 to 65536"]),
            ("submit a --priority 101", ["--priority", "0..=100"]),
            ("submit a --timeout soon", ["--timeout", "10m"]),
            ("submit a --timeout 99999999999999999999d", ["--timeout", "10m"]),
            ("submit a -p =1", ["NAME=VALUE", "=1"]),
            ("submit a --where a/b", ["--where", "local"]),
            ("submit a --dry-run --watch", ["--dry-run", "--watch"]),
            ("retry 3fa8 --tasks 7-3", ["--tasks", "3,5-7"]),
            ("retry 3fa8 --tasks 0-4294967295", ["--tasks", "3,5-7"]),
            ("retry 3fa8 --all --tasks 1", ["--all", "--tasks"]),
            ("retry 3fa8 --failed --step Render", ["--failed", "--step"]),
            ("hold 3fa8 --tasks 5-", ["--tasks", "3,5-7"]),
            ("priority 3fa8 101", ["101", "0..=100"]),
            ("outsource 3fa8 --to lyon --best", ["--to", "--best"]),
            ("pause --site lyon --own", ["--site", "--own"]),
            ("pause --after never", ["--after", "finish"]),
            ("jobs --queue old", ["--queue", "outsourced"]),
            ("submit a --order random", ["--order", "first-last-middle"]),
            ("submit a --silence long", ["--silence", "10m"]),
            ("submit a --deadline soon", ["--deadline", "2026-11-30 18:00"]),
            ("submit a --budget much", ["--budget", "9.80"]),
            ("budget 3fa8 -1", ["AMOUNT", "-1"]),
            ("statement --from march", ["--from", "2026-03-31"]),
            ("statement --csv --json", ["--csv", "--json"]),
            ("statement --by day", ["--by", "month"]),
            ("submit a --hops 5", ["--hops", "0..=4"]),
            ("job xyz", ["JOB", "hexadecimal"]),
            ("init --name a/b", ["--name", "control characters"]),
            ("init --lend 0", ["--lend", "1..=4096"]),
            ("init --lend 2 --no-lend", ["--lend", "--no-lend"]),
            ("invite --uses 0", ["--uses", "1..="]),
            ("invite --role king", ["--role", "submitter"]),
            ("jobs --json --quiet", ["--json", "--quiet"]),
            ("sandbox run --windows S:show=/a -- true", ["--windows", "S:\\show=/srv/show"]),
            ("sandbox run --level S1 -- true", ["--level", "S3"]),
            ("sandbox run true", ["sandbox run", "true"]),
            ("openjd run a --mesh --step b", ["--mesh", "--step"]),
            ("openjd run a --where auto", ["--mesh", "--where"]),
            ("openjd run a --tasks [] --maximum-tasks 2", ["--tasks", "--maximum-tasks"]),
        ] {
            let error = parse(line).expect_err(line);
            assert!(words.iter().all(|word| error.contains(word)), "{line}: {error}");
        }
    }

    #[test]
    fn a_template_is_run_with_the_flags_of_the_standards_own_command_line() {
        let line = "openjd run t.yaml -p A=1 -p file://v.json --env e.yaml --environment f.yaml --step S \
                    -tp F=1 --task-param G=-2 --run-dependencies --extensions EXPR --preserve --output json";
        let Command::Openjd(Openjd { command: OpenjdCommand::Run(run) }) =
            parse(line).unwrap().command
        else {
            panic!("{line}");
        };
        assert_eq!(run.parameters, ["A=1", "file://v.json"]);
        assert_eq!(run.task_params, [("F".into(), "1".into()), ("G".into(), "-2".into())]);
        assert_eq!((run.environments.len(), run.output), (2, ResultFormat::Json));
        assert!(run.run_dependencies && run.preserve && !run.mesh && !run.no_sandbox);
        assert!(parse("openjd run t.yaml --maximum-tasks -1 --no-run-dependencies").is_ok());
    }

    #[test]
    fn lending_is_given_as_a_number_or_alone() {
        let lend = |line| match parse(line).unwrap().command {
            Command::Init(init) => init.lend,
            other => panic!("{other:?}"),
        };
        assert_eq!(lend("init"), None);
        assert_eq!(lend("init --lend"), Some(None));
        assert_eq!(lend("init --lend 4"), Some(Some(4)));
    }

    #[test]
    fn task_numbers_are_sorted_and_counted_once() {
        assert_eq!(task_list("5-7,3,6"), Ok(TaskList(vec![3, 5, 6, 7])));
    }
}
