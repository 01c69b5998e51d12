//! Disks that move with the guest: what is asked for, when the stop may come, what is reported.
//!
//! The hypervisor copies the disks (a *mirror*: everything once, and what the guest writes meanwhile again). That takes
//! far longer than memory, so it comes first: memory is not looked at before every mirror is *in sync*, which means that
//! everything crossed once. From then on only what the guest writes has to follow. At the stop its I/O is drained, the
//! mirrors *settle* (the last writes cross) and end, and only then is the device state saved: so both disks are equal as
//! of the stop, and the destination's belongs to nobody else when the guest resumes there.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest time that the stop is put off for disks that do not settle: a guest that writes faster than the link carries
/// never settles, and has to be stopped all the same.
const MOST_PUT_OFF: Duration = Duration::from_secs(30);
/// How long the stop is put off each time.
const PUT_OFF: Duration = Duration::from_millis(100);

/// How the disks of a guest move with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskRequest {
    /// Folder at the destination in which they lie; the same paths as at the source where absent.
    pub folder: Option<PathBuf>,
    /// Whether files that are there already may be overwritten.
    pub overwrite: bool,
    /// Whether only what changed since the destination's files were left behind crosses.
    pub incremental: bool,
    /// How the guest's writes reach the copy.
    pub writes: DiskWrites,
    /// Whether data is compressed and known blocks cross as their hash.
    pub tunnel: bool,
}

/// How what a guest writes during a mirror reaches the copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskWrites {
    /// Later: writes are as fast as ever, and the copy lags behind them by what has to cross during the stop.
    #[default]
    Background,
    /// At once: a write ends when it is in both places. The guest writes no faster than the link carries, and nothing is left
    /// for the stop.
    Blocking,
}

/// How far the mirrors of all disks are, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskProgress {
    /// Bytes to copy, as far as known: it grows while the guest writes.
    pub total_bytes: u64,
    /// Bytes copied.
    pub done_bytes: u64,
    /// Whether everything crossed once.
    pub in_sync: bool,
}

impl DiskProgress {
    /// Bytes that have to cross before the disks are equal.
    pub const fn remaining_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.done_bytes)
    }
}

impl std::iter::Sum for DiskProgress {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        let none = Self {
            in_sync: true,
            ..Self::default()
        };
        iter.fold(none, |sum, one| Self {
            total_bytes: sum.total_bytes + one.total_bytes,
            done_bytes: sum.done_bytes + one.done_bytes,
            in_sync: sum.in_sync && one.in_sync,
        })
    }
}

/// Follows the mirrors and says when a stop is short enough.
#[derive(Debug, Default)]
pub struct Convergence {
    progress: DiskProgress,
    /// When and how far the mirrors were at the last look that went into the rate.
    last: Option<(Duration, u64)>,
    /// Bytes a second, smoothed.
    rate: f64,
    /// Since when the stop waits for disks.
    put_off_since: Option<Duration>,
}

/// What to do when everything but the disks is ready for the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopVerdict {
    /// The mirrors settle within the goal.
    Stop,
    /// Ask again after this time.
    PutOff(Duration),
    /// They do not settle within the goal and will not: stop all the same.
    Overdue {
        /// Bytes that have to cross during the stop.
        remaining_bytes: u64,
    },
}

impl Convergence {
    /// A look at the mirrors at `now`.
    pub fn look(&mut self, now: Duration, progress: DiskProgress) {
        self.progress = progress;
        let Some((at, done)) = self.last else {
            self.last = Some((now, progress.done_bytes));
            return;
        };
        let took = now.saturating_sub(at).as_secs_f64();
        if took < 0.05 {
            return;
        }
        let rate = progress.done_bytes.saturating_sub(done) as f64 / took;
        // A mirror that has nothing to do says nothing about the link.
        if rate > 0.0 {
            self.rate = if self.rate > 0.0 {
                0.7 * self.rate + 0.3 * rate
            } else {
                rate
            };
        }
        self.last = Some((now, progress.done_bytes));
    }

    /// The last look.
    pub const fn progress(&self) -> DiskProgress {
        self.progress
    }

    /// Bytes a second that the mirrors copied lately; 0 before that is known.
    pub const fn bytes_per_s(&self) -> f64 {
        self.rate
    }

    /// Expected time until the mirrors have done what is known to be left.
    pub fn time_left(&self) -> Option<Duration> {
        let remaining = self.progress.remaining_bytes();
        if remaining == 0 {
            return Some(Duration::ZERO);
        }
        (self.rate > 0.0).then(|| Duration::from_secs_f64((remaining as f64 / self.rate).min(1e9)))
    }

    /// Whether the guest may be stopped at `now`, where the rest shall settle within `goal`.
    pub fn may_stop(&mut self, now: Duration, goal: Duration) -> StopVerdict {
        if self.time_left().is_some_and(|left| left <= goal) {
            self.put_off_since = None;
            return StopVerdict::Stop;
        }
        let since = *self.put_off_since.get_or_insert(now);
        if now.saturating_sub(since) >= MOST_PUT_OFF {
            return StopVerdict::Overdue {
                remaining_bytes: self.progress.remaining_bytes(),
            };
        }
        StopVerdict::PutOff(PUT_OFF)
    }
}

/// What became of the disks of a guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DisksReport {
    /// The name under which both hosts know the state of the disks at the stop.
    #[serde(default)]
    pub state: String,
    /// Until everything had crossed once, milliseconds since the copy began.
    pub copy_ms: f64,
    /// From the stop until both disks were equal.
    pub settle_ms: f64,
    /// Bytes of disks on the wire, both ways, part of the report's `bytes_on_wire`.
    pub bytes_on_wire: u64,
    /// One entry a disk.
    pub disks: Vec<DiskReport>,
    /// What the tunnel did, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelReport>,
}

/// What became of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The hypervisor's name of it.
    pub id: String,
    /// Its file at the source.
    pub source: String,
    /// Its file at the destination.
    pub destination: String,
    /// Its format.
    pub format: String,
    /// Its size as the guest sees it.
    pub bytes: u64,
    /// Bytes that the mirror copied, those that the guest wrote again counted again.
    pub copied_bytes: u64,
    /// In which condition the source's file is now, for the operator.
    pub source_is: String,
    /// In which condition the destination's file is now, for the operator.
    pub destination_is: String,
}

/// What crossed through a tunnel, all disks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// Bytes that the hypervisor wrote into the tunnel, zeros as ranges included.
    pub written_bytes: u64,
    /// Of these, bytes of ranges that are zero: they cross as their bounds.
    pub zero_bytes: u64,
    /// Bytes of blocks that the destination had: they crossed as their hash.
    pub deduplicated_bytes: u64,
    /// Bytes of blocks that crossed in full.
    pub data_bytes: u64,
    /// What the latter became on the wire.
    pub compressed_bytes: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn progress(done: u64, total: u64) -> DiskProgress {
        DiskProgress {
            total_bytes: total,
            done_bytes: done,
            in_sync: true,
        }
    }

    #[test]
    fn nothing_left_means_stop() {
        let mut disks = Convergence::default();
        assert_eq!(disks.may_stop(Duration::ZERO, MS), StopVerdict::Stop, "no disk");
        disks.look(MS, progress(7, 7));
        assert_eq!(disks.may_stop(MS, Duration::ZERO), StopVerdict::Stop);
    }

    #[test]
    fn the_stop_waits_until_the_rest_fits_the_goal() {
        let mut disks = Convergence::default();
        disks.look(Duration::ZERO, progress(0, 1 << 20));
        assert_eq!(
            disks.may_stop(MS, 300 * MS),
            StopVerdict::PutOff(PUT_OFF),
            "no rate yet"
        );
        disks.look(1000 * MS, progress(500_000, 1 << 20));
        assert_eq!(disks.time_left().unwrap().as_millis(), 1097);
        assert_eq!(disks.may_stop(1000 * MS, 1000 * MS), StopVerdict::PutOff(PUT_OFF));
        assert_eq!(disks.may_stop(1000 * MS, 1100 * MS), StopVerdict::Stop);
    }

    #[test]
    fn a_guest_that_writes_too_fast_is_stopped_in_the_end() {
        let mut disks = Convergence::default();
        let (mut now, mut asked) = (Duration::ZERO, 0);
        let verdict = loop {
            let done = now.as_millis() as u64 * 1000;
            disks.look(now, progress(done, done + (1 << 30)));
            match disks.may_stop(now, 300 * MS) {
                StopVerdict::PutOff(time) => now += time,
                verdict => break verdict,
            }
            asked += 1;
        };
        assert_eq!(
            verdict,
            StopVerdict::Overdue {
                remaining_bytes: 1 << 30
            }
        );
        assert_eq!(asked, 300);
    }

    proptest! {
        /// Whatever the mirrors say, the stop comes within bounded time.
        #[test]
        fn the_stop_comes(looks in prop::collection::vec((any::<u32>(), any::<u32>()), 400)) {
            let mut disks = Convergence::default();
            let mut now = Duration::ZERO;
            let mut stopped = false;
            for (done, total) in looks {
                disks.look(now, progress(done.into(), total.into()));
                match disks.may_stop(now, MS) {
                    StopVerdict::PutOff(time) => {
                        prop_assert!(time > Duration::ZERO);
                        now += time;
                    }
                    _ => {
                        stopped = true;
                        break;
                    }
                }
            }
            prop_assert!(stopped);
        }

        #[test]
        fn sums_are_in_sync_only_together(states in prop::collection::vec(any::<bool>(), 0..5)) {
            let sum: DiskProgress = states
                .iter()
                .map(|&in_sync| DiskProgress { total_bytes: 3, done_bytes: 2, in_sync })
                .sum();
            prop_assert_eq!(sum.in_sync, states.iter().all(|&state| state));
            prop_assert_eq!(sum.remaining_bytes(), states.len() as u64);
        }
    }
}
