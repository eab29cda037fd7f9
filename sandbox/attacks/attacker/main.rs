//! The inside half: performs one named act, tells what it got, and holds on to it until the judge has looked.
//!
//! It is believed when it says that it got something, and never when it says that it did not.
#![allow(
    unsafe_code,
    reason = "attacks are system calls that no safe interface offers; they go through `call.rs`"
)]

use std::{
    collections::BTreeMap,
    env, io,
    io::{BufRead, Read, Write},
};

#[macro_use]
mod call;

mod contact;
mod files;
mod inputs;
mod outputs;
mod privilege;
mod processes;
mod relocation;
mod resources;
mod tenant;

/// What an act is aimed at: where the job's folders are, and what belongs to the other tenant.
#[derive(Debug)]
pub(crate) struct Target(BTreeMap<String, String>);

/// One act; what it returns is printed.
type Act = fn(&Target) -> io::Result<String>;

impl Target {
    /// A word of the target; empty if it was not given.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// A path below one of the job's folders or the tenant's.
    pub(crate) fn at(&self, folder: &str, name: &str) -> String {
        format!("{}/{name}", self.get(folder))
    }

    /// A number of the target, decimal or with `0x`.
    pub(crate) fn number(&self, key: &str) -> usize {
        let text = self.get(key);
        let hex = text.strip_prefix("0x").and_then(|h| usize::from_str_radix(h, 16).ok());
        hex.or_else(|| text.parse().ok()).unwrap_or(0)
    }
}

/// The line that the judge takes for a success.
pub(crate) fn got(what: impl std::fmt::Display) -> String {
    format!("got: {what}")
}

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let name = args.next().unwrap_or_default();
    let pairs = args.filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
    let target = Target(pairs.collect());
    match name.as_str() {
        "stand-as-another-tenant" => return tenant::stand(),
        "tidy-up-after-another-tenant" => return tenant::tidy_up(&target),
        _ => {}
    }
    let groups = [
        files::ACTS,
        inputs::ACTS,
        privilege::ACTS,
        processes::ACTS,
        contact::ACTS,
        resources::ACTS,
        outputs::ACTS,
        relocation::ACTS,
    ];
    let act = groups.iter().copied().flatten().find(|(known, _)| *known == name).map(|a| a.1);
    say("ready")?;
    // Not buffered: nothing beyond this line may be taken from the stream before a fork.
    io::stdin().lock().read_line(&mut String::new())?;
    match act {
        Some(act) => match act(&target) {
            Ok(text) => say(&text)?,
            Err(e) => say(&format!("refused: {e}"))?,
        },
        None => say("unknown act")?,
    }
    say("done")?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
