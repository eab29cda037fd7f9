//! Flags of the commands about the machines of a site, and of its backup.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

/// A backup.
#[derive(Debug, Args)]
pub struct BackupFile {
    /// The file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// What to do with hosts.
#[derive(Debug, Args)]
pub struct Hosts {
    /// Nothing: list them
    #[command(subcommand)]
    pub command: Option<HostsCommand>,
}

/// What to do with a host.
#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// Let a host end what it runs and give it nothing more
    #[command(after_help = "\
Example:
  meshfarm hosts stop render01

It stays stopped when the head is started again. What waits there goes to other machines.")]
    Stop(HostArg),
    /// Give tasks to a host again
    #[command(after_help = "Example:\n  meshfarm hosts start render01")]
    Start(HostArg),
    /// Strike a host off the list; it can join again with a new ticket
    #[command(after_help = "\
Example:
  meshfarm hosts remove render01

What it runs is rendered again elsewhere: stop it first and wait where that matters.")]
    Remove(HostArg),
}

/// A host.
#[derive(Debug, Args)]
pub struct HostArg {
    /// Name of the host, or its id or the beginning of that
    #[arg(value_name = "HOST")]
    pub host: String,
}
