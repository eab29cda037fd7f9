//! What two sites must agree on: ids, jobs, profiles, matching, leases, content formats, messages and their bytes.
#![forbid(unsafe_code)]

pub mod codec;
pub mod compress;
pub mod id;
pub mod job;
pub mod lease;
pub mod manifest;
pub mod matching;
pub mod membership;
pub mod message;
pub mod profile;
pub mod receipt;
pub mod seal;
pub mod session;
