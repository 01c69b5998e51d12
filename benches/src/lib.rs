//! What the benches share: medians, a peer to compare with, what they ask of migrations. Their hosts are those of the tests.
//!
//! Every bench compares two things in one run, interleaved, and prints medians, spreads and the ratio: these
//! figures move with the machine, a ratio much less.
#![forbid(unsafe_code)]

pub mod figures;
pub mod iperf;
pub mod output;
pub mod runs;

pub use figures::Figures;
pub use output::Output;
pub use runs::{completed, plain, runs};
