//! Commands and flags about what sites owe each other.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use jiff::civil::Date;

use crate::api::By;

/// What to do with the ledger.
#[derive(Debug, Args)]
pub struct Ledger {
    /// Nothing: show the balance with each site
    #[command(subcommand)]
    pub command: Option<LedgerCommand>,
}

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// List contested receipts with both sides' figures
    #[command(after_help = "Example:\n  meshfarm ledger disputes")]
    Disputes,
    /// Write every receipt with both signatures to a new file, for an auditor
    #[command(after_help = "Example:\n  meshfarm ledger export oslo.ledger")]
    Export(ExportFile),
    /// Check an exported ledger: chains, signatures, sums. It needs no node and no key
    #[command(after_help = "\
Example:
  meshfarm ledger verify oslo.ledger

Exit code 1 when something does not hold: the lines are named. Compare the ids that it prints with those that the \
sites have told you.")]
    Verify(VerifyFile),
}

/// Flags of `ledger export`.
#[derive(Debug, Args)]
pub struct ExportFile {
    /// The file; it must not exist yet
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Flags of `ledger verify`.
#[derive(Debug, Args)]
pub struct VerifyFile {
    /// The file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Flags of `statement`.
#[derive(Debug, Args)]
pub struct Statement {
    /// First day, such as 2026-03-01 [default: the first that there is]
    #[arg(long, value_name = "DAY", value_parser = day)]
    pub from: Option<Date>,
    /// Last day, such as 2026-03-31 [default: today]
    #[arg(long, value_name = "DAY", value_parser = day)]
    pub to: Option<Date>,
    /// Sum up by tenant, site or month [default: every receipt by itself]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub by: Option<By>,
    /// Print comma-separated values
    #[arg(long, conflicts_with_all = ["json", "quiet"])]
    pub csv: bool,
}

fn day(text: &str) -> Result<Date, String> {
    text.parse().map_err(|_no_date| format!("{text:?} is no day: write such as 2026-03-31"))
}
