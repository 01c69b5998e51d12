//! Where guest-physical addresses lie in the guest's RAM blocks, by QEMU's own account (`info mtree -f`).

use vmferry_core::{PAGE_SIZE, PageRun, RamLayout};

/// A range of guest-physical addresses backed by consecutive pages of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalRange {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// The pages behind it.
    pub pages: PageRun,
}

impl PhysicalRange {
    /// The address after the last byte.
    pub fn end(self) -> u64 {
        self.address + self.pages.bytes()
    }
}

/// The guest-physical addresses of all RAM that the guest's CPUs can see outside of system management mode.
///
/// RAM behind a window (the VGA window at 0xa0000 for one) has no address here; the guest cannot use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPhysicalMap {
    /// Ascending by address, no two of them touching with consecutive pages.
    ranges: Vec<PhysicalRange>,
}

impl GuestPhysicalMap {
    /// Reads the output of `info mtree -f`: the view of the system's memory, as far as it shows the blocks of
    /// `layout`.
    pub fn parse(mtree: &str, layout: &RamLayout) -> Self {
        let mut ranges: Vec<PhysicalRange> = Vec::new();
        for line in system_view(mtree) {
            let Some(found) = parse_line(line, layout) else {
                continue;
            };
            match ranges.last_mut() {
                Some(last) if last.end() == found.address && last.pages.end() == found.pages.first => {
                    last.pages.count += found.pages.count;
                }
                _ => ranges.push(found),
            }
        }
        ranges.sort_unstable_by_key(|range| range.address);
        Self { ranges }
    }

    /// The ranges, ascending by address.
    pub fn ranges(&self) -> &[PhysicalRange] {
        &self.ranges
    }

    /// The number of the page that holds guest-physical `address`.
    pub fn page_at(&self, address: u64) -> Option<u64> {
        let after = self.ranges.partition_point(|range| range.address <= address);
        let range = self.ranges[..after]
            .last()
            .filter(|range| address < range.end())?;
        Some(range.pages.first + (address - range.address) / PAGE_SIZE)
    }

    /// The address after the last byte of RAM.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end())
    }

    /// How many pages from the one at guest-physical `address` on, at most `limit`, have consecutive page numbers.
    pub fn contiguous(&self, address: u64, limit: u64) -> u64 {
        let after = self.ranges.partition_point(|range| range.address <= address);
        let left = self.ranges[..after]
            .last()
            .map_or(0, |range| range.end().saturating_sub(address).div_ceil(PAGE_SIZE));
        left.min(limit)
    }

    /// The pages behind those of the page frames that are RAM. A frame's number is its guest-physical address over 4096.
    pub fn pages_in(&self, frames: std::ops::Range<u64>) -> impl Iterator<Item = PageRun> + '_ {
        self.ranges.iter().filter_map(move |range| {
            let start = range.address / PAGE_SIZE;
            let first = frames.start.max(start);
            let end = frames.end.min(start + range.pages.count);
            (first < end).then(|| PageRun::new(range.pages.first + (first - start), end - first))
        })
    }

    /// The guest-physical address of the first byte of page number `page`.
    pub fn address_of(&self, page: u64) -> Option<u64> {
        let range = self.ranges.iter().find(|range| range.pages.contains(page))?;
        Some(range.address + (page - range.pages.first) * PAGE_SIZE)
    }
}

/// The lines of the flat view that the address space `memory` uses.
fn system_view(mtree: &str) -> impl Iterator<Item = &str> {
    let mut current = false;
    mtree.lines().map(str::trim).filter(move |line| {
        if line.starts_with("FlatView #") {
            current = false;
        }
        current |= line.starts_with("AS \"memory\", root: system");
        current
    })
}

/// Parses `START-END (prio N, KIND): NAME @OFFSET ...`, numbers hexadecimal, the offset absent when zero.
///
/// The kind does not matter: firmware shadowed in RAM shows as rom and is RAM of the guest all the same.
fn parse_line(line: &str, layout: &RamLayout) -> Option<PhysicalRange> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (addresses, rest) = line.split_once(" (prio ")?;
    let (start, last) = addresses.split_once('-')?;
    let (start, last) = (hex(start)?, hex(last)?);
    let mut words = rest.split_once("): ")?.1.split_whitespace();
    let name = words.next()?;
    let offset = words
        .find_map(|word| word.strip_prefix('@'))
        .map_or(Some(0), hex)?;
    let block = layout
        .blocks()
        .iter()
        .position(|block| names_backend(name, &block.name))?;
    let bytes = last.checked_sub(start)?.checked_add(1)?;
    let pages = PageRun::new(
        layout.block_run(block).first + offset / PAGE_SIZE,
        bytes / PAGE_SIZE,
    );
    let fits = offset.checked_add(bytes)? <= layout.blocks()[block].pages * PAGE_SIZE && pages.count > 0;
    (fits && start.is_multiple_of(PAGE_SIZE)).then_some(PhysicalRange {
        address: start,
        pages,
    })
}

/// Whether a memory region's name is that of the backend `id`: old machine types show its path.
pub(crate) fn names_backend(region: &str, id: &str) -> bool {
    region == id || region.strip_prefix("/objects/") == Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = include_str!("../tests/fixtures/mtree-q35-512M.txt");
    const LARGE: &str = include_str!("../tests/fixtures/mtree-q35-6G.txt");
    const GIB: u64 = 1 << 30;

    fn map(mtree: &str, bytes: u64) -> GuestPhysicalMap {
        GuestPhysicalMap::parse(mtree, &RamLayout::single("vmferry.ram0", bytes).unwrap())
    }

    #[test]
    fn all_ram_of_a_small_guest_lies_below_4_gib() {
        let map = map(SMALL, 512 << 20);
        // The VGA window is RAM too: this machine has no VGA.
        let whole = PhysicalRange {
            address: 0,
            pages: PageRun::new(0, 512 << 8),
        };
        assert_eq!(map.ranges(), [whole]);
        assert_eq!(map.page_at((512 << 20) - 1), Some((512 << 8) - 1));
        assert_eq!(map.page_at(512 << 20), None);
    }

    #[test]
    fn ram_of_a_large_guest_goes_on_above_4_gib() {
        let map = map(LARGE, 6 * GIB);
        let low = PhysicalRange {
            address: 0,
            pages: PageRun::new(0, 2 * GIB / PAGE_SIZE),
        };
        let high = PageRun::new(2 * GIB / PAGE_SIZE, 4 * GIB / PAGE_SIZE);
        assert_eq!(
            map.ranges(),
            [
                low,
                PhysicalRange {
                    address: 4 * GIB,
                    pages: high
                }
            ]
        );
        assert_eq!(map.page_at(2 * GIB), None);
        assert_eq!(
            map.page_at(4 * GIB + 5 * PAGE_SIZE),
            Some(2 * GIB / PAGE_SIZE + 5)
        );
        let both: Vec<_> = map
            .pages_in(2 * GIB / PAGE_SIZE - 1..4 * GIB / PAGE_SIZE + 2)
            .collect();
        assert_eq!(
            both,
            [
                PageRun::single(2 * GIB / PAGE_SIZE - 1),
                PageRun::new(2 * GIB / PAGE_SIZE, 2)
            ]
        );
        assert_eq!(map.contiguous(2 * GIB - PAGE_SIZE, 9), 1);
        assert_eq!((map.contiguous(4 * GIB, 9), map.contiguous(3 * GIB, 9)), (9, 0));
        assert_eq!(map.end(), 8 * GIB);
        for page in [0, 77, 2 * GIB / PAGE_SIZE, 6 * GIB / PAGE_SIZE - 1] {
            assert_eq!(map.page_at(map.address_of(page).unwrap()), Some(page));
        }
    }

    #[test]
    fn windows_over_ram_and_second_blocks() {
        let layout = RamLayout::new(vec![
            vmferry_core::RamBlock {
                name: "main".into(),
                pages: 512,
            },
            vmferry_core::RamBlock {
                name: "dimm0".into(),
                pages: 16,
            },
        ])
        .unwrap();
        let view = "FlatView #0\n AS \"cpu-smm-0\", root: memory\n  0000000000000000-00000000001fffff (prio 0, ram): main\n\n\
                    FlatView #1\n AS \"memory\", root: system\n Root memory region: system\n\
                    \x20 0000000000000000-000000000009ffff (prio 0, ram): main KVM\n\
                    \x20 00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\n\
                    \x20 00000000000c0000-00000000001fffff (prio 0, rom): main @00000000000c0000 KVM\n\
                    \x20 0000000100000000-000000010000ffff (prio 0, ram): /objects/dimm0\n\
                    \x20 0000000200000000-00000002ffffffff (prio 0, ram): dimm0\n";
        let map = GuestPhysicalMap::parse(view, &layout);
        assert_eq!(map.page_at(0x9_f000), Some(0x9f));
        assert_eq!(map.page_at(0xa_0000), None);
        assert_eq!(map.page_at(0xc_0000), Some(0xc0));
        assert_eq!(map.page_at(0x1_0000_1000), Some(513));
        assert_eq!(map.page_at(0x2_0000_0000), None, "larger than its block");
        assert_eq!(map.address_of(0xa0), None);
    }
}
