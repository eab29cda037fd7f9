//! How long it takes from asking for a jail until its program has run, and from asking for its end until nothing is left.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use meshfarm_sandbox::{Level, launch};

use super::ours::{Room, timed};
use crate::table::{Row, Table, percentile};

/// Starts of each kind, one of each in turn.
const ROUNDS: usize = 100;

const TRUE: &str = "/usr/bin/true";

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    let (mut plain, mut ours, mut own_disk, mut bwrap, mut ends) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut cpu = 0.0;
    let strongest = room.jailed(&room.spec(TRUE, &[], Level::S3)).is_ok();
    for _ in 0..ROUNDS {
        let outside = timed(&mut Command::new(TRUE))?.0;
        let inside = room.jailed(&room.spec(TRUE, &[], Level::S2))?.0;
        plain.push(1e3 * outside.wall);
        ours.push(1e3 * inside.wall);
        cpu += inside.cpu - outside.cpu;
        if strongest {
            own_disk.push(1e3 * room.jailed(&room.spec(TRUE, &[], Level::S3))?.0.wall);
        }
        if let Some(mut command) = room.bubblewrap() {
            bwrap.push(1e3 * timed(command.arg(TRUE))?.0.wall);
        }
        let mut jail = launch(&room.launcher(), &room.spec("/usr/bin/sleep", &["60"], Level::S2))?;
        let began = Instant::now();
        jail.kill()?;
        ends.push(1e3 * began.elapsed().as_secs_f64());
    }
    let over = |times: &[f64]| percentile(times, 50) - percentile(&plain, 50);
    let row = Row::alone("sandbox.start.over-plain", over(&ours), "ms").at_most(15.0);
    table.add(row.note("start, run and end of `true`, S2, less the same without a jail"));
    let each = 1e3 * cpu / ROUNDS as f64;
    table.add(Row::alone("sandbox.start.cpu", each, "ms").note("of processors, as the first row"));
    table.add(Row::alone("sandbox.start.p99", percentile(&ours, 99), "ms"));
    let pairs = |with: &[f64]| ours.iter().copied().zip(with.iter().copied()).collect::<Vec<_>>();
    if bwrap.is_empty() {
        table.add(Row::missing("sandbox.start.bubblewrap", "bwrap is not installed"));
    } else {
        table.add(Row::ratio("sandbox.start.bubblewrap", "ms", &pairs(&bwrap)));
    }
    if strongest {
        table.add(Row::alone("sandbox.start.own-disk", over(&own_disk), "ms").note("S3"));
    } else {
        table.add(Row::missing("sandbox.start.own-disk", "level S3 cannot be had here"));
    }
    table.add(Row::alone("sandbox.end", percentile(&ends, 50), "ms").at_most(20.0));
    Ok(())
}
