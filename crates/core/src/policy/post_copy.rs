//! `post-copy`: the baseline, demand paging only. Source: hybrid-learning paper, section III; Hines and
//! Gopalan, "Post-copy based live virtual machine migration" (VEE 2009), section 3.1.

use std::time::Duration;

use super::{Faults, LiveStep, Needs, Pick, Policy, StopPlan, View, in_address_order};
use crate::bitmap::PageBitmap;

/// Moves the device state, then sends what the guest asks for and nothing else. Once the guest has asked for
/// nothing during `drain_after` the rest is pushed: demand paging alone would bind the guest to its source
/// for ever.
pub struct PostCopy {
    drain_after: Duration,
    /// Last sign of the guest: resume or fault.
    last_demand: Option<Duration>,
    draining: bool,
}

impl PostCopy {
    /// Demand paging that drains after this time without a fault.
    pub fn new(drain_after: Duration) -> Self {
        Self {
            drain_after,
            last_demand: None,
            draining: false,
        }
    }
}

impl Policy for PostCopy {
    fn needs(&self) -> Needs {
        Needs {
            tracking: false,
            faults: Faults::Missing,
        }
    }

    fn live(&mut self, _view: &View<'_>) -> LiveStep {
        LiveStep::SwitchOver
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::LeavePending { free: None }
    }

    fn pick(&mut self, view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        let drain_at = *self.last_demand.get_or_insert(view.now) + self.drain_after;
        self.draining |= view.now >= drain_at;
        if self.draining {
            in_address_order(left, max_pages)
        } else {
            Pick::Wait(Some(drain_at))
        }
    }

    /// What is demanded crosses, nothing else.
    fn sends_ahead(&self) -> bool {
        false
    }

    fn faulted(&mut self, view: &View<'_>, _page: u64) {
        self.last_demand = Some(view.now);
    }
}
