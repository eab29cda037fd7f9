//! The sandbox: what a jail costs to start, in each call and in whole renderings, and what many of them leave behind.

mod calls;
mod cycles;
mod ours;
mod renders;
mod start;

use crate::Part;

pub(crate) use calls::{INSIDE, inside};

/// The parts of this room.
pub(crate) const PARTS: [Part; 4] = [
    ("start", start::measure),
    ("calls", calls::measure),
    ("renders", renders::measure),
    ("cycles", cycles::measure),
];
