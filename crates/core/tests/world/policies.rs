//! Sketches of algorithms to come, to prove that [`Policy`] carries them as it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmferry_core::policy::{
    Faults, LiveStep, Needs, Policy, RoundChange, RoundPages, RoundPlan, StopPlan, View,
};
use vmferry_core::{Limits, PageBitmap};

const TRACKED_HYBRID: Needs = Needs {
    tracking: true,
    faults: Faults::MissingAndStale,
};

/// `pre-copy-filter`: holds back what was just dirtied, takes back what has been quiet since.
pub(crate) struct Filter {
    limits: Limits,
    hot: PageBitmap,
}

impl Filter {
    pub(crate) fn new(limits: Limits, pages: u64) -> Self {
        Self {
            limits,
            hot: PageBitmap::new(pages),
        }
    }
}

impl Policy for Filter {
    fn needs(&self) -> Needs {
        Needs {
            tracking: true,
            faults: Faults::None,
        }
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        if view.rounds >= self.limits.rounds || view.ledger.pending().is_empty() {
            return LiveStep::SwitchOver;
        }
        LiveStep::Round(RoundPlan {
            pages: RoundPages::PendingExcept(self.hot.clone()),
            sample_every: Some(Duration::from_micros(500)),
        })
    }

    fn sampled(&mut self, view: &View<'_>) -> RoundChange {
        let mut quiet = self.hot.clone();
        quiet.subtract(view.last_scan);
        self.hot = view.last_scan.clone();
        RoundChange {
            hold_back: Some(self.hot.clone()),
            take_back: Some(quiet),
        }
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::SendPending
    }
}

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
