//! Every attack where the layer that is meant to stop it is missing: all of them are seen to succeed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ground::{is_root, others, verdicts};
use meshfarm_attacks::{Control, Linkage, Outcome, Surroundings};

#[path = "ground/ground.rs"]
mod ground;

#[test]
fn every_attack_succeeds_without_the_layer_that_stops_it() {
    if !is_root() {
        // A control is run as a user whom nobody else is: an attack on all of a user's processes works there.
        return;
    }
    let verdicts = verdicts(Linkage::Dynamic, Surroundings::Control);
    let (impossible, possible): (Vec<_>, Vec<_>) =
        verdicts.into_iter().partition(|v| matches!(v.attack.control, Control::Impossible(_)));
    let unseen = others(&possible, |outcome| matches!(outcome, Outcome::Broke(_)));
    assert!(unseen.is_empty(), "{} are not seen:\n{}", unseen.len(), unseen.join("\n"));
    for verdict in &impossible {
        println!("no control for {}: {:?}", verdict.attack.name, verdict.outcome);
    }
    assert!(impossible.len() < 5, "{} attacks have no control", impossible.len());
}
