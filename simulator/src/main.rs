//! The program `meshfarm-sim`: run a scenario once, with many seeds, or again with every event shown.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use meshfarm_simulator::{Report, Scenario, Verdict, run};

/// Exit status when the simulator itself could not do what was asked.
const HARNESS_ERROR: u8 = 3;

/// Simulate a mesh: many sites in one process, in virtual time, with faults, from one seed.
#[derive(Debug, Parser)]
#[command(
    name = "meshfarm-sim",
    version,
    after_help = "Examples:\n  \
        meshfarm-sim run simulator/scenarios/three_sites.toml\n  \
        meshfarm-sim run simulator/scenarios/cut_line.toml --seed 7 --json\n  \
        meshfarm-sim sweep simulator/scenarios/kill_lender.toml --seeds 1..300\n  \
        meshfarm-sim replay simulator/scenarios/kill_lender.toml --seed 42\n\n\
        Exit status: 0 pass, 1 expectation missed, 2 invariant broken, 3 the simulator could not run."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario once.
    Run {
        /// The scenario's file.
        scenario: PathBuf,
        /// Everything random follows from it.
        #[arg(long, default_value_t = 1, env = "MESHFARM_SIM_SEED")]
        seed: u64,
        /// Write the report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a scenario with many seeds, and stop at the first that does not pass.
    Sweep {
        /// The scenario's file.
        scenario: PathBuf,
        /// First and last seed, both included: `1..300`.
        #[arg(long, value_parser = seeds)]
        seeds: RangeInclusive<u64>,
    },
    /// Run a scenario once and show every event.
    Replay {
        /// The scenario's file.
        scenario: PathBuf,
        /// The seed that was reported.
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(help) => {
            let code = if help.use_stderr() { HARNESS_ERROR } else { 0 };
            return match help.print() {
                Ok(()) => ExitCode::from(code),
                Err(_closed) => ExitCode::from(HARNESS_ERROR),
            };
        }
    };
    match perform(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(HARNESS_ERROR)
        }
    }
}

fn perform(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Run { scenario, seed, json } => {
            let report = run(&read(&scenario)?, seed, None);
            if json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                println!("{report}");
            }
            Ok(finish(&report, &scenario))
        }
        Command::Sweep { scenario, seeds } => {
            let parsed = read(&scenario)?;
            let (first, last) = (*seeds.start(), *seeds.end());
            for seed in seeds {
                let report = run(&parsed, seed, None);
                if report.verdict != Verdict::Pass {
                    println!("{report}");
                    return Ok(finish(&report, &scenario));
                }
            }
            println!("{}: seeds {first} to {last} pass", parsed.name);
            Ok(0)
        }
        Command::Replay { scenario, seed } => {
            let mut show = |line: &str| println!("{line}");
            let report = run(&read(&scenario)?, seed, Some(&mut show));
            println!("{report}");
            Ok(finish(&report, &scenario))
        }
    }
}

/// The exit status; every failure ends with the one command that repeats it.
fn finish(report: &Report, scenario: &Path) -> u8 {
    if report.verdict != Verdict::Pass {
        let (path, seed) = (scenario.display(), report.seed);
        eprintln!("reproduce: meshfarm-sim replay {path} --seed {seed}");
    }
    report.verdict.exit_code()
}

fn read(path: &Path) -> anyhow::Result<Scenario> {
    let named = || format!("{}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    Scenario::parse(&text).with_context(named)
}

fn seeds(text: &str) -> anyhow::Result<RangeInclusive<u64>> {
    let (first, last) = text.split_once("..").context("seeds are given as FIRST..LAST")?;
    let (first, last) = (first.parse()?, last.trim_start_matches('=').parse()?);
    if first > last {
        bail!("the last seed is smaller than the first");
    }
    Ok(first..=last)
}
