//! What content costs: taking files in, and bringing them to other sites, against other programs that bring the same files.

mod again;
mod cold;
mod files;
mod job;
mod memory;
mod negotiation;
mod networks;
mod peers;
mod processes;
mod receivers;
mod rerender;
mod resume;
mod send;
mod small;

use crate::Part;

/// The parts of this room, in the order of a full run.
pub(crate) const PARTS: [Part; 9] = [
    ("send", send::measure),
    ("cold", cold::measure),
    ("again", again::measure),
    ("small", small::measure),
    ("receivers", receivers::measure),
    ("rerender", rerender::measure),
    ("negotiation", negotiation::measure),
    ("resume", resume::measure),
    ("memory", memory::measure),
];
