//! A shot that the other site has never seen, against everything else that can bring it there.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::files::{Amount, Tree};
use super::job::{Pair, rate};
use super::peers::{self, Brought, Copy, Daemon, Known, Peer, Place, Sendme, Shell, Syncthing};
use crate::table::{Row, Scale, Table};

/// Rounds in which each takes its turn, with new sites. The slowest of the peers takes part in the first.
const ROUNDS: u64 = 3;
const SLOW: &str = "syncthing";

/// Peers by name, or why one cannot be had here.
type Contenders<'a> = Vec<(&'static str, Result<Box<dyn Peer + 'a>>)>;

/// Ours, and that of each peer by name.
type Round = (Brought, BTreeMap<&'static str, Result<Brought, String>>);

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let mut rounds = Vec::new();
    let mut amount = None;
    for number in 0..ROUNDS {
        let (moved, results) = round(number, table.scale())?;
        amount = Some(moved);
        rounds.push(results);
    }
    let amount = amount.context("there was a round")?;
    for name in ["copy", "rsync", "rsync-ssh", "sendme", SLOW] {
        report(table, name, amount, &rounds);
    }
    Ok(())
}

fn round(number: u64, scale: Scale) -> Result<(Amount, Round)> {
    let pair = Pair::start()?;
    let place = pair.place();
    let name = format!("shot{number}");
    let tree = Tree::shot(pair.folder().join(&name), number, scale)?;
    let amount = tree.amount()?;
    let ours = pair.bring(&tree)?.brought;
    let there = pair.folder().join("there");
    fs::create_dir_all(&there)?;
    let to = there.join(&name);
    let mut results = BTreeMap::new();
    for (name, peer) in contenders(place) {
        if number > 0 && name == SLOW {
            continue;
        }
        let brought = peer
            .and_then(|mut peer| peers::bring(peer.as_mut(), place, (&tree.folder, &to), amount));
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        results.insert(name, brought.map_err(|why| format!("{why:#}")));
    }
    Ok((amount, (ours, results)))
}

/// The peers that can be had here, and why others cannot.
fn contenders<'a>(place: Place<'a>) -> Contenders<'a> {
    let daemon = Daemon::start(place, Known::Nothing);
    let shell = Shell::start(place);
    let sendme = Sendme::find(place);
    let syncthing = Syncthing::start(place);
    vec![
        ("copy", Ok(Box::new(Copy))),
        ("rsync", daemon.map(|peer| Box::new(peer) as Box<dyn Peer>)),
        ("rsync-ssh", shell.map(|peer| Box::new(peer) as Box<dyn Peer>)),
        ("sendme", sendme.map(|peer| Box::new(peer) as Box<dyn Peer>)),
        (SLOW, syncthing.map(|peer| Box::new(peer) as Box<dyn Peer>)),
    ]
}

fn report(table: &mut Table, name: &str, amount: Amount, rounds: &[Round]) {
    let mut pairs = Vec::new();
    let mut missing = None;
    for (ours, theirs) in rounds {
        match theirs.get(name) {
            Some(Ok(theirs)) => pairs.push((ours, theirs)),
            Some(Err(why)) => missing = Some(why.clone()),
            None => {}
        }
    }
    let wanted = |row: Row| match name {
        "sendme" => row.at_least(1.5),
        "rsync-ssh" => row.at_least(1.0),
        _ => row,
    };
    let row = format!("content.cold.{name}");
    if let Some(why) = missing {
        table.add(wanted(Row::missing(row, why)));
        return;
    }
    let of = |figure: &dyn Fn(&Brought) -> f64| -> Vec<(f64, f64)> {
        pairs.iter().map(|(ours, theirs)| (figure(ours), figure(theirs))).collect()
    };
    let rates = of(&|brought| rate(amount, brought.seconds));
    let durable = of(&|brought| rate(amount, brought.durable));
    let costs = of(&|brought| brought.processors / amount.giga());
    table.add(wanted(Row::ratio(row.clone(), "MB/s", &rates)));
    table.add(Row::ratio(format!("{row}.durable"), "MB/s", &durable));
    table.add(Row::ratio(format!("{row}.cpu"), "s/GB", &costs));
}
