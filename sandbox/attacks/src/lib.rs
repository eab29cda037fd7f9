//! Attacks on this machine's sandbox: what is tried from inside, and what is seen of it from outside.
//!
//! A yard holds what belongs to another tenant: files, sockets, shared memory, keys, a running process.
//! Each attack is one act of the attacker program in a jail of its own. The judge believes no error code:
//! it compares the yard, the host and the jail's processes before and after, looks for secrets in all that
//! came out, and for anything that stayed. Every attack has a control, the same act where the layer that is
//! meant to stop it is missing, to show that the judge would have seen it.
#![forbid(unsafe_code)]

mod attack;
mod run;
mod table;
mod yard;

mod acting;
mod observe;
mod taken;
mod tenant;

pub use attack::{Attack, Control, Family, Layer, Prepare};
pub use run::{Linkage, Options, Outcome, Programs, Surroundings, Verdict, run};
pub use table::attacks;
pub use yard::Yard;
