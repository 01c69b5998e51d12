//! What the guest's agent says that its pages are used for: asked as a migration asks it, after the last sample, so that nothing of
//! its work is in one.

use std::time::Instant;

use vmferry_core::Tuning;
use vmferry_guest::{FreeKnowledge, Vm};
use vmferry_trace::GuestHints;

/// None where no agent answers: then a forecast has nothing to say of `enlightened`.
pub(super) fn told(vm: &dyn Vm) -> Option<GuestHints> {
    let guest = vm.enlightened()?;
    let tuning = Tuning::default();
    let began = Instant::now();
    let free = guest.calibrate(tuning.agent_timeout).ok()?;
    let hints = guest.enlighten(tuning.active_within, tuning.agent_timeout).ok()?;
    if hints.pages() != vm.ram().layout().pages() {
        return None;
    }
    let took_us = began.elapsed().as_micros() as u64;
    GuestHints::new(&hints, took_us, free == FreeKnowledge::Exact)
}
