//! Guest RAM as the vCPUs see it.

use std::sync::Arc;

use vmferry_core::PAGE_SIZE;
use vmferry_memory::SharedMemory;
use zerocopy::IntoBytes;

use crate::software::SoftwarePaging;

/// 64-bit words in a page.
pub(crate) const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;

/// A page as words.
pub(crate) type PageWords = [u64; PAGE_WORDS];

/// A mapping of guest RAM together with what an access has to go through. Offsets are in bytes.
pub(crate) struct GuestMemory {
    mapping: Arc<SharedMemory>,
    /// `None`: the kernel sees to faults and tracking.
    software: Option<Arc<SoftwarePaging>>,
}

impl GuestMemory {
    /// RAM that a vCPU accesses, through a mapping nobody else uses.
    pub(crate) fn new(mapping: Arc<SharedMemory>, software: Option<Arc<SoftwarePaging>>) -> Self {
        Self { mapping, software }
    }

    /// RAM seen from outside: nothing is tracked, what is missing reads as zero.
    pub(crate) fn unchecked(mapping: Arc<SharedMemory>) -> Self {
        Self::new(mapping, None)
    }

    /// The mapping itself.
    pub(crate) fn mapping(&self) -> &Arc<SharedMemory> {
        &self.mapping
    }

    /// Copies bytes out; waits while a page is missing.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(software) = &self.software {
            software.before_access(offset, bytes.len());
        }
        self.mapping.read_at(offset, bytes);
    }

    /// Copies bytes in; waits while a page is missing.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let _held = self
            .software
            .as_ref()
            .map(|software| software.before_write(offset, bytes.len()));
        self.mapping.write_at(offset, bytes);
        if let Some(software) = &self.software {
            software.after_write(offset, bytes.len());
        }
    }

    /// The aligned word at `offset`.
    pub(crate) fn load(&self, offset: u64) -> u64 {
        if let Some(software) = &self.software {
            software.before_access(offset, 8);
        }
        self.mapping.load_u64(offset)
    }

    /// Sets the aligned word at `offset`.
    pub(crate) fn store(&self, offset: u64, value: u64) {
        let _held = self
            .software
            .as_ref()
            .map(|software| software.before_write(offset, 8));
        self.mapping.store_u64(offset, value);
        if let Some(software) = &self.software {
            software.after_write(offset, 8);
        }
    }

    /// Copies words out.
    pub(crate) fn read_words(&self, offset: u64, words: &mut [u64]) {
        self.read(offset, words.as_mut_bytes());
    }

    /// Copies words in.
    pub(crate) fn write_words(&self, offset: u64, words: &[u64]) {
        self.write(offset, words.as_bytes());
    }
}

/// Consecutive pages of RAM: what one worker has for one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Number of the first page in RAM.
    pub first_page: u64,
    /// How many.
    pub pages: u64,
}

impl Region {
    /// Offset in RAM of page `index` of the region.
    pub(crate) fn page(&self, index: u64) -> u64 {
        debug_assert!(index < self.pages, "page {index} of {self:?}");
        (self.first_page + index) * PAGE_SIZE
    }
}

/// A bijection on 64-bit numbers that leaves no pattern (the finaliser of splitmix64): content that can be told
/// from a few numbers is made with it.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The same of three numbers.
pub(crate) fn mix3(a: u64, b: u64, c: u64) -> u64 {
    mix(mix(mix(a.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ b).wrapping_add(c))
}
