//! What goes wrong and when: kills, kill points and cut lines, drawn from the seed.

use meshfarm_protocol::id::Millis;

use crate::scenario::{FaultKind, Scenario};
use crate::streams::Streams;

/// How many outputs of one input a kill point lets through at most.
const MOST_OUTPUTS: u64 = 6;

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The node dies, and starts again after a while.
    Kill { site: usize, down: Millis },
    /// The node dies after so many further outputs, and starts again after a while.
    KillPoint { site: usize, outputs: u64, down: Millis },
    /// Lines are cut for a while.
    Cut { pairs: Vec<(usize, usize)>, down: Millis },
}

/// Every fault of a run with its moment.
pub(crate) fn draw(scenario: &Scenario, streams: Streams) -> Vec<(Millis, Fault)> {
    let names = scenario.names();
    let position = |name: &String| {
        let found = names.iter().position(|known| known == name);
        found.expect("names were checked when the scenario was read")
    };
    let mut faults = Vec::new();
    for (n, entry) in (0u64..).zip(&scenario.fault) {
        let site = position(&entry.site);
        for time in 0..u64::from(entry.times) {
            let draw = |what, [low, high]: [u64; 2]| {
                Millis(streams.between(what, (n, time), [low * 1000, high * 1000]))
            };
            let (at, down) = (draw("fault at", entry.at_s), draw("fault for", entry.for_s));
            let fault = match entry.kind {
                FaultKind::Kill => Fault::Kill { site, down },
                FaultKind::KillPoint => {
                    let outputs = streams.between("kill point", (n, time), [0, MOST_OUTPUTS]);
                    Fault::KillPoint { site, outputs, down }
                }
                FaultKind::Cut => {
                    let others: Vec<_> = match &entry.other {
                        Some(other) => vec![position(other)],
                        None => (0..names.len()).filter(|other| *other != site).collect(),
                    };
                    let pairs = others.into_iter().map(|other| (site, other)).collect();
                    Fault::Cut { pairs, down }
                }
            };
            faults.push((at, fault));
        }
    }
    faults
}
