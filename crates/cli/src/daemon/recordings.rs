//! Traces of guests: recorded on a thread each, kept until the next one of the same guest.
//!
//! Whoever records a guest has its one tracker. It takes it from the guest's sampler, and gives it back at the end; when the
//! guest is to be moved or ended it lets go, and keeps what it has: at once, unless the guest's agent is being asked just then.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmferry_runtime::recorder::{RecordError, record};
use vmferry_runtime::{RecordControl, RecordPlan};
use vmferry_trace::{Plan, Trace};

use super::host::LocalHost;
use super::refusal::Refusal;
use super::registry::{Member, Slot};
use crate::api::{TraceInfo, TraceRequest, TraceState};

/// Bytes of the traces that are kept, all guests together; the oldest go first.
const KEPT_BYTES: usize = 512 << 20;

/// The recordings of a host, the last one of each guest.
#[derive(Default)]
pub(super) struct Recordings {
    guests: Mutex<BTreeMap<String, Arc<Recording>>>,
}

/// A recording, under way or over.
struct Recording {
    control: RecordControl,
    state: Mutex<State>,
    /// Notified at its end.
    over: Condvar,
}

enum State {
    UnderWay {
        /// The guest's sampler goes on afterwards.
        gives_back: bool,
    },
    Done(Arc<Vec<u8>>),
    Failed(String),
}

impl Recordings {
    /// Ends the recording of a guest, if there is one, which is without the tracker when this returns.
    pub(super) fn let_go(&self, name: &str) {
        if let Some(recording) = self.get(name) {
            recording.end(false);
        }
    }

    /// Ends all of them.
    pub(super) fn end(&self) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        // All at once: each may be asking a guest that does not answer. Their samplers have them back, to be ended in their turn.
        all.iter().for_each(|recording| recording.control.let_go());
        all.iter().for_each(|recording| recording.end(true));
    }

    fn get(&self, name: &str) -> Option<Arc<Recording>> {
        self.lock().get(name).cloned()
    }

    /// Takes a name for a new recording.
    fn begin(&self, name: &str) -> Result<Arc<Recording>, Refusal> {
        let mut guests = self.lock();
        if guests.get(name).is_some_and(|recording| recording.is_under_way()) {
            return Err(
                Refusal::conflict(format!("guest {name} is being recorded already"))
                    .mend("wait for it, or end it with `vmferry trace NAME --stop`".replace("NAME", name)),
            );
        }
        let recording = Arc::new(Recording {
            control: RecordControl::default(),
            state: Mutex::new(State::UnderWay { gives_back: true }),
            over: Condvar::new(),
        });
        guests.insert(name.to_owned(), recording.clone());
        Ok(recording)
    }

    /// Forgets the largest traces of other guests while all together are too many bytes.
    fn make_room(&self, newest: &str) {
        let mut guests = self.lock();
        loop {
            let sizes = guests.iter().map(|(name, recording)| (name, recording.bytes()));
            if sizes.clone().map(|(_, bytes)| bytes).sum::<usize>() <= KEPT_BYTES {
                return;
            }
            let largest = sizes
                .filter(|(name, _)| *name != newest)
                .max_by_key(|(_, bytes)| *bytes);
            match largest.map(|(name, bytes)| (name.clone(), bytes)) {
                Some((name, bytes)) if bytes > 0 => guests.remove(&name),
                _ => return,
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Recording>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    fn is_under_way(&self) -> bool {
        matches!(*self.lock(), State::UnderWay { .. })
    }

    fn bytes(&self) -> usize {
        match &*self.lock() {
            State::Done(bytes) => bytes.len(),
            State::UnderWay { .. } | State::Failed(_) => 0,
        }
    }

    /// Ends it and waits for that.
    fn end(&self, back: bool) {
        let mut state = self.lock();
        if let State::UnderWay { gives_back } = &mut *state {
            *gives_back &= back;
        }
        match back {
            true => self.control.stop(),
            false => self.control.let_go(),
        }
        let waiting = |state: &mut State| matches!(state, State::UnderWay { .. });
        drop(self.over.wait_while(state, waiting));
    }

    fn info(&self) -> TraceInfo {
        let progress = self.control.progress();
        let (state, file_bytes, failed) = match &*self.lock() {
            State::UnderWay { .. } => (TraceState::Recording, None, None),
            State::Done(bytes) => (TraceState::Done, Some(bytes.len() as u64), None),
            State::Failed(why) => (TraceState::Failed, None, Some(why.clone())),
        };
        TraceInfo {
            state,
            elapsed_ms: progress.elapsed_ms,
            length_ms: progress.length_ms,
            samples: progress.samples,
            dirty_bytes_per_s: progress.dirty_bytes_per_s,
            one_in: progress.one_in,
            cost_percent: progress.cost_percent,
            file_bytes,
            problem: failed.or(progress.problem),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalHost {
    /// Begins to record a guest that runs here.
    pub(super) fn begin_trace(
        self: &Arc<Self>,
        name: &str,
        request: &TraceRequest,
    ) -> Result<TraceInfo, Refusal> {
        self.check_open()?;
        let plan = plan(request)?;
        let Slot::Here(member) = self.registry.get(name)? else {
            return Err(Refusal::conflict(format!(
                "guest {name} is not this host's alone: it is being moved, or cannot be reached"
            ))
            .mend(format!("`vmferry status {name}` shows what it does")));
        };
        let recording = self.samplers.recordings.begin(name)?;
        self.samplers.set_aside(name);
        let (host, name, guest) = (Arc::clone(self), name.to_owned(), name.to_owned());
        let recorded = recording.clone();
        let started = thread::Builder::new()
            .name("trace".into())
            .spawn(move || host.record(&name, &member, &plan, &recorded));
        if let Err(error) = started {
            *recording.lock() = State::Failed(format!("no thread for it: {error}"));
            if let Ok(Slot::Here(member)) = self.registry.get(&guest) {
                self.samplers.begin(&member);
            }
            return Err(Refusal::failed(error));
        }
        Ok(recording.info())
    }

    /// The recording of a guest, under way or over.
    pub(super) fn trace(&self, name: &str) -> Result<TraceInfo, Refusal> {
        Ok(self.recording(name)?.info())
    }

    /// Ends the recording of a guest; it keeps what it has.
    pub(super) fn end_trace(&self, name: &str) -> Result<TraceInfo, Refusal> {
        let recording = self.recording(name)?;
        recording.end(true);
        Ok(recording.info())
    }

    /// The file of the last trace of a guest.
    pub(super) fn trace_file(&self, name: &str) -> Result<Arc<Vec<u8>>, Refusal> {
        match &*self.recording(name)?.lock() {
            State::Done(bytes) => Ok(bytes.clone()),
            State::UnderWay { .. } => Err(Refusal::conflict(format!("guest {name} is still being recorded"))
                .mend("wait until it is done")),
            State::Failed(why) => Err(Refusal::not_found(format!("there is no trace of {name}: {why}"))),
        }
    }

    fn recording(&self, name: &str) -> Result<Arc<Recording>, Refusal> {
        self.samplers.recordings.get(name).ok_or_else(|| {
            Refusal::not_found(format!("guest {name} was not recorded by this daemon"))
                .mend(format!("record it with `vmferry trace {name}`"))
        })
    }

    /// Records, on a thread of its own.
    fn record(&self, name: &str, member: &Member, plan: &RecordPlan, recording: &Recording) {
        let synthetic = self.synthetic(name).ok();
        let count = synthetic.map(|guest| -> vmferry_runtime::recorder::CountOperations {
            Box::new(move || Some(guest.stats().operations))
        });
        let recorded = record(&member.vm, plan, count, &recording.control)
            .map_err(|error| error.to_string())
            .and_then(|trace| encode(&trace));
        if let Err(why) = &recorded {
            tracing::warn!("{name} was not recorded: {why}");
        }
        {
            let mut state = recording.lock();
            let gives_back = matches!(*state, State::UnderWay { gives_back: true });
            *state = match recorded {
                Ok(bytes) => State::Done(Arc::new(bytes)),
                Err(why) => State::Failed(why),
            };
            // Under the lock: whoever ends it finds the sampler there, or that there will be none.
            if gives_back {
                self.samplers.begin(member);
            }
        }
        recording.over.notify_all();
        self.samplers.recordings.make_room(name);
    }
}

fn encode(trace: &Trace) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn plan(request: &TraceRequest) -> Result<RecordPlan, Refusal> {
    let interval = Duration::try_from_secs_f64(request.interval_ms / 1e3).map_err(|_| {
        Refusal::bad_request(format!(
            "an interval of {} ms is not possible",
            request.interval_ms
        ))
    })?;
    let plan = RecordPlan {
        length: Duration::from_millis(request.length_ms),
        interval,
        plan: match request.full {
            true => Plan::Full,
            false => Plan::Within {
                budget_percent: request.budget_percent,
            },
        },
    };
    plan.check()
        .map_err(|error: RecordError| Refusal::bad_request(error))?;
    Ok(plan)
}
