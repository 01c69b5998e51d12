//! The past load: memory that was used and is free again. What it held is still in it, which is how the free memory of a guest that has
//! run for a while looks from outside.

use crate::pattern::{self, PAGE};

const PAGES_PER_MIB: usize = (1 << 20) / PAGE;

/// Writes `mib` MiB of memory, checks it, and gives it back.
pub(crate) fn run(mib: usize) {
    let mut memory = vec![0; mib * PAGES_PER_MIB * PAGE];
    for (page, block) in memory.chunks_exact_mut(PAGE).enumerate() {
        pattern::fill(block, page as u64, 0);
    }
    let mut blocks = memory.chunks_exact(PAGE).enumerate();
    match blocks.find_map(|(page, block)| pattern::check(block, page as u64, 0).err()) {
        None => println!("guest-load: ok used={mib} MiB"),
        Some(fault) => println!("guest-load: CORRUPT page {fault}"),
    }
}
