//! Random guests on random journeys: whatever is carried in whatever order, nothing is lost.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{copy, incoming, launch, mechanisms, move_paused};
use proptest::prelude::*;
use vmferry_core::{PageBitmap, PageRun};
use vmferry_guest::{FaultMode, Guest, MigrateIn, MigrateOut, PageFaults};
use vmferry_guest_synth::{FaultMechanism, Fill, LoadConfig, SynthConfig, SynthGuest};

/// One move of the guest to a new place.
#[derive(Clone, Debug)]
struct Leg {
    way: Way,
    /// Whether the place has userfaultfd.
    by_kernel: bool,
    /// Time at the old place before the move.
    stay_ms: u64,
}

#[derive(Clone, Debug)]
enum Way {
    StopAndCopy,
    PreCopy {
        rounds: u32,
    },
    /// Everything faulted in or pushed after the guest runs.
    PostCopy,
    /// All of it pushed once before, then faulted in or pushed again where it is out of date.
    Hybrid,
}

fn legs() -> impl Strategy<Value = Vec<Leg>> {
    let way = prop_oneof![
        Just(Way::StopAndCopy),
        (1..4u32).prop_map(|rounds| Way::PreCopy { rounds }),
        Just(Way::PostCopy),
        Just(Way::Hybrid),
    ];
    let leg = (way, any::<bool>(), 0..20u64).prop_map(|(way, by_kernel, stay_ms)| Leg {
        way,
        by_kernel,
        stay_ms,
    });
    prop::collection::vec(leg, 1..6)
}

fn loads() -> impl Strategy<Value = Vec<LoadConfig>> {
    let load = (1..3u64, 0..=100u8, 0..7u8).prop_map(|(region_mib, percent, kind)| match kind {
        0 => LoadConfig::Write {
            region_mib,
            rate_mib_per_s: (percent > 50).then_some(1 + u64::from(percent)),
        },
        1 => LoadConfig::KeyValue {
            region_mib,
            get_percent: percent,
            zipf_exponent: f64::from(percent) / 50.0,
            value_bytes: 8 * (1 + 5 * u32::from(percent)),
            operations_per_s: None,
        },
        2 => LoadConfig::Oltp {
            region_mib,
            read_percent: percent,
            operations_per_s: None,
        },
        3 => LoadConfig::Compress {
            region_mib,
            operations_per_s: (percent > 70).then_some(500),
        },
        4 => LoadConfig::Read {
            region_mib,
            rate_mib_per_s: (percent > 50).then_some(1 + u64::from(percent)),
        },
        5 => LoadConfig::Cpu {
            percent: percent.max(1),
        },
        _ => LoadConfig::Idle,
    });
    prop::collection::vec(load, 1..4)
}

fn configs() -> impl Strategy<Value = SynthConfig> {
    (loads(), 1..4u32, any::<u64>(), 0..3u64).prop_map(|(loads, workers, seed, fill_mib)| SynthConfig {
        workers,
        loads,
        seed,
        fill: Fill {
            mib: fill_mib,
            zero_percent: 25,
            uniform_percent: 25,
            compressible_percent: 25,
        },
        ..SynthConfig::new(12 << 20)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_on_any_journey(config in configs(), legs in legs()) {
        let has_kernel = mechanisms().contains(&FaultMechanism::Userfaultfd);
        let mut here = launch(&config);
        for leg in &legs {
            let by_kernel = leg.by_kernel && has_kernel;
            let faults = if by_kernel { FaultMechanism::Userfaultfd } else { FaultMechanism::Software };
            let there = incoming(&SynthConfig { faults, ..config.clone() }, &here);
            std::thread::sleep(Duration::from_millis(leg.stay_ms));
            travel(&leg.way, &here, &there);
            here.destroy();
            let operations = there.stats().operations;
            there.resume().unwrap();
            let busy = config.loads.iter().any(|load| *load != LoadConfig::Idle);
            if busy {
                common::until(|| there.stats().operations > operations, "the guest operates");
            }
            there.pause().unwrap();
            let stats = there.stats();
            prop_assert_eq!(stats.violations, 0, "{:?} after {:?}", stats.violations_seen, leg);
            prop_assert_eq!(there.verify().unwrap(), Vec::<String>::new(), "after {:?}", leg);
            there.resume().unwrap();
            here = there;
        }
    }
}

fn travel(way: &Way, here: &SynthGuest, there: &SynthGuest) {
    match *way {
        Way::StopAndCopy => {
            here.pause().unwrap();
            move_paused(here, there);
        }
        Way::PreCopy { rounds } => {
            let scan = |tracker: &mut dyn vmferry_guest::DirtyTracker| {
                let mut dirty = PageBitmap::new(here.ram().layout().pages());
                tracker.scan(&mut dirty).unwrap();
                dirty.runs().for_each(|run| copy(here.ram(), there.ram(), run));
            };
            here.pause().unwrap();
            let mut tracker = here.dirty_tracker().unwrap();
            tracker.arm().unwrap();
            here.resume().unwrap();
            here.ram()
                .data_pages()
                .unwrap()
                .runs()
                .for_each(|run| copy(here.ram(), there.ram(), run));
            (0..rounds).for_each(|_| scan(&mut *tracker));
            here.pause().unwrap();
            scan(&mut *tracker);
            there
                .load_device_state(&here.save_device_state().unwrap())
                .unwrap();
        }
        Way::PostCopy => {
            here.pause().unwrap();
            let nothing = PageBitmap::new(here.ram().layout().pages());
            pull(here, there, FaultMode::Missing, &nothing, &nothing);
        }
        Way::Hybrid => {
            here.pause().unwrap();
            let mut tracker = here.dirty_tracker().unwrap();
            tracker.arm().unwrap();
            here.resume().unwrap();
            let pushed = here.ram().data_pages().unwrap();
            pushed.runs().for_each(|run| copy(here.ram(), there.ram(), run));
            here.pause().unwrap();
            let mut stale = PageBitmap::new(pushed.len());
            tracker.scan(&mut stale).unwrap();
            stale.intersect_with(&pushed);
            pull(here, there, FaultMode::MissingAndStale, &pushed, &stale);
        }
    }
}

/// What is still to be given to the destination.
struct Remaining {
    missing: PageBitmap,
    stale: PageBitmap,
    hidden: PageBitmap,
}

/// Runs the guest at `there` on its faults, with one thread that serves them and one that pushes.
fn pull(here: &SynthGuest, there: &SynthGuest, mode: FaultMode, pushed: &PageBitmap, stale: &PageBitmap) {
    let mut missing = here.ram().data_pages().unwrap();
    missing.subtract(pushed);
    let mut hidden = pushed.clone();
    hidden.subtract(stale);
    let remaining = Mutex::new(Remaining {
        missing,
        stale: stale.clone(),
        hidden,
    });
    let faults = there.page_faults(mode).unwrap();
    let state = here.save_device_state().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut pages = Vec::new();
            while !done.load(Ordering::Acquire) {
                faults.wait(Duration::from_millis(5), &mut pages).unwrap();
                pages
                    .drain(..)
                    .for_each(|page| give(here, there, &faults, &remaining, PageRun::single(page)));
            }
        });
        there.load_device_state(&state).unwrap();
        there.resume().unwrap();
        let pages = here.ram().layout().pages();
        for first in (0..pages.div_ceil(16)).rev().map(|chunk| chunk * 16) {
            give(
                here,
                there,
                &faults,
                &remaining,
                PageRun::new(first, 16.min(pages - first)),
            );
        }
        // Whoever waits for a hole is served until nobody waits any more.
        there.pause().unwrap();
        done.store(true, Ordering::Release);
        server.join().unwrap();
    });
    faults.release().unwrap();
    assert_eq!(there.stats().violations, 0, "{:?}", there.stats().violations_seen);
}

/// Gives the pages of `run` that were not given yet. One that is in no list is zero at the source, or given.
fn give(
    here: &SynthGuest,
    there: &SynthGuest,
    faults: &Arc<dyn PageFaults>,
    remaining: &Mutex<Remaining>,
    run: PageRun,
) {
    let mut remaining = remaining.lock().unwrap();
    for page in run.pages() {
        let one = PageRun::single(page);
        let mut data = vec![0; one.bytes() as usize];
        if remaining.missing.remove(page) {
            here.ram().read(one, &mut data);
            faults.install(one, &data).unwrap();
        } else if remaining.stale.remove(page) {
            copy(here.ram(), there.ram(), one);
            faults.reveal(one).unwrap();
        } else if remaining.hidden.remove(page) {
            faults.reveal(one).unwrap();
        } else if run.count == 1 {
            faults.install_zero(one).unwrap();
        }
    }
}
