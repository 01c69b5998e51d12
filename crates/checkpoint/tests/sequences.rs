//! Any sequence of writes, checkpoints, faults of the store, crashes and resumes: what comes back is exactly the memory of the
//! checkpoint.

#[path = "../../store/tests/support/faulty.rs"]
#[allow(dead_code, reason = "the store's own tests use the rest")]
mod faulty;
mod witness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use faulty::{Fault, Faulty, Plan};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmferry_checkpoint::resume::{Request, Resuming, Survey};
use vmferry_checkpoint::take::{Session, TakeControl, TakeOptions};
use vmferry_core::report::Outcome;
use vmferry_core::resume::ResumeMode;
use vmferry_guest::{Backend as _, Guest as _, GuestSpec};
use vmferry_guest_synth::{FaultMechanism, SynthBackend};
use vmferry_runtime::GuestDir;
use vmferry_store::{CheckpointId, Store, StoreOptions};
use witness::{Memory, Witness, assert_same, busy, checkpoint_memory, mechanisms, memory_of};

const GUEST_MIB: u64 = 16;

/// Something that happens to a guest with checkpoints.
#[derive(Clone, Copy, Debug)]
enum Step {
    Run(u8),
    Watch,
    Take,
    TakeWithFault(Fault, u8),
    Cancel,
    /// The daemon dies and another one comes.
    Crash,
    /// The host dies, and with it the guest: it is resumed from the last checkpoint.
    Resume(ResumeMode),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        Just(Fault::Refuse),
        Just(Fault::LoseAnswer),
        Just(Fault::Tear),
        Just(Fault::Full)
    ];
    let mode = prop_oneof![
        Just(ResumeMode::Eager),
        Just(ResumeMode::Lazy),
        Just(ResumeMode::Predictive)
    ];
    prop_oneof![
        3 => (1..20u8).prop_map(Step::Run),
        1 => Just(Step::Watch),
        4 => Just(Step::Take),
        3 => (fault, 0..40u8).prop_map(|(fault, after)| Step::TakeWithFault(fault, after)),
        1 => Just(Step::Cancel),
        1 => Just(Step::Crash),
        2 => mode.prop_map(Step::Resume),
    ]
}

#[test]
fn what_comes_back_is_the_memory_of_the_checkpoint() {
    let mechanisms = mechanisms();
    let steps = (prop::collection::vec(step(), 1..14), 0..mechanisms.len());
    let mut runner = TestRunner::new(Config {
        cases: 16,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&steps, |(steps, mechanism)| {
        let mut story = Story::begin(mechanisms[mechanism]);
        steps.iter().for_each(|step| story.go_on(*step));
        story.end();
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A guest and what is known of its checkpoints.
struct Story {
    objects: Arc<Faulty>,
    store: Store,
    witness: Arc<Witness>,
    session: Option<Session>,
    /// The memory of each pause.
    expected: BTreeMap<CheckpointId, Memory>,
}

impl Story {
    fn begin(mechanism: FaultMechanism) -> Self {
        let objects = Faulty::new();
        let witness = Witness::start(&busy(GUEST_MIB, mechanism));
        let mut story = Self {
            store: open(&objects),
            objects,
            witness,
            session: None,
            expected: BTreeMap::new(),
        };
        story.begin_session();
        story
    }

    fn begin_session(&mut self) {
        let options = TakeOptions::for_guest(GUEST_MIB << 20);
        self.session = Some(Session::begin(self.witness.vm(), self.store.clone(), options).unwrap());
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("there is one between steps")
    }

    fn go_on(&mut self, step: Step) {
        match step {
            Step::Run(ms) => thread::sleep(Duration::from_millis(ms.into())),
            Step::Watch => self.session().watch().unwrap(),
            Step::Cancel => {
                let control = TakeControl::default();
                control.cancel();
                self.session().take(&control);
            }
            Step::Crash => self.crash(),
            Step::Take => self.take(None),
            Step::TakeWithFault(fault, after) => self.take(Some(Plan {
                fault,
                after: after.into(),
                count: 3,
            })),
            Step::Resume(mode) => self.resume(mode),
        }
    }

    fn take(&mut self, plan: Option<Plan>) {
        self.objects.set(plan);
        let report = self.session().take(&TakeControl::default());
        self.objects.set(None);
        if let Some(id) = report.id {
            let seen = self.witness.seen.lock().unwrap().clone();
            self.expected.insert(id.parse().unwrap(), seen);
        }
    }

    fn crash(&mut self) {
        self.session = None;
        self.store = open(&self.objects);
        self.begin_session();
    }

    fn resume(&mut self, mode: ResumeMode) {
        let Some(last) = self.store.list(None).unwrap().pop() else {
            return;
        };
        self.session = None;
        self.witness.guest.destroy();
        let dir = tempfile::tempdir().unwrap();
        let reader = self.store.reader(&last).unwrap();
        let spec: GuestSpec = serde_json::from_value(reader.manifest().spec.clone()).unwrap();
        let layout = reader.manifest().layout.clone();
        let backend = SynthBackend::new();
        let vm = backend.launch_incoming(&spec, &layout, dir.path()).unwrap();
        let request = Request {
            store: self.store.name().to_owned(),
            checkpoint: last.clone(),
            mode,
            drain_after: None,
            paused: true,
            put_disks_back: false,
            patience: Duration::from_secs(10),
            readers: 2,
            service: None,
        };
        let dir = GuestDir::new(dir.path().to_owned());
        let own = Box::new(|| Ok(()));
        let resuming = Resuming::start(vm, dir, Survey::begin(reader), request, Instant::now(), own).unwrap();
        until(|| resuming.progress().standing);
        if mode != ResumeMode::Eager {
            resuming.fill().unwrap();
        }
        until(|| resuming.progress().missing_pages == 0);
        let guest = backend.find(&spec.name).unwrap();
        let memory = memory_of(guest.ram());
        assert_same(&memory, &self.expected[&last], &format!("{last}, {mode}"));
        resuming.go_on().unwrap();
        let report = resuming.wait();
        assert_eq!(report.outcome, Some(Outcome::Completed), "{report:?}");
        self.witness = Witness::of(guest);
        self.begin_session();
    }

    /// Every checkpoint that is listed holds the memory of its pause.
    fn end(mut self) {
        self.session = None;
        self.witness.check_guest();
        for id in self.store.list(None).unwrap() {
            let memory = checkpoint_memory(&self.store, &id);
            assert_same(&memory, &self.expected[&id], &id.to_string());
        }
    }
}

fn open(objects: &Arc<Faulty>) -> Store {
    let options = StoreOptions {
        patience: Duration::from_millis(500),
        ..StoreOptions::default()
    };
    Store::on("faulty", objects.clone(), options)
}

fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "never happened");
        thread::sleep(Duration::from_millis(1));
    }
}
