//! A synthetic guest: real memory, real faults, real load, no hypervisor needed.
//!
//! Its RAM is a memfd. Its vCPUs are threads of this process that run loads (a memory-write loop, a key-value
//! store, a b-tree, compression of text) on data that lies in this RAM, through a mapping of their own. What is
//! left of a vCPU when it stands still is a small struct, the device state; so a guest that is resumed elsewhere
//! really goes on. Every load checks its own data as it runs, and notices a page that was lost, is out of date or
//! is a mixture of two versions.
//!
//! Writes are tracked and missing pages served by the kernel (userfaultfd) where that is permitted, and by
//! software otherwise: a dirty log kept by the vCPUs, and a check before each of their accesses.
#![forbid(unsafe_code)]

mod backend;
mod config;
mod fill;
mod guest;
mod holding;
mod kernel;
mod loads;
mod memory;
mod plan;
mod software;
mod state;
mod stats;
mod vcpu;

pub use backend::SynthBackend;
pub use config::{ConfigError, FaultMechanism, Fill, LoadConfig, SynthConfig};
pub use guest::SynthGuest;
pub use stats::{LoadStats, Stats};
