//! The memory-write load: pages rewritten in a sweep at a given rate, each checked before it is rewritten and by a second
//! sweep beside.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crate::pattern::{self, PAGE};
use crate::progress::Progress;

const PAGES_PER_MIB: usize = (1 << 20) / PAGE;
const REPORT_EVERY: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(10);

/// The share of a tick that the checking sweep may take.
const CHECK_TIME: Duration = Duration::from_millis(2);

/// How far the writer may fall behind its rate (the guest was paused, or starved) before it gives the arrears up.
const ARREARS: Duration = Duration::from_millis(100);

/// Writes `mib` MiB of memory at `rate_mib_s` (0: as fast as it goes) and checks it, for ever. Units of progress are pages.
pub(crate) fn run(mib: usize, rate_mib_s: usize, progress: &Progress) -> Result<Infallible, String> {
    let mut sweep = Sweep::new(mib * PAGES_PER_MIB);
    let mut due = Instant::now();
    let mut report_at = Instant::now() + REPORT_EVERY;
    let mut reported = 0;
    loop {
        let now = Instant::now();
        if now.duration_since(due) > ARREARS {
            due = now;
        }
        let before = sweep.written;
        if rate_mib_s == 0 {
            sweep.write(PAGES_PER_MIB);
            sweep.check_one();
        } else {
            // One batch and the time that it stands for; a slow rate gets longer steps rather than less than a page.
            let pages = (rate_mib_s * PAGES_PER_MIB / 100).max(1);
            sweep.write(pages);
            due += Duration::from_secs_f64(pages as f64 / (rate_mib_s * PAGES_PER_MIB) as f64);
            let until = Instant::now() + CHECK_TIME;
            while Instant::now() < until {
                sweep.check_one();
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(TICK));
        }
        progress.add(sweep.written - before);
        if Instant::now() >= report_at {
            let since = REPORT_EVERY + report_at.elapsed();
            let rate = (sweep.written - reported) as f64 / PAGES_PER_MIB as f64 / since.as_secs_f64();
            println!("guest-load: {} written_mib_per_s={rate:.0}", sweep.status());
            reported = sweep.written;
            report_at = Instant::now() + REPORT_EVERY;
        }
    }
}

/// Reads `mib` MiB of memory, as fast as it goes, and checks it, for ever. Nothing is written once it has begun. Units of
/// progress are pages.
pub(crate) fn read(mib: usize, progress: &Progress) -> Result<Infallible, String> {
    let mut sweep = Sweep::new(mib * PAGES_PER_MIB);
    let mut report_at = Instant::now() + REPORT_EVERY;
    loop {
        for _ in 0..PAGES_PER_MIB {
            sweep.check_one();
        }
        progress.add(PAGES_PER_MIB as u64);
        if Instant::now() >= report_at {
            println!("guest-load: {}", sweep.status());
            report_at = Instant::now() + REPORT_EVERY;
        }
    }
}

/// The pages and where the sweeps stand. Which version a page must have follows from the writer's position alone: a page that
/// fell back to an older state is found even where that older page is whole.
struct Sweep {
    memory: Vec<u8>,
    pages: usize,
    written: u64,
    checked: u64,
    corrupt: u64,
    first_fault: Option<String>,
}

impl Sweep {
    fn new(pages: usize) -> Self {
        let mut memory = vec![0; pages * PAGE];
        for (page, block) in memory.chunks_exact_mut(PAGE).enumerate() {
            pattern::fill(block, page as u64, 0);
        }
        Self {
            memory,
            pages,
            written: 0,
            checked: 0,
            corrupt: 0,
            first_fault: None,
        }
    }

    fn write(&mut self, pages: usize) {
        for _ in 0..pages {
            let page = (self.written % self.pages as u64) as usize;
            self.check(page);
            self.written += 1;
            let version = self.version_of(page);
            pattern::fill(self.page_mut(page), page as u64, version);
        }
    }

    fn check_one(&mut self) {
        self.check((self.checked % self.pages as u64) as usize);
        self.checked += 1;
    }

    fn check(&mut self, page: usize) {
        let version = self.version_of(page);
        let block = &self.memory[page * PAGE..(page + 1) * PAGE];
        if let Err(fault) = pattern::check(block, page as u64, version) {
            self.corrupt += 1;
            if self.first_fault.is_none() {
                println!("guest-load: CORRUPT page {fault}");
                self.first_fault = Some(fault);
            }
            // Mended, so that what is counted from here on is new.
            pattern::fill(self.page_mut(page), page as u64, version);
        }
    }

    /// How often the writer has come by the page.
    fn version_of(&self, page: usize) -> u64 {
        let (sweeps, position) = (self.written / self.pages as u64, self.written % self.pages as u64);
        sweeps + u64::from((page as u64) < position)
    }

    fn page_mut(&mut self, page: usize) -> &mut [u8] {
        &mut self.memory[page * PAGE..(page + 1) * PAGE]
    }

    fn status(&self) -> String {
        match &self.first_fault {
            // The writer checks each page that it comes by, as the checking sweep does.
            None => format!("ok passes={}", (self.checked + self.written) / self.pages as u64),
            Some(fault) => format!("CORRUPT {} times, first page {fault}", self.corrupt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(sweep: &mut Sweep) -> String {
        for _ in 0..sweep.pages {
            sweep.check_one();
        }
        sweep.status()
    }

    #[test]
    fn undisturbed_memory_stays_ok() {
        let mut sweep = Sweep::new(8);
        for _ in 0..5 {
            sweep.write(3);
            assert!(check_all(&mut sweep).starts_with("ok"));
        }
        assert_eq!(
            sweep.status(),
            "ok passes=6",
            "5 sweeps of checks and 15 writes to 8 pages"
        );
    }

    #[test]
    fn a_page_that_fell_back_is_found() {
        let mut sweep = Sweep::new(8);
        sweep.write(8);
        let old = sweep.page_mut(2).to_vec();
        sweep.write(8);
        sweep.page_mut(2).copy_from_slice(&old);
        let status = check_all(&mut sweep);
        assert_eq!(
            status,
            "CORRUPT 1 times, first page 2: whole but of version 1, expected version 2"
        );
        assert!(
            check_all(&mut sweep).starts_with("CORRUPT 1 times"),
            "a fault found once stays in the status"
        );
    }

    #[test]
    fn a_lost_page_is_found_by_the_writer_too() {
        let mut sweep = Sweep::new(4);
        sweep.page_mut(0).fill(0);
        sweep.write(1);
        assert_eq!(
            sweep.status(),
            "CORRUPT 1 times, first page 0: all zero, expected version 0"
        );
    }
}
