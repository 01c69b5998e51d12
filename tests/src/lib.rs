//! What the end-to-end tests share: requirements, guests of the test image, hosts in one process, and hosts as
//! daemons in namespaces.
//!
//! A test says what it needs with [`need!`]. Where that is missing the test prints `skipped: why` and passes,
//! unless the environment variable `VMFERRY_REQUIRE` names it: then the test fails, so that a machine that has
//! to run it cannot pass without.
#![forbid(unsafe_code)]

pub mod browser;
pub mod checkpoint;
pub mod console;
pub mod daemon;
pub mod guest;
pub mod hosts;
#[allow(missing_docs, reason = "a helper of the runtime's tests")]
#[path = "../../crates/runtime/tests/common/proxy.rs"]
pub mod link;
pub mod network;
pub mod require;
pub mod turn;
pub mod vmferry;
pub mod witness;

pub use console::Console;
pub use daemon::{HostDaemon, Hosts};
pub use guest::TestGuest;
pub use hosts::{Ends, Pair, TestHost};
pub use link::Link;
pub use network::Network;
pub use require::Requirement;
pub use turn::{shared_turn, turn};
pub use vmferry::Answer;

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

/// Whether a process runs; one that only waits for its parent does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its name, in parentheses, may hold anything.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}
