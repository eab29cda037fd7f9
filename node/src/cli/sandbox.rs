//! Flags of `meshfarm sandbox`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

/// What to do with the sandbox.
#[derive(Debug, Args)]
pub struct Sandbox {
    /// Which
    #[command(subcommand)]
    pub command: SandboxCommand,
}

/// What to do with the sandbox.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Run any command in a jail of its own
    #[command(after_help = "\
Examples:
  meshfarm sandbox run -- python3 unknown.py
  meshfarm sandbox run --write frames -- povray scene.pov +Oframes/
  meshfarm sandbox run --policy show.toml --report -- /opt/blender/blender -b shot.blend -a
  meshfarm sandbox run --windows 'S:\\show=/srv/show' -- povray scene.pov

The command sees the system's programs, the current folder read-only at its own path, /session as a fresh private \
folder, and what the flags or the policy name. It has no network. Its exit code is passed on; 137 when a limit ended \
it, which is said. Ctrl-C ends it and everything that it has started.

As root the command gets a user of its own: it reads what every user may read, and --write folders are lent to it \
while it runs. sandbox/policies/ has a policy for each kind of renderer, with a word on every key.")]
    Run(SandboxRun),

    /// Attack this machine's own sandbox, and say what held
    #[command(after_help = "\
Examples:
  meshfarm sandbox check
  meshfarm sandbox check --all
  meshfarm sandbox check --level S3 --only files --json

Each attack is one act in a jail of its own, and is judged from outside: nothing of the machine is harmed. Takes a \
minute or two. Exit code 1 when anything broke; report that, please.")]
    Check(SandboxCheck),
}

/// Flags of `sandbox check`.
#[derive(Debug, Args)]
pub struct SandboxCheck {
    /// The isolation to attack [default: S2]
    #[arg(long, value_enum, value_name = "LEVEL", ignore_case = true)]
    pub level: Option<IsolationLevel>,
    /// Only attacks whose name contains this
    #[arg(long, value_name = "WORD")]
    pub only: Option<String>,
    /// List every attack, and not only what did not hold
    #[arg(long)]
    pub all: bool,
}

/// Flags of `sandbox run`.
#[derive(Debug, Args)]
pub struct SandboxRun {
    /// The jail
    #[command(flatten)]
    pub jail: JailFlags,
    /// Say on standard error what is in force
    #[arg(long)]
    pub report: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

/// What a jail is to be, and what it shows.
#[derive(Debug, Default, Args)]
pub struct JailFlags {
    /// A policy in TOML: folders, limits, services, graphics cards, what must hold
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,
    /// The isolation that is asked for; S3 adds a disk of its own [default: S2, or as the policy says]
    #[arg(long, value_enum, value_name = "LEVEL", ignore_case = true)]
    pub level: Option<IsolationLevel>,
    /// A further file or folder to show, read-only; may be repeated
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub read: Vec<PathBuf>,
    /// A folder that it may change, made if need be; may be repeated
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub write: Vec<PathBuf>,
    /// A Windows path and the folder that it stands for, such as S:\show=/srv/show; may be repeated
    #[arg(long, value_name = "SOURCE=DIR", value_parser = drive)]
    pub windows: Vec<(String, PathBuf)>,
    /// A folder outside of /usr whose programs may run; may be repeated
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub software: Vec<PathBuf>,
}

/// A level of isolation that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum IsolationLevel {
    /// Own namespaces, Landlock, seccomp, no capabilities
    S2,
    /// As S2, with a control group and a disk of its own
    S3,
}

fn drive(text: &str) -> Result<(String, PathBuf), String> {
    let wanted = "a Windows path and a folder are wanted, such as S:\\show=/srv/show";
    let (source, folder) = text.split_once('=').ok_or(wanted)?;
    let bytes = source.as_bytes();
    let slash = |at: usize| matches!(bytes.get(at), Some(b'\\' | b'/'));
    let is_drive = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.get(1) == Some(&b':')
        && slash(2);
    if folder.is_empty() || !(is_drive || (slash(0) && slash(1) && bytes.len() > 4)) {
        return Err(wanted.to_owned());
    }
    Ok((source.to_owned(), folder.into()))
}
