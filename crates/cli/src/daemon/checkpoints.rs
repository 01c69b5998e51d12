//! Checkpoints of guests that run here: one series for each guest at most.
//!
//! Whoever takes checkpoints holds up the guest's writes, so nobody else may track them meanwhile: the guest's sampler lets go,
//! and a migration is refused until the series has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_checkpoint::take::{Series, SeriesEvents, SeriesRequest, TakeError, TakeOptions};
use vmferry_core::take::{TakeOutcome, TakeReport};
use vmferry_guest::GuestState;
use vmferry_store::{Retention, Store};

use super::host::{LocalHost, of_guest};
use super::refusal::Refusal;
use super::registry::{Member, Slot};
use super::resuming::of_store;
use super::state_dir::{self, Marker};
use crate::api::{CheckpointRequest, CheckpointState};

/// The shortest interval: below, a guest would do little else.
const SHORTEST_EVERY: Duration = Duration::from_millis(100);
/// The longest that a guest is watched before a single checkpoint.
const LONGEST_WATCH: Duration = Duration::from_secs(3600);

/// The series of a host, by guest; those that ended are remembered.
#[derive(Default)]
pub(super) struct Checkpoints {
    series: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Clone)]
struct Entry {
    series: Arc<Series>,
    store: String,
    every: Option<Duration>,
}

impl Checkpoints {
    /// Whether checkpoints of the guest are being taken.
    fn is_on(&self, name: &str) -> bool {
        self.find(name).is_some_and(|entry| !entry.series.state().ended)
    }

    /// # Errors
    /// When checkpoints of the guest are being taken: nobody else may have it then.
    pub(super) fn check_off(&self, name: &str) -> Result<(), Refusal> {
        match self.is_on(name) {
            false => Ok(()),
            true => Err(
                Refusal::conflict(format!("checkpoints of guest {name} are being taken"))
                    .mend(format!("end that first with `vmferry checkpoint {name} --stop`")),
            ),
        }
    }

    /// How the checkpoints of the guest stand, or stood when they ended.
    pub(super) fn state(&self, name: &str) -> Option<CheckpointState> {
        let Entry { series, store, every } = self.find(name)?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let state = series.state();
        Some(CheckpointState {
            store,
            every_ms: every.map(millis),
            ended: state.ended,
            run: state.run,
            progress: state.progress,
            next_in_ms: state.next_in.map(millis),
            last: state.last,
        })
    }

    /// Ends the checkpoints of a guest that is about to end, and forgets them.
    pub(super) fn forget(&self, name: &str) {
        let entry = self.lock().remove(name);
        if let Some(entry) = entry {
            entry.series.end();
        }
    }

    /// Ends all of them.
    pub(super) fn end(&self) {
        let all: Vec<Entry> = self.lock().values().cloned().collect();
        all.iter().for_each(|entry| entry.series.cancel());
        all.iter().for_each(|entry| entry.series.end());
    }

    fn find(&self, name: &str) -> Option<Entry> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalHost {
    /// Begins to take checkpoints.
    pub(super) fn checkpoint(
        self: &Arc<Self>,
        name: &str,
        request: &CheckpointRequest,
    ) -> Result<CheckpointState, Refusal> {
        self.check_open()?;
        let wanted = wanted(request)?;
        let doing = "is about to be checkpointed";
        let (claim, member) = self
            .registry
            .take(name, doing, |slot| may_be_checkpointed(name, slot))?;
        self.checkpoints.check_off(name)?;
        if member.vm.state() != GuestState::Running {
            return Err(Refusal::conflict(format!("guest {name} does not run"))
                .mend("a checkpoint of a guest that stands still would let it go on"));
        }
        let location = request.store.clone().unwrap_or_else(|| self.store.clone());
        let store = Store::open(&location, self.store_options()).map_err(of_store)?;
        // A store that does not answer is told now, not in a log.
        store.list(Some(name)).map_err(of_store)?;
        state_dir::set_marker(&member.dir, Marker::Checkpointed).map_err(Refusal::failed)?;
        self.samplers.let_go(name);
        let events = Events {
            host: Arc::clone(self),
            member: member.clone(),
        };
        let options = TakeOptions {
            disk_folder: (!request.without_disks).then(|| member.dir.join("checkpoint-disks")),
            ..TakeOptions::for_guest(member.vm.ram().layout().bytes())
        };
        let started = Series::start(Arc::clone(&member.vm), store, options, wanted, Box::new(events));
        let series = started.map_err(|error| {
            state_dir::clear_marker(&member.dir, Marker::Checkpointed);
            self.samplers.begin(&member);
            of_take(error)
        })?;
        match wanted.every {
            Some(every) => tracing::info!(
                "checkpoints of {name} every {} s into {location}",
                every.as_secs_f64()
            ),
            None => tracing::info!("a checkpoint of {name} into {location}"),
        }
        let entry = Entry {
            series: Arc::new(series),
            store: location,
            every: wanted.every,
        };
        // The one before has ended: nobody waits for it.
        drop(self.checkpoints.lock().insert(name.to_owned(), entry));
        claim.settle(Some(Slot::Here(member)));
        self.checkpoint_state(name)
    }

    /// How the checkpoints of a guest stand.
    pub(super) fn checkpoint_state(&self, name: &str) -> Result<CheckpointState, Refusal> {
        self.checkpoints.state(name).ok_or_else(|| {
            Refusal::not_found(format!(
                "no checkpoint of a guest {name} was taken since this daemon started"
            ))
            .mend("`vmferry checkpoints list` shows those of a store")
        })
    }

    /// Takes no more checkpoints of a guest; one under way is cancelled.
    pub(super) fn end_checkpoints(&self, name: &str) -> Result<CheckpointState, Refusal> {
        if !self.checkpoints.is_on(name) {
            return Err(Refusal::conflict(format!(
                "no checkpoints of guest {name} are being taken"
            )));
        }
        if let Some(entry) = self.checkpoints.find(name) {
            entry.series.end();
        }
        self.checkpoint_state(name)
    }
}

/// What the series of a guest tells its host.
struct Events {
    host: Arc<LocalHost>,
    member: Member,
}

impl SeriesEvents for Events {
    fn taken(&self, report: &TakeReport) {
        let why = report.error.as_deref().unwrap_or_default();
        let id = report.id.as_deref().unwrap_or("a checkpoint");
        match report.outcome {
            TakeOutcome::Completed => tracing::info!("{id} was taken, pause {:.2} ms", report.pause_ms),
            TakeOutcome::Cancelled => tracing::info!("{id} of {} was cancelled", report.vm),
            TakeOutcome::Failed => tracing::warn!("{id} of {} failed, the guest goes on: {why}", report.vm),
        }
    }

    fn ended(&self) {
        state_dir::clear_marker(&self.member.dir, Marker::Checkpointed);
        if self.member.vm.state() != GuestState::Gone {
            self.host.samplers.begin(&self.member);
        }
    }
}

fn wanted(request: &CheckpointRequest) -> Result<SeriesRequest, Refusal> {
    let bad = |why: String| Err(Refusal::bad_request(why));
    let every = request.every_ms.map(Duration::from_millis);
    if let Some(every) = every
        && every < SHORTEST_EVERY
    {
        return bad(format!(
            "an interval of {} ms is too short: {} ms at least",
            every.as_millis(),
            SHORTEST_EVERY.as_millis()
        ));
    }
    if request.keep == Some(0) {
        return bad("at least one checkpoint has to be kept".into());
    }
    let once = SeriesRequest::once();
    let watch = request.watch_ms.map_or(once.watch, Duration::from_millis);
    if watch > LONGEST_WATCH {
        return bad(format!("watching for {} s is too long", watch.as_secs()));
    }
    Ok(SeriesRequest {
        every,
        watch,
        retention: Retention {
            count: request.keep.map(|keep| keep as usize),
            age: request.keep_for_ms.map(Duration::from_millis),
        },
    })
}

fn may_be_checkpointed(name: &str, slot: &Slot) -> Result<Member, Refusal> {
    let refuse = |why: &str, mend: &str| Err(Refusal::conflict(format!("guest {name} {why}")).mend(mend));
    match slot {
        Slot::Here(member) => Ok(member.clone()),
        Slot::Leaving { .. } => refuse("is being moved away", "wait, or cancel that first"),
        Slot::Arriving { .. } => refuse("is not this host's yet", "wait until it has arrived"),
        Slot::Receiving { .. } | Slot::Resuming { .. } => {
            refuse("still lacks pages", "wait until `vmferry status` shows none")
        }
        Slot::Stuck { why, .. } => refuse(&format!("cannot be used: {why}"), "see the log of the daemon"),
        Slot::Busy { doing } => refuse(doing, "wait a moment and repeat it"),
    }
}

fn of_take(error: TakeError) -> Refusal {
    match error {
        TakeError::Guest(error) => of_guest(error),
        TakeError::Store(error) => of_store(error),
        error => Refusal::failed(error),
    }
}
