//! Many small files, as caches of simulations and trees of sources have them.

use anyhow::{Context, Result};

use super::files::Tree;
use super::job::Pair;
use super::peers::{self, Copy, Daemon, Known, Peer};
use crate::table::{Row, Table};

const FILES: u64 = 60_000;

/// Bytes of each, and the seconds that are wanted of them all.
const SIZES: [(usize, Option<f64>); 2] = [(101, Some(60.0)), (4096, None)];

/// A peer, and seconds of ours and of it.
type Other<'a> = (Box<dyn Peer + 'a>, Vec<(f64, f64)>);

/// Rounds in which each takes its turn.
const ROUNDS: u64 = 2;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let pair = Pair::start()?;
    let place = pair.place();
    let n_files = table.scale().of(FILES);
    for (bytes, most) in SIZES {
        let (mut ours, mut processors) = (Vec::new(), Vec::new());
        let mut others: Vec<Other> = vec![(Box::new(Copy), Vec::new())];
        match Daemon::start(place, Known::Nothing) {
            Ok(daemon) => others.push((Box::new(daemon), Vec::new())),
            Err(why) => {
                table.add(Row::missing(format!("content.small.{bytes}.rsync"), format!("{why:#}")))
            }
        }
        for round in 0..ROUNDS {
            let name = format!("small{bytes}.{round}");
            let tree = Tree::small(pair.folder().join(&name), round, (n_files, bytes))?;
            let sent = pair.bring(&tree)?;
            for (peer, pairs) in &mut others {
                let to = pair.folder().join("there").join(&name);
                std::fs::create_dir_all(to.parent().context("a folder lies in another")?)?;
                let theirs =
                    peers::bring(peer.as_mut(), place, (&tree.folder, &to), tree.amount()?)?;
                pairs.push((sent.brought.seconds, theirs.seconds));
                std::fs::remove_dir_all(to)?;
            }
            processors.push(sent.brought.processors);
            ours.push(sent.brought.seconds);
            std::fs::remove_dir_all(&tree.folder)?;
        }
        let name = format!("content.small.{bytes}");
        let row = Row::alone(name.clone(), crate::table::percentile(&ours, 50), "s");
        table.add(match most {
            Some(most) => row.at_most(most),
            None => row,
        });
        let processors = crate::table::percentile(&processors, 50);
        table.add(Row::alone(format!("{name}.cpu"), processors, "s"));
        for (peer, pairs) in &others {
            table.add(Row::ratio(format!("{name}.{}", peer.name()), "s", pairs));
        }
    }
    Ok(())
}
