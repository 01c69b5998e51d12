//! Checkpoints of synthetic guests, resumed in every way, from stores that are whole and stores that are not.

mod common;
#[path = "../../store/tests/support/faulty.rs"]
#[allow(dead_code, reason = "the store's own tests use the rest")]
mod faulty;

use std::fs;
use std::time::Duration;

use common::{World, assert_healthy, busy, damage, eventually, hashes, run_for};
use faulty::{Fault, Faulty, Plan};
use vmferry_checkpoint::resume::{Request, ResumeError};
use vmferry_core::report::Outcome;
use vmferry_core::resume::ResumeMode;
use vmferry_guest::{Guest, GuestState};
use vmferry_store::{Store, StoreOptions};

#[test]
fn in_every_mode_the_memory_of_the_checkpoint_comes_back() {
    let world = World::new(&busy());
    for mode in ResumeMode::ALL {
        let name = mode.name();
        // Paused, so that it cannot change what came.
        let request = Request {
            paused: true,
            drain_after: Some(Duration::ZERO),
            ..world.request(mode)
        };
        let (guest, resuming) = world.resume(name, request);
        eventually("every page is there", || {
            let progress = resuming.progress();
            progress.standing && progress.missing_pages == 0
        });
        assert_eq!(guest.state(), GuestState::Paused);
        assert!(hashes(&*guest) == world.hashes, "{mode}: memory differs");
        resuming.go_on().unwrap();
        let report = resuming.wait();
        assert_eq!((report.outcome, report.error), (Some(Outcome::Completed), None));
        assert!(matches!(resuming.cancel(), Err(ResumeError::Over(_))));
        assert_healthy(&guest);
        guest.pause().unwrap();
        assert_eq!(guest.verify().unwrap(), [""; 0]);
        assert!(!world.dir(name).resume().exists() && !world.dir(name).page_states().exists());
        guest.destroy();
    }
}

#[test]
fn a_guest_runs_before_its_memory_is_there_and_finds_it() {
    let world = World::new(&busy());
    for mode in [ResumeMode::Lazy, ResumeMode::Predictive] {
        let (guest, resuming) = world.resume(mode.name(), world.request(mode));
        eventually("it runs", || resuming.progress().start_ms.is_some());
        assert_healthy(&guest);
        let report = resuming.report();
        match mode {
            ResumeMode::Predictive => {
                let report = resuming.wait();
                let pages = report.pages;
                assert_eq!(pages.before_start, pages.predicted);
                assert!(pages.predicted > 0 && pages.background > 0, "{pages:?}");
                let came = pages.before_start + pages.demanded + pages.beside_demanded + pages.background;
                assert_eq!(came, pages.data);
            }
            _ => {
                assert_eq!(report.outcome, None, "a lazy guest stays bound to its store");
                let pages = report.pages;
                assert!(pages.demanded > 0 && pages.before_start == 0, "{pages:?}");
                assert_eq!((pages.background, pages.beside_demanded), (0, 0), "{pages:?}");
                assert_eq!(report.faults.store, pages.demanded);
                assert!(resuming.cancel().is_err(), "it runs");
            }
        }
        assert_healthy(&guest);
        resuming.release();
        guest.destroy();
    }
}

#[test]
fn prediction_spares_the_guest_most_of_its_faults() {
    let world = World::new(&busy());
    let faults = |mode: ResumeMode| {
        let (guest, resuming) = world.resume(mode.name(), world.request(mode));
        eventually("it runs", || resuming.progress().start_ms.is_some());
        run_for(&guest, Duration::from_millis(500));
        let faults = resuming.report().faults.store;
        resuming.release();
        guest.destroy();
        faults
    };
    let (lazy, predictive) = (faults(ResumeMode::Lazy), faults(ResumeMode::Predictive));
    assert!(
        predictive * 5 <= lazy,
        "predictive had {predictive} faults, lazy {lazy}"
    );
}

#[test]
fn what_is_damaged_never_reaches_a_guest_that_was_not_started() {
    let world = World::new(&busy());
    let page = (0..).find(|&page| world.chunk_of(page).is_some()).unwrap();
    let chunk = world.chunk_of(page).unwrap();
    let whole = damage(&chunk);
    let (guest, resuming) = world.resume("broken", world.request(ResumeMode::Eager));
    let report = resuming.wait();
    assert_eq!(report.outcome, Some(Outcome::Failed));
    let name = chunk.file_name().unwrap().to_str().unwrap();
    let error = report.error.unwrap();
    assert!(error.contains(name) && error.contains("damaged"), "{error}");
    assert_eq!((report.start_ms, guest.state()), (None, GuestState::Gone));
    // The checkpoint is as it was: once the store is whole it can be resumed.
    fs::write(&chunk, whole).unwrap();
    drop(guest);
    let (guest, resuming) = world.resume("broken", world.request(ResumeMode::Eager));
    assert_eq!(resuming.wait().outcome, Some(Outcome::Completed));
    assert_healthy(&guest);
}

#[test]
fn a_lazy_guest_stands_still_where_its_store_fails_and_goes_on_when_it_is_back() {
    let world = World::new(&busy());
    let (guest, resuming) = world.resume("lazy", world.request(ResumeMode::Lazy));
    eventually("it runs", || resuming.progress().start_ms.is_some());
    // Every chunk that is read from now on is missing. What was read is kept for a while: all is.
    let away = world.root.path().join("away");
    fs::rename(world.chunks(), &away).unwrap();
    let stalled = || resuming.progress().stalled;
    let stalls = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        stalled().is_some()
    });
    if stalls {
        let why = stalled().unwrap();
        assert!(why.contains("is missing"), "{why}");
        let before = guest.stats().operations;
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(guest.stats().operations, before, "it stands still");
    }
    assert!(
        stalls,
        "it needed nothing that was not read before: {:?}",
        resuming.report()
    );
    fs::rename(&away, world.chunks()).unwrap();
    eventually("it goes on", || stalled().is_none());
    assert_healthy(&guest);
    assert!(resuming.report().stalled_ms > 0.0);
    resuming.release();
    guest.destroy();
}

/// Requests that were never answered are asked again: the store need not be opened anew when it is back.
#[test]
fn a_lazy_guest_stands_still_where_its_store_hangs_and_goes_on_when_it_answers() {
    let objects = Faulty::new();
    let options = StoreOptions {
        patience: Duration::from_millis(200),
        ..StoreOptions::default()
    };
    let store = Store::on("faulty", objects.clone(), options);
    let world = World::on(tempfile::tempdir().unwrap(), store, &busy());
    let request = Request {
        patience: Duration::from_millis(300),
        ..world.request(ResumeMode::Lazy)
    };
    let (guest, resuming) = world.resume("lazy", request);
    eventually("it runs", || resuming.progress().start_ms.is_some());
    objects.set(Some(Plan {
        fault: Fault::Hang,
        after: 0,
        count: u64::MAX / 2,
    }));
    let stalled = || resuming.progress().stalled;
    eventually("it stands still", || stalled().is_some());
    let before = guest.stats().operations;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.stats().operations, before, "{:?}", stalled());
    objects.set(None);
    eventually("it goes on", || stalled().is_none());
    assert_healthy(&guest);
    resuming.release();
    guest.destroy();
}

#[test]
fn a_page_nobody_asks_for_holds_nobody_up_but_is_told_of() {
    let world = World::new(&busy());
    // Filled memory, which the guest does not touch.
    let last = (0..8192)
        .rev()
        .find(|&page| world.chunk_of(page).is_some())
        .unwrap();
    let chunk = world.chunk_of(last).unwrap();
    let whole = damage(&chunk);
    let (guest, resuming) = world.resume("told", world.request(ResumeMode::Predictive));
    eventually("it is told of", || resuming.progress().problem.is_some());
    assert_healthy(&guest);
    let progress = resuming.progress();
    assert!(
        progress.stalled.is_none() && progress.missing_pages > 0,
        "{progress:?}"
    );
    fs::write(&chunk, whole).unwrap();
    let report = resuming.wait();
    assert_eq!(report.outcome, Some(Outcome::Completed));
    assert!(report.store_retries > 0);
    assert_healthy(&guest);
    guest.pause().unwrap();
    assert_eq!(guest.verify().unwrap(), [""; 0]);
}

#[test]
fn a_resume_is_given_up_until_the_guest_runs() {
    let world = World::new(&busy());
    let request = Request {
        paused: true,
        ..world.request(ResumeMode::Predictive)
    };
    let (guest, resuming) = world.resume("given-up", request);
    eventually("it could run", || {
        resuming.progress().phase == "paused as asked for"
    });
    resuming.cancel().unwrap();
    let report = resuming.wait();
    assert_eq!(
        (report.outcome, report.start_ms),
        (Some(Outcome::Cancelled), None)
    );
    assert_eq!(guest.state(), GuestState::Gone);
}
