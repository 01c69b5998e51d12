//! The algorithms of vmferry: pages, policies, state machines, handover, metrics.
//!
//! Nothing in this crate opens a file, reads a clock, starts a thread or touches guest memory. Drivers
//! (`vmferry-runtime`, tests, the simulator) feed it observations together with the time they were made at,
//! and carry out the actions it returns.
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod destination;
pub mod disks;
pub mod encoding;
pub mod filter;
pub mod forecast;
pub mod handover;
pub mod hints;
pub mod layout;
pub mod ledger;
pub mod limits;
pub mod pacing;
pub mod pages;
pub mod policy;
pub mod rates;
pub mod report;
pub mod request;
pub mod resume;
pub mod sampling;
pub mod source;
pub mod strategy;
pub mod take;
pub mod tracking;
pub mod tuning;
pub mod workload;
pub mod wws;

pub use bitmap::PageBitmap;
pub use disks::{DiskRequest, DiskWrites};
pub use encoding::{Codec, Encoding};
pub use handover::Epoch;
pub use hints::{Class, Hints};
pub use layout::{BlockRun, LayoutError, RamBlock, RamLayout};
pub use limits::BadLimits;
pub use pages::{PAGE_SIZE, PageRun};
pub use request::MigrationRequest;
pub use resume::ResumeMode;
pub use strategy::{AtLimit, Limits, Strategy};
pub use tuning::Tuning;
pub use workload::Workload;
