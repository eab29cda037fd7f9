//! The same shot a day later: what travels, and how long it takes.

use anyhow::Result;

use super::files::Tree;
use super::job::Pair;
use super::peers::{self, Brought, Daemon, Known, Peer, Sendme};
use crate::table::{Row, Table};

/// What happened to the shot, and what does it.
type Change = (&'static str, fn(&mut Tree) -> Result<()>);

const CHANGES: [Change; 3] =
    [("edit", Tree::edit), ("insert", Tree::insert), ("rename", Tree::rename)];

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let pair = Pair::start()?;
    let place = pair.place();
    let mut tree = Tree::shot(pair.folder().join("shot"), 100, table.scale())?;
    pair.bring(&tree)?;
    let there = pair.folder().join("there");
    std::fs::create_dir_all(&there)?;
    let mut rsync = Daemon::start(place, Known::Earlier);
    if let Ok(rsync) = &mut rsync {
        peers::bring(rsync, place, (&tree.folder, &there.join("shot")), tree.amount()?)?;
    }
    let mut sendme = Sendme::find(place);
    for (change, make) in CHANGES {
        make(&mut tree)?;
        let amount = tree.amount()?;
        let sent = pair.bring(&tree)?;
        let name = format!("content.again.{change}");
        let share = 100.0 * sent.travelled() / amount.bytes as f64;
        let row = Row::alone(format!("{name}.bytes"), share, "%").at_most(3.0);
        table.add(row.note(sent.by_whom()));
        table.add(Row::alone(
            format!("{name}.cpu"),
            sent.brought.processors / amount.giga(),
            "s/GB",
        ));
        let (ours, whole) = (sent.brought, sent.whole);
        let against = |peer: &mut dyn Peer, to: &str| -> Result<Brought> {
            peers::bring(peer, place, (&tree.folder, &there.join(to).join("shot")), amount)
        };
        let theirs = match &mut sendme {
            Ok(peer) => {
                std::fs::create_dir_all(there.join("sendme"))?;
                let theirs = against(peer, "sendme");
                std::fs::remove_dir_all(there.join("sendme"))?;
                theirs.map_err(|why| format!("{why:#}"))
            }
            Err(why) => Err(format!("{why:#}")),
        };
        let rows = [("sendme", ours.seconds), ("sendme.whole", whole)];
        for (row, seconds) in rows {
            let row = format!("{name}.{row}");
            table.add(match &theirs {
                Ok(theirs) => {
                    let ours = Brought { seconds, ..ours };
                    faster(row, (ours, *theirs), amount.bytes).at_least(20.0)
                }
                Err(why) => Row::missing(row, why.clone()).at_least(20.0),
            });
        }
        match &mut rsync {
            Ok(peer) => {
                let theirs = against(peer, "")?;
                table.add(faster(format!("{name}.rsync"), (ours, theirs), amount.bytes));
            }
            Err(why) => table.add(Row::missing(format!("{name}.rsync"), format!("{why:#}"))),
        }
    }
    Ok(())
}

/// Times as rates of the whole, so that more is better, and how much of it they sent.
fn faster(name: String, (ours, theirs): (Brought, Brought), bytes: u64) -> Row {
    let rate = |brought: Brought| bytes as f64 / 1e6 / brought.seconds;
    let row = Row::ratio(name, "MB/s", &[(rate(ours), rate(theirs))]);
    let sent = theirs.wire.map(|wire| format!("; it sent {:.2} %", 100.0 * wire / bytes as f64));
    row.note(format!(
        "{:.2} s, it took {:.2} s{}",
        ours.seconds,
        theirs.seconds,
        sent.unwrap_or_default()
    ))
}
