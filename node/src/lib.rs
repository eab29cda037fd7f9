//! What one site does.

pub mod store;

pub mod chunks;

pub mod content;

pub mod beneath;
