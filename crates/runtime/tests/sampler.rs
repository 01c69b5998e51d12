//! A sampler learns about a guest that goes on, lets go of it at once, and a migration uses what it learned.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Pair, assert_healthy, busy, eventually};
use vmferry_core::report::Outcome;
use vmferry_core::sampling::{Budget, SamplingReport};
use vmferry_core::{Strategy, Tuning};
use vmferry_guest::{
    DirtyTracker, FaultMode, Guest, GuestError, GuestRam, GuestSpec, GuestState, MigrateIn, MigrateOut,
    PageFaults, Result, Vm,
};
use vmferry_guest_synth::{LoadConfig, SynthConfig};
use vmferry_runtime::{Sampler, sampler};

/// Quick: a burst is 120 ms.
fn tuning() -> Tuning {
    Tuning {
        samples: 5,
        interval: Duration::from_millis(20),
        ..Tuning::default()
    }
}

/// One that writes the same few MiB all the time.
fn looping() -> SynthConfig {
    SynthConfig {
        loads: vec![LoadConfig::Write {
            region_mib: 4,
            rate_mib_per_s: Some(400),
        }],
        ..SynthConfig::new(64 << 20)
    }
}

fn wait_for(sampler: &Sampler, what: &str, holds: impl Fn(&SamplingReport) -> bool) {
    eventually(what, || holds(&sampler.report()));
}

#[test]
fn a_migration_goes_by_what_was_learned() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &looping());
    let sampler = Sampler::start(vm.clone(), &tuning(), Budget::default(), None);
    wait_for(&sampler, "the model fits", |report| report.fits == Some(true));
    let report = sampler.report();
    assert!(
        report.samples >= 18 && report.bursts >= 3 && report.states_seen > 0 && report.cost_percent > 0.0,
        "{report:?}"
    );
    assert_eq!(report.problem, None);
    assert_healthy(&pair.source, "vm");
    let learned = sampler.end();
    let request = vmferry_runtime::Request {
        tuning: tuning(),
        ..pair.request(Strategy::HybridLearning)
    };
    let ready = sampler::ready(&learned);
    let report = vmferry_runtime::Outgoing::start_knowing(vm, dir, request, ready)
        .unwrap()
        .wait();
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.unwrap().mismatches, 0);
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("by the host's sampler") && report.pages.filtered > 0,
        "{notes} {:?}",
        report.pages
    );
    assert_healthy(&pair.destination, "vm");
}

#[test]
fn it_lets_go_whatever_it_is_doing() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let mut known = None;
    for wait_ms in [0, 5, 30, 90, 200, 400] {
        let sampler = Sampler::start(vm.clone(), &tuning(), Budget::default(), known.take());
        std::thread::sleep(Duration::from_millis(wait_ms));
        known = Some(sampler.end());
        // There is one tracker at a time: this would fail if the sampler had one still.
        drop(vm.dirty_tracker().unwrap());
    }
    drop(Sampler::start(vm.clone(), &tuning(), Budget::default(), None));
    let report = pair.migrate(vm, dir, pair.request(Strategy::PreCopy));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.unwrap().mismatches, 0);
    assert_healthy(&pair.destination, "vm");
}

#[test]
fn a_guest_that_stands_still_or_ends_teaches_nothing() {
    let pair = Pair::new();
    let (vm, _) = pair.launch("vm", &busy());
    vm.pause().unwrap();
    let sampler = Sampler::start(vm.clone(), &tuning(), Budget::default(), None);
    wait_for(&sampler, "it saw that the guest is paused", |report| {
        report.next_scan_ms > 1000.0
    });
    assert_eq!(sampler.report().samples, 0);
    drop(sampler);
    vm.destroy();
    let sampler = Sampler::start(vm, &tuning(), Budget::default(), None);
    wait_for(&sampler, "it saw that the guest ended", |report| {
        report.problem.as_deref() == Some("the guest ended")
    });
}

#[test]
fn a_host_that_cannot_track_says_why_and_the_guest_goes_on() {
    let pair = Pair::new();
    let (vm, _) = pair.launch("vm", &busy());
    let sampler = Sampler::start(Arc::new(Untracked(vm)), &tuning(), Budget::default(), None);
    wait_for(&sampler, "it says why", |report| {
        report
            .problem
            .as_ref()
            .is_some_and(|why| why.contains("a newer kernel"))
    });
    assert_healthy(&pair.source, "vm");
    let learned = sampler.end();
    assert!(sampler::ready(&learned).is_none(), "no migration is told of it");
}

/// A guest on a host that cannot track it.
struct Untracked(Arc<dyn Vm>);

impl Guest for Untracked {
    fn spec(&self) -> &GuestSpec {
        self.0.spec()
    }
    fn ram(&self) -> &Arc<GuestRam> {
        self.0.ram()
    }
    fn state(&self) -> GuestState {
        self.0.state()
    }
    fn pid(&self) -> Option<u32> {
        self.0.pid()
    }
    fn pause(&self) -> Result<()> {
        unreachable!("a sampler does not pause its guest")
    }
    fn resume(&self) -> Result<()> {
        unreachable!("nor lets it go on")
    }
    fn destroy(&self) {
        unreachable!("nor ends it")
    }
}

impl MigrateOut for Untracked {
    fn prepare_out(&self) -> Result<()> {
        Ok(())
    }
    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        Err(GuestError::Unsupported {
            what: "tracking".into(),
            mend: "use a newer kernel".into(),
        })
    }
    fn has_pinned_io(&self) -> bool {
        false
    }
    fn may_discard_pages(&self) -> bool {
        false
    }
    fn before_stop(&self) -> Result<()> {
        Ok(())
    }
    fn save_device_state(&self) -> Result<Vec<u8>> {
        unreachable!("it is not moved")
    }
}

impl MigrateIn for Untracked {
    fn page_faults(&self, _: FaultMode) -> Result<Arc<dyn PageFaults>> {
        unreachable!("it does not arrive")
    }
    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        unreachable!("it does not arrive")
    }
    fn load_device_state(&self, _: &[u8]) -> Result<()> {
        unreachable!("it does not arrive")
    }
    fn announce(&self) -> Result<()> {
        Ok(())
    }
}
