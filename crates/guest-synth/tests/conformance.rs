//! The conformance suite on the synthetic guest, and on backends that are broken on purpose.

mod broken;
mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use broken::{BrokenSubject, Mistake};
use common::{all_loads, mechanisms, run_for};
use vmferry_guest::conformance::{self, Subject};
use vmferry_guest::{Guest, Vm};
use vmferry_guest_synth::{FaultMechanism, SynthBackend, SynthGuest};

/// Synthetic guests with all loads.
struct Synth {
    mechanism: FaultMechanism,
    guests: Mutex<Vec<Arc<SynthGuest>>>,
}

impl Synth {
    fn new(mechanism: FaultMechanism) -> Self {
        Self {
            mechanism,
            guests: Mutex::default(),
        }
    }

    fn keep(&self, guest: Arc<SynthGuest>) -> Arc<dyn Vm> {
        let mut guests = self.guests.lock().unwrap();
        guests.retain(|guest| Arc::strong_count(guest) > 1);
        guests.push(guest.clone());
        guest
    }

    fn concrete(&self, guest: &dyn Vm) -> Arc<SynthGuest> {
        let guests = self.guests.lock().unwrap();
        let same = |mine: &&Arc<SynthGuest>| Arc::ptr_eq(mine.ram(), guest.ram());
        guests.iter().find(same).expect("made here").clone()
    }
}

impl Subject for Synth {
    fn source(&self) -> Arc<dyn Vm> {
        self.keep(common::launch(&all_loads(self.mechanism)))
    }

    fn incoming(&self, source: &dyn Vm) -> Arc<dyn Vm> {
        let guest = SynthBackend::new()
            .launch_incoming_guest(source.spec(), source.ram().layout())
            .unwrap();
        self.keep(guest)
    }

    fn violations(&self, guest: &dyn Vm) -> Vec<String> {
        let guest = self.concrete(guest);
        let mut violations = guest.stats().violations_seen;
        violations.extend(guest.verify().unwrap());
        violations.truncate(5);
        violations
    }

    fn is_busy(&self) -> bool {
        true
    }

    fn let_run(&self, guest: &dyn Vm) {
        run_for(&self.concrete(guest), Duration::from_millis(10));
    }
}

#[test]
fn conforms_by_software() {
    conformance::run(&Synth::new(FaultMechanism::Software));
}

#[test]
fn conforms_by_kernel() {
    if mechanisms().contains(&FaultMechanism::Userfaultfd) {
        conformance::run(&Synth::new(FaultMechanism::Userfaultfd));
    }
}

/// A suite that passes everything proves nothing: each of these mistakes has to be found by the check that is
/// there for it.
#[test]
fn broken_backends_are_found_out() {
    for (mistake, check) in [
        (
            Mistake::TrackerDropsAPage,
            "scans together find every page that was written",
        ),
        (
            Mistake::TrackerReportsAPageOnce,
            "scans together find every page that was written",
        ),
        (Mistake::TrackerNeverForgets, "a scan forgets what it reported"),
        (Mistake::PauseDoesNothing, "a paused guest writes nothing"),
        (Mistake::DeviceStateIsOld, "a paused guest moves"),
        (Mistake::InstallSaysFresh, "pages are installed once and whole"),
        (Mistake::InstallOverwrites, "pages are installed once and whole"),
        (
            Mistake::AnythingLoads,
            "a device state that is garbage is refused",
        ),
        (Mistake::PagesBecomeZero, "a guest runs on pages it faults in"),
        (
            Mistake::StaleIsVisible,
            "pages that are out of date fault before they are seen",
        ),
        (Mistake::WakingIsForgotten, "faults survive whoever serves them"),
        (
            Mistake::ProtectsTheSecondHalf,
            "a protected page stays as it was until it is released",
        ),
        (
            Mistake::ReleasesFirst,
            "a protected page stays as it was until it is released",
        ),
        (Mistake::TouchesGoUnseen, "pages that were touched are told apart"),
    ] {
        let subject = BrokenSubject {
            sound: Synth::new(FaultMechanism::Software),
            mistake,
        };
        let checks = conformance::checks();
        let check = checks
            .iter()
            .find(|known| known.name == check)
            .expect("a check of that name");
        let outcome = check.run(&subject);
        assert!(outcome.is_err(), "{mistake:?} is not found by {:?}", check.name);
        println!("{mistake:?}: {}", outcome.unwrap_err().found);
    }
}
