//! Parts of memory that were not looked at.
//!
//! Where a recording looks at one chunk of each group, that chunk stands for its group, and which one it is was chance. How far the
//! guest's writes differ from what was seen by that chance is told by groups side by side: they differ among themselves as what was seen
//! differs from what was not. So in each of many simulations every group does what one of the three around it was seen to do (the
//! bootstrap once more, over space and near by, because memory near by is alike). Within a simulation it stays the same one: a guest
//! whose writes seemed to wander would dirty more and more of its memory.

use vmferry_core::PageRun;
use vmferry_core::sampling::Coverage;
use vmferry_core::sampling::coverage::CHUNK_PAGES;

use crate::units::{Units, mix};

/// Units of a group of which one chunk was looked at; none where all of memory was.
pub(crate) fn group_of(coverage: Coverage, units: Units) -> Option<u64> {
    let pages = u64::from(coverage.stride()) * CHUNK_PAGES;
    (!coverage.is_all()).then(|| (pages / units.per()).max(1))
}

/// How groups are drawn in one simulation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours {
    /// Units of a group.
    group: u64,
    /// Units of the guest.
    units: u64,
    seed: u64,
}

impl Neighbours {
    /// For groups of `group` of a guest's `units`.
    pub(crate) fn new(group: u64, units: u64, seed: u64) -> Self {
        Self {
            group,
            units,
            seed: mix(seed ^ 0x6e61_6273),
        }
    }

    /// Calls `each` with the places where what was seen of `run` is done.
    pub(crate) fn each_place(self, run: PageRun, each: &mut impl FnMut(PageRun)) {
        let mut rest = Some(run);
        while let Some(run) = rest {
            let group = run.first / self.group;
            let (part, tail) = run.split_at((group + 1) * self.group - run.first);
            rest = tail;
            let within = part.first - group * self.group;
            for place in group.saturating_sub(1)..=group + 1 {
                let first = place * self.group + within;
                let end = (first + part.count).min(self.units);
                if first < end && self.seen_by(place) == group {
                    each(PageRun::new(first, end - first));
                }
            }
        }
    }

    /// The same of `run`, which stands for what was seen at `seen`: it lies as far from there wherever the like is done.
    pub(crate) fn each_place_of(self, seen: u64, run: PageRun, each: &mut impl FnMut(PageRun)) {
        let group = seen / self.group;
        let last = self.units.div_ceil(self.group) - 1;
        for place in group.saturating_sub(1)..=(group + 1).min(last) {
            let first = (run.first + place * self.group).checked_sub(group * self.group);
            let Some(first) = first.filter(|_| self.seen_by(place) == group) else {
                continue;
            };
            let end = (first + run.count).min(self.units);
            if first < end {
                each(PageRun::new(first, end - first));
            }
        }
    }

    /// The group that tells what `group` does.
    fn seen_by(self, group: u64) -> u64 {
        let last = self.units.div_ceil(self.group) - 1;
        match mix(self.seed ^ group) % 3 {
            0 => group.saturating_sub(1),
            1 => group,
            _ => (group + 1).min(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: u64 = 300;

    fn places(seed: u64, run: PageRun) -> Vec<PageRun> {
        let mut places = Vec::new();
        Neighbours::new(10, GROUPS * 10 - 3, seed).each_place(run, &mut |run| places.push(run));
        places
    }

    #[test]
    fn every_group_does_what_one_near_by_was_seen_to_do() {
        for seed in 0..20 {
            let mut times = vec![0; GROUPS as usize * 10 - 3];
            for place in (0..GROUPS).flat_map(|group| {
                let count = if group + 1 == GROUPS { 7 } else { 10 };
                places(seed, PageRun::new(group * 10, count))
            }) {
                place.pages().for_each(|unit| times[unit as usize] += 1);
            }
            assert!(times.iter().all(|&times| times <= 1), "seed {seed}");
            // The last group is a short one.
            assert!(times[..2980].iter().all(|&times| times == 1), "seed {seed}");
        }
    }

    /// Wherever within its region it went: how often it is done is decided by where it was seen.
    #[test]
    fn what_went_elsewhere_is_done_as_often_as_what_was_seen() {
        for seed in 0..20 {
            let near = Neighbours::new(10, GROUPS * 10 - 3, seed);
            for seen in [0, 45, 1005, GROUPS * 10 - 5] {
                let count = |run: PageRun| {
                    let mut count = 0;
                    near.each_place_of(seen, run, &mut |_| count += 1);
                    count
                };
                let mut stays = 0;
                near.each_place(PageRun::single(seen), &mut |_| stays += 1);
                // Far enough from either end of memory.
                for elsewhere in [500, 777, 2000] {
                    assert_eq!(count(PageRun::single(elsewhere)), stays, "seed {seed}, {seen}");
                }
            }
        }
    }

    #[test]
    fn the_same_simulation_has_the_same_places_and_others_have_others() {
        let run = PageRun::new(95, 30);
        assert_eq!(places(1, run), places(1, run));
        assert!((2..20).any(|seed| places(1, run) != places(seed, run)));
        let counts: Vec<u64> = (0..400)
            .map(|seed| {
                places(seed, PageRun::new(100, 10))
                    .iter()
                    .map(|run| run.count)
                    .sum()
            })
            .collect();
        let mean = counts.iter().sum::<u64>() as f64 / 400.0;
        assert!((mean - 10.0).abs() < 1.5, "{mean}");
    }
}
