//! `lazy`: the guest starts with its device state and nothing else. Source: data-context paper, section III.A, the second
//! solution.

use std::time::Duration;

use super::{Interval, Pick, Placement, ResumePolicy, View};
use crate::bitmap::PageBitmap;

/// Brings the page that the guest asks for and nothing else. Where it is told to drain, the rest follows once the guest has
/// asked for nothing during that time; else the guest stays bound to its store until it has touched everything.
#[derive(Clone, Copy, Debug)]
pub struct Lazy {
    drain_after: Option<Duration>,
    /// Last sign of the guest: start or fault.
    last_demand: Option<Duration>,
    draining: bool,
}

impl Lazy {
    /// Lazy resume that drains after this time without a fault, or never.
    pub fn new(drain_after: Option<Duration>) -> Self {
        Self {
            drain_after,
            last_demand: None,
            draining: false,
        }
    }
}

impl ResumePolicy for Lazy {
    fn before_start(&self, placement: &Placement, _interval: &Interval) -> PageBitmap {
        PageBitmap::new(placement.pages())
    }

    fn takes_neighbours(&self) -> bool {
        false
    }

    fn faulted(&mut self, now: Duration, _page: u64) {
        self.last_demand = Some(now);
    }

    fn pick(&mut self, view: &View<'_>) -> Pick {
        let Some(drain_after) = self.drain_after else {
            return Pick::Wait(None);
        };
        let drain_at = *self.last_demand.get_or_insert(view.now) + drain_after;
        self.draining |= view.now >= drain_at;
        if !self.draining {
            return Pick::Wait(Some(drain_at));
        }
        let first = view.left.next_run(0, 1).map(|run| run.first);
        first
            .and_then(|page| view.placement.group(page))
            .map_or(Pick::Wait(None), Pick::Group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_drains_only_where_told_and_only_when_the_guest_is_quiet() {
        let (placement, left) = (Placement::new(4, [(2, 1), (3, 0)]), PageBitmap::full(4));
        let at = |seconds| Duration::from_secs(seconds);
        let pick = |lazy: &mut Lazy, seconds| {
            let mut left = left.clone();
            left.intersect_with(&placement.data());
            lazy.pick(&View {
                now: at(seconds),
                placement: &placement,
                left: &left,
            })
        };
        let mut never = Lazy::new(None);
        assert_eq!(pick(&mut never, 1000), Pick::Wait(None));
        let mut lazy = Lazy::new(Some(at(5)));
        assert_eq!(pick(&mut lazy, 1), Pick::Wait(Some(at(6))));
        lazy.faulted(at(4), 3);
        assert_eq!(pick(&mut lazy, 6), Pick::Wait(Some(at(9))));
        assert_eq!(pick(&mut lazy, 9), Pick::Group(1));
        // Once it drains, faults do not hold that up.
        lazy.faulted(at(9), 3);
        assert_eq!(pick(&mut lazy, 10), Pick::Group(1));
    }
}
