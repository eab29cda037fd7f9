//! Tests of the core through its one door, room by room.
#![expect(clippy::unwrap_used, reason = "a test that finds nothing there has failed")]

mod capacity;
mod deadline;
mod early;
mod explain;
mod gossip;
mod hosts;
mod ledger;
mod licences;
mod membership;
mod mesh;
mod opening;
mod operate;
mod outsource;
mod placement;
mod queue;
mod random_walk;
mod relay;
mod restart;
mod scheduler;
mod second;
mod several_receivers;
mod sharing;
mod submitter;
