//! What tracking, checking and attaching cost on this machine, for each GiB of memory. Run it with `--release`.
//!
//! `cargo run --release -p vmferry-memory --example scan_cost [GiB]`

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_memory::{
    CopyMode, Event, FileId, Mode, PAGE_SIZE, PagemapScanner, RemoteProcess, SharedMemory, Syscall,
    Userfaultfd, WpAsyncTracker, mappings_of,
};

const PAGE: u64 = PAGE_SIZE as u64;
const REPEATS: usize = 21;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gib: u64 = std::env::args().nth(1).map_or(Ok(1), |number| number.parse())?;
    let memory = SharedMemory::create("scan-cost", gib << 30)?;
    memory.populate(0..memory.len())?;
    println!("{gib} GiB of memfd, populated; medians of {REPEATS}");
    checks(&memory, gib);
    tracking(&memory, gib)?;
    receiving()?;
    faults()?;
    injection()?;
    Ok(())
}

/// The median time of `action`, prepared each time by `prepare`.
fn median(mut prepare: impl FnMut(), mut action: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..REPEATS)
        .map(|_| {
            prepare();
            let began = Instant::now();
            action();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[REPEATS / 2]
}

fn report(what: &str, time: Duration, gib: u64) {
    println!("{what:40} {:9.3} ms/GiB", time.as_secs_f64() * 1e3 / gib as f64);
}

fn checks(memory: &SharedMemory, gib: u64) {
    let pages = || (0..memory.len()).step_by(PAGE_SIZE);
    let mut found = 0;
    let time = median(
        || {},
        || found += pages().filter(|&at| memory.page_is_uniform(at).is_some()).count(),
    );
    report("uniform check, all pages uniform", time, gib);
    pages().for_each(|at| memory.store_u64(at + 2048, at));
    let time = median(
        || {},
        || found += pages().filter(|&at| memory.page_is_uniform(at).is_some()).count(),
    );
    report("uniform check, early difference", time, gib);
    pages().for_each(|at| {
        memory.store_u64(at + 2048, 0);
        memory.store_u64(at + 3000, at | 1);
    });
    let time = median(
        || {},
        || found += pages().filter(|&at| memory.page_is_uniform(at).is_some()).count(),
    );
    report("uniform check, hidden difference", time, gib);
    let mut sum = 0;
    let time = median(
        || {},
        || sum ^= pages().map(|at| memory.hash_page(at)).fold(0, |a, b| a ^ b),
    );
    report("xxh3-128 of every page", time, gib);
    std::hint::black_box((found, sum));
}

fn tracking(memory: &SharedMemory, gib: u64) -> Result<(), Box<dyn std::error::Error>> {
    let own = std::process::id();
    let (uffd, _) = Userfaultfd::open()?;
    let mappings = mappings_of(own, FileId::of(memory.fd())?)?;
    let mut tracker = WpAsyncTracker::new(Arc::new(uffd), PagemapScanner::open(own)?, mappings)?;
    let began = Instant::now();
    tracker.arm()?;
    report("first protect", began.elapsed(), gib);
    for (name, step) in [("1%", 100), ("10%", 10), ("100%", 1)] {
        let dirty = || (0..memory.len()).step_by(PAGE_SIZE * step);
        let write = || dirty().for_each(|at| memory.store_u64(at, at));
        let mut pages = 0;
        let time = median(write, || pages = tracker.scan(&mut |_| {}).expect("scans"));
        assert_eq!(pages, dirty().count() as u64);
        report(&format!("scan and protect again, {name} dirty"), time, gib);
    }
    let mut pages = 0;
    let time = median(|| {}, || pages += tracker.scan(&mut |_| {}).expect("scans"));
    assert_eq!(pages, 0);
    report("scan, clean", time, gib);
    let began = Instant::now();
    (0..memory.len())
        .step_by(PAGE_SIZE)
        .for_each(|at| memory.store_u64(at, at));
    let each = began.elapsed().as_nanos() as u64 / (memory.len() / PAGE);
    println!("{:40} {each:9} ns", "first write to a protected page");
    Ok(())
}

/// A unix socket into memory that nobody has touched, and into memory populated just ahead of the reads.
fn receiving() -> Result<(), Box<dyn std::error::Error>> {
    let source = SharedMemory::create("scan-cost", 256 << 20)?;
    source.populate(0..source.len())?;
    // In turns, and the first of each thrown away: what the host has never touched is slower than all of this.
    let mut rates = [Vec::new(), Vec::new()];
    for turn in 0..12 {
        let rate = receive(&source, turn % 2 == 1)?;
        if turn >= 2 {
            rates[turn % 2].push(rate);
        }
    }
    for (name, rates) in ["untouched", "populated ahead"].into_iter().zip(&mut rates) {
        rates.sort_unstable_by(f64::total_cmp);
        println!(
            "{:40} {:9.2} GB/s",
            format!("unix socket into memory, {name}"),
            rates[rates.len() / 2]
        );
    }
    Ok(())
}

/// Sends all of `source` into new memory; gives back the rate in GB/s.
fn receive(source: &SharedMemory, populate: bool) -> Result<f64, Box<dyn std::error::Error>> {
    const READ: u64 = 1 << 20;
    let len = source.len();
    let target = SharedMemory::create("scan-cost", len)?;
    let (near, far) = UnixStream::pair()?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for at in (0..len).step_by(READ as usize) {
                source
                    .write_range_to(near.as_fd(), b"", &[(at, READ)])
                    .expect("sends");
            }
        });
        for at in (0..len).step_by(READ as usize) {
            if populate {
                target.populate(at..at + READ).expect("populates");
            }
            target
                .read_range_from(far.as_fd(), &[(at, READ)])
                .expect("receives");
        }
    });
    Ok(len as f64 / began.elapsed().as_secs_f64() / 1e9)
}

/// Fault service within one process: from the fault to the page.
fn faults() -> Result<(), Box<dyn std::error::Error>> {
    let memory = SharedMemory::create("scan-cost", 4096 * PAGE)?;
    let (uffd, _) = Userfaultfd::open()?;
    uffd.handshake(vmferry_memory::Features::POST_COPY)?;
    uffd.register(memory.addresses(), Mode::MISSING)?;
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let faulter = scope.spawn(|| {
            (0..4096)
                .map(|page| {
                    let began = Instant::now();
                    memory.load_u64(page * PAGE);
                    began.elapsed()
                })
                .collect()
        });
        let mut events = Vec::new();
        while !faulter.is_finished() {
            uffd.read_events(&mut events, Some(Duration::from_millis(1)))
                .expect("readable");
            for event in events.drain(..) {
                let Event::PageFault { address, .. } = event else {
                    continue;
                };
                uffd.copy(address, &[1; PAGE_SIZE], CopyMode::empty())
                    .expect("installs");
            }
        }
        faulter.join().expect("no panic")
    });
    times.sort_unstable();
    println!(
        "{:40} p50 {:?} p99 {:?}",
        "missing fault, own thread, COPY", times[2048], times[4055]
    );
    Ok(())
}

/// Whole injections, the choice of a thread included, into a sleeping process.
fn injection() -> io::Result<()> {
    let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_millis(50));
    let process = RemoteProcess::open(child.id()).map_err(io::Error::other)?;
    let getpid = Syscall {
        number: 39,
        arguments: [0; 6],
    };
    let time = median(|| {}, || drop(process.inject(getpid)));
    println!("{:40} {time:?}", "injected call, all in all");
    child.kill()?;
    child.wait().map(drop)
}
