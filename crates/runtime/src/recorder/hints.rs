//! What the guest's agent says that its pages are used for: asked as a migration asks it, after the last sample, so that nothing of
//! its work is in one.

use std::time::Instant;

use vmferry_core::Tuning;
use vmferry_guest::{FreeKnowledge, Vm};
use vmferry_trace::GuestHints;

/// None where no agent answers as soon as a migration would want it to: then a forecast has nothing to say of `enlightened`.
pub(super) fn told(vm: &dyn Vm) -> Option<GuestHints> {
    let guest = vm.enlightened()?;
    let tuning = Tuning::default();
    let asked = Instant::now();
    let exact = guest.calibrate(tuning.agent_timeout).ok()? == FreeKnowledge::Exact;
    // Where free pages are only listed a migration asks for the list by itself, later.
    let began = if exact { asked } else { Instant::now() };
    let left = tuning.agent_timeout.checked_sub(began.elapsed())?;
    let hints = guest.enlighten(tuning.active_within, left).ok()?;
    if hints.pages() != vm.ram().layout().pages() {
        return None;
    }
    GuestHints::new(&hints, began.elapsed().as_micros() as u64, exact)
}
