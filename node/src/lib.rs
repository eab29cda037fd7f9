//! What one site does: its secrets, its place on the network.

pub mod identity;
pub mod net;
