//! A meshfarm node: what one site does, and the tools that people reach it by.

pub mod machine;
pub mod identity;
pub mod mesh;
pub mod gate;
pub mod daemon;
pub mod net;
pub mod store;
pub mod records;
pub mod chunks;
pub mod beneath;
pub mod content;
pub mod archive;
pub mod means;
pub mod lending;
pub mod returning;
pub mod logs;
pub mod session;
pub mod job_bundle;
pub mod probe;
pub mod sys;
