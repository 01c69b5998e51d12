//! The CPU cap of a migration: how much CPU time the page streams of the source use, all together.
//!
//! Each stream measures its own CPU time, and waits before it claims its next batch while all of them together are ahead
//! of the cap: there it holds no page and no lock. Where the kernel has control groups the streams are also put into one
//! with that quota, which holds whatever a batch costs. The driver (which stops the guest) and the fault stream (for which
//! the guest waits) are never capped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_core::pacing::TokenBucket;

use crate::cgroup::ThreadGroup;
use crate::clock::Clock;
use crate::usage::thread_cpu_ns;

/// What may be used at once is what the cap allows in this time.
const BURST: Duration = Duration::from_millis(10);

/// Shared by the page streams.
#[derive(Debug)]
pub(crate) struct CpuCap {
    clock: Clock,
    /// Name for a control group.
    name: String,
    state: Mutex<State>,
    changed: Condvar,
    waited_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    percent: Option<u32>,
    /// Nanoseconds of CPU time.
    bucket: Option<TokenBucket>,
    /// The kernel's part, once it was asked for: or why there is none.
    group: Option<Result<ThreadGroup, String>>,
    /// The streams end: nobody waits any more.
    closed: bool,
}

impl CpuCap {
    /// No cap yet. `name` tells this migration from others of this host.
    pub(crate) fn new(name: String) -> Self {
        Self {
            clock: Clock::start(),
            name,
            state: Mutex::default(),
            changed: Condvar::new(),
            waited_ns: AtomicU64::new(0),
        }
    }

    /// Caps from now on, in percent of one core, or lifts the cap.
    pub(crate) fn set(&self, percent: Option<u32>) {
        let mut state = self.state();
        state.percent = percent;
        let now = self.clock.now();
        state.bucket = percent.map(|percent| {
            let ns_per_s = u64::from(percent) * 10_000_000;
            let burst_ns = ns_per_s * BURST.as_millis() as u64 / 1000;
            TokenBucket::new(ns_per_s, burst_ns, now)
        });
        if percent.is_some() && state.group.is_none() {
            state.group = Some(ThreadGroup::create(&self.name));
        }
        if let Some(Ok(group)) = &state.group
            && let Err(reason) = group.limit(percent)
        {
            state.group = Some(Err(reason));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The calling thread is a page stream.
    pub(crate) fn member(&self) -> Member<'_> {
        Member {
            cap: self,
            joined: false,
            counted_ns: thread_cpu_ns(),
        }
    }

    /// No stream has to wait any more: they end.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// New streams may begin.
    pub(crate) fn open(&self) {
        self.state().closed = false;
    }

    /// The cap in force.
    pub(crate) fn percent(&self) -> Option<u32> {
        self.state().percent
    }

    /// How long streams waited for it, all added up.
    pub(crate) fn waited(&self) -> Duration {
        let throttled = match &self.state().group {
            Some(Ok(group)) => group.throttled(),
            _ => Duration::ZERO,
        };
        Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed)) + throttled
    }

    /// What enforces it, where there is or was one.
    pub(crate) fn by(&self) -> Option<String> {
        Some(match self.state().group.as_ref()? {
            Ok(group) => format!("{} and own pacing", group.kind()),
            Err(reason) => format!("own pacing ({reason})"),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page stream under the cap.
pub(crate) struct Member<'a> {
    cap: &'a CpuCap,
    /// In the control group.
    joined: bool,
    counted_ns: u64,
}

impl Member<'_> {
    /// To call while holding nothing: waits until the streams may use CPU again. Answers how long that was.
    pub(crate) fn pace(&mut self) -> Duration {
        let mut state = self.cap.state();
        if state.bucket.is_none() {
            return Duration::ZERO;
        }
        if !self.joined {
            self.joined = true;
            self.counted_ns = thread_cpu_ns();
            if let Some(Ok(group)) = &state.group
                && let Err(reason) = group.join()
            {
                state.group = Some(Err(reason));
            }
        }
        let used_ns = thread_cpu_ns();
        if let Some(bucket) = &mut state.bucket {
            bucket.owe(used_ns - self.counted_ns);
        }
        self.counted_ns = used_ns;
        let began = self.cap.clock.now();
        loop {
            let now = self.cap.clock.now();
            // It may be changed or lifted meanwhile.
            let even_at = state.bucket.as_mut().map_or(now, |bucket| bucket.even_at(now));
            if even_at <= now || state.closed {
                let waited = now.saturating_sub(began);
                self.cap
                    .waited_ns
                    .fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
                return waited;
            }
            let waited = self.cap.changed.wait_timeout(state, even_at - now);
            state = waited.map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Two streams that would use a core each, for `wall`: the share of a core they used.
    fn used_share(cap: &CpuCap, wall: Duration) -> f64 {
        let began = Instant::now();
        let stream = || {
            let (before_ns, mut member) = (thread_cpu_ns(), cap.member());
            while began.elapsed() < wall {
                member.pace();
                // A batch of about a millisecond.
                let until_ns = thread_cpu_ns() + 1_000_000;
                while thread_cpu_ns() < until_ns {
                    black_box((0..1000).sum::<u64>());
                }
            }
            thread_cpu_ns() - before_ns
        };
        let used_ns: u64 = thread::scope(|scope| {
            let streams = [scope.spawn(stream), scope.spawn(stream)];
            streams.map(|stream| stream.join().unwrap()).iter().sum()
        });
        used_ns as f64 / began.elapsed().as_nanos() as f64
    }

    fn without_group(percent: u32) -> CpuCap {
        let cap = CpuCap::new("unused".into());
        cap.state().group = Some(Err("this is a test".into()));
        cap.set(Some(percent));
        cap
    }

    #[test]
    fn streams_pace_themselves() {
        let cap = without_group(20);
        let share = used_share(&cap, Duration::from_millis(500));
        // A crowded machine gives less; nothing may give more than the cap, a burst and a batch of each stream.
        assert!(share < 0.25, "{share} of a core");
        assert!(cap.waited() > Duration::from_millis(100), "{:?}", cap.waited());
        assert_eq!(cap.by().unwrap(), "own pacing (this is a test)");
    }

    #[test]
    fn the_kernel_holds_streams_that_do_not_pace_themselves() {
        let name = format!("vmferry-test-{}", std::process::id());
        let group = match ThreadGroup::create(&name) {
            Ok(group) => group,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        group.limit(Some(20)).unwrap();
        let began = Instant::now();
        let used_ns = thread::scope(|scope| {
            let spin = || {
                group.join().unwrap();
                let before_ns = thread_cpu_ns();
                while began.elapsed() < Duration::from_millis(500) {
                    black_box((0..1000).sum::<u64>());
                }
                thread_cpu_ns() - before_ns
            };
            scope.spawn(spin).join().unwrap()
        });
        let share = used_ns as f64 / began.elapsed().as_nanos() as f64;
        assert!(share < 0.3, "{share} of a core, in {}", group.kind());
        assert!(group.throttled() > Duration::ZERO);
        drop(group);
    }

    #[test]
    fn a_cap_that_is_lifted_lets_go_of_who_waits() {
        let cap = without_group(1);
        let began = Instant::now();
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let mut member = cap.member();
                member.pace();
                let until_ns = thread_cpu_ns() + 20_000_000;
                while thread_cpu_ns() < until_ns {}
                // Two seconds at one percent.
                member.pace();
            });
            thread::sleep(Duration::from_millis(100));
            cap.set(None);
            waits.join().unwrap();
        });
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(cap.percent(), None);
    }
}
