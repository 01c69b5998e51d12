//! What pages hold: some are looked at, a few at a time, so that the samples come when they should.

use std::collections::HashMap;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::GuestRam;
use vmferry_trace::{Blend, Content};
use vmferry_wire::PageEncoder;

/// Regions that are told apart.
const REGIONS: u64 = 64;
/// Pages looked at in each.
const PAGES_A_REGION: u32 = 16;
/// Pages looked at after a sample.
const PAGES_A_LOOK: u32 = 16;
/// Written pages looked at after a sample, and in all.
const WRITTEN_A_LOOK: u64 = 4;
const MOST_WRITTEN: u32 = 512;
/// Written pages whose version is kept, for differences, and differences made at most.
const MOST_KEPT: usize = 128;
const MOST_DIFFERENCES: u32 = 512;

const PAGE: usize = PAGE_SIZE as usize;

/// Sums up what pages hold.
#[derive(Default)]
struct Sum {
    looked_at: u32,
    uniform: u32,
    /// Bytes of pages that are not uniform, and what codecs make of them.
    bytes: u64,
    lz4: u64,
    zstd: u64,
    zstd_5: u64,
}

/// See the module.
pub(super) struct Contents {
    region_pages: u64,
    regions: Vec<Sum>,
    /// Pages still to be looked at, by region.
    left: Vec<u64>,
    written: Sum,
    /// Versions of pages that were written.
    kept: HashMap<u64, Box<[u8]>>,
    differences: u32,
    /// Bytes of differences and of their pages.
    delta: (u64, u64),
    encoder: PageEncoder,
    /// Draws pages; any sequence does.
    turn: u64,
}

impl Contents {
    /// Of a guest whose pages in `resident` hold data.
    pub(super) fn new(resident: &PageBitmap) -> Self {
        let pages = resident.len();
        let region_pages = pages.div_ceil(REGIONS).max(1);
        let regions = pages.div_ceil(region_pages);
        let mut left = Vec::new();
        for region in 0..regions {
            let first = region * region_pages;
            let run = PageRun::new(first, region_pages.min(pages - first));
            let held = resident.count_in(run);
            let step = (held / u64::from(PAGES_A_REGION)).max(1);
            let of_region = resident.pages_in(run).step_by(step as usize);
            left.extend(of_region.take(PAGES_A_REGION as usize));
        }
        // The last ones are looked at first: where a recording is short, every region has some.
        left.sort_by_key(|page| page.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            region_pages,
            regions: (0..regions).map(|_| Sum::default()).collect(),
            left,
            written: Sum::default(),
            kept: HashMap::new(),
            differences: 0,
            delta: (0, 0),
            encoder: PageEncoder::default(),
            turn: 0,
        }
    }

    /// Looks at a few pages.
    pub(super) fn look(&mut self, ram: &GuestRam) {
        for _ in 0..PAGES_A_LOOK {
            let Some(page) = self.left.pop() else { return };
            let data = read(ram, page);
            self.regions[(page / self.region_pages) as usize].add(&data, &mut self.encoder);
        }
    }

    /// Looks at some of the pages that a sample found.
    pub(super) fn written(&mut self, ram: &GuestRam, dirty: &PageBitmap) {
        let count = dirty.count();
        if count == 0 || self.written.looked_at >= MOST_WRITTEN {
            return;
        }
        let step = count.div_ceil(WRITTEN_A_LOOK);
        self.turn += 1;
        let chosen: Vec<u64> = dirty
            .pages()
            .skip((self.turn * 7 % step) as usize)
            .step_by(step as usize)
            .take(WRITTEN_A_LOOK as usize)
            .collect();
        for page in chosen {
            let data = read(ram, page);
            self.written.add(&data, &mut self.encoder);
            if self.kept.len() < MOST_KEPT {
                self.kept.entry(page).or_insert(data);
            }
        }
        self.differ(ram, dirty);
    }

    /// Compares pages that were written again with the version kept.
    fn differ(&mut self, ram: &GuestRam, dirty: &PageBitmap) {
        if self.differences >= MOST_DIFFERENCES {
            return;
        }
        let again: Vec<u64> = self
            .kept
            .keys()
            .copied()
            .filter(|&page| dirty.contains(page))
            .collect();
        for page in again.into_iter().take(WRITTEN_A_LOOK as usize) {
            let new = read(ram, page);
            let Some(old) = self.kept.insert(page, new.clone()) else {
                continue;
            };
            // The version of this very sample differs in nothing, and says nothing.
            if old == new {
                continue;
            }
            let len = self.encoder.delta(&old, &new).map_or(PAGE, <[u8]>::len);
            self.differences += 1;
            self.delta.0 += len as u64;
            self.delta.1 += PAGE_SIZE;
        }
    }

    pub(super) fn finish(self) -> Content {
        let (delta, of) = self.delta;
        Content {
            region_pages: self.region_pages,
            regions: self.regions.iter().map(Sum::blend).collect(),
            written: self.written.blend(),
            delta: (of > 0).then(|| (delta as f32 / of as f32).clamp(1e-4, 1.0)),
        }
    }
}

impl Sum {
    fn add(&mut self, data: &[u8], encoder: &mut PageEncoder) {
        self.looked_at += 1;
        if data[1..] == data[..data.len() - 1] {
            self.uniform += 1;
            return;
        }
        let len = |payload: Option<&[u8]>| payload.map_or(PAGE, <[u8]>::len) as u64;
        self.bytes += PAGE_SIZE;
        self.lz4 += len(encoder.lz4(data));
        self.zstd += len(encoder.zstd(1, data));
        self.zstd_5 += len(encoder.zstd(5, data));
    }

    fn blend(&self) -> Blend {
        if self.bytes == 0 {
            return Blend {
                looked_at: self.looked_at,
                uniform: self.uniform,
                ..Blend::default()
            };
        }
        let ratio = |bytes: u64| (bytes as f32 / self.bytes as f32).clamp(1e-4, 1.0);
        Blend {
            looked_at: self.looked_at,
            uniform: self.uniform,
            lz4: ratio(self.lz4),
            zstd: ratio(self.zstd),
            zstd_5: ratio(self.zstd_5),
        }
    }
}

fn read(ram: &GuestRam, page: u64) -> Box<[u8]> {
    let mut data = vec![0; PAGE].into_boxed_slice();
    ram.read(PageRun::single(page), &mut data);
    data
}
