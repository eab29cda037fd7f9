//! What opening, looking at and missing a file costs, by sandbox: measured by this very program inside of each.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use meshfarm_sandbox::{Level, WindowsRule};

use super::ours::{Room, SHOW, timed};
use crate::table::{Row, Table};

/// The argument that makes this program measure calls and print them.
pub(crate) const INSIDE: &str = "--calls-inside";

/// Batches, of which the fastest counts: others use the machine too.
const BATCHES: usize = 60;
/// Calls of a batch.
const CALLS: usize = 500;
/// Rounds over all sandboxes.
const ROUNDS: usize = 5;

/// Nanoseconds of one call each.
#[derive(Clone, Copy, Debug)]
struct Cost {
    stat: f64,
    open: f64,
    missing: f64,
}

/// Measure in this process, with the files of this folder, and print the three figures.
pub(crate) fn inside(folder: &str) {
    let known = format!("{folder}/a/b/c/texture.png");
    let unknown = format!("{folder}/a/b/c/none.png");
    let stat = fastest(|| drop(black_box(fs::metadata(&known))));
    let open = fastest(|| drop(black_box(File::open(&known))));
    let missing = fastest(|| drop(black_box(fs::metadata(&unknown))));
    println!("{stat} {open} {missing}");
}

fn fastest(call: impl Fn()) -> f64 {
    let batch = || {
        let began = Instant::now();
        (0..CALLS).for_each(|_| call());
        began.elapsed().as_secs_f64() * 1e9 / CALLS as f64
    };
    (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min)
}

fn read(said: &str) -> Result<Cost> {
    let mut figures = said.split_whitespace().map(str::parse::<f64>);
    let mut next = || figures.next().context("three figures")?.context("a figure");
    Ok(Cost { stat: next()?, open: next()?, missing: next()? })
}

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    fs::create_dir_all(room.show().join("a/b/c"))?;
    fs::write(room.show().join("a/b/c/texture.png"), [7; 4096])?;
    let me = std::env::current_exe()?;
    let program = me.to_str().context("a path of text")?;
    let plain = |room: &Room| timed(Command::new(&me).args([INSIDE]).arg(room.show()));
    let jailed = |preload: bool, windows: bool| {
        let folder = if windows { r"S:\Show" } else { SHOW };
        let mut spec = room.spec(program, &[INSIDE, folder], Level::S2);
        if windows {
            let source = r"S:\show".to_owned();
            spec.windows = vec![WindowsRule { source, at: SHOW.into(), case_insensitive: true }];
        }
        if !preload {
            spec.preload = None;
        }
        room.jailed(&spec)
    };
    let mut rows: [(&str, Vec<(Cost, Cost)>); 5] =
        ["jail", "preload", "windows", "bubblewrap", "proot"].map(|name| (name, Vec::new()));
    for _ in 0..ROUNDS {
        let native = read(&plain(&room)?.1)?;
        let beside = |command: Option<Command>| -> Result<Option<Cost>> {
            let Some(mut command) = command else {
                return Ok(None);
            };
            let around = Path::new(program).parent().context("a folder")?;
            if command.get_program().to_string_lossy().ends_with("bwrap") {
                command.arg("--ro-bind").arg(around).arg(around);
            }
            Ok(Some(read(&timed(command.arg(&me).args([INSIDE, SHOW]))?.1)?))
        };
        let all = [
            Some(read(&jailed(false, false)?.1)?),
            Some(read(&jailed(true, false)?.1)?),
            Some(read(&jailed(true, true)?.1)?),
            beside(room.bubblewrap())?,
            beside(room.proot())?,
        ];
        for ((_, costs), found) in rows.iter_mut().zip(all) {
            costs.extend(found.map(|found| (found, native)));
        }
    }
    for (name, costs) in &rows {
        add(table, name, costs);
    }
    Ok(())
}

fn add(table: &mut Table, name: &str, costs: &[(Cost, Cost)]) {
    if costs.is_empty() {
        table.add(Row::missing(format!("sandbox.calls.{name}"), "it is not installed"));
        return;
    }
    let targets = match name {
        "jail" => [Some(1.15), Some(1.5), Some(1.3)],
        "preload" => [Some(1.2), Some(1.55), Some(1.4)],
        _ => [None; 3],
    };
    for (n, (kind, target)) in ["stat", "open", "missing"].into_iter().zip(targets).enumerate() {
        let of = |cost: &Cost| [cost.stat, cost.open, cost.missing][n];
        let pairs: Vec<_> = costs.iter().map(|(ours, native)| (of(ours), of(native))).collect();
        let row = Row::ratio(format!("sandbox.calls.{name}.{kind}"), "ns", &pairs);
        table.add(match target {
            Some(most) => row.at_most(most),
            None => row,
        });
    }
}
