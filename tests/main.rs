//! Tests of the built programs as real processes, and of the source as a house.
#![allow(clippy::unwrap_used, reason = "there is nothing here but tests")]

mod harness;

mod allowed;
mod bad_input;
mod cli;
mod early;
mod farm;
mod hosts;
mod isolated;
mod ledger;
mod namespaces;
mod operate;
mod outsource;
mod relay;
mod render;
mod restart;
mod standard;
mod store;

mod tidy;
