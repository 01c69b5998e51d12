//! Results of scenarios as one HTML page: summary, figures with tables and verdicts, machines and raw files.
//!
//! The page is one file and needs no network, no script and no other file: plots are inline SVG, each with a table beside it. It
//! is readable on a phone, in print, in light and in dark, and says nothing by colour alone. What is on it comes from the
//! [`Results`] alone: the same results make the same page.
#![forbid(unsafe_code)]

mod estimate;
mod figure;
mod micro;
mod number;
mod origin;
mod page;
mod papers;
mod plot;
mod scenario;
mod side;
pub mod standalone;
mod summary;
mod table;
mod verdict;

use vmferry_lab::bench::{Micro, Results};

/// A file of results.
pub struct Source {
    /// Its name on the page.
    pub file: String,
    /// What is in it, byte by byte: the page has its hash.
    pub bytes: Vec<u8>,
    /// The same, read.
    pub results: Results,
}

/// The page, with results of micro benches where there are some. When it was made, in milliseconds since 1970, is the only thing on it that
/// the results do not decide.
pub fn page(sources: &[Source], micro: Option<&Micro>, made_unix_ms: u64) -> String {
    page::page(sources, micro, made_unix_ms).into_string()
}
