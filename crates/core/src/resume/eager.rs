//! `eager`: everything is loaded, then the guest starts. Source: data-context paper, section III.A, the first solution (what
//! `xm restore` does).

use std::time::Duration;

use super::{Interval, Pick, Placement, ResumePolicy, View};
use crate::bitmap::PageBitmap;

/// Loads everything before the start. No access of the guest ever waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Eager;

impl ResumePolicy for Eager {
    fn before_start(&self, placement: &Placement, _interval: &Interval) -> PageBitmap {
        placement.data()
    }

    fn takes_neighbours(&self) -> bool {
        true
    }

    fn faulted(&mut self, _now: Duration, _page: u64) {}

    fn pick(&mut self, view: &View<'_>) -> Pick {
        let first = view.left.next_run(0, 1).map(|run| run.first);
        first
            .and_then(|page| view.placement.group(page))
            .map_or(Pick::Wait(None), Pick::Group)
    }
}
