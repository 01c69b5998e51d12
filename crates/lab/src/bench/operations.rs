//! What the guest's client saw: operations over time, across the migration.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmferry_api::Client;
use vmferry_guest_synth::Stats;

use super::plan::GUEST;
use crate::error::{LabError, Result};
use crate::hosts::Host;
use crate::latency::{Histogram, Latency};
use crate::load::Record;

/// Length of a window of throughput.
const WINDOW: Duration = Duration::from_millis(100);

/// What a client saw from the warm-up to the end of the cool-down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operations {
    /// Operations that ended well.
    pub count: u64,
    /// Operations that failed, and values that were not what was stored.
    pub errors: u64,
    /// The first errors in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptions: Vec<String>,
    /// Longest time between the ends of two operations, from the request on, milliseconds: the perceived downtime.
    pub longest_gap_ms: f64,
    /// Operations a second before the request.
    pub before_per_s: f64,
    /// From the request until the migration ended.
    pub during_per_s: f64,
    /// After that.
    pub after_per_s: f64,
    /// When the first window begins, milliseconds since the request.
    pub windows_start_ms: f64,
    /// Length of each, milliseconds.
    pub window_ms: u64,
    /// Operations that ended in each.
    pub windows: Vec<f64>,
    /// What one operation is, in the plural: of a client that only hears how far its guest has come, `bytes` or `pages`.
    #[serde(default = "operations")]
    pub unit: String,
    /// What the client waited for answers; absent where it waits for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
}

/// What a client waited for answers. Its connections have one operation under way each, so a guest that stands still delays as
/// many operations as there are connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Of operations that ended before the request.
    pub before: Option<Latency>,
    /// Of those that were under way at some moment of the migration.
    pub during: Option<Latency>,
    /// Of those that began after it.
    pub after: Option<Latency>,
    /// All operations: none of them, 10 %, 20 %, ... all took no longer than this, milliseconds.
    pub deciles_ms: Vec<f64>,
    /// The same of 95 %, 99 % and 99.9 % of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tail_ms: Vec<f64>,
    /// Of operations that ended in each window.
    pub windows: Vec<Option<Latency>>,
}

/// The shares that [`Latencies::tail_ms`] is of.
const TAIL: [f64; 3] = [0.95, 0.99, 0.999];

impl Latencies {
    /// The distribution of all operations: shares, and what no longer than these took, milliseconds; both ascending.
    pub fn distribution(&self) -> Vec<(f64, f64)> {
        let deciles = self.deciles_ms.iter().enumerate();
        let deciles = deciles.map(|(tenth, ms)| (tenth as f64 / 10.0, *ms));
        let tail = TAIL.into_iter().zip(self.tail_ms.iter().copied());
        let mut points: Vec<_> = deciles.chain(tail).collect();
        points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        points
    }

    /// What a share of all operations took no longer than, milliseconds; none where that was not kept.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let points = self.distribution().into_iter();
        points
            .filter(|(of, _)| (of - share).abs() < 1e-9)
            .map(|(_, ms)| ms)
            .next()
    }
}

fn operations() -> String {
    "operations".to_owned()
}

/// The moments of a run.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    pub(crate) start: Instant,
    pub(crate) migration: Range<Instant>,
    pub(crate) end: Instant,
}

impl Moments {
    /// Everything about a client whose operations up to a moment `until` counts.
    fn operations(&self, until: impl Fn(Instant) -> f64) -> Operations {
        let rate = |from: Instant, to: Instant| {
            let seconds = to.saturating_duration_since(from).as_secs_f64();
            if seconds > 0.0 {
                (until(to) - until(from)) / seconds
            } else {
                0.0
            }
        };
        let mut windows = Vec::new();
        let mut at = self.start;
        while at + WINDOW <= self.end {
            let ended = until(at + WINDOW) - until(at);
            // More digits would say nothing.
            windows.push((ended * 10.0).round() / 10.0);
            at += WINDOW;
        }
        Operations {
            count: (until(self.end) - until(self.start)).round() as u64,
            errors: 0,
            descriptions: Vec::new(),
            longest_gap_ms: 0.0,
            before_per_s: rate(self.start, self.migration.start),
            during_per_s: rate(self.migration.start, self.migration.end),
            after_per_s: rate(self.migration.end, self.end),
            windows_start_ms: -(self.migration.start - self.start).as_secs_f64() * 1e3,
            window_ms: WINDOW.as_millis() as u64,
            windows,
            unit: operations(),
            latency: None,
        }
    }

    /// What operations that ended between these moments were waited for; nothing where none was.
    fn latencies(&self, waits: impl Iterator<Item = Range<Instant>>) -> Option<Latencies> {
        let [mut before, mut during, mut after, mut all] = [(); 4].map(|()| Histogram::new());
        // Reused, because each is large.
        let (mut window, mut index) = (Histogram::new(), 0);
        let count = ((self.end - self.start).as_nanos() / WINDOW.as_nanos()) as usize;
        let mut windows = vec![None; count];
        for wait in waits.filter(|wait| self.start <= wait.end && wait.end < self.end) {
            let latency = wait.end - wait.start;
            all.add(latency);
            let phase = if wait.end < self.migration.start {
                &mut before
            } else if wait.start >= self.migration.end {
                &mut after
            } else {
                &mut during
            };
            phase.add(latency);
            let its = ((wait.end - self.start).as_nanos() / WINDOW.as_nanos()) as usize;
            if its != index {
                // They come in the order of their ends.
                if let Some(figures) = windows.get_mut(index) {
                    *figures = window.take();
                }
                index = its;
            }
            window.add(latency);
        }
        if let Some(figures) = windows.get_mut(index) {
            *figures = window.take();
        }
        all.figures()?;
        Some(Latencies {
            before: before.figures(),
            during: during.figures(),
            after: after.figures(),
            deciles_ms: (0..=10)
                .map(|tenth| all.quantile_ms(f64::from(tenth) / 10.0))
                .collect(),
            tail_ms: TAIL.map(|share| all.quantile_ms(share)).to_vec(),
            windows,
        })
    }
}

/// What the clients of a Linux guest saw.
pub(crate) fn of_client(record: &Record, moments: &Moments) -> Operations {
    let seen = moments.operations(|at| record.timeline.operations(&(moments.start..at)) as f64);
    let gap = record
        .timeline
        .longest_gap(&(moments.migration.start..moments.end));
    Operations {
        errors: record.errors(),
        descriptions: record.descriptions.clone(),
        longest_gap_ms: gap.as_secs_f64() * 1e3,
        unit: record.unit.to_owned(),
        latency: moments.latencies(record.timeline.waits()),
        ..seen
    }
}

/// Reads the counters of a synthetic guest again and again, wherever it is, until it is stopped or dropped.
pub(crate) struct Counters {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Operations so far, at moments that never fall.
    points: Mutex<Vec<(Instant, u64)>>,
}

impl Counters {
    /// Begins with the guest at one of the hosts.
    pub(crate) fn watch(hosts: &[Host; 2]) -> Result<Self> {
        Self::of(hosts.iter().map(|host| host.socket().to_owned()).collect())
    }

    /// Begins with a guest that stays at this host.
    pub(crate) fn watch_at(host: &Host) -> Result<Self> {
        Self::of(vec![host.socket().to_owned()])
    }

    fn of(sockets: Vec<PathBuf>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("lab-counters".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.read_all(sockets)
        });
        Ok(Self {
            shared,
            thread: Some(thread.map_err(LabError::system("start a thread"))?),
        })
    }

    /// Ends the reading. `last` is what the guest says of itself in the end.
    pub(crate) fn stop(mut self, last: &Stats, moments: &Moments) -> Operations {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        self.seen(last, moments)
    }

    /// What was read so far. `last` is what the guest says of itself now.
    pub(crate) fn seen(&self, last: &Stats, moments: &Moments) -> Operations {
        let points = self.shared.points.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = moments.operations(|at| interpolate(&points, at));
        Operations {
            errors: last.violations,
            descriptions: last.violations_seen.clone(),
            longest_gap_ms: last.longest_gap_us as f64 / 1e3,
            ..seen
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn read_all(&self, sockets: Vec<PathBuf>) {
        // A host that cannot be asked is one without the guest.
        let clients: Vec<Client> = sockets
            .into_iter()
            .filter_map(|socket| Client::new(socket).ok())
            .collect();
        while !self.stop.load(Ordering::Relaxed) {
            // Where it is not, or not yet, it is unknown or counts less.
            let counts = clients.iter().filter_map(|client| client.stats(GUEST).ok());
            if let Some(count) = counts.map(|stats| stats.operations).max() {
                let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
                let count = points.last().map_or(count, |(_, last)| count.max(*last));
                points.push((Instant::now(), count));
            }
            thread::sleep(WINDOW / 2);
        }
    }
}

/// The count at a moment, on a straight line between the points beside it.
fn interpolate(points: &[(Instant, u64)], at: Instant) -> f64 {
    let next = points.partition_point(|(moment, _)| *moment <= at);
    match (next.checked_sub(1).map(|last| points[last]), points.get(next)) {
        (None, None) => 0.0,
        (Some((_, count)), None) | (None, Some(&(_, count))) => count as f64,
        (Some((from, before)), Some(&(to, after))) => {
            let share = (at - from).as_secs_f64() / (to - from).as_secs_f64();
            before as f64 + (after - before) as f64 * share
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(origin: Instant) -> Moments {
        let at = |ms| origin + Duration::from_millis(ms);
        Moments {
            start: at(0),
            migration: at(1000)..at(2000),
            end: at(2500),
        }
    }

    #[test]
    fn counts_lie_on_lines_between_the_points() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let points = [(at(100), 10), (at(200), 30), (at(300), 30)];
        for (ms, count) in [(0, 10.0), (100, 10.0), (150, 20.0), (250, 30.0), (900, 30.0)] {
            assert!((interpolate(&points, at(ms)) - count).abs() < 1e-6, "{ms}");
        }
        assert_eq!(interpolate(&[], origin), 0.0);
    }

    #[test]
    fn rates_and_windows_are_told_apart_by_the_migration() {
        let origin = Instant::now();
        // 100 a second, and nothing while the guest moves.
        let count = |at: Instant| {
            let ms = (at - origin).as_millis() as f64;
            if ms <= 1000.0 {
                ms / 10.0
            } else {
                100.0 + (ms - 2000.0).max(0.0) / 10.0
            }
        };
        let seen = moments(origin).operations(count);
        assert_eq!(
            (seen.before_per_s, seen.during_per_s, seen.after_per_s),
            (100.0, 0.0, 100.0)
        );
        assert_eq!(
            (seen.count, seen.windows.len(), seen.windows_start_ms),
            (150, 25, -1000.0)
        );
        assert_eq!((seen.windows[0], seen.windows[15]), (10.0, 0.0));
    }
    #[test]
    fn latencies_belong_to_a_phase_and_a_window() {
        let moments = moments(Instant::now());
        let at = |ms| moments.start + Duration::from_millis(ms);
        let waits = [
            at(10)..at(20),
            at(20)..at(40),
            // Delayed by the stop.
            at(990)..at(1500),
            at(1500)..at(1504),
            // Delayed by its pages, which still follow.
            at(1990)..at(2050),
            at(2050)..at(2051),
            // Nobody asks for it.
            at(2400)..at(2600),
        ];
        let seen = moments.latencies(waits.into_iter()).unwrap();
        let phases = [seen.before, seen.during, seen.after].map(|phase| {
            let phase = phase.unwrap();
            (phase.count, phase.max_ms.round())
        });
        assert_eq!(phases, [(2, 20.0), (3, 510.0), (1, 1.0)]);
        let counts: Vec<_> = seen
            .windows
            .iter()
            .enumerate()
            .filter_map(|(index, figures)| Some((index, figures.as_ref()?.count)))
            .collect();
        assert_eq!((counts, seen.windows.len()), (vec![(0, 2), (15, 2), (20, 2)], 25));
        assert_eq!((seen.deciles_ms.len(), seen.deciles_ms[10].round()), (11, 510.0));
        let distribution = seen.distribution();
        assert_eq!(distribution.len(), 14);
        assert!(distribution.is_sorted_by(|one, other| one.0 < other.0 && one.1 <= other.1));
        assert_eq!(seen.quantile_ms(0.999), Some(seen.deciles_ms[10]));
        assert_eq!(seen.quantile_ms(0.42), None);
        assert_eq!(moments.latencies([].into_iter()), None);
    }
}
