//! Learning about a guest while it runs normally, so that a migration begins with what it needs to know: the model of
//! the data filter and the writable working set. Source: data-filter paper, section 3.3: the model is built "at the normal
//! operational stage of the VM" and kept true by periodic tests.
//!
//! *What is sampled.* Every page, but in bursts: a page that is written costs its writer a fault after each scan, which at
//! one scan every 50 ms costs a guest that writes 64 MiB in a loop a quarter of its time. So a burst has as many samples
//! as one test of the model needs ([`Tuning::samples`](crate::Tuning), and one to begin with), and the pause after it is as
//! long as it takes for the cost of the burst to be within a [`Budget`] of the guest's time. Where the guest writes little,
//! the pause is short. Between bursts a page costs one fault in all, at its first write.
//!
//! *What it costs* is estimated, on the safe side: for each page a scan finds four times what such a write was
//! measured to cost on the host before the burst (it differs by a factor of ten between hosts), at least [`PAGE_COST`], as
//! if one vCPU had written them all; and the time of arming and of the scans themselves. The guest's time is the clock's,
//! and of what the pages cost also the CPU time that it used: on a crowded host it gets less of that, and a page costs it
//! a larger share.
//!
//! [`Background`] is without I/O, as all of this crate: it says when to scan next and takes in what the scan found.

mod background;
pub mod coverage;
mod learned;
pub mod recording;
mod schedule;
mod status;

pub use background::{Background, News};
pub use coverage::Coverage;
pub use learned::{Learned, NotReady, Ready};
pub use recording::{Recorded, Recording};
pub use schedule::{BadBudget, Budget, PAGE_COST};
pub use status::{SamplingReport, SamplingState};
