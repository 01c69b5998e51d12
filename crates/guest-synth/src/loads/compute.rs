//! Computing loop: numbers and no memory, for a share of the time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::loads::{Checks, Context, Cursor, Load};
use crate::memory::GuestMemory;

/// How often an operation is due: so short that a pause hardly waits for the end of one.
pub(crate) const PERIOD: Duration = Duration::from_millis(2);
/// Steps between two looks at the clock.
const STEPS: u64 = 2_000;

/// The loop. It has no data: what it computes is thrown away.
pub(crate) struct Compute {
    busy: Duration,
}

impl Compute {
    pub(crate) fn new(percent: u8) -> Self {
        Self {
            busy: PERIOD * u32::from(percent) / 100,
        }
    }
}

impl Load for Compute {
    fn prefill(&self, _: &GuestMemory) {}

    fn operate(&mut self, _: &mut Context<'_>) {
        let began = Instant::now();
        while began.elapsed() < self.busy {
            black_box((0..black_box(STEPS)).fold(1u64, |number, step| {
                number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step)
            }));
        }
    }

    fn verify(&self, _: &GuestMemory, _: &mut Checks) {}

    fn cursor(&self) -> Cursor {
        Cursor::Compute
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        *cursor == Cursor::Compute
    }
}
