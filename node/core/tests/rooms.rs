//! Tests of the core through its one door, room by room.

mod gossip;
mod membership;
mod mesh;
mod outsource;
mod random_walk;
mod restart;
mod scheduler;
mod speed;
