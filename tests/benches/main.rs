//! Measures the built programs as real processes, room by room: `tests/bench.sh` runs it, `RESULTS.md` keeps what it said.

mod content;
mod demo;
mod node;
mod sites;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use table::Table;

/// What measures a room, and adds each row as soon as it is known.
type Room = fn(&mut Table) -> Result<()>;

/// Every room, in the order of a full run. Those without a measure are not built yet.
const ROOMS: [(&str, Option<Room>); 8] = [
    ("node", Some(node::measure)),
    ("demo", Some(demo::measure)),
    ("content", Some(content::measure)),
    ("sandbox", None),
    ("farm", None),
    ("trust", None),
    ("sim", None),
    ("people", None),
];

fn main() -> ExitCode {
    // Cargo adds `--bench` to the arguments of every benchmark.
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let rooms = match chosen(&asked) {
        Ok(rooms) => rooms,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let mut table = Table::begin();
    for (name, measure) in rooms {
        if let Err(error) = measure(&mut table) {
            eprintln!("error: {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    table.end();
    ExitCode::SUCCESS
}

/// The rooms of these names; all that are built when none is named.
fn chosen(asked: &[String]) -> Result<Vec<(&'static str, Room)>, String> {
    let built = ROOMS.iter().filter_map(|(name, room)| room.map(|room| (*name, room)));
    if asked.is_empty() {
        return Ok(built.collect());
    }
    let find = |name: &String| match ROOMS.iter().find(|(known, _)| known == name) {
        Some((known, Some(room))) => Ok((*known, *room)),
        Some((known, None)) => Err(format!("{known} has no measurements yet")),
        None => {
            let names: Vec<_> = ROOMS.iter().map(|(name, _)| *name).collect();
            Err(format!("{name} is no room to measure: there are {}", names.join(", ")))
        }
    };
    asked.iter().map(find).collect()
}
