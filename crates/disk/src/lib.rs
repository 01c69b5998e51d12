//! Blocks of disks on their way: the NBD protocol, as far as vmferry speaks it, and a tunnel for links on which every byte
//! counts.
//!
//! [`nbd`] is the protocol of QEMU's block exports: a client that reads and writes an export, and the server's side of it for a
//! mirror that writes. [`tunnel`] is ours: between the two hosts, what a mirror writes crosses compressed, zeros as their
//! bounds, and blocks that the destination has as their hash. Neither opens a socket: streams are given to them. What comes over
//! one is not trusted: it is bounded before anything is allocated for it.
#![forbid(unsafe_code)]

pub mod error;
pub mod nbd;
pub mod tunnel;

pub use error::DiskError;
pub use nbd::client::{Extent, NbdClient};
