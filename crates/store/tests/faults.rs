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
use vmferry_store::{CheckpointId, Retention, Store, StoreError, StoreOptions, Writer};

/// More than a chunk, less than two.
const PAGES: u64 = 100;

fn open(objects: &Arc<Faulty>) -> Store {
    let options = StoreOptions {
        patience: Duration::from_millis(60),
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
    /// A writer that stays at work while other things happen.
    Start {
        vm: usize,
        pages: Vec<(u64, u64)>,
    },
    Finish,
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
        1 => (vm.clone(), pages()).prop_map(|(vm, pages)| Step::Crash { vm, pages }),
        3 => (vm, pages()).prop_map(|(vm, pages)| Step::Start { vm, pages }),
        3 => Just(Step::Finish),
        4 => (0usize..8).prop_map(|which| Step::Delete { which }),
        1 => (1usize..3).prop_map(|count| Step::Prune { count }),
        5 => Just(Step::Sweep),
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
    let plan = prop_oneof![4 => Just(None), 1 => plan.prop_map(Some)];
    let begin = Just(vec![(Step::Full { vm: 0 }, None), (Step::Full { vm: 1 }, None)]);
    let rest = prop::collection::vec((step, plan), 1..25);
    (begin, rest).prop_map(|(begin, rest)| [begin, rest].concat())
}

/// What the store should hold.
struct Model {
    objects: Arc<Faulty>,
    store: Store,
    /// The same, with more patience: what it says, is.
    witness: Store,
    /// The memory of each VM now.
    memory: Vec<Vec<u8>>,
    last: Vec<Option<CheckpointId>>,
    kept: BTreeMap<CheckpointId, Vec<u8>>,
    started: Option<Started>,
}

/// A writer at work.
struct Started {
    vm: usize,
    writer: Writer,
    memory: Vec<u8>,
}

impl Model {
    fn new() -> Self {
        let objects = Faulty::new();
        Self {
            store: open(&objects),
            witness: Store::on("faulty", objects.clone(), StoreOptions::default()),
            objects,
            memory: vec![vec![0; PAGES as usize * PAGE]; VMS.len()],
            last: vec![None; VMS.len()],
            kept: BTreeMap::new(),
            started: None,
        }
    }

    /// Begins a checkpoint and writes all of it.
    fn start(&mut self, vm: usize, pages: &[(u64, u64)]) -> Result<(), StoreError> {
        let parent = self.last[vm].clone();
        let written = self.write(vm, pages);
        let writer = self.store.begin(draft(VMS[vm], PAGES, parent.clone()))?;
        let memory = self.memory[vm].clone();
        match parent {
            None => writer.pages(PageRun::new(0, PAGES), &memory)?,
            Some(_) => {
                let mut rest = written.clone();
                rest.invert();
                writer.inherit(&rest)?;
                for run in written.runs() {
                    writer.pages(run, &memory[run.first as usize * PAGE..run.end() as usize * PAGE])?;
                }
            }
        }
        self.started = Some(Started { vm, writer, memory });
        Ok(())
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

    /// Answers whether it was carried out and said so.
    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Full { vm } => {
                let made = checkpoint(&self.store, VMS[*vm], &self.memory[*vm]);
                self.note(*vm, made)
            }
            Step::Increment { vm, pages } => {
                let Some(parent) = self.last[*vm].clone() else {
                    return true;
                };
                let written = self.write(*vm, pages);
                let made = increment(&self.store, &parent, &self.memory[*vm], &written);
                self.note(*vm, made)
            }
            Step::Crash { vm, pages } => {
                if let Ok(writer) = self.store.begin(draft(VMS[*vm], PAGES, None)) {
                    for &(number, content) in pages {
                        let _ = writer.pages(PageRun::single(number), &page(content + 1));
                    }
                    // Its process is gone, and so is what it held.
                    std::mem::forget(writer);
                }
                true
            }
            Step::Start { vm, pages } => {
                if self.started.is_some() {
                    return true;
                }
                let fine = self.start(*vm, pages).is_ok();
                if !fine {
                    self.last[*vm] = None;
                }
                fine
            }
            Step::Finish => {
                let Some(Started { vm, writer, memory }) = self.started.take() else {
                    return true;
                };
                // What a failed commit left, or a lost answer, is held against this.
                let now = std::mem::replace(&mut self.memory[vm], memory);
                let made = writer
                    .blob(b"state")
                    .and_then(|state| writer.commit(taken(PAGES, state)))
                    .map(|manifest| manifest.id);
                let fine = self.note(vm, made);
                if fine {
                    self.memory[vm] = now;
                    self.last[vm] = None;
                }
                fine
            }
            Step::Delete { which } => {
                let among = self.kept.len().max(1);
                let Some(id) = self.kept.keys().nth(which % among).cloned() else {
                    return true;
                };
                let deleted = self.store.delete(&id).is_ok();
                if deleted {
                    self.kept.remove(&id);
                }
                deleted
            }
            Step::Prune { count } => {
                let retention = Retention {
                    count: Some(*count),
                    age: None,
                };
                let Ok(gone) = self.store.prune(None, retention) else {
                    return false;
                };
                gone.iter().for_each(|id| {
                    self.kept.remove(id);
                });
                true
            }
            Step::Sweep => self.store.sweep().is_ok(),
            Step::Merge => self.store.merge().is_ok(),
            Step::Reopen => {
                self.store = open(&self.objects);
                true
            }
        }
    }

    fn note(&mut self, vm: usize, made: Result<CheckpointId, StoreError>) -> bool {
        let fine = made.is_ok();
        match made {
            Ok(id) => {
                self.kept.insert(id.clone(), self.memory[vm].clone());
                self.last[vm] = Some(id);
            }
            // What follows an increment that failed is written anew.
            Err(_) => self.last[vm] = None,
        }
        fine
    }

    /// With a store that works again: what is listed can be read, and what was answered for is listed.
    fn check(&mut self, failed: bool) {
        self.objects.set(None);
        // Who held them would be dead.
        for (index, vm) in VMS.iter().enumerate() {
            if self.started.as_ref().is_none_or(|started| started.vm != index) {
                delete_raw(&self.objects, &format!("leases/writer/{vm}"));
            }
        }
        delete_raw(&self.objects, "leases/sweep");
        let listed = self.witness.list(None).unwrap();
        for id in &listed {
            let memory = read_all(&self.witness, id).unwrap_or_else(|error| panic!("{id}: {error}"));
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
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn listed_checkpoints_give_back_their_memory(steps in steps()) {
        let mut model = Model::new();
        for (step, plan) in steps {
            model.objects.set(plan);
            let fine = model.step(&step);
            eprintln!("STEP {fine} {} {:?} {plan:?}", model.kept.len(), std::mem::discriminant(&step));
            model.check(!fine);
        }
    }
}

#[test]
fn a_sweep_leaves_alone_what_a_writer_saw_when_it_began() {
    let objects = Faulty::new();
    let store = open(&objects);
    let ram: Vec<u8> = (1..=PAGES).flat_map(page).collect();
    let parent = checkpoint(&store, "web", &ram).unwrap();
    let inherits = store.begin(draft("web", PAGES, Some(parent.clone()))).unwrap();
    let shares = store.begin(draft("db", PAGES, None)).unwrap();
    store.delete(&parent).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(store.sweep().unwrap().chunks, 0);
    inherits.inherit(&PageBitmap::full(PAGES)).unwrap();
    shares.pages(PageRun::new(0, PAGES), &ram).unwrap();
    store.sweep().unwrap();
    for writer in [inherits, shares] {
        let state = writer.blob(b"state").unwrap();
        let manifest = writer.commit(taken(PAGES, state)).unwrap();
        let id = manifest.id.clone();
        assert_eq!(store.manifest(&id).unwrap(), manifest);
        assert!(read_all(&store, &id).unwrap() == ram);
        assert_eq!(store.manifest(&id).unwrap().pages.new, 0);
    }
}

#[test]
fn what_was_swept_is_stored_anew_whatever_the_index_says() {
    let objects = Faulty::new();
    let store = open(&objects);
    let ram: Vec<u8> = (1..=PAGES).flat_map(page).collect();
    checkpoint(&store, "db", &page(9_999)).unwrap();
    let id = checkpoint(&store, "web", &ram).unwrap();
    store.delete(&id).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(store.sweep().unwrap().chunks > 0);
    let id = checkpoint(&store, "web", &ram).unwrap();
    assert_eq!(store.manifest(&id).unwrap().pages.new, PAGES);
    assert!(read_all(&store, &id).unwrap() == ram);
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
    let id = second.commit(taken(PAGES, state)).unwrap().id;
    let state = first.blob(b"first").unwrap();
    let error = first.commit(taken(PAGES, state)).unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost(_)), "{error}");
    let reader = store.reader(&id).unwrap();
    assert_eq!(reader.blob(&reader.manifest().device_state).unwrap(), b"second");
}
