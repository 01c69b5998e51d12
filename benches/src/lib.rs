//! What the benches share: hosts in one process, medians, a peer to compare with.
//!
//! Every bench compares two things in one run, interleaved, and prints medians, spreads and the ratio: these
//! figures move with the machine, a ratio much less.
#![forbid(unsafe_code)]

pub mod figures;
pub mod hosts;
pub mod iperf;
pub mod output;

pub use figures::Figures;
pub use hosts::{Pair, TestHost};
pub use output::Output;
