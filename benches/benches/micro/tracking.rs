//! A scan for dirty pages of 1 GiB of shared memory, which protects them again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use criterion::{BatchSize, Criterion, Throughput};
use vmferry_memory::{
    FileId, PAGE_SIZE, PagemapScanner, SharedMemory, Userfaultfd, WpAsyncTracker, mappings_of,
};

/// Name, every how many pages one is written before the scan (0: none), and how long to measure. Writing all of them takes
/// far longer than the scan that is measured.
const WRITTEN: [(&str, usize, Duration); 3] = [
    ("clean", 0, Duration::from_millis(500)),
    ("1% written", 100, Duration::from_millis(200)),
    ("100% written", 1, Duration::from_millis(100)),
];

pub(crate) fn bench(criterion: &mut Criterion) -> Result<()> {
    let memory = SharedMemory::create("scan-bench", 1 << 30)?;
    memory.populate(0..memory.len())?;
    let own = std::process::id();
    let (uffd, _) = Userfaultfd::open()?;
    let mappings = mappings_of(own, FileId::of(memory.fd())?)?;
    let mut tracker = WpAsyncTracker::new(Arc::new(uffd), PagemapScanner::open(own)?, mappings)?;
    tracker.arm()?;

    let mut group = criterion.benchmark_group("scan of 1 GiB");
    group.throughput(Throughput::Bytes(memory.len()));
    for (name, every, time) in WRITTEN {
        let wanted = memory.len().div_ceil((PAGE_SIZE * every.max(1)) as u64) * u64::from(every > 0);
        // What the last one left.
        tracker.scan(&mut |_| {})?;
        group.measurement_time(time);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let pages = (0..memory.len()).step_by(PAGE_SIZE * every.max(1));
                    pages
                        .take(wanted as usize)
                        .for_each(|at| memory.store_u64(at, at));
                },
                |()| {
                    let found = tracker.scan(&mut |_| {}).expect("own memory can be scanned");
                    assert_eq!(found, wanted, "pages written");
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    Ok(())
}
