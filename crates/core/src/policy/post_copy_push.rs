//! `post-copy-push`: demand paging with active push and *bubbling*. Source: Hines and Gopalan, "Post-copy based
//! live virtual machine migration using adaptive pre-paging and dynamic self-ballooning" (VEE 2009), sections
//! 3.1 to 3.3: pages are pushed outwards from pivots, and every fault is a new pivot.

use super::{Faults, LiveStep, Needs, Pick, Policy, StopPlan, View, in_address_order};
use crate::bitmap::PageBitmap;

/// Pivots kept at most. Hines and Gopalan found gains up to seven.
const MAX_BUBBLES: usize = 7;
/// Pages pushed from a pivot before the next one has its turn: half a MiB, so that the neighbourhood of a
/// fresh fault is never far behind in the queue.
const TURN_PAGES: u64 = 128;

/// A pivot and how far around it everything has been pushed.
#[derive(Clone, Copy, Debug)]
struct Bubble {
    low: u64,
    high: u64,
    upwards: bool,
}

/// Pushes around the faults, all the time.
#[derive(Default)]
pub struct PostCopyPush {
    /// The newest fault first.
    bubbles: Vec<Bubble>,
    /// Whose turn it is.
    turn: usize,
}

impl PostCopyPush {
    /// The next pages at one of the bubble's edges; it then grows at the other edge.
    fn grow(bubble: &mut Bubble, left: &PageBitmap, max_pages: u64) -> Option<Pick> {
        let up = left.next_run(bubble.high, max_pages);
        let down = left.previous_run(bubble.low, max_pages);
        let upwards = bubble.upwards;
        bubble.upwards = !upwards;
        let run = if upwards { up.or(down) } else { down.or(up) }?;
        bubble.high = bubble.high.max(run.end());
        bubble.low = bubble.low.min(run.first);
        Some(Pick::Run(run))
    }
}

impl Policy for PostCopyPush {
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

    fn pick(&mut self, _view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        let turn = self.turn % self.bubbles.len().max(1);
        self.turn = turn + 1;
        self.bubbles
            .get_mut(turn)
            .and_then(|bubble| Self::grow(bubble, left, max_pages.min(TURN_PAGES)))
            .unwrap_or_else(|| in_address_order(left, max_pages))
    }

    fn faulted(&mut self, _view: &View<'_>, page: u64) {
        // A fault inside a bubble is for a page that is on its way already.
        if self
            .bubbles
            .iter()
            .any(|bubble| (bubble.low..bubble.high).contains(&page))
        {
            return;
        }
        self.bubbles.truncate(MAX_BUBBLES - 1);
        self.bubbles.insert(
            0,
            Bubble {
                low: page,
                high: page + 1,
                upwards: true,
            },
        );
        self.turn = 0;
    }
}
