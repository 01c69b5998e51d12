//! Whatever goes wrong, and whenever: a checkpoint that is listed gives back exactly its memory.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use proptest::prelude::*;
use support::faulty::{Fault, Faulty, Plan};
use support::{PAGE, checkpoint, draft, increment, page, read_all, taken};
use vmferry_core::{PageBitmap, PageRun};
use vmferry_store::{CheckpointId, Retention, Store, StoreError, StoreOptions};

/// More than a chunk, less than two.
const PAGES: u64 = 100;

fn open(objects: &Arc<Faulty>) -> Store {
    let options = StoreOptions {
        patience: Duration::from_millis(200),
        in_flight: 3,
        clock_slack: Duration::ZERO,
        ..StoreOptions::default()
    };
    Store::on("faulty", objects.clone(), options)
}

fn delete_raw(objects: &Arc<Faulty>, object: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime
        .block_on(objects.objects.delete(&Path::from(object)))
        .unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Full {
        vm: usize,
    },
    Increment {
        vm: usize,
        pages: Vec<(u64, u64)>,
    },
    /// A writer that dies on its way, with its process.
    Crash {
        vm: usize,
        pages: Vec<(u64, u64)>,
    },
    Delete {
        which: usize,
    },
    Prune {
        count: usize,
    },
    Sweep,
    Merge,
    /// Another process, that knows nothing.
    Reopen,
}

const VMS: [&str; 2] = ["web", "db"];

fn steps() -> impl Strategy<Value = Vec<(Step, Option<Plan>)>> {
    let vm = 0..VMS.len();
    // Few contents, so that equal pages are common; 0 is a hole.
    let pages = || prop::collection::vec((0..PAGES, 0u64..40), 0..30);
    let step = prop_oneof![
        2 => vm.clone().prop_map(|vm| Step::Full { vm }),
        4 => (vm.clone(), pages()).prop_map(|(vm, pages)| Step::Increment { vm, pages }),
        1 => (vm, pages()).prop_map(|(vm, pages)| Step::Crash { vm, pages }),
        2 => (0usize..8).prop_map(|which| Step::Delete { which }),
        1 => (1usize..3).prop_map(|count| Step::Prune { count }),
        2 => Just(Step::Sweep),
        1 => Just(Step::Merge),
        1 => Just(Step::Reopen),
    ];
    let fault = prop_oneof![
        4 => Just(Fault::Refuse),
        4 => Just(Fault::LoseAnswer),
        3 => Just(Fault::Tear),
        1 => Just(Fault::Hang),
        1 => Just(Fault::Full),
    ];
    let plan = (fault, 0u64..40, prop_oneof![Just(1u64), Just(3), Just(1000)]);
    let plan = plan.prop_map(|(fault, after, count)| Plan { fault, after, count });
    let plan = prop_oneof![2 => Just(None), 1 => plan.prop_map(Some)];
    prop::collection::vec((step, plan), 1..14)
}

/// What the store should hold.
struct Model {
    objects: Arc<Faulty>,
    store: Store,
    /// The memory of each VM now.
    memory: Vec<Vec<u8>>,
    last: Vec<Option<CheckpointId>>,
    kept: BTreeMap<CheckpointId, Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        let objects = Faulty::new();
        Self {
            store: open(&objects),
            objects,
            memory: vec![vec![0; PAGES as usize * PAGE]; VMS.len()],
            last: vec![None; VMS.len()],
            kept: BTreeMap::new(),
        }
    }

    fn write(&mut self, vm: usize, pages: &[(u64, u64)]) -> PageBitmap {
        let mut written = PageBitmap::new(PAGES);
        for &(number, content) in pages {
            written.insert(number);
            let at = number as usize * PAGE;
            let content = if content == 0 {
                vec![0; PAGE]
            } else {
                page(content)
            };
            self.memory[vm][at..at + PAGE].copy_from_slice(&content);
        }
        written
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Full { vm } => {
                let made = checkpoint(&self.store, VMS[*vm], &self.memory[*vm]);
                self.note(*vm, made);
            }
            Step::Increment { vm, pages } => {
                let Some(parent) = self.last[*vm].clone() else {
                    return;
                };
                let written = self.write(*vm, pages);
                let made = increment(&self.store, &parent, &self.memory[*vm], &written);
                self.note(*vm, made);
            }
            Step::Crash { vm, pages } => {
                if let Ok(writer) = self.store.begin(draft(VMS[*vm], PAGES, None)) {
                    for &(number, content) in pages {
                        let _ = writer.pages(PageRun::single(number), &page(content + 1));
                    }
                    // Its process is gone, and so is what it held.
                    std::mem::forget(writer);
                }
            }
            Step::Delete { which } => {
                if let Some(id) = self.kept.keys().nth(*which).cloned()
                    && self.store.delete(&id).is_ok()
                {
                    self.kept.remove(&id);
                }
            }
            Step::Prune { count } => {
                let retention = Retention {
                    count: Some(*count),
                    age: None,
                };
                if let Ok(gone) = self.store.prune(None, retention) {
                    gone.iter().for_each(|id| {
                        self.kept.remove(id);
                    });
                }
            }
            Step::Sweep => drop(self.store.sweep()),
            Step::Merge => drop(self.store.merge()),
            Step::Reopen => self.store = open(&self.objects),
        }
    }

    fn note(&mut self, vm: usize, made: Result<CheckpointId, StoreError>) {
        match made {
            Ok(id) => {
                self.kept.insert(id.clone(), self.memory[vm].clone());
                self.last[vm] = Some(id);
            }
            // What follows an increment that failed is written anew.
            Err(_) => self.last[vm] = None,
        }
    }

    /// With a store that works again: what is listed can be read, and what was answered for is listed.
    fn check(&mut self, failed: bool) {
        self.objects.set(None);
        let listed = self.store.list(None).unwrap();
        for id in &listed {
            let memory = read_all(&self.store, id).unwrap_or_else(|error| panic!("{id}: {error}"));
            match self.kept.get(id) {
                Some(kept) => assert!(memory == *kept, "{id} holds something else"),
                // Its commit happened although the answer was an error.
                None => {
                    assert!(failed, "{id} was never made");
                    let vm = VMS.iter().position(|vm| *vm == id.vm()).unwrap();
                    assert!(memory == self.memory[vm], "{id} holds something else");
                    self.kept.insert(id.clone(), memory);
                }
            }
        }
        if failed {
            // A deletion whose answer was lost.
            self.kept.retain(|id, _| listed.contains(id));
        }
        assert_eq!(listed, self.kept.keys().cloned().collect::<Vec<_>>());
        for vm in VMS {
            delete_raw(&self.objects, &format!("leases/writer/{vm}"));
        }
        delete_raw(&self.objects, "leases/sweep");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn listed_checkpoints_give_back_their_memory(steps in steps()) {
        let mut model = Model::new();
        for (step, plan) in steps {
            model.objects.set(plan);
            model.step(&step);
            model.check(plan.is_some());
        }
    }
}

#[test]
fn a_store_that_hangs_is_an_error_in_bounded_time_and_leaves_nothing_listed() {
    let objects = Faulty::new();
    let store = open(&objects);
    let ram: Vec<u8> = (0..PAGES * 20).flat_map(page).collect();
    let began = objects_after_begin(&objects, &store);
    let asked = Instant::now();
    objects.set(Some(Plan {
        fault: Fault::Hang,
        after: began + 2,
        count: u64::MAX / 2,
    }));
    let error = checkpoint(&store, "web", &ram).unwrap_err();
    // Generous: a hang would never end.
    assert!(asked.elapsed() < Duration::from_secs(20), "{error}");
    assert!(matches!(error, StoreError::WriteFailed(_)), "{error}");
    objects.set(None);
    assert_eq!(store.list(None).unwrap(), []);
}

/// How many operations it takes to begin.
fn objects_after_begin(objects: &Arc<Faulty>, store: &Store) -> u64 {
    objects.set(None);
    drop(store.begin(draft("other", 1, None)).unwrap());
    objects.operations()
}

#[test]
fn a_full_store_is_named_and_leaves_nothing_listed() {
    let objects = Faulty::new();
    let store = open(&objects);
    let ram: Vec<u8> = (0..PAGES * 5).flat_map(page).collect();
    let began = objects_after_begin(&objects, &store);
    objects.set(Some(Plan {
        fault: Fault::Full,
        after: began + 3,
        count: u64::MAX / 2,
    }));
    let error = checkpoint(&store, "web", &ram).unwrap_err();
    let StoreError::WriteFailed(cause) = error else {
        panic!("{error}");
    };
    assert!(matches!(*cause, StoreError::Full { .. }), "{cause}");
    assert!(cause.to_string().contains("no room"), "{cause}");
    objects.set(None);
    assert_eq!(store.list(None).unwrap(), []);
}

#[test]
fn a_writer_whose_lease_was_taken_away_cannot_commit() {
    let objects = Faulty::new();
    let store = open(&objects);
    let first = store.begin(draft("web", PAGES, None)).unwrap();
    delete_raw(&objects, "leases/writer/web");
    let second = store.begin(draft("web", PAGES, None)).unwrap();
    assert_eq!(first.id(), second.id());
    let state = second.blob(b"second").unwrap();
    let id = second.commit(taken(PAGES, state)).unwrap();
    let state = first.blob(b"first").unwrap();
    let error = first.commit(taken(PAGES, state)).unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost(_)), "{error}");
    let reader = store.reader(&id).unwrap();
    assert_eq!(reader.blob(&reader.manifest().device_state).unwrap(), b"second");
}
