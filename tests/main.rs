//! Tests of the built programs as real processes, and of the source as a house.

mod harness;

mod render;
mod restart;

mod tidy;
