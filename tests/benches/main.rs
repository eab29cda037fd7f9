//! Measures the built programs as real processes, room by room: `tests/bench.sh` runs it, `RESULTS.md` keeps what it said.

mod content;
mod demo;
mod farm;
mod node;
mod sandbox;
mod sim;
mod sites;
mod table;
mod trust;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use table::{Row, Scale, Table};

/// What measures a part of a room, and adds each row as soon as it is known.
type Measure = fn(&mut Table) -> Result<()>;

/// A part of a room by its name, which is the beginning of its rows' names behind the room's.
type Part = (&'static str, Measure);

/// A room and its parts, in the order of a full run. Those without parts are not measured yet.
const ROOMS: [(&str, &[Part]); 8] = [
    ("node", &[("all", node::measure)]),
    ("demo", &[("all", demo::measure)]),
    ("content", &content::PARTS),
    ("sandbox", &sandbox::PARTS),
    ("farm", &farm::PARTS),
    ("trust", &trust::PARTS),
    ("sim", &sim::PARTS),
    ("people", &[]),
];

/// What a run leaves out unless it is named: it takes longer than everything else.
const ONLY_BY_NAME: [&str; 1] = ["content.memory"];

/// Names a factor for the sizes of what is moved, for a quick try.
const SCALE: &str = "MESHFARM_BENCH_SCALE";

fn main() -> ExitCode {
    // Cargo adds `--bench` to the arguments of every benchmark.
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [word, folder] = asked.as_slice()
        && word == sandbox::INSIDE
    {
        sandbox::inside(folder);
        return ExitCode::SUCCESS;
    }
    if let Ok(sessions) = std::env::var(farm::SESSIONS) {
        return farm::node(&sessions);
    }
    let (parts, scale) = match chosen(&asked).and_then(|parts| Ok((parts, scale()?))) {
        Ok(chosen) => chosen,
        Err(why) => {
            eprintln!("error: {why:#}");
            return ExitCode::from(2);
        }
    };
    let mut table = Table::begin(scale);
    let mut broken = false;
    for (name, measure) in parts {
        if let Err(error) = measure(&mut table) {
            eprintln!("error: {name}: {error:#}");
            table.add(Row::missing(name, format!("{error:#}")));
            broken = true;
        }
    }
    table.end();
    if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The parts of these names, each a room or a room and a part with a dot between; nearly all when none is named.
fn chosen(asked: &[String]) -> Result<Vec<(String, Measure)>> {
    let of = |(room, parts): &(&str, &[Part])| -> Vec<(String, Measure)> {
        parts.iter().map(|(part, measure)| (format!("{room}.{part}"), *measure)).collect()
    };
    let usual = |(name, _): &(String, Measure)| !ONLY_BY_NAME.contains(&name.as_str());
    if asked.is_empty() {
        return Ok(ROOMS.iter().flat_map(of).filter(usual).collect());
    }
    let mut all = Vec::new();
    for name in asked {
        let (room, part) = name.split_once('.').unwrap_or((name, ""));
        let found = ROOMS.iter().find(|(known, _)| *known == room).with_context(|| {
            let names: Vec<_> = ROOMS.iter().map(|(name, _)| *name).collect();
            format!("{room} is no room to measure: there are {}", names.join(", "))
        })?;
        let parts = of(found);
        ensure!(!parts.is_empty(), "{room} has no measurements yet");
        if part.is_empty() {
            all.extend(parts.into_iter().filter(usual));
        } else {
            let names: Vec<_> = parts.iter().map(|(name, _)| name.clone()).collect();
            let found = parts.into_iter().find(|(known, _)| known == name);
            all.push(found.with_context(|| {
                format!("{name} is no part of a room: there are {}", names.join(", "))
            })?);
        }
    }
    Ok(all)
}

/// What sizes are multiplied with.
fn scale() -> Result<Scale> {
    let Ok(text) = std::env::var(SCALE) else {
        return Ok(Scale::WHOLE);
    };
    let scale = text.parse().ok().and_then(Scale::new);
    scale.with_context(|| format!("{SCALE} is {text}: a number from 0.001 to 10 is wanted"))
}
