//! A client that has one operation under way at a time.
//!
//! The next begins when the one before has its answer, so a guest that stands still delays one operation a connection, and
//! latencies are those of operations that were begun: what would have been begun meanwhile is seen in the throughput.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::{Checked, PAUSE, Shared};

/// A client of a server.
pub(super) trait Client {
    /// One operation, over the connection there is or a new one; `choice` decides which. What is inside says whether the
    /// answer was right.
    ///
    /// # Errors
    /// When there is no answer, or one that is none. The connection is not used again.
    fn operate(&mut self, choice: u64) -> io::Result<Checked>;

    /// Drops the connection: the next operation makes a new one.
    fn disconnect(&mut self);
}

/// Operates at most so often a second, until the load is stopped.
pub(super) fn run(mut client: impl Client, operations_per_s: f64, seed: u64, shared: &Shared) {
    let interval = Duration::from_secs_f64(1.0 / operations_per_s.max(1e-3));
    let mut choices = SplitMix64::seed_from_u64(seed);
    let mut due = Instant::now();
    while !shared.is_stopped() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // What could not be done in time is left out, not made up for.
        due = (due + interval).max(Instant::now());
        if shared.gate.is_closed() {
            client.disconnect();
        }
        shared.gate.enter();
        let choice = choices.next_u64();
        let begin = Instant::now();
        let operated = client.operate(choice);
        shared.gate.leave();
        match operated {
            Ok(checked) => shared.answered(begin.elapsed(), checked),
            Err(error) => {
                shared.failed("an operation failed", &error);
                thread::sleep(PAUSE);
            }
        }
    }
}
