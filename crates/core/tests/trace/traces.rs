//! Recorded traces: which pages a guest writes in each millisecond. The same every time they are replayed.

use vmferry_core::PageRun;

/// What a guest writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trace {
    /// Nothing.
    Idle,
    /// A region from its begin to its end, again and again.
    Loop { region: PageRun, pages_per_ms: u64 },
    /// Random pages: `hot_percent` of the writes in a region, the others anywhere.
    Hot {
        region: PageRun,
        hot_percent: u64,
        writes_per_ms: u64,
    },
    /// Random pages anywhere.
    Uniform { writes_per_ms: u64 },
    /// Loops over one of these regions after the other, `stay_ms` over each.
    Phases {
        regions: [PageRun; 3],
        stay_ms: u64,
        pages_per_ms: u64,
    },
    /// A loop up to this time, random pages after it.
    Turns {
        region: PageRun,
        pages_per_ms: u64,
        at_ms: u64,
        writes_per_ms: u64,
    },
}

impl Trace {
    /// The pages written in millisecond `ms` by a guest of `pages` pages.
    pub(crate) fn writes(&self, ms: u64, pages: u64) -> Vec<PageRun> {
        match *self {
            Self::Idle => Vec::new(),
            Self::Loop { region, pages_per_ms } => swept(region, ms, pages_per_ms),
            Self::Hot {
                region,
                hot_percent,
                writes_per_ms,
            } => (0..writes_per_ms)
                .map(|write| {
                    let chance = random(ms * writes_per_ms + write);
                    let place = chance >> 8;
                    match chance % 100 < hot_percent {
                        true => PageRun::single(region.first + place % region.count),
                        false => PageRun::single(place % pages),
                    }
                })
                .collect(),
            Self::Uniform { writes_per_ms } => (0..writes_per_ms)
                .map(|write| PageRun::single(random(ms * writes_per_ms + write) % pages))
                .collect(),
            Self::Phases {
                regions,
                stay_ms,
                pages_per_ms,
            } => swept(regions[(ms / stay_ms % 3) as usize], ms % stay_ms, pages_per_ms),
            Self::Turns {
                region,
                pages_per_ms,
                at_ms,
                ..
            } if ms < at_ms => swept(region, ms, pages_per_ms),
            Self::Turns { writes_per_ms, .. } => Self::Uniform { writes_per_ms }.writes(ms, pages),
        }
    }
}

/// A millisecond of a loop over `region`.
fn swept(region: PageRun, ms: u64, pages_per_ms: u64) -> Vec<PageRun> {
    let count = pages_per_ms.min(region.count);
    let from = ms * pages_per_ms % region.count;
    let (first, rest) = PageRun::new(region.first + from, count).split_at(region.count - from);
    let wrapped = rest.map(|rest| PageRun::new(region.first, rest.count));
    std::iter::once(first).chain(wrapped).collect()
}

/// splitmix64.
fn random(index: u64) -> u64 {
    let mut z = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
