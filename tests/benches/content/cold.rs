//! A shot that the other site has never seen, against everything else that can bring it there.

use anyhow::{Context, Result};

use super::files::{Amount, Tree};
use super::job::{Pair, rate};
use super::peers::{self, Brought, Copy, Daemon, Known, Peer, Place, Sendme, Shell, Syncthing};
use crate::table::{Row, Table};

/// Rounds in which each takes its turn. The slowest of the peers takes part in the first.
const ROUNDS: u64 = 3;
const SLOW: &str = "syncthing";

/// Ours, and theirs by name, of each round in which they took part.
type Pairs = Vec<(Brought, Brought)>;

/// Peers that can be had here, and why others cannot.
type Contenders<'a> = (Vec<Box<dyn Peer + 'a>>, Vec<(&'static str, String)>);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let pair = Pair::start()?;
    let place = pair.place();
    let (mut peers, missing) = contenders(place);
    let mut results: Vec<Pairs> = peers.iter().map(|_| Pairs::new()).collect();
    let mut amount = None;
    for round in 0..ROUNDS {
        let folder = pair.folder().join(format!("shot{round}"));
        let tree = Tree::shot(folder.clone(), round, table.scale())?;
        let same = tree.amount()?;
        let ours = pair.bring(&tree)?.brought;
        for (peer, results) in peers.iter_mut().zip(&mut results) {
            if round > 0 && peer.name() == SLOW {
                continue;
            }
            let to = pair.folder().join("there").join(format!("shot{round}"));
            std::fs::create_dir_all(to.parent().context("a folder lies in another")?)?;
            let theirs = peers::bring(peer.as_mut(), place, (&folder, &to), same)?;
            std::fs::remove_dir_all(&to)?;
            results.push((ours, theirs));
        }
        std::fs::remove_dir_all(&folder)?;
        amount = Some(same);
    }
    let amount = amount.context("there was a round")?;
    for (peer, pairs) in peers.iter().zip(&results) {
        report(table, peer.name(), amount, pairs);
    }
    for (name, why) in missing {
        table.add(Row::missing(format!("content.cold.{name}"), why));
    }
    Ok(())
}

fn contenders<'a>(place: Place<'a>) -> Contenders<'a> {
    let mut there: Vec<Box<dyn Peer + 'a>> = vec![Box::new(Copy)];
    let mut missing = Vec::new();
    let mut add = |name, peer: Result<Box<dyn Peer + 'a>>| match peer {
        Ok(peer) => there.push(peer),
        Err(why) => missing.push((name, format!("{why:#}"))),
    };
    add("rsync", Daemon::start(place, Known::Nothing).map(|peer| Box::new(peer) as Box<dyn Peer>));
    add("rsync-ssh", Shell::start(place).map(|peer| Box::new(peer) as Box<dyn Peer>));
    add("sendme", Sendme::find(place).map(|peer| Box::new(peer) as Box<dyn Peer>));
    add(SLOW, Syncthing::start(place).map(|peer| Box::new(peer) as Box<dyn Peer>));
    (there, missing)
}

fn report(table: &mut Table, name: &str, amount: Amount, pairs: &Pairs) {
    let of = |figure: &dyn Fn(&Brought) -> f64| -> Vec<(f64, f64)> {
        pairs.iter().map(|(ours, theirs)| (figure(ours), figure(theirs))).collect()
    };
    let row = Row::ratio(
        format!("content.cold.{name}"),
        "MB/s",
        &of(&|brought| rate(amount, brought.seconds)),
    );
    table.add(match name {
        "sendme" => row.at_least(1.5),
        "rsync-ssh" => row.at_least(1.0),
        _ => row,
    });
    table.add(Row::ratio(
        format!("content.cold.{name}.durable"),
        "MB/s",
        &of(&|brought| rate(amount, brought.durable)),
    ));
    table.add(Row::ratio(
        format!("content.cold.{name}.cpu"),
        "s/GB",
        &of(&|brought| brought.processors / amount.giga()),
    ));
}
