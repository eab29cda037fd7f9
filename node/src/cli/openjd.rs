//! Flags of `meshfarm openjd`, which are those of the standard's own command line, and a few of ours.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::sandbox::JailFlags;

/// What to do with a template of Open Job Description.
#[derive(Debug, Args)]
pub struct Openjd {
    /// Which
    #[command(subcommand)]
    pub command: OpenjdCommand,
}

/// What to do with a template of Open Job Description.
#[derive(Debug, Subcommand)]
pub enum OpenjdCommand {
    /// Say whether a job template or an environment template is right
    #[command(after_help = "\
Example:
  meshfarm openjd check template.yaml

Exit code 0 when it is, 1 when it is not: the error says where.")]
    Check(OpenjdCheck),

    /// Run a job template in one session on this machine, or through the mesh
    #[command(after_help = "\
Examples:
  meshfarm openjd run template.yaml -p Frames=1-3
  meshfarm openjd run template.yaml -p file://values.json --env farm.yaml --step Render -tp Frame=2
  meshfarm openjd run template.yaml --mesh --where auto

The session runs in a jail, as on any site: it sees the system's programs, the template's folder and the current one \
read-only, what PATH parameters name, and what --read, --write and --software add. It has no network. Exit code 0 when \
everything succeeded, 1 when anything failed.

With --mesh the job goes through the node of --home, and what it prints comes when it has ended.")]
    Run(Box<OpenjdRun>),
}

/// Flags of `openjd check`.
#[derive(Debug, Args)]
pub struct OpenjdCheck {
    /// A job template or an environment template
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// Extensions that it may use, parted by commas; '' for none [default: all that are known]
    #[arg(long, value_name = "NAMES")]
    pub extensions: Option<String>,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "human-readable", value_name = "FORMAT")]
    pub output: ResultFormat,
}

/// Flags of `openjd run`.
#[derive(Debug, Args)]
pub struct OpenjdRun {
    /// The job template
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// The only step to run [default: the only one, or all]
    #[arg(long, value_name = "NAME")]
    pub step: Option<String>,
    /// Job parameters: NAME=VALUE, file://FILE or a JSON object; may be repeated
    #[arg(short, long = "job-param", alias = "parameter", value_name = "VALUES")]
    pub parameters: Vec<String>,
    /// A value of the only task to run, also written -tp; once for each task parameter
    #[arg(long = "task-param", short = 't', value_name = "NAME=VALUE", value_parser = super::parameter,
          conflicts_with_all = ["tasks", "maximum_tasks"])]
    pub task_params: Vec<(String, String)>,
    /// The tasks to run: file://FILE or a JSON list of objects
    #[arg(long, value_name = "LIST", conflicts_with = "maximum_tasks")]
    pub tasks: Option<String>,
    /// At most so many tasks of the step; -1 for all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub maximum_tasks: Option<i64>,
    /// An environment template that stands around the job; may be repeated
    #[arg(long = "environment", alias = "env", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub environments: Vec<PathBuf>,
    /// Path mapping rules: file://FILE or JSON
    #[arg(long, value_name = "RULES")]
    pub path_mapping_rules: Option<String>,
    /// Run the steps that the step depends on before it
    #[arg(long, overrides_with = "no_run_dependencies")]
    pub run_dependencies: bool,
    /// Run the step alone, which is the default
    #[arg(long)]
    pub no_run_dependencies: bool,
    /// Extensions that templates may use, parted by commas; '' for none [default: all that are known]
    #[arg(long, value_name = "NAMES")]
    pub extensions: Option<String>,
    /// Keep the session's working folder, and say where it is
    #[arg(long)]
    pub preserve: bool,
    /// Say more: also what is in force around the session
    #[arg(long)]
    pub verbose: bool,
    /// How moments are printed in front of each line
    #[arg(long, value_enum, default_value = "relative", value_name = "FORMAT")]
    pub timestamp_format: StampFormat,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "human-readable", value_name = "FORMAT")]
    pub output: ResultFormat,
    /// Run it through the node of --home, on whichever sites it chooses
    #[arg(long, conflicts_with_all = ["step", "task_params", "tasks", "maximum_tasks", "preserve", "no_sandbox",
          "policy", "level", "read", "write", "windows", "software"])]
    pub mesh: bool,
    /// Where it may run: local, auto, remote or a site's name [default: as the site says]
    #[arg(long = "where", value_name = "PLACE", value_parser = super::place, requires = "mesh")]
    pub place: Option<String>,
    /// Run it without a jail, as this user, with everything that this user may do
    #[arg(long, conflicts_with_all = ["policy", "level", "read", "write", "windows", "software"])]
    pub no_sandbox: bool,
    /// The jail
    #[command(flatten)]
    pub jail: JailFlags,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResultFormat {
    /// In words
    HumanReadable,
    /// As JSON
    Json,
    /// As YAML, of which JSON is a part
    Yaml,
}

/// How the moment of a line is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StampFormat {
    /// Since the session began
    Relative,
    /// The time of this place
    Local,
    /// The time of Greenwich
    Utc,
}

/// The words of a command line, with `-tp` in the place that its long form has: it is no flag of one letter.
pub fn spell_out(words: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut words: Vec<_> = words.into_iter().collect();
    if let Some(at) = words.iter().position(|word| word == "openjd") {
        let behind = words[at..].iter_mut().take_while(|word| **word != "--");
        behind.filter(|word| **word == "-tp").for_each(|word| *word = "--task-param".into());
    }
    words
}
