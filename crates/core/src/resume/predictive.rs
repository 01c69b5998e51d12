//! `predictive`: VMresume. Source: data-context paper, sections III.A and III.C: pages written in the last interval, and those
//! read in it, of which the checkpoint keeps a list, are loaded before the start, because what was used recently is used soon.
//! The rest follows by itself; Hines and Gopalan, "Post-copy based live virtual machine migration using adaptive pre-paging
//! and dynamic self-ballooning" (VEE 2009), section 3.2, is where near faults first comes from.

use std::time::Duration;

use super::{Interval, Pick, Placement, ResumePolicy, View};
use crate::bitmap::PageBitmap;
use crate::policy::near_faults::NearFaults;

/// Loads what the guest used last, starts it, and brings the rest: around its faults first, then group by group.
#[derive(Debug, Default)]
pub struct Predictive {
    near: NearFaults,
    /// No group before this one has anything left.
    group: u32,
}

impl ResumePolicy for Predictive {
    fn before_start(&self, placement: &Placement, interval: &Interval) -> PageBitmap {
        let mut likely = placement.data();
        let mut used = interval.written.clone();
        used.union_with(&interval.accessed);
        likely.intersect_with(&used);
        likely
    }

    fn takes_neighbours(&self) -> bool {
        true
    }

    fn faulted(&mut self, _now: Duration, page: u64) {
        self.near.faulted(page);
    }

    fn pick(&mut self, view: &View<'_>) -> Pick {
        let near = self.near.next(view.left, 1);
        if let Some(group) = near.and_then(|run| view.placement.group(run.first)) {
            return Pick::Group(group);
        }
        let some_left = |group: u32| {
            let members = view.placement.members(group);
            members.iter().any(|&page| view.left.contains(page))
        };
        // What was put back after a failed read may lie before where we are: then from the start again.
        let found = (self.group..view.placement.groups())
            .find(|&group| some_left(group))
            .or_else(|| (0..self.group).find(|&group| some_left(group)));
        self.group = found.unwrap_or(0);
        found.map_or(Pick::Wait(None), Pick::Group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(len: u64, pages: &[u64]) -> PageBitmap {
        let mut set = PageBitmap::new(len);
        for &page in pages {
            set.insert(page);
        }
        set
    }

    #[test]
    fn what_was_written_or_read_comes_before_the_start_if_it_holds_data() {
        let placement = Placement::new(100, (10..20).map(|page| (page, 0)));
        let interval = Interval {
            written: set(100, &[10, 50]),
            accessed: set(100, &[10, 12, 99]),
        };
        let likely = Predictive::default().before_start(&placement, &interval);
        assert_eq!(likely.pages().collect::<Vec<_>>(), [10, 12]);
    }

    #[test]
    fn groups_near_a_fault_come_first_then_all_in_their_order() {
        // Ten groups of 100 pages, the last pages of RAM in the first group.
        let placement = Placement::new(1000, (0..1000).map(|page| (page, 9 - page as u32 / 100)));
        let mut left = placement.data();
        let mut policy = Predictive::default();
        let mut order = Vec::new();
        policy.faulted(Duration::ZERO, 490);
        while !left.is_empty() {
            let view = View {
                now: Duration::ZERO,
                placement: &placement,
                left: &left,
            };
            let Pick::Group(group) = policy.pick(&view) else {
                panic!("something is left")
            };
            for &page in placement.members(group) {
                left.remove(page);
            }
            order.push(group);
        }
        assert_eq!(order, [5, 4, 0, 1, 2, 3, 6, 7, 8, 9]);
    }
}
