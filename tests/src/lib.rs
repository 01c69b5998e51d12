//! What the end-to-end tests share: requirements, guests of the test image, hosts in one process.
//!
//! A test says what it needs with [`need!`]. Where that is missing the test prints `skipped: why` and passes,
//! unless the environment variable `VMFERRY_REQUIRE` names it: then the test fails, so that a machine that has
//! to run it cannot pass without.
#![forbid(unsafe_code)]

pub mod console;
pub mod guest;
pub mod hosts;
pub mod require;

pub use console::Console;
pub use guest::TestGuest;
pub use hosts::{Pair, TestHost};
pub use require::Requirement;

use std::time::{Duration, Instant};

/// Waits until `holds`, at most two minutes: TCG on a busy machine is slow, and a test that hangs is no help.
///
/// # Panics
/// When it never does.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
