//! The coding of page sets: as a peer may send it, and round trips of what we send.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::{PAGE_SIZE, PageBitmap, RamLayout};
use vmferry_wire::{PageSet, PageSetParts, ToDestination, decode_control};

const PAGES: u64 = 10_007;

fuzz_target!(|data: &[u8]| {
    let message = [&[1], data].concat();
    if let Ok(ToDestination::Pending { pages }) = decode_control(&message) {
        let mut set = PageBitmap::new(PAGES);
        if pages.add_to(&mut set).is_ok() {
            assert!(pages.covers().end <= PAGES);
        }
    }

    // The same data as the words of a set.
    let mut set = PageBitmap::new(PAGES);
    for (index, bytes) in data.chunks_exact(8).take((PAGES / 64) as usize).enumerate() {
        set.insert_word(index, u64::from_le_bytes(bytes.try_into().unwrap()));
    }
    let mut parts = PageSetParts::new(&RamLayout::single("ram", PAGES * PAGE_SIZE).unwrap());
    for part in PageSet::parts(&set) {
        parts.add(&part).unwrap();
    }
    assert!(parts.finish().unwrap() == set);
});
