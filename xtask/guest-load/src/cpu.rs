//! The processor load: every processor computes for a share of the time and sleeps for the rest. It touches next to no memory.

use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};

use crate::progress::Progress;

/// Computing and sleeping together take so long.
const PERIOD: Duration = Duration::from_millis(20);
/// Steps between two looks at the clock; one unit of progress.
const STEPS: u32 = 10_000;

/// Computes for `percent` of the time on every processor, for ever.
pub(crate) fn run(percent: u32, progress: &Progress) -> Result<Infallible, String> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    for _ in 1..processors {
        let progress = progress.clone();
        thread::spawn(move || compute(percent, &progress));
    }
    compute(percent, progress)
}

fn compute(percent: u32, progress: &Progress) -> ! {
    let busy = PERIOD * percent / 100;
    loop {
        let start = Instant::now();
        while start.elapsed() < busy {
            std::hint::black_box(steps(STEPS));
            progress.add(1);
        }
        thread::sleep(PERIOD.saturating_sub(start.elapsed()));
    }
}

fn steps(count: u32) -> u64 {
    (0..count).fold(1, |number: u64, step| {
        number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(u64::from(step))
    })
}
