//! What a hypervisor backend gives vmferry, as small traits, and their conformance suite.
//!
//! A backend implements [`Backend`] (how guests come to be on this host) and, for its guests, [`Guest`]
//! (a life), [`MigrateOut`] (what the source of a migration needs) and [`MigrateIn`] (what the destination
//! needs). The same guest object serves both directions in turn. Nothing here decides anything: policies
//! and state machines live in `vmferry-core`.
#![forbid(unsafe_code)]

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod disks;
pub mod enlightened;
pub mod error;
pub mod guest;
pub mod ram;
pub mod write_holds;

pub use backend::{Backend, GuestSpec};
pub use disks::{DiskInfo, DiskPlan, DiskSnapshot, Disks, PlacedDisk};
pub use enlightened::{Enlightened, FreeKnowledge, GuestLoad, ProcessRan};
pub use error::{GuestError, Result};
pub use guest::{
    DirtyTracker, FaultMode, Guest, GuestState, Installed, MigrateIn, MigrateOut, PageFaults, Vm,
};
pub use ram::GuestRam;
pub use write_holds::{HeldEvent, WriteHolds};
