//! What a migration costs its host: CPU time of its threads, private memory at its highest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// Shared by all threads of a migration or a resume.
#[derive(Debug)]
pub struct Usage {
    cpu_ns: AtomicU64,
    /// Private memory of the process when the migration began.
    base_bytes: u64,
    peak_bytes: AtomicU64,
}

impl Usage {
    /// Begins to count.
    pub fn start() -> Self {
        Self {
            cpu_ns: AtomicU64::new(0),
            base_bytes: private_bytes(),
            peak_bytes: AtomicU64::new(0),
        }
    }

    /// Counts the CPU time of the calling thread until the answer is dropped.
    pub fn thread(&self) -> ThreadUsage<'_> {
        ThreadUsage {
            usage: self,
            from_ns: thread_cpu_ns(),
        }
    }

    /// CPU time that was counted, of threads that flushed or ended.
    pub fn cpu_seconds(&self) -> f64 {
        self.cpu_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    pub(crate) fn sample_memory(&self) {
        self.peak_bytes
            .fetch_max(private_bytes().saturating_sub(self.base_bytes), Ordering::Relaxed);
    }

    /// Private memory at its highest, beyond what the process had before.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }
}

/// Looks at memory from time to time.
pub(crate) struct MemorySampler {
    next: Instant,
}

impl MemorySampler {
    pub(crate) fn new() -> Self {
        Self { next: Instant::now() }
    }

    pub(crate) fn tick(&mut self, usage: &Usage) {
        if Instant::now() >= self.next {
            usage.sample_memory();
            self.next = Instant::now() + SAMPLE_EVERY;
        }
    }
}

/// See [`Usage::thread`].
pub struct ThreadUsage<'a> {
    usage: &'a Usage,
    from_ns: u64,
}

impl ThreadUsage<'_> {
    /// Counts what was used so far.
    pub fn flush(&mut self) {
        let now_ns = thread_cpu_ns();
        self.usage
            .cpu_ns
            .fetch_add(now_ns - self.from_ns, Ordering::Relaxed);
        self.from_ns = now_ns;
    }
}

impl Drop for ThreadUsage<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    Duration::from_nanos(thread_cpu_ns())
}

/// The same in nanoseconds.
pub(crate) fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Anonymous memory of this process: shared mappings of guest RAM do not count.
fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
