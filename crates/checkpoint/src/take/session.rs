//! Checkpoints of one guest, one after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use vmferry_core::take::{TakeOutcome, TakeProgress, TakeReport};
use vmferry_core::{PAGE_SIZE, PageBitmap};
use vmferry_guest::{GuestState, Vm};
use vmferry_store::{CheckpointId, DiskState, Draft, Store, StoreError, Taken, Writer};

use super::disks::DisksOfMoment;
use super::error::{Result, TakeError};
use super::options::TakeOptions;
use super::phases::Phases;
use super::savers::{self, Saved};
use super::shared::Shared;
use super::stop::Stopped;

/// Holds up a guest's writes, and takes its checkpoints: the first saves everything, each later one what was written since the
/// last that completed. Dropping it lets go of the guest.
pub struct Session {
    shared: Arc<Shared>,
    store: Store,
    server: Option<JoinHandle<()>>,
    parent: Option<CheckpointId>,
    /// The disks as the parent has them.
    disks_before: Vec<DiskState>,
    watching_since: Option<Instant>,
}

/// A cut on its way into the store.
struct Saving<'a> {
    writer: &'a Writer,
    stopped: &'a Stopped,
    disks: Option<&'a DisksOfMoment<'a>>,
    is_watched: bool,
}

/// A checkpoint seen from outside: how far it is, and a way to cancel it.
#[derive(Default)]
pub struct TakeControl {
    cancelled: AtomicBool,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    progress: TakeProgress,
    running: Option<(Arc<Shared>, Arc<Saved>)>,
}

impl TakeControl {
    /// Cancels the checkpoint under way, and every later one under this control.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        let running = self.lock().running.as_ref().map(|(shared, _)| Arc::clone(shared));
        if let Some(shared) = running {
            shared.fail(TakeError::Cancelled);
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// How far it is.
    pub fn progress(&self) -> TakeProgress {
        let watched = self.lock();
        let mut progress = watched.progress.clone();
        if let Some((shared, saved)) = &watched.running
            && progress.pages > 0
        {
            progress.copied_pages = progress.pages.saturating_sub(shared.lock().taker.left());
            progress.saved_pages = saved.pages.load(Ordering::Relaxed);
        }
        progress
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self, phase: &str) {
        self.lock().progress.phase = phase.to_owned();
    }
}

impl Session {
    /// Gets hold of the guest's writes. Nothing is protected yet, nothing stands still.
    ///
    /// # Errors
    /// When the guest's writes cannot be held up.
    pub fn begin(vm: Arc<dyn Vm>, store: Store, options: TakeOptions) -> Result<Self> {
        vm.prepare_out()?;
        let holds = vm.hold_writes()?;
        let shared = Arc::new(Shared::new(vm, holds, options));
        let serving = Arc::clone(&shared);
        let name = format!("held {}", shared.vm.spec().name);
        let server = thread::Builder::new()
            .name(name)
            .spawn(move || serving.serve())
            .map_err(TakeError::Thread)?;
        Ok(Self {
            shared,
            store,
            server: Some(server),
            parent: None,
            disks_before: Vec::new(),
            watching_since: None,
        })
    }

    /// From here on it is recorded what the guest reads and writes: the next checkpoint says so.
    ///
    /// # Errors
    /// When the guest cannot be watched.
    pub fn watch(&mut self) -> Result<()> {
        self.shared.protect_live()?;
        self.shared.holds.forget_touches()?;
        self.shared.lock().taker.watch();
        self.watching_since = Some(Instant::now());
        Ok(())
    }

    /// Whether nothing more can be done with this session: its guest is gone, or the kernel refused.
    pub fn is_broken(&self) -> bool {
        self.shared.is_broken()
    }

    /// The checkpoint that the next one inherits from.
    pub fn parent(&self) -> Option<&CheckpointId> {
        self.parent.as_ref()
    }

    /// Takes a checkpoint. Where it fails there is none, and the next one saves what this one was to save.
    pub fn take(&mut self, control: &TakeControl) -> TakeReport {
        let mut phases = Phases::begin();
        let mut report = self.empty_report();
        self.shared.begin();
        let saved = Arc::new(Saved::default());
        *control.lock() = Watched {
            progress: TakeProgress::default(),
            running: Some((Arc::clone(&self.shared), Arc::clone(&saved))),
        };
        let taken = match control.is_cancelled() {
            true => Err(TakeError::Cancelled),
            false => self.take_in(control, &mut phases, &mut report, &saved),
        };
        control.lock().running = None;
        control.phase("done");
        if let Err(error) = taken {
            // Again: it may have failed where nothing was given up yet.
            self.shared.fail(TakeError::Cancelled);
            report.outcome = match error {
                TakeError::Cancelled => TakeOutcome::Cancelled,
                _ => TakeOutcome::Failed,
            };
            report.error = Some(chain(&error));
        }
        report.faults = self.shared.lock().take_faults();
        report.total_ms = phases.elapsed_ms();
        report.phases = phases.into_done();
        report
    }

    fn take_in(
        &mut self,
        control: &TakeControl,
        phases: &mut Phases,
        report: &mut TakeReport,
        saved: &Arc<Saved>,
    ) -> Result<()> {
        control.phase("beginning");
        let shared = Arc::clone(&self.shared);
        match shared.vm.state() {
            // Somebody else had it go on: what stands still later is not ours.
            GuestState::Running => shared.is_left_paused.store(false, Ordering::Release),
            _ if shared.is_left_paused.load(Ordering::Acquire) => shared.let_go_on()?,
            GuestState::Paused => return Err(TakeError::NotRunning),
            _ => {}
        }
        shared.vm.prepare_out()?;
        let writer = phases.run("begin", || self.begin_in_store())?;
        report.id = Some(writer.id().to_string());
        report.parent = self.parent.as_ref().map(CheckpointId::to_string);
        control.lock().progress.id.clone_from(&report.id);

        control.phase("protecting");
        let disks = self.prepare_disks(&shared, phases, report)?;
        phases.run("flush", || shared.vm.before_stop())?;
        report.live_rounds = phases.run("protect", || shared.protect_live())?;
        control.phase("pausing");
        let created_ms = unix_ms();
        let stopped = phases.run("pause", || shared.stop(disks.as_ref()))?;
        let interval = self.watching_since.map(|since| since.elapsed());
        self.watching_since = interval.map(|_| Instant::now());
        report.pause_ms = stopped.pause.as_secs_f64() * 1e3;
        report.interval_ms = interval.map(|interval| interval.as_millis() as u64);
        report.device_state_bytes = stopped.device_state.len() as u64;
        report.data_pages = stopped.cut.save.count() + stopped.cut.inherit.count();
        report.inherited_pages = stopped.cut.inherit.count();
        report.written_pages = stopped.cut.written.count();
        control.lock().progress.pages = stopped.cut.save.count();

        control.phase("saving");
        let is_watched = interval.is_some();
        let saving = Saving {
            writer: &writer,
            stopped: &stopped,
            disks: disks.as_ref(),
            is_watched,
        };
        let (taken, disk_bytes) = phases.run("save", || self.save(&saving, saved))?;
        report.disk_bytes = disk_bytes;
        report.saved_pages = saved.pages.load(Ordering::Relaxed);
        report.accessed_pages = taken.accessed.count();
        control.phase("committing");
        let taken = Taken {
            created_ms,
            interval_ms: report.interval_ms,
            pause_ms: report.pause_ms,
            ..taken
        };
        let manifest = phases.run("commit", || writer.commit(taken))?;
        // A cancel that came too late.
        let _ = shared.check();
        // The store has it: from here on nothing fails, or the next one would inherit from another one than the taker thinks.
        shared.lock().taker.commit();
        if let Some(disks) = disks {
            disks.stored();
        }
        report.new_pages = manifest.pages.new;
        report.stored_bytes = manifest.pages.stored_bytes;
        self.disks_before = manifest.disks;
        self.parent = Some(manifest.id);
        Ok(())
    }

    /// Begins in the store, from the last checkpoint where that is still there.
    fn begin_in_store(&mut self) -> Result<Writer> {
        let vm = &self.shared.vm;
        let draft = |parent| Draft {
            vm: vm.spec().name.clone(),
            spec: serde_json::to_value(vm.spec()).expect("a specification is JSON"),
            layout: vm.ram().layout().clone(),
            parent,
        };
        match self.store.begin(draft(self.parent.clone())) {
            Err(StoreError::NoCheckpoint(gone)) if self.parent.as_ref() == Some(&gone) => {
                tracing::info!("{gone} was deleted: the next checkpoint saves everything again");
                self.parent = None;
                self.disks_before.clear();
                self.shared.lock().taker.forget_saved();
                Ok(self.store.begin(draft(None))?)
            }
            begun => Ok(begun?),
        }
    }

    /// Saves the cut with the guest running; meanwhile finds out what the guest touched before it.
    fn save(&self, saving: &Saving<'_>, saved: &Saved) -> Result<(Taken, u64)> {
        let shared = &*self.shared;
        let taken = thread::scope(|scope| {
            let savers: Vec<_> = (0..shared.options.savers.max(1))
                .map(|_| scope.spawn(|| savers::save(shared, saving.writer, saved)))
                .collect();
            let known = self.note(saving);
            if let Err(error) = known {
                shared.fail(error);
                return Err(TakeError::Cancelled);
            }
            for saver in savers {
                if saver.join().is_err() {
                    shared.fail(TakeError::Panicked);
                }
            }
            known
        });
        shared.check()?;
        taken
    }

    /// Everything of a checkpoint but its pages.
    fn note(&self, saving: &Saving<'_>) -> Result<(Taken, u64)> {
        let Saving { writer, stopped, .. } = saving;
        let holds = &self.shared.holds;
        let mut accessed = PageBitmap::new(stopped.cut.save.len());
        if saving.is_watched {
            holds.touched(&mut accessed)?;
            holds.forget_touches()?;
            accessed.union_with(&stopped.cut.written);
        }
        if !stopped.cut.inherit.is_empty() {
            writer.inherit(&stopped.cut.inherit)?;
        }
        let written = match saving.is_watched {
            true => stopped.cut.written.clone(),
            false => stopped.cut.save.clone(),
        };
        let given_up = || self.shared.has_failed();
        let (disks, disk_bytes) = match saving.disks {
            Some(disks) => disks.save(writer, &self.disks_before, &given_up)?,
            None => (Vec::new(), 0),
        };
        let taken = Taken {
            created_ms: 0,
            device_state: writer.blob(&stopped.device_state)?,
            disks,
            written,
            accessed,
            interval_ms: None,
            pause_ms: 0.0,
        };
        Ok((taken, disk_bytes))
    }

    /// Gets the disks ready to be kept as of the pause, or says that they are left out.
    fn prepare_disks<'a>(
        &self,
        shared: &'a Shared,
        phases: &mut Phases,
        report: &mut TakeReport,
    ) -> Result<Option<DisksOfMoment<'a>>> {
        if let Some(folder) = &shared.options.disk_folder {
            return phases.run("disks", || DisksOfMoment::prepare(&*shared.vm, folder));
        }
        let left_out = shared
            .vm
            .disks()
            .map_or_else(|| Ok(Vec::new()), <dyn vmferry_guest::Disks>::list);
        if let Ok(left_out) = left_out
            && !left_out.is_empty()
        {
            let ids: Vec<_> = left_out.into_iter().map(|disk| disk.id).collect();
            report
                .notes
                .push(format!("the disks {} are left out", ids.join(", ")));
        }
        Ok(None)
    }

    fn empty_report(&self) -> TakeReport {
        let vm = &self.shared.vm;
        TakeReport {
            vm: vm.spec().name.clone(),
            id: None,
            parent: None,
            outcome: TakeOutcome::Completed,
            error: None,
            started_unix_ms: unix_ms(),
            total_ms: 0.0,
            pause_ms: 0.0,
            interval_ms: None,
            ram_bytes: vm.ram().layout().pages() * PAGE_SIZE,
            data_pages: 0,
            written_pages: 0,
            accessed_pages: 0,
            saved_pages: 0,
            inherited_pages: 0,
            new_pages: 0,
            stored_bytes: 0,
            device_state_bytes: 0,
            disk_bytes: 0,
            faults: Default::default(),
            live_rounds: 0,
            phases: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.end();
        // The server may be in the middle of an answer: it comes to its end first, then everybody is let go.
        if let Some(server) = self.server.take()
            && server.join().is_err()
        {
            tracing::error!("the thread that answers held writes panicked; the guest is let go");
        }
        if let Err(error) = self.shared.holds.end() {
            tracing::debug!(%error, "held writes are not ended: the guest is gone");
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
