//! Free pages by the account of the guest's kernel, read in its memory.
//!
//! A free block of 2^n pages is marked in the `struct page` of its first page. While the guest is paused nothing changes
//! there, except that it may stand still in the middle of a change: then a page that is being taken from or given to the
//! free blocks is not marked yet or any more, or is marked and nobody has used it, so its content does not matter.

use vmferry_agent_proto::{FreeRule, StructPages};
use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::GuestRam;

use crate::physical::GuestPhysicalMap;

/// Most pages of structures read at once: 4 MiB of memory.
const READ_PAGES: u64 = 16;
/// Nothing below 1 MiB is called free: firmware keeps things there.
const FIRST_FREE_FRAME: u64 = (1 << 20) / PAGE_SIZE;

/// Finds free pages.
pub(crate) struct FreeFinder {
    struct_pages: StructPages,
    map: GuestPhysicalMap,
}

impl FreeFinder {
    /// A finder by what the guest's agent says, or why that cannot be.
    pub(crate) fn new(struct_pages: StructPages, map: GuestPhysicalMap) -> Result<Self, String> {
        let end = map.end() / PAGE_SIZE;
        let size = u64::from(struct_pages.size_bytes);
        for extent in &struct_pages.extents {
            let last = extent.first_frame + extent.frames;
            if last > end || !extent.address.is_multiple_of(size) {
                return Err(format!(
                    "struct pages of frames up to {last} at {:#x}, where memory has {end}",
                    extent.address
                ));
            }
        }
        Ok(Self { struct_pages, map })
    }

    /// Where the guest's frames lie.
    pub(crate) fn map(&self) -> &GuestPhysicalMap {
        &self.map
    }

    /// The pages that are free now, or why that cannot be read.
    pub(crate) fn find(&self, ram: &GuestRam) -> Result<PageBitmap, String> {
        let size = u64::from(self.struct_pages.size_bytes);
        let mut free = PageBitmap::new(ram.layout().pages());
        let mut buffer = vec![0; (READ_PAGES * PAGE_SIZE) as usize];
        for extent in &self.struct_pages.extents {
            let (mut frame, end) = (extent.first_frame, extent.first_frame + extent.frames);
            let mut address = extent.address;
            // A block's other pages are not looked at, and their structures not read where that is worth it: from small
            // reads, which grow while no large block comes.
            let (mut next, mut most) = (frame, 1);
            while frame < end {
                let first = self
                    .map
                    .page_at(address)
                    .ok_or_else(|| format!("there are no struct pages at {address:#x}"))?;
                let inside = address % PAGE_SIZE;
                let wanted = (inside + (end - frame) * size).div_ceil(PAGE_SIZE).min(most);
                let count = self.map.contiguous(address, wanted);
                let bytes = &mut buffer[..(count * PAGE_SIZE) as usize];
                ram.read(PageRun::new(first, count), bytes);
                let structures = bytes[inside as usize..].chunks_exact(size as usize);
                let mut taken = 0;
                for structure in structures.take((end - frame) as usize) {
                    let at = frame + taken;
                    taken += 1;
                    if at >= next
                        && let Some(block) = free_block(self.struct_pages.rule, at, structure)
                    {
                        next = at + block;
                        self.insert(&mut free, at, next);
                    }
                }
                let skipped = next.min(end).saturating_sub(frame + taken);
                most = if skipped > 0 { 1 } else { READ_PAGES.min(most * 2) };
                frame += taken + skipped;
                address += (taken + skipped) * size;
            }
        }
        Ok(free)
    }

    fn insert(&self, free: &mut PageBitmap, first: u64, end: u64) {
        for pages in self.map.pages_in(first.max(FIRST_FREE_FRAME)..end) {
            free.insert_run(pages);
        }
    }
}

/// The pages of the free block that begins at `frame`, if one does.
fn free_block(rule: FreeRule, frame: u64, structure: &[u8]) -> Option<u64> {
    let word = |offset: u16| {
        structure[usize::from(offset)..]
            .first_chunk()
            .map_or(u32::MAX, |&bytes| u32::from_le_bytes(bytes))
    };
    let order = word(rule.order_offset);
    let marked = word(rule.type_offset) & rule.type_mask == rule.type_value;
    let is_free = marked && word(rule.refcount_offset) == 0 && order <= u32::from(rule.max_order);
    let block = 1 << order.min(63);
    // The kernel's blocks begin at a multiple of their size.
    (is_free && frame.is_multiple_of(block)).then_some(block)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmferry_agent_proto::Extent;
    use vmferry_core::RamLayout;
    use vmferry_memory::SharedMemory;

    use super::*;

    const RULE: FreeRule = FreeRule {
        type_offset: 48,
        type_mask: 0xf000_0080,
        type_value: 0xf000_0000,
        refcount_offset: 52,
        order_offset: 40,
        max_order: 10,
    };
    /// 16 MiB of memory, its 4096 structures in 64 pages from here.
    const PAGES: u64 = 4096;
    const ARRAY: u64 = 0x20_0000;

    fn structure(kind: u32, references: u32, order: u32) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[40..44].copy_from_slice(&order.to_le_bytes());
        bytes[48..52].copy_from_slice(&kind.to_le_bytes());
        bytes[52..56].copy_from_slice(&references.to_le_bytes());
        bytes
    }

    fn guest(structures: &[(u64, [u8; 64])]) -> (GuestRam, GuestPhysicalMap) {
        let layout = RamLayout::single("ram", PAGES * PAGE_SIZE).unwrap();
        let mtree = "AS \"memory\", root: system\n 0000000000000000-0000000000ffffff (prio 0, ram): ram\n";
        let map = GuestPhysicalMap::parse(mtree, &layout);
        let memory = SharedMemory::create("test", PAGES * PAGE_SIZE).unwrap();
        let used = structure(u32::MAX, 1, 0);
        for frame in 0..PAGES {
            memory.write_at(ARRAY + frame * 64, &used);
        }
        for (frame, bytes) in structures {
            memory.write_at(ARRAY + frame * 64, bytes);
        }
        (GuestRam::new(layout, vec![Arc::new(memory)]), map)
    }

    fn pages_at(address: u64) -> StructPages {
        StructPages {
            size_bytes: 64,
            rule: RULE,
            extents: vec![Extent {
                first_frame: 0,
                frames: PAGES,
                address,
            }],
        }
    }

    #[test]
    fn blocks_are_found_and_what_only_looks_like_one_is_not() {
        let buddy = 0xffff_ff7f;
        let (ram, map) = guest(&[
            (0, structure(buddy, 0, 8)),          // below 1 MiB
            (1024, structure(buddy, 0, 10)),      // 4 MiB
            (1025, structure(buddy, 0, 0)),       // within that
            (2049, structure(buddy, 0, 0)),       // one page
            (2050, structure(buddy, 1, 0)),       // referenced
            (2052, structure(buddy, 0, 11)),      // no such order
            (2053, structure(buddy, 0, 2)),       // not at a multiple
            (2056, structure(u32::MAX, 0, 3)),    // in a list of a CPU
            (2064, structure(0xffff_fbff, 0, 0)), // page table
        ]);
        let finder = FreeFinder::new(pages_at(ARRAY), map).unwrap();
        let free = finder.find(&ram).unwrap();
        assert_eq!(
            free.runs().collect::<Vec<_>>(),
            [PageRun::new(1024, 1024), PageRun::new(2049, 1)]
        );
    }

    #[test]
    fn structures_outside_of_memory_are_refused() {
        let (ram, map) = guest(&[]);
        let finder = FreeFinder::new(pages_at((PAGES - 1) * PAGE_SIZE), map.clone()).unwrap();
        assert!(finder.find(&ram).unwrap_err().contains("no struct pages"));
        let mut beyond = pages_at(ARRAY);
        beyond.extents[0].frames += 1;
        assert!(FreeFinder::new(beyond, map.clone()).is_err());
        assert!(FreeFinder::new(pages_at(ARRAY + 8), map).is_err());
    }
}
