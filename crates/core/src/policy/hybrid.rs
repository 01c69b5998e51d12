//! `hybrid`. Source: hybrid-learning paper (Gangadhar et al. 2018), section IV.B, "basic hybrid migration
//! algorithm": one push phase over all of memory, a stop that moves device state and dirty bitmap and no page, a
//! pull phase for what was dirtied. So each page crosses at most twice, and none during the stop.

use super::near_faults::NearFaults;
use super::{Faults, LiveStep, Needs, Pick, Policy, RoundPages, RoundPlan, StopPlan, View, in_address_order};
use crate::bitmap::PageBitmap;

/// Writes are tracked from before the push; a page that crossed and was dirtied since faults like a missing one.
pub(super) const NEEDS: Needs = Needs {
    tracking: true,
    faults: Faults::MissingAndStale,
};

/// One round, then the guest goes over and what it dirtied follows.
#[derive(Default)]
pub struct Hybrid {
    near: NearFaults,
}

impl Policy for Hybrid {
    fn needs(&self) -> Needs {
        NEEDS
    }

    /// Push phase: "the entire memory is transferred [...] There are no multiple iterations".
    fn live(&mut self, view: &View<'_>) -> LiveStep {
        if view.rounds > 0 {
            return LiveStep::SwitchOver;
        }
        LiveStep::Round(RoundPlan {
            pages: RoundPages::Pending,
            sample_every: None,
        })
    }

    /// Stop-and-copy phase: "the dirty bitmap along with the device states are transferred".
    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::LeavePending { free: None }
    }

    /// Pull phase: demanded pages go at once, their neighbours next; the rest is pushed beside the faults, so
    /// that the source becomes free.
    fn pick(&mut self, _view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        match self.near.next(left, max_pages) {
            Some(run) => Pick::Run(run),
            None => in_address_order(left, max_pages),
        }
    }

    fn faulted(&mut self, _view: &View<'_>, page: u64) {
        self.near.faulted(page);
    }
}
