//! How busy the guest is, once a second, by its agent and by what it counts for its clients. On a thread of its own: an agent
//! may take its time.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmferry_guest::Vm;
use vmferry_trace::LoadMark;

use super::CountOperations;

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How long an agent may take.
const PATIENCE: Duration = Duration::from_millis(800);

/// Asks until it is ended.
pub(super) struct Loads {
    shared: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<Vec<LoadMark>>>,
}

impl Loads {
    /// Begins, where there is anybody to ask.
    pub(super) fn begin(vm: Arc<dyn Vm>, operations: Option<CountOperations>) -> Self {
        let shared: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let stopped = shared.clone();
        let asks = vm.enlightened().is_some() || operations.is_some();
        let thread = asks.then(|| {
            let ask = move || ask(&*vm, operations.as_ref(), &stopped);
            thread::Builder::new().name("record load".into()).spawn(ask)
        });
        Self {
            shared,
            // Without a thread nothing is known of the load; the recording does not need it.
            thread: thread.and_then(Result::ok),
        }
    }

    /// Ends it, for what it heard.
    pub(super) fn end(mut self) -> Vec<LoadMark> {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.1.notify_all();
        let thread = self.thread.take();
        thread.map_or_else(Vec::new, |thread| thread.join().unwrap_or_default())
    }
}

fn ask(vm: &dyn Vm, operations: Option<&CountOperations>, stopped: &(Mutex<bool>, Condvar)) -> Vec<LoadMark> {
    let began = Instant::now();
    let mut marks = Vec::new();
    loop {
        let load = vm.enlightened().and_then(|guest| guest.load(PATIENCE).ok());
        let mark = LoadMark {
            at_us: began.elapsed().as_micros() as u64,
            load_average: load.as_ref().map(|load| load.load_averages[0] as f32),
            memory_available_bytes: load.as_ref().map(|load| load.memory_available_bytes),
            operations: operations.and_then(|count| count()),
        };
        if mark.load_average.is_some() || mark.operations.is_some() {
            marks.push(mark);
        }
        let guard = stopped.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = stopped.1.wait_timeout_while(guard, EVERY, |stopped| !*stopped);
        if *waited.map_or_else(|e| e.into_inner().0, |(guard, _)| guard) {
            return marks;
        }
    }
}
