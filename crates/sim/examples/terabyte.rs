//! Simulates a guest of 1 TiB by all strategies: how long that takes, and how much memory.
//!
//! `cargo run --release -p vmferry-sim --example terabyte`

use std::time::Instant;

use vmferry_core::sampling::Coverage;
use vmferry_core::{MigrationRequest, PageRun, RamLayout, Strategy};
use vmferry_sim::{PathModel, Simulator};
use vmferry_trace::{Header, PageSet, Plan, Sample, Trace};

const TIB: u64 = 1 << 40;
const PAGES: u64 = TIB / 4096;

fn main() {
    let began = Instant::now();
    let trace = trace();
    println!(
        "trace: {} samples, {} MiB, made in {:?}",
        trace.samples.len(),
        trace
            .samples
            .iter()
            .map(|sample| sample.dirty.memory_bytes())
            .sum::<usize>()
            >> 20,
        began.elapsed()
    );
    let began = Instant::now();
    let simulator = Simulator::new(&trace).expect("a trace with samples");
    println!(
        "ready in {:?}, {} pages a unit",
        began.elapsed(),
        simulator.pages_per_unit()
    );
    let path = PathModel::typical(1.25e9, 0.1);
    for strategy in Strategy::ALL {
        let began = Instant::now();
        let outcome = simulator
            .run(&MigrationRequest::<()>::new((), strategy), &path, 1)
            .expect("it ends");
        println!(
            "{strategy}: simulated in {:?}: {:.0} s, down {:.0} ms, {} GiB, {} rounds, {} faults",
            began.elapsed(),
            outcome.report.total_ms / 1e3,
            outcome.report.downtime_ms,
            outcome.report.bytes_on_wire >> 30,
            outcome.report.rounds.len(),
            outcome.report.faults.count,
        );
    }
    println!("peak memory {} MiB", peak_kib() >> 10);
}

/// 600 GiB of data; a database that writes 64 GiB here and there, and a log that goes on.
fn trace() -> Trace {
    let header = Header {
        vm: "terabyte".into(),
        backend: "qemu".into(),
        layout: RamLayout::single("ram", TIB).expect("within bounds"),
        started_unix_ms: 0,
        interval_us: 50_000,
        plan: Plan::Full,
        page_cost_ns: 1250,
        processors: 64,
        pinned_io: false,
        device_state_bytes: None,
    };
    let mut trace = Trace::new(header, PageSet::from_runs([PageRun::new(0, PAGES * 6 / 10)]));
    let mut random = 1u64;
    for index in 0..200 {
        let mut pages: Vec<u64> = (0..8000)
            .map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % (16 << 20)
            })
            .collect();
        pages.sort_unstable();
        pages.dedup();
        let scattered = pages.into_iter().map(PageRun::single);
        let log = PageRun::new((20 << 20) + index * 3000, 3000);
        trace.samples.push(Sample {
            start_us: index * 50_000,
            end_us: (index + 1) * 50_000,
            burst: 0,
            coverage: Coverage::ALL,
            dirty: PageSet::from_runs(scattered.chain([log])),
            cpu_us: None,
        });
    }
    trace
}

/// The most memory that this process ever had, KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
