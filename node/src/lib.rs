//! What one site does.

pub mod store;
