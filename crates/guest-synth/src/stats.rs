//! What a guest has done and what it found.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::loads::Checks;

/// Violations of which the description is kept.
const MAX_DESCRIPTIONS: usize = 100;

/// What the loads of a guest have done since it was first launched, wherever it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Operations of all loads.
    pub operations: u64,
    /// Checks of their own data.
    pub checks: u64,
    /// Checks that failed: data that was lost, out of date or torn.
    pub violations: u64,
    /// Longest time a worker wanted to operate and did not come to the end of one operation, since
    /// [`SynthGuest::reset_longest_gap`](crate::SynthGuest::reset_longest_gap): the perceived downtime. Between
    /// two hosts it contains the difference of their clocks.
    pub longest_gap_us: u64,
    /// The same by load, in the order of the configuration.
    pub loads: Vec<LoadStats>,
    /// The latest violations that this host saw, in words.
    pub violations_seen: Vec<String>,
}

/// What one load has done, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadStats {
    /// Its kind, as in the configuration.
    pub kind: String,
    /// Operations.
    pub operations: u64,
    /// Checks of its own data.
    pub checks: u64,
    /// Checks that failed.
    pub violations: u64,
}

/// Counters of one worker: it alone adds, everybody reads.
pub(crate) struct WorkerCounters {
    loads: Vec<LoadCounters>,
    longest_gap_ns: AtomicU64,
    violations_seen: Mutex<VecDeque<String>>,
}

/// Counters of one load of one worker.
#[derive(Default)]
pub(crate) struct LoadCounters {
    pub operations: AtomicU64,
    pub checks: AtomicU64,
    pub violations: AtomicU64,
}

impl WorkerCounters {
    pub(crate) fn new(loads: usize) -> Self {
        Self {
            loads: (0..loads).map(|_| LoadCounters::default()).collect(),
            longest_gap_ns: AtomicU64::new(0),
            violations_seen: Mutex::new(VecDeque::new()),
        }
    }

    pub(crate) fn load(&self, index: usize) -> &LoadCounters {
        &self.loads[index]
    }

    /// Takes note of an operation of load `index` and of what it found; `checks` is empty afterwards.
    pub(crate) fn record_operation(&self, index: usize, checks: &mut Checks) {
        let load = &self.loads[index];
        add(&load.operations, 1);
        add(&load.checks, std::mem::take(&mut checks.made));
        if checks.violations > 0 {
            add(&load.violations, std::mem::take(&mut checks.violations));
            let mut seen = self
                .violations_seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for description in checks.descriptions.drain(..) {
                tracing::error!("violation in the synthetic guest: {description}");
                seen.push_back(description);
            }
            let excess = seen.len().saturating_sub(MAX_DESCRIPTIONS);
            seen.drain(..excess);
        }
    }

    /// Takes note of a time without an operation.
    pub(crate) fn record_gap(&self, gap_ns: u64) {
        if gap_ns > self.longest_gap_ns.load(Ordering::Relaxed) {
            self.longest_gap_ns.store(gap_ns, Ordering::Relaxed);
        }
    }

    pub(crate) fn longest_gap_ns(&self) -> u64 {
        self.longest_gap_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn set_longest_gap_ns(&self, gap_ns: u64) {
        self.longest_gap_ns.store(gap_ns, Ordering::Relaxed);
    }
}

/// Not a read-modify-write: there is one writer.
fn add(counter: &AtomicU64, number: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(number),
        Ordering::Relaxed,
    );
}

impl Stats {
    /// The sum over all workers; `kinds` names the loads.
    pub(crate) fn sum<'a>(
        kinds: impl Iterator<Item = &'static str>,
        workers: impl Iterator<Item = &'a WorkerCounters> + Clone,
    ) -> Self {
        let mut stats = Self::default();
        // Saturated: where the guest came from, others may have counted.
        for (index, kind) in kinds.enumerate() {
            let mut load = LoadStats {
                kind: kind.into(),
                ..LoadStats::default()
            };
            for counters in workers.clone().map(|worker| &worker.loads[index]) {
                load.operations = load
                    .operations
                    .saturating_add(counters.operations.load(Ordering::Relaxed));
                load.checks = load
                    .checks
                    .saturating_add(counters.checks.load(Ordering::Relaxed));
                load.violations = load
                    .violations
                    .saturating_add(counters.violations.load(Ordering::Relaxed));
            }
            stats.operations = stats.operations.saturating_add(load.operations);
            stats.checks = stats.checks.saturating_add(load.checks);
            stats.violations = stats.violations.saturating_add(load.violations);
            stats.loads.push(load);
        }
        for worker in workers {
            stats.longest_gap_us = stats.longest_gap_us.max(worker.longest_gap_ns() / 1000);
            let seen = worker
                .violations_seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            stats.violations_seen.extend(seen.iter().cloned());
        }
        stats
    }
}
