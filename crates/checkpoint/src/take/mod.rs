//! Taking checkpoints of a guest that runs. What is decided is decided by [`vmferry_core::take`]; here are the threads.
//!
//! ```text
//! driver (Session::take)           fault server                     savers
//! ----------------------           ------------                     ------
//! begin in the store               a write is held up:
//! protect what is open, live         tracking: release
//! pause | device state
//!       | protect what is open
//!       | disks as of now
//!       | CUT                        pending: copy, release   --->  copies into the store
//! resume                             being copied: wait       <---  copy the next run, release who waits
//! which pages were touched                                          hand it to the store
//! wait for the savers              (until nothing is left)          (until nothing is left)
//! commit: the manifest, last
//! ```
//!
//! Whatever fails, before the commit there is no checkpoint, and the guest goes on: giving up releases every writer first and
//! asks questions later. Were the whole process killed, the kernel would lift the protection.

mod copies;
mod disks;
mod error;
mod faults;
mod options;
mod phases;
mod savers;
mod series;
mod session;
mod shared;
mod stop;

pub use error::TakeError;
pub use options::TakeOptions;
pub use series::{Series, SeriesEvents, SeriesRequest, SeriesState};
pub use session::{Session, TakeControl};
