//! What one site does.

pub mod beneath;
pub mod chunks;
pub mod content;
pub mod store;
