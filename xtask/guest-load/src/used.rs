//! Memory that is not in use any more, or hardly.
//!
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

/// The held load: memory that is used, and hardly touched. Writes `mib` MiB, notes in the file `held` that it has, and checks a page
/// of it every second, for ever.
pub(crate) fn hold(mib: usize, held: &std::path::Path) -> Result<std::convert::Infallible, String> {
    let mut memory = vec![0; mib * PAGES_PER_MIB * PAGE];
    for (page, block) in memory.chunks_exact_mut(PAGE).enumerate() {
        pattern::fill(block, page as u64, 0);
    }
    std::fs::write(held, "").map_err(|error| format!("cannot write {}: {error}", held.display()))?;
    let pages = memory.len() / PAGE;
    for step in 0_usize.. {
        // From one end to the other in large steps.
        let page = step.wrapping_mul(0x9E37_79B1) % pages;
        match pattern::check(&memory[page * PAGE..][..PAGE], page as u64, 0) {
            Ok(()) => println!("guest-load: ok held={mib} MiB"),
            Err(fault) => println!("guest-load: CORRUPT page {fault}"),
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    Err("there are no more numbers".to_owned())
}
