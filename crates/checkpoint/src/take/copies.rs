//! Copies of pages that the guest wanted to overwrite, until the store has them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, PageRun};

/// A bounded queue of them. A copy counts until somebody has taken it out.
pub(super) struct Copies {
    most: usize,
    queue: Mutex<VecDeque<(u64, Box<[u8]>)>>,
    /// Signalled when there is something to do for a saver.
    something: Condvar,
}

impl Copies {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            most: (bytes / PAGE_SIZE).max(1) as usize,
            queue: Mutex::default(),
            something: Condvar::new(),
        }
    }

    /// Of how many more pages copies can be kept.
    pub(super) fn room_pages(&self) -> u64 {
        self.most.saturating_sub(self.lock().len()) as u64
    }

    /// Keeps the content of the pages of `run`.
    pub(super) fn push(&self, run: PageRun, content: &[u8]) {
        let pages = content.chunks_exact(PAGE_SIZE as usize);
        let copies = run.pages().zip(pages.map(Box::from));
        self.lock().extend(copies);
        self.something.notify_one();
    }

    /// Somebody should look whether there is a page to copy.
    pub(super) fn nudge(&self) {
        self.something.notify_one();
    }

    /// Takes out the oldest copies, at most so many, as runs of consecutive pages.
    pub(super) fn take(&self, most: usize) -> Vec<(PageRun, Vec<u8>)> {
        let mut taken: Vec<_> = {
            let mut queue = self.lock();
            let count = queue.len().min(most);
            queue.drain(..count).collect()
        };
        taken.sort_unstable_by_key(|(page, _)| *page);
        let mut runs: Vec<(PageRun, Vec<u8>)> = Vec::new();
        for (page, content) in taken {
            match runs.last_mut() {
                Some((run, data)) if run.end() == page => {
                    run.count += 1;
                    data.extend_from_slice(&content);
                }
                _ => runs.push((PageRun::single(page), content.into_vec())),
            }
        }
        runs
    }

    /// Waits a moment for something to come.
    pub(super) fn wait(&self, timeout: Duration) {
        let queue = self.lock();
        if queue.is_empty() {
            let _ = self.something.wait_timeout(queue, timeout);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
        self.something.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Box<[u8]>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_come_out_as_one_run() {
        let copies = Copies::new(4 * PAGE_SIZE);
        for page in [7, 3, 8, 2] {
            assert!(copies.room_pages() > 0);
            copies.push(PageRun::single(page), &[page as u8; PAGE_SIZE as usize]);
        }
        assert_eq!(copies.room_pages(), 0);
        assert_eq!(copies.take(1).len(), 1);
        let rest = copies.take(9);
        let runs: Vec<_> = rest.iter().map(|(run, data)| (*run, data.len() as u64)).collect();
        assert_eq!(
            runs,
            [
                (PageRun::new(2, 2), 2 * PAGE_SIZE),
                (PageRun::single(8), PAGE_SIZE)
            ]
        );
        assert_eq!((rest[0].1[0], rest[0].1[PAGE_SIZE as usize]), (2, 3));
        assert!(copies.is_empty());
    }
}
