//! The allocation micro-benchmark: blocks are allocated, touched, checked and freed as fast as it goes, so that the kernel hands
//! out pages and takes them back all the time. Source: Abe et al., "Urgent virtual machine eviction with enlightened post-copy" (2015),
//! section 5.4: chunks of 1000 blocks of 4 KiB.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crate::pattern::PAGE;
use crate::progress::Progress;

/// Bytes that are held at once at most.
const CHUNK_BYTES: usize = 4_096_000;
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Allocates and frees blocks of `kib` KiB, for ever. Units of progress are blocks.
pub(crate) fn run(kib: usize, progress: &Progress) -> Result<Infallible, String> {
    let bytes = kib << 10;
    let mut chunk = Vec::with_capacity((CHUNK_BYTES / bytes).max(1));
    let mut report_at = Instant::now() + REPORT_EVERY;
    let mut fault = None;
    loop {
        while chunk.len() < chunk.capacity() {
            let number = chunk.len() as u8;
            chunk.push(allocate(bytes, number));
        }
        while let Some(block) = chunk.pop() {
            let number = chunk.len() as u8;
            if !is_whole(&block, number) {
                fault.get_or_insert(number);
            }
            drop(std::hint::black_box(block));
            progress.add(1);
        }
        if Instant::now() >= report_at {
            match fault {
                None => println!("guest-load: ok blocks={}", progress.total()),
                Some(number) => println!("guest-load: CORRUPT block {number} of a chunk"),
            }
            report_at = Instant::now() + REPORT_EVERY;
        }
    }
}

/// A block whose pages are touched, but not written in full: the time is to be that of the allocation.
fn allocate(bytes: usize, number: u8) -> Vec<u8> {
    let mut block = vec![0; bytes];
    block.iter_mut().step_by(PAGE).for_each(|byte| *byte = number);
    std::hint::black_box(block)
}

fn is_whole(block: &[u8], number: u8) -> bool {
    block.iter().step_by(PAGE).all(|byte| *byte == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_a_block_is_touched_and_checked() {
        let mut block = allocate(3 * PAGE + 1, 7);
        assert_eq!(block.iter().filter(|byte| **byte == 7).count(), 4);
        assert!(is_whole(&block, 7) && !is_whole(&block, 8));
        block[2 * PAGE] = 0;
        assert!(!is_whole(&block, 7), "a page was lost");
    }

    #[test]
    fn blocks_are_counted_as_they_are_freed() {
        let progress = Progress::default();
        let counted = progress.clone();
        std::thread::spawn(move || run(1024, &counted));
        while progress.total() < 100 {
            std::thread::yield_now();
        }
    }
}
