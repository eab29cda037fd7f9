//! Commands and flags about the store of chunks.

use clap::{Args, Subcommand};

/// What to do with the store.
#[derive(Debug, Args)]
pub struct Store {
    /// Which
    #[command(subcommand)]
    pub command: StoreCommand,
}

/// What to do with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum StoreCommand {
    /// Show what is in it: by tenant, in use, reclaimable
    #[command(after_help = "Example:\n  meshfarm store stat --json")]
    Stat,
    /// Look at every chunk; damaged ones are forgotten and fetched again
    #[command(after_help = "\
Examples:
  meshfarm store verify
  meshfarm store verify --rebuild

Exit code 1 when a chunk was damaged. The node does the same by itself once a month, slowly.")]
    Verify {
        /// Read the segments without their index first, and index again what it has lost
        #[arg(long)]
        rebuild: bool,
    },
    /// Remove what nobody uses and is old or too much
    #[command(after_help = "\
Examples:
  meshfarm store gc --dry-run
  meshfarm store gc --free 20

The node does the same by itself every ten minutes, and when the disk is nearly full.")]
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Make so many GiB free, also from unused content that is not old yet
        #[arg(long, value_name = "GIB", default_value = "0", hide_default_value = true,
              value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
        free: u32,
    },
}
