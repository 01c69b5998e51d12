//! The classes of this machine's memory, printed: what the agent would say, and what it costs.

use std::time::{Duration, Instant};

use vmferry_core::hints::Class;

use crate::activity::Activity;
use crate::classify::FrameMap;
use crate::error::Result;
use crate::serve::active_processes;

/// Processes that ran within this time are active.
const ACTIVE_WITHIN: Duration = Duration::from_secs(16);

/// Prints how many frames each class has.
pub(crate) fn print() -> Result<()> {
    let start = Instant::now();
    let active = active_processes(&Activity::default().last_runs(), ACTIVE_WITHIN);
    let map = FrameMap::classify(&active, None)?;
    let took = start.elapsed();
    let mut coded_bytes = 0;
    let _ = map.chunks(|chunk| {
        coded_bytes += chunk.runs.len();
        Ok::<_, ()>(())
    });
    for (class, frames) in Class::ALL.iter().zip(map.counts()) {
        println!("{class:<20} {frames:>10} frames {:>8} MiB", frames >> 8);
    }
    println!(
        "{} active processes, {coded_bytes} bytes coded, {:.1} ms",
        active.len(),
        took.as_secs_f64() * 1000.0
    );
    Ok(())
}
