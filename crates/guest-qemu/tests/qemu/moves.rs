//! Moves from one QEMU to another by hand, through the traits and within one process.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::{PageBitmap, PageRun};
use vmferry_guest::{FaultMode, Guest, GuestError, GuestState, Installed, MigrateIn, MigrateOut, PageFaults};
use vmferry_guest_qemu::{QemuBackend, QemuGuest};

use crate::bench_guest::{HOT, Host, Running, userfaultfds, word};

fn incoming(host: &Host, source: &QemuGuest) -> Running {
    let folder = host.folder("destination");
    Running::new(
        QemuBackend
            .start_incoming(source.spec(), source.ram().layout(), &folder)
            .unwrap(),
    )
}

pub(crate) fn copy(from: &QemuGuest, to: &QemuGuest, pages: &PageBitmap) {
    for run in pages.runs() {
        let mut data = vec![0; run.bytes() as usize];
        from.ram().read(run, &mut data);
        to.ram().write(run, &data);
    }
}

fn assert_same_memory(one: &QemuGuest, other: &QemuGuest) {
    let pages = one.ram().layout().pages();
    let different: Vec<u64> = (0..pages)
        .filter(|&page| one.ram().hash(page) != other.ram().hash(page))
        .collect();
    assert!(different.is_empty(), "pages differ: {different:?}");
}

#[test]
fn pre_copy_moves_a_guest_that_writes_all_the_time() {
    let Some(host) = Host::new() else { return };
    let source = host.boot(&[]);
    source.prepare_out().unwrap();
    let destination = incoming(&host, &source);
    let mut tracker = source.dirty_tracker().unwrap();
    source.pause().unwrap();
    tracker.arm().unwrap();
    source.resume().unwrap();

    copy(&source, &destination, &source.ram().data_pages().unwrap());
    let mut dirty = PageBitmap::new(source.ram().layout().pages());
    for _ in 0..3 {
        source.wait_for_progress();
        dirty.clear();
        tracker.scan(&mut dirty).unwrap();
        assert_eq!(
            dirty.count_in(HOT),
            HOT.count,
            "all pages of the loop are found written"
        );
        assert!(
            dirty.count() < 2 * HOT.count,
            "{} pages for a loop over {}",
            dirty.count(),
            HOT.count
        );
        copy(&source, &destination, &dirty);
    }
    source.before_stop().unwrap();
    source.pause().unwrap();
    dirty.clear();
    tracker.scan(&mut dirty).unwrap();
    copy(&source, &destination, &dirty);
    let state = source.save_device_state().unwrap();
    assert!(
        state.len() < 4 << 20,
        "{} bytes of device state: RAM is in it",
        state.len()
    );
    assert_same_memory(&source, &destination);

    destination.load_device_state(&state).unwrap();
    assert_eq!(destination.state(), GuestState::Paused);
    let passes = destination.passes();
    assert_eq!(passes, source.passes());
    destination.resume().unwrap();
    destination.announce().unwrap();
    destination.wait_for_progress();
    assert!(destination.passes() > passes);
    assert_eq!(source.state(), GuestState::Paused);
}

#[test]
fn an_abandoned_move_leaves_the_source_running() {
    let Some(host) = Host::new() else { return };
    let source = host.boot(&[]);
    for _ in 0..2 {
        source.prepare_out().unwrap();
        let destination = incoming(&host, &source);
        source.pause().unwrap();
        let state = source.save_device_state().unwrap();
        // Saved is saved: a second stream would be of a guest that is on its way already.
        assert!(matches!(
            source.save_device_state(),
            Err(GuestError::WrongState { .. })
        ));
        assert!(matches!(source.prepare_out(), Err(GuestError::WrongState { .. })));
        copy(&source, &destination, &source.ram().data_pages().unwrap());
        destination.load_device_state(&state).unwrap();
        destination.destroy();
        source.resume().unwrap();
        source.wait_for_progress();
    }
}

#[test]
fn a_running_guest_is_not_saved_half() {
    let Some(host) = Host::new() else { return };
    let source = host.boot(&[]);
    source.prepare_out().unwrap();
    let error = source.save_device_state().map(|state| state.len()).unwrap_err();
    assert!(matches!(error, GuestError::WrongState { .. }), "{error}");
    source.wait_for_progress();
}

/// Answers faults of `destination` with pages of `source` until told to stop; returns the pages asked for.
fn serve(
    source: &QemuGuest,
    faults: &dyn PageFaults,
    done: &AtomicBool,
    answer: impl Fn(&QemuGuest, &dyn PageFaults, u64),
) -> HashSet<u64> {
    let mut asked = HashSet::new();
    let mut pages = Vec::new();
    while !done.load(Ordering::Acquire) {
        pages.clear();
        faults.wait(Duration::from_millis(5), &mut pages).unwrap();
        for &page in &pages {
            asked.insert(page);
            answer(source, faults, page);
        }
    }
    asked
}

fn install(source: &QemuGuest, faults: &dyn PageFaults, page: u64) {
    let run = PageRun::single(page);
    let mut data = [0; 4096];
    source.ram().read(run, &mut data);
    if data == [0; 4096] {
        faults.install_zero(run).unwrap();
    } else {
        faults.install(run, &data).unwrap();
    }
}

#[test]
fn post_copy_runs_on_faults_and_then_has_everything() {
    let Some(host) = Host::new() else { return };
    let source = host.boot(&[]);
    source.prepare_out().unwrap();
    let destination = incoming(&host, &source);
    source.pause().unwrap();
    let state = source.save_device_state().unwrap();
    let passes = source.passes();
    let faults = destination.page_faults(FaultMode::Missing).unwrap();
    let done = AtomicBool::new(false);
    let asked = thread::scope(|scope| {
        let server = scope.spawn(|| serve(&source, &*faults, &done, install));
        destination.load_device_state(&state).unwrap();
        destination.resume().unwrap();
        destination.wait_for_progress_from(source.passes());
        done.store(true, Ordering::Release);
        server.join().unwrap()
    });
    assert!(
        HOT.pages().all(|page| asked.contains(&page)),
        "the loop's pages came on demand"
    );
    assert!(word(destination.ram(), 0x604) > passes);

    // The rest, in runs; those that came on demand stay as the guest has them now.
    let data = source.ram().data_pages().unwrap();
    let mut results = Vec::new();
    for run in data.runs() {
        let mut bytes = vec![0; run.bytes() as usize];
        source.ram().read(run, &mut bytes);
        results.push(faults.install(run, &bytes).unwrap());
    }
    assert!(results.contains(&Installed::SomePresent));
    faults.release().unwrap();
    destination.wait_for_progress();
    // A guest that arrived can leave again, over the same userfaultfd.
    destination.prepare_out().unwrap();
    destination.dirty_tracker().unwrap().arm().unwrap();
    assert_eq!(userfaultfds(destination.pid().unwrap()), 1);
}

#[test]
fn hybrid_pulls_only_what_is_stale() {
    let Some(host) = Host::new() else { return };
    let source = host.boot(&[]);
    source.prepare_out().unwrap();
    let destination = incoming(&host, &source);
    let mut tracker = source.dirty_tracker().unwrap();
    source.pause().unwrap();
    tracker.arm().unwrap();
    source.resume().unwrap();
    copy(&source, &destination, &source.ram().data_pages().unwrap());
    source.wait_for_progress();
    source.pause().unwrap();
    let mut stale = PageBitmap::new(source.ram().layout().pages());
    tracker.scan(&mut stale).unwrap();
    let state = source.save_device_state().unwrap();

    let faults = destination.page_faults(FaultMode::MissingAndStale).unwrap();
    let done = AtomicBool::new(false);
    let here = destination.ram().data_pages().unwrap();
    let answer = |source: &QemuGuest, faults: &dyn PageFaults, page: u64| {
        let run = PageRun::single(page);
        if stale.contains(page) {
            let mut data = [0; 4096];
            source.ram().read(run, &mut data);
            // One thread answers, so a page is filled once; the driver needs claimed and filled for this.
            if here.contains(page) {
                destination.ram().write(run, &data);
                faults.reveal(run).unwrap();
            } else {
                faults.install(run, &data).unwrap();
            }
        } else {
            faults.reveal(run).unwrap();
        }
    };
    // A page asked for twice would be overwritten with what the source has: remember what is visible.
    let seen = std::sync::Mutex::new(HashSet::new());
    let once = |source: &QemuGuest, faults: &dyn PageFaults, page: u64| {
        if seen.lock().unwrap().insert(page) {
            answer(source, faults, page);
        } else {
            faults.wake(PageRun::single(page)).unwrap();
        }
    };
    let asked = thread::scope(|scope| {
        let server = scope.spawn(|| serve(&source, &*faults, &done, once));
        destination.load_device_state(&state).unwrap();
        destination.resume().unwrap();
        destination.wait_for_progress_from(source.passes());
        done.store(true, Ordering::Release);
        server.join().unwrap()
    });
    assert!(HOT.pages().all(|page| asked.contains(&page)));
    for page in stale.pages().filter(|page| !asked.contains(page)) {
        once(&source, &*faults, page);
    }
    faults.release().unwrap();
    destination.wait_for_progress();
}

#[test]
fn faults_wait_for_a_new_handler() {
    let Some(host) = Host::new() else { return };
    let source = host.boot(&[]);
    source.prepare_out().unwrap();
    let destination = incoming(&host, &source);
    source.pause().unwrap();
    let state = source.save_device_state().unwrap();
    let first = destination.page_faults(FaultMode::Missing).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&source, &*first, &done, install));
        destination.load_device_state(&state).unwrap();
        done.store(true, Ordering::Release);
        server.join().unwrap();
    });
    // It runs now and nobody answers; the faults are read by a handler that dies with them. QEMU itself may be
    // waiting for a page before it says that it runs.
    let (done, second) = (AtomicBool::new(false), OnceLock::new());
    let (asked, lost) = thread::scope(|scope| {
        let resumed = scope.spawn(|| destination.resume());
        let mut lost = Vec::new();
        let start = Instant::now();
        while lost.is_empty() {
            first.wait(Duration::from_millis(20), &mut lost).unwrap();
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "the guest does not fault"
            );
        }
        drop(first);
        thread::sleep(Duration::from_millis(20));
        let here = destination.ram().data_pages().unwrap();
        assert!(!here.contains(lost[0]), "the fault was answered by nobody");

        let faults = second.get_or_init(|| destination.reopen_page_faults().unwrap());
        let server = scope.spawn(|| serve(&source, &**faults, &done, install));
        resumed.join().unwrap().unwrap();
        destination.wait_for_progress_from(source.passes());
        done.store(true, Ordering::Release);
        (server.join().unwrap(), lost)
    });
    assert!(asked.contains(&lost[0]), "the lost fault came again");
    let faults: &Arc<dyn PageFaults> = second.get().unwrap();
    let rest = source.ram().data_pages().unwrap();
    rest.pages().for_each(|page| install(&source, &**faults, page));
    faults.release().unwrap();
    destination.wait_for_progress();
    assert!(
        destination.reopen_page_faults().is_err(),
        "nothing is left to take over"
    );
}
