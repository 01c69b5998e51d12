//! What the host's sampler knows of a guest when its migration begins.
//!
//! It is core's own [`Background`]: it watched the guest do what the recording makes likely, in bursts and pauses as on a host, until
//! its model fitted. Where none does within [`LONGEST`], a migration learns by itself, as it does on a host.

use std::time::Duration;

use vmferry_core::sampling::{Background, Budget, News, Ready};
use vmferry_core::{PageBitmap, Tuning};

use crate::replay::Recorded;

/// How long it watched at most.
const LONGEST: Duration = Duration::from_secs(600);
/// It saw other times than those of any simulated migration.
const SEED: u64 = 0x5a3b;

/// What a sampler with the parameters of every host's learned of the guest; nothing before there was a whole burst.
pub(crate) fn learned(recorded: &Recorded) -> Option<Ready> {
    let pages = recorded.pages();
    let mut sampler = Background::new(pages, &Tuning::default(), Budget::default(), None, Duration::ZERO);
    let mut guest = recorded.replay(SEED);
    let mut dirty = PageBitmap::new(pages);
    let (mut now, mut before) = (Duration::ZERO, Duration::ZERO);
    while sampler.next_scan() < LONGEST {
        now = sampler.next_scan();
        dirty.clear();
        // What a pause left is no sample: nobody looks at it.
        if sampler.is_in_burst() {
            guest.add_dirty(before, now, &mut dirty);
        }
        before = now;
        if sampler.scanned(now, Duration::ZERO, &dirty) == Some(News::Fits) {
            break;
        }
    }
    sampler.ready(now)
}
