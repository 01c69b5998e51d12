//! Pages into memory that a guest uses: the kernel's atomic copy in batches, and a fault answered by it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::{Bencher, Criterion, Throughput};
use vmferry_memory::{CopyMode, Event, Features, Mode, PAGE_SIZE, SharedMemory, Userfaultfd};

/// Pages of a single copy.
const BATCHES: [usize; 4] = [1, 8, 64, 256];
const MEMORY_BYTES: u64 = 64 << 20;
const PAGE: u64 = PAGE_SIZE as u64;

pub(crate) fn bench(criterion: &mut Criterion) -> Result<()> {
    let memory = SharedMemory::create("install-bench", MEMORY_BYTES)?;
    let (uffd, _) = Userfaultfd::open()?;
    uffd.handshake(Features::POST_COPY)?;
    uffd.register(memory.addresses(), Mode::MISSING)?;

    let mut group = criterion.benchmark_group("install by UFFDIO_COPY");
    for pages in BATCHES {
        let content = vec![0x5a; pages * PAGE_SIZE];
        group.throughput(Throughput::Bytes(content.len() as u64));
        group.bench_function(format!("{pages} at once"), |bencher| {
            on_empty_pages(bencher, &memory, content.len() as u64, |at| {
                install(&uffd, &memory, at, &content);
            });
        });
    }
    group.finish();
    faults(criterion, &memory, &uffd);
    Ok(())
}

/// A thread touches page after page, another one of the same process answers. What the network adds is in the bench `faults`.
fn faults(criterion: &mut Criterion, memory: &SharedMemory, uffd: &Userfaultfd) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (content, start) = ([0x5a; PAGE_SIZE], memory.addresses().start);
            let mut events = Vec::new();
            while !done.load(Ordering::Relaxed) {
                uffd.read_events(&mut events, Some(Duration::from_millis(20)))
                    .expect("a userfaultfd of our own can be read");
                for event in events.drain(..) {
                    if let Event::PageFault { address, .. } = event {
                        install(uffd, memory, (address - start) / PAGE * PAGE, &content);
                    }
                }
            }
        });
        criterion.bench_function(
            "fault of a missing page, answered in the same process",
            |bencher| {
                on_empty_pages(bencher, memory, PAGE, |at| {
                    assert_eq!(memory.load_u64(at), 0x5a5a_5a5a_5a5a_5a5a);
                });
            },
        );
        done.store(true, Ordering::Relaxed);
    });
}

fn install(uffd: &Userfaultfd, memory: &SharedMemory, at: u64, pages: &[u8]) {
    let outcome = uffd.copy(memory.addresses().start + at, pages, CopyMode::empty());
    assert!(
        outcome.is_ok_and(|outcome| outcome.is_complete()),
        "page at {at:#x}"
    );
}

/// Measures `act` on one piece of `bytes` after the other. Memory that is full is emptied, which does not count.
fn on_empty_pages(bencher: &mut Bencher<'_>, memory: &SharedMemory, bytes: u64, mut act: impl FnMut(u64)) {
    bencher.iter_custom(|iterations| {
        let mut took = Duration::ZERO;
        let mut left = iterations;
        while left > 0 {
            memory
                .punch_hole(0..memory.len())
                .expect("a memfd can have holes");
            let pieces = left.min(memory.len() / bytes);
            let began = Instant::now();
            (0..pieces).for_each(|piece| act(piece * bytes));
            took += began.elapsed();
            left -= pieces;
        }
        took
    });
}
