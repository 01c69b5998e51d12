//! Traces of guests that are easy to reason about.
#![allow(dead_code, reason = "each test uses some of them")]

use vmferry_core::sampling::Coverage;
use vmferry_core::{PageRun, RamLayout};
use vmferry_trace::{Header, PageSet, Plan, Sample, Trace};

/// Length of a sample.
pub(crate) const INTERVAL_US: u64 = 50_000;

/// A guest of `ram_bytes` of which the first `data_bytes` hold data, not sampled yet.
pub(crate) fn guest(ram_bytes: u64, data_bytes: u64) -> Trace {
    let header = Header {
        vm: "guest".into(),
        backend: "synth".into(),
        layout: RamLayout::single("ram", ram_bytes).unwrap(),
        started_unix_ms: 0,
        interval_us: INTERVAL_US,
        plan: Plan::Full,
        page_cost_ns: 1250,
        processors: 1,
        pinned_io: false,
        device_state_bytes: None,
    };
    Trace::new(header, PageSet::from_runs([PageRun::new(0, data_bytes / 4096)]))
}

/// The same that dirties what `sample` says, in one burst of `count` samples.
pub(crate) fn sampled(mut trace: Trace, count: u64, sample: impl Fn(u64) -> Vec<PageRun>) -> Trace {
    for index in 0..count {
        let mut runs = sample(index);
        runs.sort_by_key(|run| run.first);
        runs.dedup();
        trace.samples.push(Sample {
            start_us: index * INTERVAL_US,
            end_us: (index + 1) * INTERVAL_US,
            burst: 0,
            coverage: Coverage::ALL,
            dirty: PageSet::from_runs(runs),
            cpu_us: None,
        });
    }
    trace
}

/// A loop over `region`, at `pages_per_s`.
pub(crate) fn looping(trace: Trace, count: u64, region: PageRun, pages_per_s: u64) -> Trace {
    let each = pages_per_s / 20;
    sampled(trace, count, |index| {
        if each >= region.count {
            return vec![region];
        }
        let from = index * each % region.count;
        let (head, tail) = PageRun::new(region.first + from, each).split_at(region.count - from);
        let wrapped = tail.map(|tail| PageRun::new(region.first, tail.count));
        wrapped.into_iter().chain([head]).collect()
    })
}
