//! Pages that the destination has in a store of its own cross as their hashes, and never as anything else than they are.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Pair, assert_healthy, busy};
use vmferry_core::report::{Outcome, Report};
use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun, Strategy};
use vmferry_guest::Vm;
use vmferry_guest_synth::{Fill, SynthConfig};
use vmferry_runtime::{Holdings, Request};
use vmferry_store::{Draft, Hash, Store, StoreOptions, Taken};

/// The store of a host, as it may be: whole, or with pages that it should have and does not.
struct Shelf {
    holdings: vmferry_store::Holdings,
    fingerprints: Vec<u64>,
    /// Of so many reads one finds nothing; none where 0.
    lose_one_of: u64,
    /// After so many reads it does not answer any more.
    breaks_after: u64,
    reads: AtomicU64,
}

impl Holdings for Shelf {
    fn fingerprints(&self) -> &[u64] {
        &self.fingerprints
    }

    fn read(&self, hash: &[u8; 32], page: &mut [u8]) -> Result<bool, String> {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if reads > self.breaks_after {
            return Err("the store does not answer".into());
        }
        if self.lose_one_of > 0 && reads.is_multiple_of(self.lose_one_of) {
            return Ok(false);
        }
        self.holdings.read(Hash(*hash), page).map_err(|e| e.to_string())
    }
}

/// A store with a checkpoint of the memory of `vm` as it is now.
fn checkpointed(vm: &dyn Vm) -> Shelf {
    let store = Store::open("memory:", StoreOptions::default()).unwrap();
    let layout = vm.ram().layout().clone();
    let pages = layout.pages();
    let draft = Draft {
        vm: "moving".into(),
        spec: serde_json::Value::Null,
        layout,
        parent: None,
    };
    let writer = store.begin(draft).unwrap();
    let mut content = vec![0; 256 * PAGE_SIZE as usize];
    for first in (0..pages).step_by(256) {
        let run = PageRun::new(first, 256.min(pages - first));
        let content = &mut content[..run.bytes() as usize];
        vm.ram().read(run, content);
        writer.pages(run, content).unwrap();
    }
    let taken = Taken {
        created_ms: 0,
        device_state: writer.blob(b"none").unwrap(),
        disks: Vec::new(),
        written: PageBitmap::full(pages),
        accessed: PageBitmap::new(pages),
        interval_ms: None,
        pause_ms: 0.0,
    };
    writer.commit(taken).unwrap();
    let holdings = store.holdings().unwrap();
    let like = holdings.pages_like("moving", pages as usize).unwrap();
    Shelf {
        fingerprints: like.iter().map(Hash::fingerprint).collect(),
        holdings,
        lose_one_of: 0,
        breaks_after: u64::MAX,
        reads: AtomicU64::new(0),
    }
}

/// A guest whose memory is for the most part as it was.
fn settled() -> SynthConfig {
    SynthConfig {
        fill: Fill {
            mib: 32,
            zero_percent: 10,
            uniform_percent: 10,
            compressible_percent: 20,
        },
        ..busy()
    }
}

fn move_with(strategy: Strategy, change: impl FnOnce(&mut Shelf)) -> (Report, Pair) {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("moving", &settled());
    common::eventually("the guest runs", || {
        pair.source.guest("moving").stats().operations > 1000
    });
    let mut shelf = checkpointed(vm.as_ref());
    change(&mut shelf);
    *pair.destination.holdings.lock().unwrap() = Some(Arc::new(shelf));
    let request = Request {
        reuse: true,
        ..pair.request(strategy)
    };
    let report = pair.migrate(vm, dir, request);
    assert_eq!(
        report.outcome,
        Outcome::Completed,
        "{strategy}: {:?}",
        report.error
    );
    assert_eq!(report.verified.unwrap().mismatches, 0, "{strategy}");
    assert_healthy(&pair.destination, "moving");
    (report, pair)
}

const ALL: [Strategy; 6] = [
    Strategy::StopAndCopy,
    Strategy::PreCopy,
    Strategy::PostCopy,
    Strategy::PostCopyPush,
    Strategy::Hybrid,
    Strategy::HybridLearning,
];

#[test]
fn what_the_destination_has_crosses_as_hashes() {
    for strategy in ALL {
        let (report, _pair) = move_with(strategy, |_| ());
        let reuse = report.reuse.unwrap();
        // 80% of 32 MiB is neither zero nor uniform, and nobody writes it. Post-copy without a push sends it when it is asked to.
        if strategy != Strategy::PostCopy {
            assert!(
                report.pages.deduplicated >= 6000,
                "{strategy}: {:?}",
                report.pages
            );
            assert!(reuse.bytes_spared > 6000 * 4000, "{strategy}: {reuse:?}");
        }
        assert_eq!(reuse.pages, report.pages.deduplicated, "{strategy}");
        assert_eq!(reuse.missed_pages, 0, "{strategy}");
    }
}

#[test]
fn what_the_destination_lost_meanwhile_crosses_whole() {
    for strategy in ALL {
        let (report, _pair) = move_with(strategy, |shelf| shelf.lose_one_of = 50);
        let missed = report.reuse.unwrap().missed_pages;
        let in_rounds = matches!(strategy, Strategy::StopAndCopy | Strategy::PreCopy);
        assert!(!in_rounds || missed > 50, "{strategy}: {missed}");
    }
}

#[test]
fn a_store_that_has_nothing_of_what_it_said_costs_time_only() {
    for strategy in ALL {
        move_with(strategy, |shelf| shelf.lose_one_of = 1);
    }
}

#[test]
fn a_store_that_stops_answering_costs_time_only() {
    for strategy in [Strategy::PreCopy, Strategy::PostCopyPush] {
        move_with(strategy, |shelf| shelf.breaks_after = 1000);
    }
}

#[test]
fn fingerprints_that_fit_nothing_change_nothing() {
    let (report, _pair) = move_with(Strategy::PreCopy, |shelf| {
        shelf
            .fingerprints
            .iter_mut()
            .for_each(|fingerprint| *fingerprint ^= 1);
    });
    let reuse = report.reuse.unwrap();
    assert_eq!((reuse.pages, report.pages.deduplicated), (0, 0));
    assert!(reuse.offered_pages > 6000);
}
