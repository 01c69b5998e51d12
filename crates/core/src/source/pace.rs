//! The bandwidth cap of a migration: a token bucket that all page streams take from.
//!
//! A stream takes for a batch before it claims its pages, so that it holds none while it waits: a page that is demanded
//! meanwhile is still there to be sent at once. What a batch will need is not known before it is encoded; the most it can
//! need is taken, and the rest given back when it was sent.
//!
//! The cap holds during the stop as well, where QEMU lifts it: the network somebody wanted to protect is the same, and
//! the downtime goal is judged by the rate that the cap allows. What the guest waits for never waits: pages it demands,
//! its device state and the marks of a round's end are sent at once and owed.

use std::time::Duration;

use crate::pacing::TokenBucket;
use crate::pages::PAGE_SIZE;

/// The most a page takes on the wire, with a header of its own.
const PAGE_COST: u64 = PAGE_SIZE + 32;
/// The burst: what the cap allows in this time.
const BURST: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Pace {
    cap: Option<Cap>,
    /// Time in which pages were there and no stream might send.
    waited: Duration,
    /// Since when that is so.
    waiting_since: Option<Duration>,
    /// By how many bytes pages are ahead of disks, while both want to send.
    ahead: i64,
}

struct Cap {
    bytes_per_s: u64,
    bucket: TokenBucket,
    /// Pages that a stream takes for at once: two of these are a burst.
    batch_pages: u64,
}

impl Cap {
    /// How far pages may be ahead of disks: a burst.
    fn most_ahead(&self) -> i64 {
        i64::try_from(2 * self.batch_pages * PAGE_COST).unwrap_or(i64::MAX)
    }
}

impl Pace {
    pub(super) fn unlimited() -> Self {
        Self {
            cap: None,
            waited: Duration::ZERO,
            waiting_since: None,
            ahead: 0,
        }
    }

    /// Caps the bandwidth from now on, or lifts the cap.
    pub(super) fn limit(&mut self, now: Duration, bytes_per_s: Option<u64>) {
        self.granted(now);
        let old = self.cap.take();
        self.cap = bytes_per_s.map(|bytes_per_s| {
            let in_burst = u128::from(bytes_per_s) * BURST.as_millis() / 1000;
            let burst = u64::try_from(in_burst).unwrap_or(u64::MAX).max(PAGE_COST);
            let bucket = match old {
                Some(Cap { mut bucket, .. }) => {
                    bucket.change(bytes_per_s, burst, now);
                    bucket
                }
                None => TokenBucket::new(bytes_per_s, burst, now),
            };
            Cap {
                bytes_per_s,
                bucket,
                batch_pages: (burst / 2 / PAGE_COST).max(1),
            }
        });
    }

    /// The cap in force.
    pub(super) fn bytes_per_s(&self) -> Option<u64> {
        self.cap.as_ref().map(|cap| cap.bytes_per_s)
    }

    /// Asks to send up to `pages` pages: how many it may be, all of them taken for.
    ///
    /// # Errors
    /// The time at which to ask again.
    pub(super) fn admit(&mut self, now: Duration, pages: u64) -> Result<u64, Duration> {
        let Some(cap) = &mut self.cap else {
            return Ok(pages);
        };
        let pages = pages.min(cap.batch_pages);
        match cap.bucket.take(now, pages * PAGE_COST) {
            Ok(()) => {
                let most = cap.most_ahead();
                self.ahead = self.ahead.saturating_add((pages * PAGE_COST) as i64).min(most);
                self.granted(now);
                Ok(pages)
            }
            Err(at) => {
                self.waiting_since.get_or_insert(now);
                Err(at)
            }
        }
    }

    /// Asks to send `bytes` of disks. Disks ask for less at once than pages do, and would always be first: where pages wait,
    /// disks get no more than pages got.
    ///
    /// # Errors
    /// The time at which to ask again.
    pub(super) fn admit_bytes(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let Some(cap) = &mut self.cap else {
            return Ok(());
        };
        let contended = self.waiting_since.is_some();
        if contended && self.ahead < 0 {
            return Err(now + BURST / 4);
        }
        cap.bucket.take(now, bytes)?;
        self.ahead = match contended {
            true => self.ahead.saturating_sub(bytes as i64),
            false => 0,
        };
        Ok(())
    }

    /// Of the pages taken for, so many were not claimed.
    pub(super) fn not_claimed(&mut self, pages: u64) {
        if let Some(cap) = &mut self.cap {
            cap.bucket.give_back(pages * PAGE_COST);
        }
    }

    /// Pages that cannot wait.
    pub(super) fn owe_pages(&mut self, pages: u64) {
        self.owe(pages * PAGE_COST);
    }

    /// Bytes that cannot wait.
    pub(super) fn owe(&mut self, bytes: u64) {
        if let Some(cap) = &mut self.cap {
            cap.bucket.owe(bytes);
        }
    }

    /// Pages that were taken for, or owed, needed so many bytes.
    pub(super) fn sent(&mut self, pages: u64, bytes: u64) {
        let Some(cap) = &mut self.cap else { return };
        let taken = pages * PAGE_COST;
        match taken >= bytes {
            true => cap.bucket.give_back(taken - bytes),
            false => cap.bucket.owe(bytes - taken),
        }
    }

    /// There is nothing to send: nobody waits for the cap.
    pub(super) fn nothing_to_send(&mut self, now: Duration) {
        self.granted(now);
    }

    /// Whether they wait for it now.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting_since.is_some()
    }

    /// How long pages waited for nothing but the cap.
    pub(super) fn waited(&self, now: Duration) -> Duration {
        self.waited
            + self
                .waiting_since
                .map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    fn granted(&mut self, now: Duration) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_sub(since);
        }
    }
}
