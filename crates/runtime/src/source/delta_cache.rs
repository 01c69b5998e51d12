//! The versions of pages that crossed last, from which differences are made.
//!
//! A version is kept only if these very bytes crossed: pages that are sent straight from the memory of a running guest have
//! to be forgotten instead. What is worth keeping are pages that are written again and again. So the first round only fills
//! free room; later ones send what was dirtied, and may replace what was not sent since the round before the last, or
//! never again since it came. A working set that is larger than the cache keeps a part of itself in it that way, where
//! replacing the oldest would keep nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_core::{PAGE_SIZE, PageRun};

/// Streams rarely meet at the same part.
const PARTS: usize = 16;
/// Consecutive pages that are in the same part: those of a batch mostly.
const SPAN_PAGES: u64 = 256;
/// How many versions are looked at to find one to replace.
const LOOKS: usize = 8;

const PAGE: usize = PAGE_SIZE as usize;

pub(super) struct DeltaCache(Vec<Mutex<Part>>);

#[derive(Default)]
struct Part {
    slots: Vec<Slot>,
    by_page: HashMap<u64, usize>,
    vacant: Vec<usize>,
    /// Most slots.
    room: usize,
    /// Where to look for a version to replace.
    hand: usize,
}

struct Slot {
    page: u64,
    /// When it crossed last.
    round: u32,
    /// It crossed more than once since it is here.
    again: bool,
    version: Box<[u8]>,
}

impl DeltaCache {
    /// For versions of at most `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let room = (bytes / PAGE_SIZE) as usize / PARTS;
        let part = || {
            Mutex::new(Part {
                room,
                ..Part::default()
            })
        };
        Self((0..PARTS).map(|_| part()).collect())
    }

    /// Keeps `new`, the pages of `run` as they cross in `round`. Says in `had` of each page whether an earlier version
    /// was there, and puts that into `old`.
    pub(super) fn exchange(&self, run: PageRun, round: u32, new: &[u8], old: &mut [u8], had: &mut Vec<bool>) {
        let (new, _) = new.as_chunks::<PAGE>();
        let (old, _) = old.as_chunks_mut::<PAGE>();
        let mut pages = run.pages().zip(new.iter().zip(old)).peekable();
        while let Some(&(page, _)) = pages.peek() {
            let span = page / SPAN_PAGES;
            let mut part = self.part(page);
            while let Some((page, (new, old))) = pages.next_if(|(page, _)| page / SPAN_PAGES == span) {
                had.push(part.exchange(page, round, new, old));
            }
        }
    }

    /// The pages of `run` cross as nobody knows.
    pub(super) fn forget(&self, run: PageRun) {
        let mut pages = run.pages().peekable();
        while let Some(&page) = pages.peek() {
            let span = page / SPAN_PAGES;
            let mut part = self.part(page);
            while let Some(page) = pages.next_if(|page| page / SPAN_PAGES == span) {
                part.forget(page);
            }
        }
    }

    /// Gives the memory back.
    pub(super) fn clear(&self) {
        for part in &self.0 {
            *lock(part) = Part::default();
        }
    }

    fn part(&self, page: u64) -> MutexGuard<'_, Part> {
        lock(&self.0[(page / SPAN_PAGES) as usize % PARTS])
    }
}

impl Part {
    fn exchange(&mut self, page: u64, round: u32, new: &[u8], old: &mut [u8]) -> bool {
        if let Some(&slot) = self.by_page.get(&page) {
            let slot = &mut self.slots[slot];
            old.copy_from_slice(&slot.version);
            slot.version.copy_from_slice(new);
            (slot.round, slot.again) = (round, true);
            return true;
        }
        if let Some(index) = self.find_room(round) {
            let slot = &mut self.slots[index];
            slot.version.copy_from_slice(new);
            (slot.page, slot.round, slot.again) = (page, round, false);
            self.by_page.insert(page, index);
        }
        false
    }

    fn forget(&mut self, page: u64) {
        if let Some(slot) = self.by_page.remove(&page) {
            self.vacant.push(slot);
        }
    }

    /// A slot for a page that crosses in `round`.
    fn find_room(&mut self, round: u32) -> Option<usize> {
        if let Some(vacant) = self.vacant.pop() {
            return Some(vacant);
        }
        if self.slots.len() < self.room {
            self.slots.push(Slot {
                page: 0,
                round,
                again: false,
                version: vec![0; PAGE].into_boxed_slice(),
            });
            return Some(self.slots.len() - 1);
        }
        if round <= 1 || self.slots.is_empty() {
            return None;
        }
        for _ in 0..LOOKS.min(self.slots.len()) {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[index];
            if slot.round + 1 < round || !slot.again && slot.round < round {
                self.by_page.remove(&slot.page);
                return Some(index);
            }
        }
        None
    }
}

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache beside the truth: what crossed last of each page.
    struct Checked {
        cache: DeltaCache,
        crossed: HashMap<u64, u8>,
    }

    impl Checked {
        fn new(pages: u64) -> Self {
            Self {
                cache: DeltaCache::new(pages * PAGE_SIZE),
                crossed: HashMap::new(),
            }
        }

        /// Sends a run filled with `byte`; answers how many earlier versions were there, all of them right.
        fn send(&mut self, run: PageRun, round: u32, byte: u8) -> usize {
            let new = vec![byte; run.bytes() as usize];
            let mut old = vec![0xee; new.len()];
            let mut had = Vec::new();
            self.cache.exchange(run, round, &new, &mut old, &mut had);
            assert_eq!(had.len() as u64, run.count);
            for ((page, had), old) in run.pages().zip(&had).zip(old.chunks_exact(PAGE)) {
                let crossed = self.crossed.insert(page, byte);
                if *had {
                    let expected = crossed.expect("a version of a page that never crossed");
                    assert!(
                        old.iter().all(|&byte| byte == expected),
                        "an old version of page {page}"
                    );
                }
            }
            had.iter().filter(|had| **had).count()
        }

        fn slots(&self) -> usize {
            self.cache.0.iter().map(|part| lock(part).slots.len()).sum()
        }
    }

    #[test]
    fn it_has_what_crossed_last_or_nothing() {
        let mut cache = Checked::new(512);
        let mut state = 1u64;
        let mut hits = 0;
        for step in 0..4_000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let run = PageRun::new((state >> 33) % 2000, (state >> 20) % 30 + 1);
            if step % 7 == 0 {
                cache.cache.forget(run);
                for page in run.pages() {
                    cache.crossed.remove(&page);
                }
            } else {
                hits += cache.send(run, step / 100 + 1, (state >> 50) as u8);
            }
        }
        assert!(hits > 500, "{hits} hits");
        assert!(cache.slots() <= 512);
    }

    #[test]
    fn a_hot_set_that_fits_is_found_although_the_first_round_filled_the_cache() {
        let mut cache = Checked::new(4096);
        cache.send(PageRun::new(0, 8_000), 1, 1);
        let hot = PageRun::new(7_000, 1000);
        let hits: Vec<_> = (2..7).map(|round| cache.send(hot, round, round as u8)).collect();
        assert_eq!(hits[2..], [1000, 1000, 1000], "{hits:?}");
    }

    #[test]
    fn of_a_hot_set_that_does_not_fit_a_part_is_found() {
        let mut cache = Checked::new(4096);
        let hot = PageRun::new(0, 8192);
        let hits: Vec<_> = (1..7).map(|round| cache.send(hot, round, round as u8)).collect();
        assert!(hits[1..].iter().all(|&hits| hits > 3000), "{hits:?}");
    }

    #[test]
    fn without_room_it_keeps_nothing() {
        let mut cache = Checked::new(0);
        for round in 1..5 {
            assert_eq!(cache.send(PageRun::new(7, 40), round, 1), 0);
        }
        assert_eq!(cache.slots(), 0);
    }
}
