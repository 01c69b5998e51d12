//! What migrations leave behind for those that come later: one [`Record`] each, in a file of the daemon's.

mod record;
mod store;

pub use record::{Kind, Record, observations};
pub use store::{History, HistoryError, Kept};
