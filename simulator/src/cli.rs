//! Every subcommand and flag.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use meshfarm_simulator::Bug;

/// Simulate a mesh: many sites in one process, in virtual time, with faults, from one seed.
#[derive(Debug, Parser)]
#[command(
    name = "meshfarm-sim",
    version,
    after_help = "Examples:\n  \
        meshfarm-sim list\n  \
        meshfarm-sim run simulator/scenarios/two_studios.toml --out /tmp/run\n  \
        meshfarm-sim sweep simulator/scenarios --seeds 1..200 --jobs 2\n  \
        meshfarm-sim replay /tmp/run\n\n\
        Exit status: 0 pass, 1 expectation missed, 2 invariant broken, 3 the simulator could not run,\n\
        4 a seed did not repeat its run. Every failure ends with the command that reproduces it."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a scenario once.
    #[command(
        after_help = "Example: meshfarm-sim run simulator/scenarios/flapping_lender.toml --seed 7 --out run7\n\
        then open run7/report.html in a browser"
    )]
    Run(Run),
    /// Run scenarios with many seeds, and say which do not pass.
    #[command(
        after_help = "Example: meshfarm-sim sweep simulator/scenarios --seeds 1..100 --jobs 2 --out failures"
    )]
    Sweep(Sweep),
    /// Run what was run before, show every event, and compare.
    #[command(after_help = "Examples: meshfarm-sim replay run7\n          \
        meshfarm-sim replay simulator/scenarios/two_studios.toml --seed 7 --quiet")]
    Replay(Replay),
    /// Make a failing scenario as small as it can be and still fail in the same way.
    #[command(
        after_help = "Example: meshfarm-sim shrink failures/everything-42 --to simulator/regressions/lost_lease.toml"
    )]
    Shrink(Shrink),
    /// Say how two runs differ.
    #[command(after_help = "Example: meshfarm-sim compare before after")]
    Compare {
        /// The folder of one run.
        one: PathBuf,
        /// The folder of the other.
        other: PathBuf,
        /// Write it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look whether scenario files are right, without running them.
    #[command(
        after_help = "Example: meshfarm-sim check simulator/scenarios --expanded /tmp/plan.toml"
    )]
    Check {
        /// Scenario files or folders of them.
        #[arg(required = true)]
        scenarios: Vec<PathBuf>,
        /// Write the first one with everything drawn and counted out to this file.
        #[arg(long)]
        expanded: Option<PathBuf>,
        /// The seed that draws it.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Take a recorded workload in: SWF or CSV to the CSV that a scenario's `trace` names.
    #[command(
        after_help = "Examples: meshfarm-sim import swf UniLu-Gaia-2014-2.swf --jobs 500 --out gaia.csv\n          \
        meshfarm-sim import csv studio.csv --out studio-small.csv --jobs 200"
    )]
    Import {
        /// What it is: `swf`, or `csv` with the columns submit, run, frames and user.
        format: Format,
        /// The file.
        file: PathBuf,
        /// Where to write it.
        #[arg(long)]
        out: PathBuf,
        /// Leave out so many jobs at the beginning.
        #[arg(long, default_value_t = 0)]
        first: usize,
        /// Take so many jobs.
        #[arg(long, default_value_t = usize::MAX)]
        jobs: usize,
        /// A line of acknowledgement to keep with it.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Say what happened to one job or one of its frames in a run, and why it took so long.
    #[command(after_help = "Example: meshfarm-sim explain run7 --frame 3/12")]
    Explain {
        /// The folder of the run.
        run: PathBuf,
        /// Job and frame: `3/12`, or `3/1/12` with a step; only the job: `3`.
        #[arg(long)]
        frame: String,
    },
    /// List the scenarios of a folder with their purpose, and the states that `sometimes` knows.
    #[command(after_help = "Example: meshfarm-sim list simulator/scenarios")]
    List {
        /// Where.
        #[arg(default_value = "simulator/scenarios")]
        folder: PathBuf,
        /// Write it as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Swf,
    Csv,
}

/// Which defect every site has: to prove that it is seen.
#[derive(Debug, Args)]
pub(crate) struct Defect {
    #[arg(long, hide = true)]
    pub(crate) seeded_bug: Option<Bug>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The scenario's file, or an expanded one.
    pub(crate) scenario: PathBuf,
    /// Everything random follows from it; the file's own unless given.
    #[arg(long, env = "MESHFARM_SIM_SEED")]
    pub(crate) seed: Option<u64>,
    /// Write results to this folder, which must not be there yet.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Write the figures as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Run it twice and compare.
    #[arg(long)]
    pub(crate) twice: bool,
    #[command(flatten)]
    pub(crate) defect: Defect,
}

#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// Scenario files or folders of them.
    #[arg(required = true)]
    pub(crate) scenarios: Vec<PathBuf>,
    /// First and last seed, both included: `1..300`.
    #[arg(long, value_parser = seeds)]
    pub(crate) seeds: RangeInclusive<u64>,
    /// So many runs at a time.
    #[arg(long, default_value_t = 1)]
    pub(crate) jobs: usize,
    /// Keep a folder of each run that does not pass here.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Go on after failures; otherwise each scenario stops at its first.
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Write a line of JSON for each run.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) defect: Defect,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The folder of a run, or a scenario's file.
    pub(crate) run: PathBuf,
    /// The seed that was reported, for a scenario's file.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Say only how it ended.
    #[arg(long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) defect: Defect,
}

#[derive(Debug, Args)]
pub(crate) struct Shrink {
    /// The folder of a run, or a scenario's file.
    pub(crate) run: PathBuf,
    /// The seed that fails, for a scenario's file.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Where to write the smallest scenario.
    #[arg(long)]
    pub(crate) to: PathBuf,
    /// Try at most so many smaller ones.
    #[arg(long, default_value_t = 2000)]
    pub(crate) tries: usize,
    #[command(flatten)]
    pub(crate) defect: Defect,
}

/// More seeds than this are not swept in one go.
const MAX_SEEDS: u64 = 10_000_000;

fn seeds(text: &str) -> anyhow::Result<RangeInclusive<u64>> {
    let (first, last) = text.split_once("..").context("seeds are given as FIRST..LAST")?;
    let (first, last): (u64, u64) = (first.parse()?, last.trim_start_matches('=').parse()?);
    if first > last {
        bail!("the last seed is smaller than the first");
    }
    if last - first >= MAX_SEEDS {
        bail!("{} seeds are more than {MAX_SEEDS}", last - first + 1);
    }
    Ok(first..=last)
}
