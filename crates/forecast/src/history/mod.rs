//! What migrations leave behind for those that come later: one [`Record`] each, in a file of the daemon's.

mod beside;
mod record;
mod store;

pub use beside::Beside;
pub use record::{Kind, Record, observations};
pub use store::{History, HistoryError, Kept};
