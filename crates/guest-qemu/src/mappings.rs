//! Where QEMU's process has the guest's RAM mapped.

use std::ops::Range;

use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{GuestError, GuestRam, Result};
use vmferry_memory::{FileId, Mapping, mappings_of};

/// A stretch of QEMU's address space that maps consecutive pages of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MappedRun {
    /// The addresses, in QEMU's process.
    pub(crate) addresses: Range<u64>,
    /// The pages behind them.
    pub(crate) pages: PageRun,
}

/// All mappings of the guest's RAM blocks. QEMU may have a block mapped more than once (a DIMM's backend has
/// been seen twice): writes through each mapping are tracked, and faults answered, in that mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mappings {
    /// Ascending by address.
    runs: Vec<MappedRun>,
}

impl Mappings {
    /// Finds them in `/proc/PID/maps`.
    pub(crate) fn find(pid: u32, ram: &GuestRam) -> Result<Self> {
        let mut runs = Vec::new();
        for (index, block) in ram.layout().blocks().iter().enumerate() {
            let memory = ram.block(index);
            let pages = ram.layout().block_run(index);
            let window = memory.file_offset()..memory.file_offset() + memory.len();
            let found = FileId::of(memory.fd())
                .and_then(|file| mappings_of(pid, file))
                .map_err(|source| {
                    GuestError::operation("finding the guest's RAM in QEMU's process", source)
                })?;
            let before = runs.len();
            for mapping in found {
                runs.extend(clip(mapping.addresses, mapping.file_offset, &window, pages));
            }
            if runs.len() == before {
                return Err(GuestError::Unsupported {
                    what: format!("RAM block {} in QEMU's process {pid}", block.name),
                    mend: "it is not mapped there any more; was its backend unplugged?".into(),
                });
            }
        }
        runs.sort_unstable_by_key(|run: &MappedRun| run.addresses.start);
        Ok(Self { runs })
    }

    /// Every mapped stretch, ascending by address.
    pub(crate) fn runs(&self) -> &[MappedRun] {
        &self.runs
    }

    /// The same for the mechanisms of `vmferry-memory`: in place of offsets in each block's file, offsets in all RAM, which are
    /// page numbers.
    pub(crate) fn by_page_number(&self) -> Vec<Mapping> {
        let mapping = |run: &MappedRun| Mapping {
            addresses: run.addresses.clone(),
            file_offset: run.pages.first * PAGE_SIZE,
        };
        self.runs.iter().map(mapping).collect()
    }

    /// The page mapped at `address`.
    pub(crate) fn page_at(&self, address: u64) -> Option<u64> {
        let after = self.runs.partition_point(|run| run.addresses.start <= address);
        let run = self.runs[..after]
            .last()
            .filter(|run| address < run.addresses.end)?;
        Some(run.pages.first + (address - run.addresses.start) / PAGE_SIZE)
    }

    /// The parts of `pages` as they are mapped, each with its addresses; the same page comes once a mapping.
    pub(crate) fn of(&self, pages: PageRun) -> impl Iterator<Item = MappedRun> + '_ {
        self.runs.iter().filter_map(move |run| {
            let first = pages.first.max(run.pages.first);
            let end = pages.end().min(run.pages.end());
            let count = end.checked_sub(first).filter(|&count| count > 0)?;
            let start = run.addresses.start + (first - run.pages.first) * PAGE_SIZE;
            Some(MappedRun {
                addresses: start..start + count * PAGE_SIZE,
                pages: PageRun::new(first, count),
            })
        })
    }
}

/// The part of a mapping that lies in `window` of the file, whose first byte is the first of `pages`.
fn clip(addresses: Range<u64>, file_offset: u64, window: &Range<u64>, pages: PageRun) -> Option<MappedRun> {
    let start = file_offset.max(window.start);
    let end = (file_offset + (addresses.end - addresses.start)).min(window.end);
    let len = end.checked_sub(start).filter(|&len| len > 0)?;
    let first = addresses.start + (start - file_offset);
    Some(MappedRun {
        addresses: first..first + len,
        pages: PageRun::new(pages.first + (start - window.start) / PAGE_SIZE, len / PAGE_SIZE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_addresses_over_two_mappings_of_a_block() {
        let mappings = Mappings {
            runs: vec![
                MappedRun {
                    addresses: 0x10_0000..0x10_8000,
                    pages: PageRun::new(0, 8),
                },
                MappedRun {
                    addresses: 0x20_0000..0x20_2000,
                    pages: PageRun::new(6, 2),
                },
            ],
        };
        assert_eq!(mappings.page_at(0x10_7fff), Some(7));
        assert_eq!(mappings.page_at(0x10_8000), None);
        assert_eq!(mappings.page_at(0x20_1000), Some(7));
        let found: Vec<_> = mappings.of(PageRun::new(5, 2)).collect();
        assert_eq!(found[0].addresses, 0x10_5000..0x10_7000);
        assert_eq!(
            found[1],
            MappedRun {
                addresses: 0x20_0000..0x20_1000,
                pages: PageRun::new(6, 1)
            }
        );
    }

    #[test]
    fn mappings_are_cut_to_the_block() {
        let pages = PageRun::new(100, 4);
        let window = 0x2000..0x6000;
        let run = clip(0x7000_0000..0x7000_8000, 0, &window, pages).unwrap();
        assert_eq!(
            run,
            MappedRun {
                addresses: 0x7000_2000..0x7000_6000,
                pages
            }
        );
        let run = clip(0x7000_0000..0x7000_1000, 0x5000, &window, pages).unwrap();
        assert_eq!(run.pages, PageRun::new(103, 1));
        assert_eq!(clip(0x7000_0000..0x7000_1000, 0x6000, &window, pages), None);
    }
}
