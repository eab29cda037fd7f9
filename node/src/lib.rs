//! What one site does.

pub mod chunks;
pub mod store;
