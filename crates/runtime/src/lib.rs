//! Drives the algorithms of vmferry over a guest and a transport: threads, clocks, sockets, journals, recovery.
//!
//! `vmferry-core` decides; this crate carries out. [`Outgoing`] is the source of one migration, [`Incoming`]
//! all migrations that arrive at a host. Both are built alike: a driver thread owns the events of a state
//! machine, page streams and the fault stream are threads of their own that ask the machine (source) or the
//! pager (destination) directly, so that a page never waits for the driver. [`Sampler`] learns about a guest before it is
//! moved, [`recorder`] records a trace of one.
#![forbid(unsafe_code)]

pub mod calibrate;
mod cgroup;
mod clock;
pub mod costs;
mod cpu_cap;
pub mod destination;
pub mod dir;
pub mod error;
pub mod journal;
mod lines;
mod link;
pub mod pager;
pub mod recorder;
pub mod sampler;
pub mod source;
pub mod usage;

pub use destination::{Admitted, Holdings, Host, Incoming, IncomingProgress, IncomingReport};
pub use dir::GuestDir;
pub use error::RuntimeError;
pub use journal::Journal;
pub use recorder::{RecordControl, RecordPlan, RecordProgress};
pub use sampler::Sampler;
pub use source::{MAX_STREAMS, Outgoing, Request};
