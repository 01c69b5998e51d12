//! `stop-and-copy`: the baseline. Source: Clark et al., "Live Migration of Virtual Machines" (NSDI 2005),
//! section 3.1, pure stop-and-copy.

use super::{Faults, LiveStep, Needs, Policy, StopPlan, View};

/// Stops the guest, sends everything, resumes it at the destination.
pub struct StopAndCopy;

impl Policy for StopAndCopy {
    fn needs(&self) -> Needs {
        Needs {
            tracking: false,
            faults: Faults::None,
        }
    }

    fn live(&mut self, _view: &View<'_>) -> LiveStep {
        LiveStep::SwitchOver
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::SendPending
    }
}
