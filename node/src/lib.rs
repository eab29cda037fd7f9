//! What one site does.

pub mod job_bundle;
