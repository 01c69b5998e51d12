//! The RAM of a guest as both hosts agree on it: named blocks, concatenated.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pages::{PAGE_SIZE, PageRun};

/// The most RAM blocks a layout may have; a peer that announces more is refused.
pub const MAX_BLOCKS: usize = 64;
/// The most RAM a layout may have: 64 TiB. Bounds what a peer can make us allocate for bitmaps.
pub const MAX_RAM_BYTES: u64 = 64 << 40;

/// One block of guest RAM, backed by one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// The backend's name for it, for example the id of a QEMU memory backend.
    pub name: String,
    /// Size in pages.
    pub pages: u64,
}

/// All RAM blocks of a guest. Page numbers count through them in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<RamBlock>", into = "Vec<RamBlock>")]
pub struct RamLayout {
    blocks: Vec<RamBlock>,
    /// Page number of each block's first page, and the total at the end.
    starts: Vec<u64>,
}

/// A part of a [`PageRun`] that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Index of the block in the layout.
    pub block: usize,
    /// Offset of the first byte within the block.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// Why a layout is not acceptable, or a run does not lie in it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// The number of blocks is out of bounds.
    #[error("the guest has {0} RAM blocks, expected 1 to {MAX_BLOCKS}")]
    BlockCount(usize),
    /// A block of no pages.
    #[error("RAM block {0:?} is empty")]
    EmptyBlock(String),
    /// More RAM than [`MAX_RAM_BYTES`].
    #[error("the guest's RAM is larger than {MAX_RAM_BYTES} bytes")]
    TooLarge,
    /// A run that reaches outside of the layout.
    #[error("pages {first}..{end} lie outside of the guest's RAM of {pages} pages")]
    OutOfRange {
        /// First page of the run.
        first: u64,
        /// Page after the last one (saturated).
        end: u64,
        /// Pages in the layout.
        pages: u64,
    },
}

impl RamLayout {
    /// A layout of these blocks, in this order.
    ///
    /// # Errors
    /// When a bound is not kept: see [`LayoutError`].
    pub fn new(blocks: Vec<RamBlock>) -> Result<Self, LayoutError> {
        if blocks.is_empty() || blocks.len() > MAX_BLOCKS {
            return Err(LayoutError::BlockCount(blocks.len()));
        }
        let mut starts = Vec::with_capacity(blocks.len() + 1);
        let mut total = 0u64;
        for block in &blocks {
            if block.pages == 0 {
                return Err(LayoutError::EmptyBlock(block.name.clone()));
            }
            starts.push(total);
            total = total.checked_add(block.pages).ok_or(LayoutError::TooLarge)?;
            if total > MAX_RAM_BYTES / PAGE_SIZE {
                return Err(LayoutError::TooLarge);
            }
        }
        starts.push(total);
        Ok(Self { blocks, starts })
    }

    /// A layout of a single block.
    ///
    /// # Errors
    /// As [`RamLayout::new`].
    pub fn single(name: impl Into<String>, bytes: u64) -> Result<Self, LayoutError> {
        Self::new(vec![RamBlock {
            name: name.into(),
            pages: bytes / PAGE_SIZE,
        }])
    }

    /// The blocks in order.
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Pages in all blocks.
    pub fn pages(&self) -> u64 {
        self.starts[self.blocks.len()]
    }

    /// Bytes in all blocks.
    pub fn bytes(&self) -> u64 {
        self.pages() * PAGE_SIZE
    }

    /// The pages of block `block`.
    pub fn block_run(&self, block: usize) -> PageRun {
        PageRun::new(self.starts[block], self.blocks[block].pages)
    }

    /// Accepts a run only if it is not empty and lies wholly in the layout.
    ///
    /// # Errors
    /// [`LayoutError::OutOfRange`].
    pub fn check(&self, run: PageRun) -> Result<(), LayoutError> {
        let end = run.first.saturating_add(run.count);
        if run.count == 0 || end > self.pages() {
            return Err(LayoutError::OutOfRange {
                first: run.first,
                end,
                pages: self.pages(),
            });
        }
        Ok(())
    }

    /// The parts of `run` block by block; `run` must lie in the layout (see [`RamLayout::check`]).
    pub fn split(&self, run: PageRun) -> impl Iterator<Item = BlockRun> + '_ {
        let mut at = run.first;
        // The block that holds `at`: the last one that starts at or before it.
        let mut block = self
            .starts
            .partition_point(|&start| start <= at)
            .saturating_sub(1);
        std::iter::from_fn(move || {
            if at >= run.end() || block >= self.blocks.len() {
                return None;
            }
            let end = run.end().min(self.starts[block + 1]);
            let part = BlockRun {
                block,
                offset_bytes: (at - self.starts[block]) * PAGE_SIZE,
                len_bytes: (end - at) * PAGE_SIZE,
            };
            at = end;
            block += 1;
            Some(part)
        })
    }
}

impl TryFrom<Vec<RamBlock>> for RamLayout {
    type Error = LayoutError;

    fn try_from(blocks: Vec<RamBlock>) -> Result<Self, LayoutError> {
        Self::new(blocks)
    }
}

impl From<RamLayout> for Vec<RamBlock> {
    fn from(layout: RamLayout) -> Self {
        layout.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> RamLayout {
        RamLayout::new(vec![
            RamBlock {
                name: "low".into(),
                pages: 4,
            },
            RamBlock {
                name: "high".into(),
                pages: 8,
            },
        ])
        .unwrap()
    }

    #[test]
    fn a_run_over_a_border_splits_into_its_blocks() {
        let parts: Vec<_> = layout().split(PageRun::new(2, 5)).collect();
        assert_eq!(
            parts,
            [
                BlockRun {
                    block: 0,
                    offset_bytes: 2 * PAGE_SIZE,
                    len_bytes: 2 * PAGE_SIZE
                },
                BlockRun {
                    block: 1,
                    offset_bytes: 0,
                    len_bytes: 3 * PAGE_SIZE
                },
            ]
        );
    }

    #[test]
    fn runs_outside_of_ram_are_refused() {
        assert!(layout().check(PageRun::new(0, 12)).is_ok());
        for (first, count) in [(0, 13), (12, 1), (u64::MAX, 2), (3, 0)] {
            assert!(
                layout().check(PageRun::new(first, count)).is_err(),
                "{first}+{count}"
            );
        }
    }

    #[test]
    fn absurd_layouts_are_refused() {
        assert_eq!(RamLayout::new(vec![]), Err(LayoutError::BlockCount(0)));
        let huge = RamBlock {
            name: "x".into(),
            pages: u64::MAX,
        };
        assert_eq!(
            RamLayout::new(vec![huge.clone(), huge]),
            Err(LayoutError::TooLarge)
        );
        assert!(serde_json::from_str::<RamLayout>(r#"[{"name":"a","pages":0}]"#).is_err());
    }
}
