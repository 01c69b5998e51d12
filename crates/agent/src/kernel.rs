//! Where the kernel keeps its `struct page`s, so that the host can read them in the stopped guest's memory.
//!
//! `/proc/kcore` shows the kernel's address space as an ELF core file: its segments say where memory is mapped, its
//! VMCOREINFO note (written for crash tools) where the kernel's page tables and the fields of a `struct page` are.

mod kcore;
mod page_tables;
mod vmcoreinfo;

use vmferry_agent_proto::kernel::MAX_EXTENTS;
use vmferry_agent_proto::{Extent, FreeRule, Kernel, StructPages};

use crate::error::{AgentError, Result};
use crate::proc::{self, cmdline};
use kcore::{Kcore, Segment};
use page_tables::PageTables;
use vmcoreinfo::VmcoreInfo;

const KCORE: &str = "/proc/kcore";
/// Start of the kernel's image in its address space.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
/// The kernel puts the array of `struct page`s at a multiple of this.
const VMEMMAP_ALIGNMENT: u64 = 1 << 30;
/// The lowest address at which the array can be; lower is the direct map.
const VMEMMAP_LOWEST: u64 = 0xffd4_0000_0000_0000;
/// No array is as long: the segment of `vmalloc` is longer.
const VMEMMAP_LONGEST: u64 = 4 << 40;

/// The kernel, with its `struct page`s where they could be found.
pub(crate) fn describe() -> Result<Kernel> {
    let release = proc::read("/proc/sys/kernel/osrelease")?.trim_end().to_owned();
    let (struct_pages, why_not) = match find_struct_pages() {
        Ok(found) => (Some(found), String::new()),
        Err(error) => (None, error.in_one_line()),
    };
    Ok(Kernel {
        release,
        struct_pages,
        why_not,
    })
}

fn find_struct_pages() -> Result<StructPages> {
    if cmdline::checks_free_pages(&proc::read("/proc/cmdline")?) {
        return Err(AgentError::Strange {
            path: "/proc/cmdline",
            problem: "the kernel checks what its free pages hold, so none may be dropped".into(),
        });
    }
    let kcore = Kcore::open(KCORE)?;
    let info = VmcoreInfo::parse(kcore.note())
        .ok_or_else(|| strange("it has no VMCOREINFO with the layout of a struct page"))?;
    let array = vmemmap_base(kcore.segments()).ok_or_else(|| strange("no segment is the array of pages"))?;
    let tables = PageTables {
        top: (info.top_table - IMAGE_BASE).wrapping_add(info.phys_base),
        levels: info.levels,
    };
    let mut read = |address| kcore.read_physical(address);
    let mut extents = Vec::new();
    for ram in kcore.segments().iter().filter(|segment| is_direct_map(segment)) {
        let frames =
            ram.physical.unwrap_or_default() / 4096..(ram.physical.unwrap_or_default() + ram.bytes) / 4096;
        let size = u64::from(info.page_bytes);
        let start = array + frames.start * size;
        let end = array + frames.end * size;
        let mut at = start;
        while at < end {
            let Some(place) = tables.walk(&mut read, at)? else {
                return Err(strange("a part of the array of pages is not mapped"));
            };
            // Up to the end of the mapping. A structure never lies across it: its size divides a page.
            let bytes = (place.bytes_left).min(end - at);
            add(
                &mut extents,
                Extent {
                    first_frame: (at - array) / size,
                    frames: bytes / size,
                    address: place.address,
                },
                size,
            );
            at += bytes;
        }
    }
    if extents.is_empty() || extents.len() > MAX_EXTENTS {
        return Err(strange(&format!(
            "the array of pages lies in {} pieces",
            extents.len()
        )));
    }
    extents.sort_unstable_by_key(|extent| extent.first_frame);
    Ok(StructPages {
        size_bytes: info.page_bytes,
        rule: free_rule(&info),
        extents,
    })
}

/// How the kernel marks a free block: it says which value its type has. Until 6.10 a type is a cleared bit below set ones,
/// and others may be cleared beside it; since then it is the uppermost byte.
fn free_rule(info: &VmcoreInfo) -> FreeRule {
    let (type_mask, type_value) = match info.buddy_value {
        0xffff_ff7f => (0xf000_0080, 0xf000_0000),
        typed if typed & 0x00ff_ffff == 0 => (0xff00_0000, typed),
        other => (u32::MAX, other),
    };
    FreeRule {
        type_offset: info.mapcount_offset,
        type_mask,
        type_value,
        refcount_offset: info.refcount_offset,
        order_offset: info.private_offset,
        max_order: info.max_order,
    }
}

/// Adds an extent, or lengthens the last one.
fn add(extents: &mut Vec<Extent>, next: Extent, size: u64) {
    match extents.last_mut() {
        Some(last)
            if last.first_frame + last.frames == next.first_frame
                && last.address + last.frames * size == next.address =>
        {
            last.frames += next.frames;
        }
        _ => extents.push(next),
    }
}

/// Whether a segment shows memory at the place where all of it is mapped.
fn is_direct_map(segment: &Segment) -> bool {
    segment.physical.is_some() && segment.address < IMAGE_BASE
}

/// Where the array of pages begins, by the segments that show parts of it.
fn vmemmap_base(segments: &[Segment]) -> Option<u64> {
    segments
        .iter()
        .filter(|segment| {
            segment.physical.is_none()
                && (VMEMMAP_LOWEST..IMAGE_BASE).contains(&segment.address)
                && segment.bytes < VMEMMAP_LONGEST
        })
        .map(|segment| segment.address / VMEMMAP_ALIGNMENT * VMEMMAP_ALIGNMENT)
        .min()
}

fn strange(problem: &str) -> AgentError {
    AgentError::Strange {
        path: KCORE,
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(buddy_value: u32) -> VmcoreInfo {
        VmcoreInfo {
            top_table: IMAGE_BASE,
            phys_base: 0,
            levels: 4,
            page_bytes: 64,
            refcount_offset: 52,
            mapcount_offset: 48,
            private_offset: 40,
            buddy_value,
            max_order: 10,
        }
    }

    #[test]
    fn the_mark_of_a_free_block_follows_the_kernel() {
        let rule = |value| {
            let rule = free_rule(&info(value));
            (rule.type_mask, rule.type_value)
        };
        assert_eq!(rule(-129_i32 as u32), (0xf000_0080, 0xf000_0000), "4.18 to 6.10");
        assert_eq!(rule(0xf000_0000), (0xff00_0000, 0xf000_0000), "since 6.11");
        assert_eq!(rule(-128_i32 as u32), (u32::MAX, 0xffff_ff80), "until 4.17");
    }

    #[test]
    fn the_array_is_told_from_vmalloc_and_modules() {
        let segment = |address, bytes, physical| Segment {
            address,
            bytes,
            physical,
            offset: 0,
        };
        let segments = [
            segment(0xffff_ffff_8100_0000, 0x2e0_0000, Some(0x100_0000)),
            segment(0xffff_c900_0000_0000, 32 << 40, None),
            segment(0xffff_ffff_c000_0000, 1 << 29, None),
            segment(0xffff_8880_0000_1000, 0x9e000, Some(0x1000)),
            segment(0xffff_ea00_0000_0000, 0x3000, None),
            segment(0xffff_8880_0010_0000, 0xfee_0000, Some(0x10_0000)),
            segment(0xffff_ea00_0000_4000, 0x3f_c000, None),
        ];
        assert_eq!(vmemmap_base(&segments), Some(0xffff_ea00_0000_0000));
        assert_eq!(segments.iter().filter(|each| is_direct_map(each)).count(), 2);
        assert_eq!(vmemmap_base(&segments[..4]), None);
    }

    #[test]
    fn neighbours_are_one_extent() {
        let extent = |first_frame, frames, address| Extent {
            first_frame,
            frames,
            address,
        };
        let mut extents = Vec::new();
        add(&mut extents, extent(1, 63, 64), 64);
        add(&mut extents, extent(64, 64, 4096), 64);
        add(&mut extents, extent(128, 64, 0x9000), 64);
        add(&mut extents, extent(256, 64, 0xa000), 64);
        assert_eq!(
            extents,
            [
                extent(1, 127, 64),
                extent(128, 64, 0x9000),
                extent(256, 64, 0xa000)
            ]
        );
    }
}
