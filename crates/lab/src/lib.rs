//! A laboratory on one machine: two hosts, the link between them, a guest, and a client that watches it.
//!
//! Hosts are real `vmferry host` daemons, each in a network namespace of its own where that is permitted, joined by a
//! shaped link; the guest is a Linux in QEMU or the synthetic one. `vmferry demo` shows a migration in it, and
//! [`mod@bench`] measures scenarios in it. Everything a lab makes goes when it is dropped, also after Ctrl-C.
#![forbid(unsafe_code)]

pub mod bench;
mod error;
pub mod forecasting;
pub mod guards;
pub mod hosts;
mod latency;
pub mod link;
pub mod linux;
pub mod load;
pub mod namespace;
pub mod peer;
mod relay;
pub mod requirements;
pub mod timeline;
pub mod topology;
pub mod workload;

pub use error::{LabError, Result};
pub use guards::Interrupt;
pub use hosts::Host;
pub use latency::Latency;
pub use link::Link;
pub use relay::LinkDelay;
pub use topology::Topology;
pub use workload::Workload;
