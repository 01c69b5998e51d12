//! How many pages a stream gets at once.
//!
//! Streams take batches as they become free, so all of them are busy as long as pages are left, and a slow one does less.
//! What it has claimed, though, nobody else can send: it holds up the end of the round, and after the resume a guest that
//! waits for one of these pages. So a batch is what the stream sent lately in a short time, and towards the end of what is
//! left a share of that.

use std::time::Duration;

/// The most: 1 MiB, so that a stream asks rarely and a change of mind is still quick.
pub(super) const MOST_PAGES: u64 = 256;
/// The least, below which headers and locks are what costs.
const LEAST_PAGES: u64 = 16;
/// How long a batch may hold up the end of a round.
const IN_ROUND: Duration = Duration::from_millis(20);
/// How long a batch may hold up a guest that waits for a page of it.
const AFTER_RESUME: Duration = Duration::from_millis(2);
/// Parts of what is left that each stream would get, one of them now.
const SHARES: u64 = 2;

/// Of more pages left than this, no stream's share is less than the most it gets: they need not be counted.
pub(super) fn many(streams: usize) -> u64 {
    MOST_PAGES * SHARES * streams.max(1) as u64
}

/// What a stream does with its batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamPace {
    /// The batch it has: pages, and since when.
    given: Option<(u64, Duration)>,
    /// The last batch, and the rate it went into the socket with: at first that only fills buffers, so batches grow slowly.
    last: Option<(u64, f64)>,
}

impl StreamPace {
    /// The stream asks: the batch it had is in its socket.
    pub(super) fn asks(&mut self, now: Duration) {
        if let Some((pages, since)) = self.given.take() {
            let took = now.saturating_sub(since).max(Duration::from_micros(1));
            self.last = Some((pages, pages as f64 / took.as_secs_f64()));
        }
    }

    /// It got so many pages.
    pub(super) fn gets(&mut self, now: Duration, pages: u64) {
        if pages > 0 {
            self.given = Some((pages, now));
        }
    }

    /// The most it should get, of `left` pages that `streams` streams share.
    pub(super) fn pages(&self, left: u64, streams: usize, guest_waits: bool) -> u64 {
        let time = if guest_waits { AFTER_RESUME } else { IN_ROUND };
        let by_rate = self.last.map_or(LEAST_PAGES, |(pages, rate)| {
            ((rate * time.as_secs_f64()) as u64).min(2 * pages)
        });
        let by_share = left / (SHARES * streams.max(1) as u64);
        by_rate.min(by_share).clamp(LEAST_PAGES, MOST_PAGES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(pages: u64, took: Duration) -> StreamPace {
        let mut pace = StreamPace::default();
        pace.gets(Duration::ZERO, pages);
        pace.asks(took);
        pace
    }

    #[test]
    fn a_fast_stream_gets_the_most_and_a_slow_one_what_it_sends_in_time() {
        assert_eq!(after(128, MS).pages(1 << 20, 4, false), MOST_PAGES);
        assert_eq!(after(64, 10 * MS).pages(1 << 20, 4, false), 128);
        assert_eq!(after(64, 10 * MS).pages(1 << 20, 4, true), LEAST_PAGES);
        assert_eq!(after(256, 1000 * MS).pages(1 << 20, 4, false), LEAST_PAGES);
        // A link that recovers is used again, a batch that only filled buffers is not taken at its word.
        let mut pace = after(256, 1000 * MS);
        for pages in [16, 32, 64, 128, 256] {
            assert_eq!(pace.pages(1 << 20, 4, false), pages);
            pace.gets(1000 * MS, pages);
            pace.asks(1000 * MS + MS / 100);
        }
        assert_eq!(pace.pages(1 << 20, 4, false), MOST_PAGES);
    }

    #[test]
    fn of_many_pages_the_number_makes_no_difference() {
        let pace = after(256, MS / 10);
        for streams in [1, 3, 64] {
            assert_eq!(pace.pages(many(streams), streams, false), MOST_PAGES);
            assert!(pace.pages(many(streams) - 1, streams, false) < MOST_PAGES);
        }
    }

    #[test]
    fn the_last_pages_are_shared_out() {
        let pace = after(256, MS / 10);
        assert_eq!(StreamPace::default().pages(800, 4, false), LEAST_PAGES);
        assert_eq!(pace.pages(800, 4, false), 100);
        assert_eq!(pace.pages(20, 4, false), LEAST_PAGES);
        assert_eq!(pace.pages(800, 1, false), MOST_PAGES);
    }
}
