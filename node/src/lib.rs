//! A meshfarm node: what one site does, and the tools that people reach it by.

pub mod gate;
pub mod job_bundle;
pub mod probe;
