//! The `vmferry` command: what the user types, the daemon of a host, and a client of it.
//!
//! The commands are thin: they read arguments, ask the daemon and print. The daemon keeps guests and their
//! directories; everything that migrates is in `vmferry-runtime`.
#![forbid(unsafe_code)]

pub mod cli;
mod commands;
pub mod daemon;
mod demo;
mod disk_table;
mod encoding_table;
mod failure;
mod forecast_table;
pub mod loadspec;
pub mod names;
mod progress;
pub mod report_table;
pub mod resume_table;
mod store_args;
mod table;
mod take_table;
pub mod units;

pub use failure::run;
pub use vmferry_api as api;
pub use vmferry_api::{Client, client};
