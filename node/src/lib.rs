//! What one site does.

pub mod job_bundle;
pub mod probe;
