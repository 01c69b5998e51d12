//! Sketches of algorithms to come, to prove that [`Policy`] carries them as it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmferry_core::PageBitmap;
use vmferry_core::policy::{Faults, LiveStep, Needs, Policy, StopPlan, View};

const TRACKED_HYBRID: Needs = Needs {
    tracking: true,
    faults: Faults::MissingAndStale,
};

/// `enlightened`: the guest's free pages are dropped at the stop.
pub(crate) struct Enlightened {
    /// What the agent says now.
    hints: Arc<Mutex<PageBitmap>>,
    /// What it said, without whatever was written since.
    free: Option<PageBitmap>,
}

impl Enlightened {
    pub(crate) fn new(hints: Arc<Mutex<PageBitmap>>) -> Self {
        Self { hints, free: None }
    }
}

impl Policy for Enlightened {
    fn needs(&self) -> Needs {
        TRACKED_HYBRID
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        match &mut self.free {
            None => {
                self.free = Some(self.hints.lock().unwrap().clone());
                LiveStep::Wait(Duration::from_millis(1))
            }
            Some(free) => {
                free.subtract(view.last_scan);
                LiveStep::SwitchOver
            }
        }
    }

    fn stop(&mut self, view: &View<'_>) -> StopPlan {
        if let Some(free) = &mut self.free {
            free.subtract(view.last_scan);
        }
        StopPlan::LeavePending {
            free: self.free.clone(),
        }
    }
}
