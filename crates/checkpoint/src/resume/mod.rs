//! Resumes guests from their checkpoints. What comes when is decided in [`vmferry_core::resume`]; here it is carried out.
//!
//! ```text
//! the guest is created, its RAM one hole
//! pages that come first              straight into its memory, by several readers
//! its device state                   from here on faults are served: by the pager, from the store
//! noted as this host's, started
//! the rest, or what it asks for      each page appears whole, and only from a chunk that has the hash it should
//! every page is in place             faults cost nothing any more
//! ```
//!
//! Until the guest is noted as this host's, whatever fails leaves nothing behind but the checkpoint. After that nothing but its
//! end takes it away: what the store does not give makes it stand still until the store does.

mod disks;
mod driver;
mod error;
mod filling;
mod places;
mod probe;
mod saved;
mod steps;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use vmferry_core::resume::{Event, Resume, ResumeMode, ResumeProgress, ResumeReport, Service, Setup, Work};
use vmferry_guest::{FaultMode, Vm};
use vmferry_memory::SharedPageStates;
use vmferry_runtime::GuestDir;
use vmferry_runtime::pager::Pager;
use vmferry_store::CheckpointId;

pub use error::ResumeError;
pub use places::Survey;
pub use saved::Saved;

use driver::Driver;
use filling::Filling;

/// How a checkpoint is to be resumed.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the checkpoint is, for a daemon that goes on after this one.
    pub store: String,
    /// Which it is.
    pub checkpoint: CheckpointId,
    /// How.
    pub mode: ResumeMode,
    /// In the lazy mode, the rest follows once the guest has asked for nothing during this time; where absent, never.
    pub drain_after: Option<Duration>,
    /// Leave the guest paused when it could run.
    pub paused: bool,
    /// Write the disks that the checkpoint has over those of the guest; where not, they have to be as they were.
    pub put_disks_back: bool,
    /// How long the store may fail to give a page before that counts as a lack of it.
    pub patience: Duration,
    /// How many read at the same time.
    pub readers: usize,
    /// A service of the guest whose first answer is waited for, and its time noted.
    pub service: Option<Service>,
}

/// Notes on disk, where a restarted daemon looks, that the guest is this host's. It runs after that only.
pub type Own = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// A resume under way.
#[derive(Clone)]
pub struct Resuming {
    shared: Arc<Shared>,
}

/// What reaches the driver.
enum Input {
    /// Something happened.
    Event(Event),
    /// Somebody wants something, and is told whether that is possible.
    Ask(Event, Sender<Result<(), ResumeError>>),
}

/// What all threads of a resume share.
struct Shared {
    vm: Arc<dyn Vm>,
    dir: GuestDir,
    request: Request,
    since: Instant,
    filling: Filling,
    inputs: Sender<Input>,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// What can be seen of a resume.
struct Seen {
    phase: &'static str,
    ours: bool,
    standing: bool,
    stalled: Option<String>,
    report: ResumeReport,
    /// Faults of the first 10 s are counted: the report has them.
    first_counted: bool,
    /// The report is the last one.
    ended: bool,
}

impl Resuming {
    /// Begins to resume the checkpoint that `survey` looks at in `vm`, which was created for that by
    /// [`Backend::launch_incoming`](vmferry_guest::Backend::launch_incoming). Times are measured from `since`.
    ///
    /// # Errors
    /// When the guest is not the one of the checkpoint, or its faults cannot be served here. The guest is destroyed then.
    pub fn start(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        survey: Survey,
        request: Request,
        since: Instant,
        own: Own,
    ) -> Result<Self, ResumeError> {
        let guest = vm.clone();
        Self::try_start(vm, dir, survey, request, since, own).inspect_err(|_| guest.destroy())
    }

    fn try_start(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        survey: Survey,
        request: Request,
        since: Instant,
        own: Own,
    ) -> Result<Self, ResumeError> {
        let (here, there) = (vm.ram().layout(), &survey.reader.manifest().layout);
        if here != there {
            return Err(ResumeError::OtherRam {
                checkpoint: request.checkpoint.to_string(),
                here: here.bytes(),
                there: there.bytes(),
            });
        }
        let pages_follow = request.mode != ResumeMode::Eager;
        let pager = match pages_follow {
            false => None,
            true => {
                let faults = vm.page_faults(FaultMode::Missing)?;
                let states = SharedPageStates::create(&dir.page_states(), here.pages() as usize)?;
                let pager = Pager::new(vm.ram().clone(), faults, FaultMode::Missing, states, false);
                Some(Arc::new(pager))
            }
        };
        if !request.put_disks_back {
            vm.prepare_load()?;
        }
        Saved::of(&request).store(&dir)?;
        let machine = Resume::new(Setup {
            pages_follow,
            paused: request.paused,
        });
        Ok(Self::run(
            vm,
            dir,
            survey,
            request,
            since,
            pager,
            machine,
            Some(own),
        ))
    }

    /// Goes on with a resume that an earlier daemon left in `dir`, whose guest is `vm`.
    ///
    /// # Errors
    /// When the directory does not hold what is needed, or the guest's faults cannot be found again. The guest is left as it is.
    pub fn recover(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        survey: Survey,
        saved: Saved,
    ) -> Result<Self, ResumeError> {
        let left = saved.left.unwrap_or(vmferry_core::resume::Left::Running);
        let states = dir.page_states();
        let pager = match states.exists() {
            false => None,
            true => {
                let states = SharedPageStates::open(&states, vm.ram().layout().pages() as usize)?;
                let faults = vm.reopen_page_faults()?;
                let pager = Pager::new(vm.ram().clone(), faults, FaultMode::Missing, states, false);
                pager.recover();
                Some(Arc::new(pager))
            }
        };
        let machine = Resume::recovered(left, pager.is_some());
        let request = Request {
            store: saved.store,
            checkpoint: saved.checkpoint,
            mode: saved.mode,
            drain_after: saved.drain_after,
            paused: false,
            put_disks_back: false,
            patience: saved.patience,
            readers: 0,
            service: None,
        };
        Ok(Self::run(
            vm,
            dir,
            survey,
            request,
            Instant::now(),
            pager,
            machine,
            None,
        ))
    }

    #[allow(clippy::too_many_arguments, reason = "what a resume consists of, named once")]
    fn run(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        survey: Survey,
        request: Request,
        since: Instant,
        pager: Option<Arc<Pager>>,
        machine: Resume,
        own: Option<Own>,
    ) -> Self {
        let (inputs, received) = unbounded();
        let report = driver::blank_report(&vm, &survey.reader, &request);
        let ram = vm.ram().clone();
        let reader = Arc::clone(&survey.reader);
        let filling = Filling::new(reader, ram, pager, request.patience, since, inputs.clone());
        if machine.stalled().is_some() {
            filling.inherit_lack();
        }
        let shared = Arc::new(Shared {
            seen: Mutex::new(Seen {
                phase: machine.phase(),
                ours: machine.owns(),
                standing: machine.stands(),
                stalled: machine.stalled().map(str::to_owned),
                report,
                first_counted: false,
                ended: false,
            }),
            changed: Condvar::new(),
            vm,
            dir,
            request,
            since,
            filling,
            inputs,
        });
        let driver = Driver::new(shared.clone(), received, survey, machine, own);
        spawn("resume", move || driver.run());
        Self { shared }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &CheckpointId {
        &self.shared.request.checkpoint
    }

    /// How far it is.
    pub fn progress(&self) -> ResumeProgress {
        let (shared, seen) = (&self.shared, self.shared.seen());
        let work = shared.filling.work();
        let (missing, early) = work.map_or((0, 0), |work| (work.missing(), work.early_missing()));
        ResumeProgress {
            checkpoint: shared.request.checkpoint.to_string(),
            mode: shared.request.mode,
            phase: seen.phase.to_owned(),
            elapsed_ms: ms(shared.since.elapsed()),
            start_ms: seen.report.start_ms,
            data_pages: seen.report.pages.data,
            missing_pages: missing,
            missing_before_start_pages: early,
            store_bytes: shared.filling.reader.bytes_read(),
            store_faults: shared
                .filling
                .pager
                .as_ref()
                .map_or(0, |pager| pager.fault_report().network),
            ours: seen.ours,
            standing: seen.standing,
            stalled: seen.stalled.clone(),
            problem: shared.filling.problem(),
        }
    }

    /// What was measured so far; complete once the resume has ended, which the outcome tells.
    pub fn report(&self) -> ResumeReport {
        let mut seen = self.shared.seen();
        if !seen.ended {
            driver::measure(&self.shared, &mut seen);
        }
        seen.report.clone()
    }

    /// Waits for the end and answers the report.
    pub fn wait(&self) -> ResumeReport {
        let seen = self.shared.seen();
        let ended = self.shared.changed.wait_while(seen, |seen| !seen.ended);
        ended.unwrap_or_else(PoisonError::into_inner).report.clone()
    }

    /// Gives the guest up, which is possible until it is started: nothing is left of it but its checkpoint.
    ///
    /// # Errors
    /// When it was started or it is over.
    pub fn cancel(&self) -> Result<(), ResumeError> {
        self.ask(Event::Cancel)
    }

    /// Starts a guest that was to be left paused.
    ///
    /// # Errors
    /// When it was not, is not that far, or it is over.
    pub fn go_on(&self) -> Result<(), ResumeError> {
        self.ask(Event::GoOn)
    }

    /// Brings the rest of the guest's pages, whatever the mode was. Before the guest runs nothing changes.
    ///
    /// # Errors
    /// When it does not run yet, or it is over.
    pub fn fill(&self) -> Result<(), ResumeError> {
        let name = || self.shared.vm.spec().name.clone();
        match self.progress() {
            _ if self.shared.over() => Err(ResumeError::Over(name())),
            progress if !progress.ours && !progress.standing => Err(ResumeError::NotRunning(name())),
            _ => {
                self.shared.filling.change(Work::bring_the_rest);
                Ok(())
            }
        }
    }

    fn ask(&self, event: Event) -> Result<(), ResumeError> {
        let over = || ResumeError::Over(self.shared.vm.spec().name.clone());
        let (answer, answered) = bounded(1);
        let sent = self.shared.inputs.send(Input::Ask(event, answer));
        sent.map_err(|_| over())?;
        answered.recv().map_err(|_| over())?
    }

    /// The daemon lets go of the guest, which is gone or goes on by itself, waiting for pages until somebody recovers this.
    pub fn release(&self) {
        self.shared.filling.end();
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> bool {
        self.filling.over.load(Ordering::Acquire)
    }
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.expect("a thread can be started")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// An error and its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    line
}
