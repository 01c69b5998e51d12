//! Which processes ran lately.
//!
//! The scheduler's own time stamps say so to the millisecond where the kernel shows them. Elsewhere the agent looks now
//! and then at how long each thread has run: a thread ran when that has grown since the last look.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::proc::{self, sched};

/// When a process ran last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// The process.
    pub(crate) pid: u32,
    /// How long ago one of its threads ran.
    pub(crate) ago: Duration,
}

/// What is known of all threads.
#[derive(Default)]
pub(crate) struct Activity {
    threads: HashMap<u32, Seen>,
}

/// A thread as it was seen last.
#[derive(Clone, Copy)]
struct Seen {
    run_time_ns: u64,
    /// When that was seen to have grown. A thread that is new has just run, for all we know.
    grown: Instant,
}

impl Activity {
    /// When each process ran last, the latest first.
    pub(crate) fn last_runs(&mut self) -> Vec<Ran> {
        let mut runs = last_runs_by_clock().unwrap_or_else(|| self.last_runs_by_growth());
        runs.sort_by_key(|ran| ran.ago);
        runs
    }

    /// Looks at all threads where only looking often shows who runs.
    pub(crate) fn look(&mut self) {
        if own_clock_ms().is_none() {
            self.last_runs_by_growth();
        }
    }

    fn last_runs_by_growth(&mut self) -> Vec<Ran> {
        let now = Instant::now();
        let earlier = std::mem::take(&mut self.threads);
        let mut runs = Vec::new();
        for pid in proc::numbers_in("/proc") {
            let mut latest = None;
            for thread in threads_of(pid) {
                let Some(run_time_ns) = read_thread(pid, thread, "schedstat", sched::run_time_ns) else {
                    continue;
                };
                let seen = grow(earlier.get(&thread).copied(), run_time_ns, now);
                self.threads.insert(thread, seen);
                latest = latest.max(Some(seen.grown));
            }
            runs.extend(latest.map(|grown| Ran {
                pid,
                ago: now.duration_since(grown),
            }));
        }
        runs
    }
}

/// What is known of a thread that has now run so long.
fn grow(earlier: Option<Seen>, run_time_ns: u64, now: Instant) -> Seen {
    match earlier {
        Some(seen) if seen.run_time_ns == run_time_ns => seen,
        _ => Seen {
            run_time_ns,
            grown: now,
        },
    }
}

/// By the scheduler's time stamps; none where the kernel does not show them.
fn last_runs_by_clock() -> Option<Vec<Ran>> {
    let now = own_clock_ms()?;
    let latest_of = |pid| {
        let starts = threads_of(pid)
            .into_iter()
            .filter_map(|thread| read_thread(pid, thread, "sched", sched::exec_start_ms));
        starts.max()
    };
    let runs = proc::numbers_in("/proc").into_iter().filter_map(|pid| {
        let ago = now.saturating_sub(latest_of(pid)?);
        Some(Ran {
            pid,
            ago: Duration::from_millis(ago),
        })
    });
    Some(runs.collect())
}

/// The scheduler's clock: this thread runs right now.
fn own_clock_ms() -> Option<u64> {
    sched::exec_start_ms(&proc::read("/proc/thread-self/sched").ok()?)
}

fn threads_of(pid: u32) -> Vec<u32> {
    proc::numbers_in(format!("/proc/{pid}/task"))
}

fn read_thread(pid: u32, thread: u32, file: &str, parse: fn(&str) -> Option<u64>) -> Option<u64> {
    parse(&proc::read(format!("/proc/{pid}/task/{thread}/{file}")).ok()?)
}

/// The name of a process.
pub(crate) fn name_of(pid: u32) -> String {
    proc::read(format!("/proc/{pid}/comm"))
        .map(|name| name.trim_end().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_ran_when_its_time_has_grown() {
        let first = Instant::now();
        let later = first + Duration::from_secs(5);
        let new = grow(None, 100, first);
        assert_eq!(new.grown, first);
        assert_eq!(grow(Some(new), 100, later).grown, first, "it slept");
        assert_eq!(grow(Some(new), 101, later).grown, later, "it ran");
    }

    #[test]
    fn this_process_runs_now_by_either_measure() {
        let own = std::process::id();
        let mut activity = Activity::default();
        let by_growth = activity.last_runs_by_growth();
        assert!(by_growth.iter().any(|ran| ran.pid == own && ran.ago.is_zero()));
        let Some(by_clock) = last_runs_by_clock() else {
            return println!("skipped: this kernel does not show when threads ran");
        };
        let ours = by_clock.iter().find(|ran| ran.pid == own).expect("it is there");
        assert!(ours.ago < Duration::from_secs(16), "{ours:?}");
    }
}
