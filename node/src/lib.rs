//! A meshfarm node: what one site does, and the tools that people reach it by.

pub mod api;
pub mod cli;
pub mod client;
pub mod command;
pub mod config;
pub mod doctor;
pub mod gate;
pub mod print;
pub mod sheet;
pub mod web;
