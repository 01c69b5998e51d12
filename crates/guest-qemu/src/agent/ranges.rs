//! Which page frames the agent is asked about.

use vmferry_agent_proto::FrameRange;
use vmferry_agent_proto::message::MAX_RANGES;
use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};

use crate::physical::GuestPhysicalMap;

/// Frames of a part of a sample: the largest free block.
const PART_FRAMES: u64 = 1024;
/// Parts of a sample at most: 64 MiB of memory, which an agent under TCG looks at in some 10 ms.
const PARTS: u64 = 16;
/// Free frames between two that are not, which are asked about along with them.
const GAP_FRAMES: u64 = 64;

/// The frames of all memory but for `free` pages, as few ranges.
pub(super) fn outside(free: &PageBitmap, map: &GuestPhysicalMap) -> Vec<FrameRange> {
    let mut used = free.clone();
    used.invert();
    let mut gap = GAP_FRAMES;
    loop {
        let ranges = joined(&used, map, gap);
        if ranges.len() <= MAX_RANGES {
            return ranges;
        }
        gap *= 2;
    }
}

/// The frames of `pages`, with gaps of at most so many filled.
fn joined(pages: &PageBitmap, map: &GuestPhysicalMap, gap: u64) -> Vec<FrameRange> {
    let mut ranges: Vec<FrameRange> = Vec::new();
    for part in map.ranges() {
        let (start, end) = (part.pages.first, part.pages.end());
        let mut from = start;
        while let Some(run) = pages.next_run(from, u64::MAX).filter(|run| run.first < end) {
            let stop = run.end().min(end);
            let first = part.address / PAGE_SIZE + (run.first - start);
            let count = stop - run.first;
            match ranges.last_mut() {
                Some(last) if first - (last.first + last.count) <= gap => {
                    last.count = first + count - last.first;
                }
                _ => ranges.push(FrameRange { first, count }),
            }
            from = stop;
        }
    }
    ranges
}

/// Frames all over memory, of at most [`PARTS`] parts, and the pages behind them.
pub(super) fn sample(map: &GuestPhysicalMap, pages: u64) -> (Vec<FrameRange>, PageBitmap) {
    let parts = map.ranges().iter().flat_map(|range| {
        let first = range.address / PAGE_SIZE;
        (0..range.pages.count)
            .step_by(PART_FRAMES as usize)
            .map(move |at| {
                let count = PART_FRAMES.min(range.pages.count - at);
                (
                    FrameRange {
                        first: first + at,
                        count,
                    },
                    PageRun::new(range.pages.first + at, count),
                )
            })
    });
    let every = parts.clone().count().div_ceil(PARTS as usize).max(1);
    let mut behind = PageBitmap::new(pages);
    let frames = parts
        .step_by(every)
        .map(|(frames, pages)| {
            behind.insert_run(pages);
            frames
        })
        .collect();
    (frames, behind)
}

#[cfg(test)]
mod tests {
    use vmferry_core::RamLayout;

    use super::*;

    const GIB_PAGES: u64 = 1 << 18;

    /// 6 GiB, of which 4 lie above a hole.
    fn map() -> GuestPhysicalMap {
        let layout = RamLayout::single("vmferry.ram0", 6 << 30).unwrap();
        GuestPhysicalMap::parse(include_str!("../../tests/fixtures/mtree-q35-6G.txt"), &layout)
    }

    #[test]
    fn what_is_not_free_is_asked_about_with_small_gaps() {
        let mut free = PageBitmap::full(6 * GIB_PAGES);
        for run in [(10, 5), (79, 1), (500, 1), (2 * GIB_PAGES - 1, 2)] {
            free.remove_run(PageRun::new(run.0, run.1));
        }
        let range = |first, count| FrameRange { first, count };
        assert_eq!(
            outside(&free, &map()),
            [
                range(10, 70),
                range(500, 1),
                range(2 * GIB_PAGES - 1, 1),
                range(4 * GIB_PAGES, 1)
            ]
        );
    }

    #[test]
    fn scattered_memory_becomes_few_ranges() {
        let mut free = PageBitmap::full(6 * GIB_PAGES);
        for page in (0..6 * GIB_PAGES).step_by(100) {
            free.remove(page);
        }
        let ranges = outside(&free, &map());
        assert!(ranges.len() <= MAX_RANGES);
        assert!(
            ranges
                .windows(2)
                .all(|pair| pair[0].first + pair[0].count < pair[1].first)
        );
        let frames: u64 = ranges.iter().map(|range| range.count).sum();
        assert!(
            (6 * GIB_PAGES - 200..=8 * GIB_PAGES).contains(&frames),
            "{frames}"
        );
    }

    #[test]
    fn a_sample_is_spread_over_all_memory() {
        let (frames, pages) = sample(&map(), 6 * GIB_PAGES);
        assert!(frames.len() as u64 <= PARTS && frames.len() > 8);
        assert_eq!(pages.count(), frames.len() as u64 * PART_FRAMES);
        assert!(frames[0].first == 0 && frames.last().unwrap().first > 7 * GIB_PAGES);
        let small = GuestPhysicalMap::parse(
            include_str!("../../tests/fixtures/mtree-q35-512M.txt"),
            &RamLayout::single("vmferry.ram0", 512 << 20).unwrap(),
        );
        let (frames, pages) = sample(&small, 512 << 8);
        assert_eq!((frames.len(), pages.count()), (16, 16 << 10));
    }
}
