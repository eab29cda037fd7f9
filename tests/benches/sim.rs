//! The simulator: how long a day of ten thousand sites takes, and how soon a farm that was idle is full.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Part;
use crate::table::{Row, Table};

/// The parts of this room.
pub(crate) const PARTS: [Part; 2] = [("day", day), ("fill", fill)];

/// When the work of the idle farm is submitted and how long each frame runs, in milliseconds, as its scenario says.
const FILL: (u64, u64) = (20_000, 300_000);

/// A large scenario's figures, and the processor time that it took, in seconds.
fn run(scenario: &str) -> Result<(Value, f64)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let file = format!("{root}/simulator/scenarios/large/{scenario}.toml");
    let folder =
        std::env::var("MESHFARM_PROGRAMS").context("MESHFARM_PROGRAMS names the programs")?;
    let before = children()?;
    let ran = Command::new(format!("{folder}/meshfarm-sim"))
        .args(["run", &file, "--json"])
        .env_remove("MESHFARM_SIM_SEED")
        .output()
        .context("meshfarm-sim cannot be started")?;
    let took = children()? - before;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{scenario}: {}", said.lines().next().unwrap_or("it failed"));
    Ok((serde_json::from_slice(&ran.stdout)?, took))
}

/// Processor time of this process's children that have ended, in seconds.
fn children() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may have spaces; user and system time of children are fields 16 and 17.
    let after = stat.rsplit_once(") ").context("no process has no name")?.1;
    let ticks = after.split(' ').skip(13).take(2).map(str::parse::<f64>);
    let ticks: f64 = ticks.collect::<Result<Vec<_>, _>>()?.iter().sum();
    // Linux tells them in hundredths of a second on every machine that we know.
    Ok(ticks / 100.0)
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or(f64::NAN)
}

fn day(table: &mut Table) -> Result<()> {
    let (figures, took) = run("a_day_of_ten_thousand")?;
    let note = format!(
        "{} sites, {} jobs, {} frames; sites that have nothing to do sleep",
        figures["sites"], figures["jobs"][0], figures["frames"][0]
    );
    table.add(Row::alone("sim.day.cpu", took, "s").at_most(60.0).note(note));
    let inputs = figures["events"][1].as_f64().unwrap_or(f64::NAN);
    table.add(
        Row::alone("sim.day.inputs", inputs / took, "inputs/s")
            .note("inputs of cores for each second of one core"),
    );
    let profiles = figures["profiles"][1].as_f64().unwrap_or(f64::NAN);
    table.add(
        Row::alone("sim.day.profiles", profiles / number(&figures, "sites"), "profiles")
            .note("heard by each site in a day"),
    );
    Ok(())
}

fn fill(table: &mut Table) -> Result<()> {
    let (figures, took) = run("a_farm_from_idle")?;
    let (submitted, frame) = FILL;
    let full = number(&figures, "makespan_ms") - (submitted + frame) as f64;
    let note = "simulated, from submission until the last of 57,461 slots has begun, and what its frame needs to be home";
    table.add(Row::alone("sim.fill.time", full / 1000.0, "s").at_most(10.0).note(note));
    table.add(
        Row::alone("sim.fill.cpu", took, "s")
            .at_most(10.0)
            .note("of one real core, all sites together, with all frames"),
    );
    Ok(())
}
