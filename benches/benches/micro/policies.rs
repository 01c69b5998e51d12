//! What the strategies take to decide, on a guest of 1 GiB: the step while it runs (`live`), a sample during a round
//! (`sampled`), and which pages go next (`pick`).

use std::time::Duration;

use criterion::{BatchSize, Criterion};
use vmferry_core::ledger::Ledger;
use vmferry_core::policy::{LiveStep, Pick, Policy, View};
use vmferry_core::rates::Rates;
use vmferry_core::{Class, Hints, Limits, PAGE_SIZE, PageBitmap, PageRun, Strategy, Tuning};

use crate::GIB_PAGES;
use crate::forecast::scattered;

/// Most pages of a pick, as the page streams ask for them.
const PICK_PAGES: u64 = 256;
/// Pages that the guest's classes change after.
const CLASS_PAGES: u64 = 1024;
/// A page demanded this many picks after the last.
const FAULT_EVERY: u64 = 16;

pub(crate) fn bench(criterion: &mut Criterion) {
    let seen = Seen::new();
    let mut group = criterion.benchmark_group("policy step, 1 GiB");
    for strategy in Strategy::ALL {
        group.bench_function(format!("{strategy}: live"), |bencher| {
            let begun = || begun(strategy, &seen);
            let live = |(policy, rounds): &mut (Box<dyn Policy>, u32)| policy.live(&seen.view(*rounds));
            bencher.iter_batched_ref(begun, live, BatchSize::LargeInput);
        });
        group.bench_function(format!("{strategy}: pick"), |bencher| {
            let (mut policy, rounds) = begun(strategy, &seen);
            policy.stop(&seen.view(rounds));
            let mut left = seen.ledger.pending().clone();
            let mut picks = 0;
            bencher.iter(|| {
                picks += 1;
                if picks % FAULT_EVERY == 0 {
                    policy.faulted(&seen.view(1), picks * 7919 % GIB_PAGES);
                }
                match policy.pick(&seen.view(1), &left, PICK_PAGES) {
                    Pick::Run(run) => left.remove_run(run),
                    // It waits for faults: the next one will not.
                    Pick::Wait(_) => {}
                }
                if left.count_up_to(1) == 0 {
                    left = seen.ledger.pending().clone();
                }
            });
        });
    }
    group.bench_function("pre-copy-filter: sampled", |bencher| {
        let (mut policy, _) = begun(Strategy::PreCopyFilter, &seen);
        bencher.iter(|| policy.sampled(&seen.view(1)));
    });
    group.finish();
}

/// A policy that was asked once, and the rounds that came of it. It knows what it is told before the start.
fn begun(strategy: Strategy, seen: &Seen) -> (Box<dyn Policy>, u32) {
    let mut policy = strategy.policy(&Limits::default(), &Tuning::default(), GIB_PAGES);
    if policy.wants_hints().is_some() {
        policy.enlightened(Ok(hints()));
    }
    let step = policy.live(&seen.view(0));
    (policy, u32::from(matches!(step, LiveStep::Round(_))))
}

/// Classes that alternate all over memory.
fn hints() -> Hints {
    let mut hints = Hints::new(GIB_PAGES);
    for (index, first) in (0..GIB_PAGES).step_by(CLASS_PAGES as usize).enumerate() {
        hints.set(
            PageRun::new(first, CLASS_PAGES),
            Class::ALL[index * 7 % Class::ALL.len()],
        );
    }
    hints
}

/// What a policy sees in the middle of a migration.
struct Seen {
    ledger: Ledger,
    last_scan: PageBitmap,
    unsettled: PageBitmap,
    rates: Rates,
}

impl Seen {
    /// All pages crossed once at 1 Gbit/s, and a third of the guest was dirtied meanwhile, in pieces.
    fn new() -> Self {
        let mut ledger = Ledger::new(PageBitmap::full(GIB_PAGES));
        ledger.claim(PageRun::new(0, GIB_PAGES));
        let mut dirty = PageBitmap::new(GIB_PAGES);
        (0..GIB_PAGES - 5)
            .step_by(15)
            .for_each(|first| dirty.insert_run(PageRun::new(first, 5)));
        ledger.dirtied(&dirty);
        let mut rates = Rates::default();
        let took = Duration::from_secs(9);
        rates.round_received(GIB_PAGES, GIB_PAGES * PAGE_SIZE, took);
        rates.dirtied(dirty.count(), took);
        Self {
            ledger,
            last_scan: scattered(1),
            unsettled: PageBitmap::new(GIB_PAGES),
            rates,
        }
    }

    fn view(&self, rounds: u32) -> View<'_> {
        View {
            now: Duration::from_secs(9),
            ledger: &self.ledger,
            last_scan: &self.last_scan,
            unsettled: &self.unsettled,
            rounds,
            bytes_sent: GIB_PAGES * PAGE_SIZE,
            rates: &self.rates,
        }
    }
}
