//! Where everything lies in guest RAM.

use vmferry_core::PAGE_SIZE;

use crate::config::SynthConfig;
use crate::fill::StaticPages;
use crate::loads::{Load, create};
use crate::memory::{GuestMemory, PAGE_WORDS, Region, mix3};

/// What identifies the guest whose RAM this is, in its first word.
const MAGIC: u64 = u64::from_le_bytes(*b"vmferry\0");

/// The division of RAM: page 0, the loads' regions, the filled part, what is never touched.
pub(crate) struct Plan {
    identity: u64,
    seed: u64,
    /// For each load, its regions by worker.
    slices: Vec<Vec<Region>>,
    fill: StaticPages,
}

impl Plan {
    pub(crate) fn new(config: &SynthConfig) -> Self {
        let workers = u64::from(config.workers);
        let mut next = 1;
        let mut slices = Vec::new();
        for load in &config.loads {
            let pages = load.region_bytes() / PAGE_SIZE;
            let slice = |worker| {
                let (start, end) = (pages * worker / workers, pages * (worker + 1) / workers);
                Region {
                    first_page: next + start,
                    pages: end - start,
                }
            };
            slices.push((0..workers).map(slice).collect());
            next += pages;
        }
        let fill = Region {
            first_page: next,
            pages: (config.fill.mib << 20) / PAGE_SIZE,
        };
        Self {
            identity: config.identity(),
            seed: config.seed,
            slices,
            fill: StaticPages::new(fill, config.fill, config.seed),
        }
    }

    /// The loads of worker `worker`, at their start.
    pub(crate) fn loads(&self, config: &SynthConfig, worker: usize) -> Vec<Box<dyn Load>> {
        let create_one = |(index, load): (usize, _)| {
            create(
                load,
                self.slices[index][worker],
                mix3(self.seed, index as u64, worker as u64),
            )
        };
        config.loads.iter().enumerate().map(create_one).collect()
    }

    /// The static part.
    pub(crate) fn fill(&self) -> &StaticPages {
        &self.fill
    }

    /// Pages from the start of RAM that hold data; those behind are never touched.
    pub(crate) fn configured_pages(&self) -> u64 {
        self.fill.region().first_page + self.fill.region().pages
    }

    /// Writes page 0.
    pub(crate) fn write_first_page(&self, ram: &GuestMemory) {
        let mut words = [0; PAGE_WORDS];
        words[0] = MAGIC;
        words[1] = self.identity;
        ram.write_words(0, &words);
    }

    /// Whether page 0 is that of this guest. Loading the device state asks, as firmware would: so RAM must be
    /// there by then, or faults be served.
    pub(crate) fn is_first_page_right(&self, ram: &GuestMemory) -> bool {
        let mut words = [0; 2];
        ram.read_words(0, &mut words);
        words == [MAGIC, self.identity]
    }
}
