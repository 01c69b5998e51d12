//! Checkpoints of synthetic guests that run, against their memory at the moment they were paused.

#[path = "../../store/tests/support/faulty.rs"]
#[allow(dead_code, reason = "the store's own tests use the rest")]
mod faulty;
mod witness;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use faulty::{Fault, Faulty, Plan};
use vmferry_checkpoint::take::{Session, TakeControl, TakeOptions};
use vmferry_core::take::{TakeOutcome, TakeReport};
use vmferry_guest::{Guest as _, GuestState};
use vmferry_guest_synth::FaultMechanism;
use vmferry_store::{CheckpointId, Store, StoreOptions};
use witness::{Witness, assert_same, busy, checkpoint_memory, mechanisms};

const MIB: u64 = 1 << 20;

fn memory() -> Store {
    Store::open("memory:", StoreOptions::default()).unwrap()
}

fn options() -> TakeOptions {
    TakeOptions::for_guest(32 * MIB)
}

fn session(witness: &Arc<Witness>, store: &Store) -> Session {
    Session::begin(witness.vm(), store.clone(), options()).unwrap()
}

/// A checkpoint that has to work.
fn take(session: &mut Session) -> TakeReport {
    let report = session.take(&TakeControl::default());
    assert_eq!(report.outcome, TakeOutcome::Completed, "{report:?}");
    report
}

fn id_of(report: &TakeReport) -> CheckpointId {
    report.id.as_deref().expect("it has a name").parse().unwrap()
}

/// That the checkpoint just taken holds the memory of its pause.
fn check(witness: &Witness, store: &Store, report: &TakeReport) {
    let id = id_of(report);
    let seen = witness.seen.lock().unwrap();
    assert_same(&checkpoint_memory(store, &id), &seen, &id.to_string());
}

#[test]
fn each_checkpoint_is_the_memory_of_its_pause() {
    for mechanism in mechanisms() {
        let (witness, store) = (Witness::start(&busy(32, mechanism)), memory());
        let mut session = session(&witness, &store);
        session.watch().unwrap();
        for round in 0..5 {
            thread::sleep(Duration::from_millis(30));
            let report = take(&mut session);
            check(&witness, &store, &report);
            assert!(
                report.pause_ms > 0.0 && report.interval_ms.is_some(),
                "{report:?}"
            );
            assert!(
                report.written_pages > 0 && report.accessed_pages >= report.written_pages,
                "{report:?}"
            );
            assert_eq!(
                report.saved_pages + report.inherited_pages,
                report.data_pages,
                "{report:?}"
            );
            if round > 0 {
                assert!(
                    report.parent.is_some() && report.saved_pages < report.data_pages / 2,
                    "{report:?}"
                );
            }
            let manifest = store.manifest(&id_of(&report)).unwrap();
            assert_eq!(manifest.written.count(), report.written_pages);
            assert_eq!(manifest.accessed.count(), report.accessed_pages);
            assert_eq!(manifest.device_state.bytes, report.device_state_bytes);
        }
        drop(session);
        witness.check_guest();
    }
}

/// A guest that writes nothing costs nothing the second time.
#[test]
fn what_is_not_written_is_not_saved_again() {
    let config = vmferry_guest_synth::SynthConfig {
        loads: Vec::new(),
        ..busy(32, FaultMechanism::Auto)
    };
    let (witness, store) = (Witness::start(&config), memory());
    let mut session = session(&witness, &store);
    let first = take(&mut session);
    assert_eq!((first.saved_pages, first.inherited_pages), (first.data_pages, 0));
    let second = take(&mut session);
    assert_eq!(
        (second.saved_pages, second.inherited_pages),
        (0, first.data_pages)
    );
    check(&witness, &store, &second);
}

/// A parent that somebody deleted is no parent: everything is saved again.
#[test]
fn a_parent_may_be_deleted() {
    let (witness, store) = (Witness::start(&busy(32, FaultMechanism::Auto)), memory());
    let mut session = session(&witness, &store);
    let first = take(&mut session);
    store.delete(&id_of(&first)).unwrap();
    let second = take(&mut session);
    assert_eq!(
        (second.parent.as_deref(), second.saved_pages),
        (None, second.data_pages)
    );
    check(&witness, &store, &second);
}

/// Two sessions of one VM, or a session beside a tracker: the second is told so, and the first does not suffer.
#[test]
fn one_session_at_a_time() {
    for mechanism in mechanisms() {
        let (witness, store) = (Witness::start(&busy(32, mechanism)), memory());
        let mut first = session(&witness, &store);
        let refused = Session::begin(witness.vm(), store.clone(), options());
        assert!(refused.is_err());
        let report = take(&mut first);
        check(&witness, &store, &report);
    }
}

/// Whatever goes wrong with the store, and wherever: no checkpoint, a guest that goes on, and the next one is right.
#[test]
fn a_store_that_fails_costs_a_checkpoint_and_nothing_else() {
    let patience = Duration::from_millis(300);
    let store_options = StoreOptions {
        patience,
        ..StoreOptions::default()
    };
    for fault in [Fault::Refuse, Fault::Hang, Fault::Full, Fault::LoseAnswer] {
        // No room is said at once, so each operation is tried; the others cost the patience.
        let afters: Vec<u64> = match fault {
            Fault::Full => (0..48).collect(),
            _ => vec![0, 3, 8, 15, 20, 47],
        };
        let mut completed = 0;
        for after in afters {
            let objects = Faulty::new();
            let store = Store::on("faulty", objects.clone(), store_options.clone());
            let witness = Witness::start(&busy(32, FaultMechanism::Auto));
            let mut session = session(&witness, &store);
            let first = take(&mut session);
            let count = u64::MAX / 2;
            objects.set(Some(Plan { fault, after, count }));
            let failed = session.take(&TakeControl::default());
            objects.set(None);
            let has_completed = failed.outcome == TakeOutcome::Completed;
            completed += u32::from(has_completed);
            assert_eq!(failed.error.is_none(), has_completed, "{fault:?} after {after}");
            // An answer that was lost may have been that the manifest is there: then it is whole.
            let listed = store.list(None).unwrap();
            let fresh: Vec<_> = listed.iter().filter(|id| **id != id_of(&first)).collect();
            assert!(
                fresh.len() == usize::from(has_completed) || fault == Fault::LoseAnswer,
                "{fault:?} after {after}: {fresh:?}"
            );
            if has_completed {
                check(&witness, &store, &failed);
            }
            witness.check_guest();
            let next = take(&mut session);
            check(&witness, &store, &next);
        }
        // The first are too early for it to complete, the last too late for anything to go wrong.
        assert!((1..40).contains(&completed), "{fault:?}: {completed} completed");
    }
}

/// A store that hangs does not hang the guest: its writes wait no longer than they may.
#[test]
fn a_store_that_is_too_slow_is_given_up() {
    let objects = Faulty::new();
    let store_options = StoreOptions {
        patience: Duration::from_secs(3),
        in_flight: 1,
        ..StoreOptions::default()
    };
    let store = Store::on("faulty", objects.clone(), store_options);
    let witness = Witness::start(&busy(64, FaultMechanism::Auto));
    let options = TakeOptions {
        copies_bytes: 4096,
        patience: Duration::from_millis(50),
        savers: 1,
        ..options()
    };
    let mut session = Session::begin(witness.vm(), store.clone(), options).unwrap();
    // The begin asks and answers; what is put after it hangs.
    objects.set(Some(Plan {
        fault: Fault::Hang,
        after: 12,
        count: u64::MAX / 2,
    }));
    let failed = session.take(&TakeControl::default());
    objects.set(None);
    assert_eq!(failed.outcome, TakeOutcome::Failed, "{failed:?}");
    assert!(failed.faults.max_us < 3_000_000.0, "{:?}", failed.faults);
    assert_eq!(store.list(None).unwrap(), []);
    witness.check_guest();
}

#[test]
fn a_cancel_leaves_nothing() {
    let (witness, store) = (Witness::start(&busy(256, FaultMechanism::Auto)), memory());
    let mut session = session(&witness, &store);
    let control = TakeControl::default();
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            while control.progress().copied_pages == 0 {
                thread::sleep(Duration::from_micros(200));
            }
            control.cancel();
        });
        session.take(&control)
    });
    assert_eq!(report.outcome, TakeOutcome::Cancelled, "{report:?}");
    assert_eq!(store.list(None).unwrap(), []);
    assert_eq!(
        session.take(&control).outcome,
        TakeOutcome::Cancelled,
        "it stays so"
    );
    let report = take(&mut session);
    check(&witness, &store, &report);
    drop(session);
    witness.check_guest();
}

/// A pause that went wrong half way, a resume that is refused for a moment: the guest runs afterwards.
#[test]
fn a_guest_goes_on_whatever_its_pause_comes_to() {
    let (witness, store) = (Witness::start(&busy(32, FaultMechanism::Auto)), memory());
    let mut session = session(&witness, &store);
    take(&mut session);
    witness.failing_pauses.store(1, Ordering::Relaxed);
    let failed = session.take(&TakeControl::default());
    assert_eq!(failed.outcome, TakeOutcome::Failed, "{failed:?}");
    witness.check_guest();
    witness.refused_resumes.store(3, Ordering::Relaxed);
    let report = take(&mut session);
    check(&witness, &store, &report);
    witness.check_guest();
    // Longer than anybody waits for: the next one begins with letting it go on.
    witness.refused_resumes.store(u32::MAX, Ordering::Relaxed);
    let failed = session.take(&TakeControl::default());
    assert_eq!(failed.outcome, TakeOutcome::Failed, "{failed:?}");
    assert_eq!(witness.guest.state(), GuestState::Paused);
    witness.refused_resumes.store(0, Ordering::Relaxed);
    let report = take(&mut session);
    check(&witness, &store, &report);
    witness.check_guest();
}

/// Somebody stopped it between two checkpoints, and wants it to stand still.
#[test]
fn a_guest_that_stands_still_is_left_so() {
    let (witness, store) = (Witness::start(&busy(32, FaultMechanism::Auto)), memory());
    let mut session = session(&witness, &store);
    take(&mut session);
    witness.guest.pause().unwrap();
    let failed = session.take(&TakeControl::default());
    assert_eq!(failed.outcome, TakeOutcome::Failed, "{failed:?}");
    assert!(failed.error.unwrap().contains("stands still"));
    assert_eq!(witness.guest.state(), GuestState::Paused);
    witness.guest.resume().unwrap();
    let report = take(&mut session);
    check(&witness, &store, &report);
}

#[test]
fn a_guest_that_ends_in_the_middle_ends_the_checkpoint() {
    for mechanism in mechanisms() {
        let (witness, store) = (Witness::start(&busy(256, mechanism)), memory());
        let mut session = session(&witness, &store);
        let control = TakeControl::default();
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                while control.progress().copied_pages == 0 {
                    thread::sleep(Duration::from_micros(200));
                }
                witness.guest.destroy();
            });
            session.take(&control)
        });
        assert_eq!(report.outcome, TakeOutcome::Failed, "{report:?}");
        assert_eq!(store.list(None).unwrap(), []);
        assert!(session.is_broken());
    }
}
