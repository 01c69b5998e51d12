//! What a guest writes over time: recorded, kept in a file, summed up.
//!
//! A [`Trace`] has a header (which guest, when, how it was looked at), the pages that held data at the beginning, what
//! they hold ([`Content`]), and samples: the pages dirtied within a short time, all of them or those of a part of memory
//! ([`Coverage`](vmferry_core::sampling::Coverage)). The file is described in [`mod@file`]. What it says about the guest as a
//! whole is in [`summary`].
//!
//! *Invariant: no sockets, no guest, no clock. A file may come from anybody: nothing in it panics, or allocates more than
//! its bounds allow.*
#![forbid(unsafe_code)]

pub mod content;
pub mod error;
pub mod file;
pub mod header;
pub mod hints;
pub mod page_set;
pub mod sample;
pub mod summary;
mod trace;
mod units;
mod written;

pub use content::{Blend, Content};
pub use error::TraceError;
pub use file::{FORMAT, MOST_BYTES, Partial};
pub use header::{Header, Plan};
pub use hints::{ClassBytes, GuestHints};
pub use page_set::PageSet;
pub use sample::{LoadMark, Sample};
pub use summary::Summary;
pub use trace::{Cost, Trace};
