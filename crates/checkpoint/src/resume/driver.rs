//! The driver of a resume: one thread that owns the events of its machine and has the commands carried out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use vmferry_core::PAGE_SIZE;
use vmferry_core::report::Outcome;
use vmferry_core::resume::{
    Command, Event, Left, Resume, ResumeFaults, ResumePages, ResumePhase, ResumeReport,
};
use vmferry_guest::Vm;
use vmferry_runtime::dir::remove;
use vmferry_store::Reader;

use super::filling::Duty;
use super::{Input, Own, Request, Saved, Seen, Shared, Survey, chain, ms, probe, spawn};

/// Faults are counted up to this time after the start as well: it is when a lazy guest crawls.
const FIRST: Duration = Duration::from_secs(10);
/// How often the driver looks around when nothing happens.
const IDLE: Duration = Duration::from_millis(200);

/// One resume at work.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    received: Receiver<Input>,
    /// Until it is known what there is to read.
    pub(super) survey: Option<Survey>,
    pub(super) machine: Resume,
    pub(super) own: Option<Own>,
    pub(super) threads: Vec<JoinHandle<()>>,
    /// To the thread that pauses and lets go on.
    pub(super) switch: Option<Sender<bool>>,
    pub(super) saved: Saved,
    started: Option<Instant>,
    stalled: Option<Instant>,
    pub(super) answered: Option<Receiver<Option<Instant>>>,
    phase_since: Instant,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        received: Receiver<Input>,
        survey: Survey,
        machine: Resume,
        own: Option<Own>,
    ) -> Self {
        Self {
            saved: Saved::of(&shared.request),
            phase_since: shared.since,
            shared,
            received,
            survey: Some(survey),
            machine,
            own,
            threads: Vec::new(),
            switch: None,
            started: None,
            stalled: None,
            answered: None,
        }
    }

    /// Runs the resume to its end.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let mut usage = shared.filling.usage.thread();
        // An earlier daemon may have left it paused: that counts from now on.
        self.show();
        let mut events: VecDeque<Event> = self.open().into();
        loop {
            while let Some(event) = events.pop_front() {
                match self.machine.handle(event) {
                    Ok(commands) => self.execute(commands, &mut events),
                    // Two readers may both have said so.
                    Err(error) => tracing::debug!(%error, "an event of a resume came late"),
                }
                self.show();
            }
            usage.flush();
            if self.machine.ended().is_some() || shared.over() {
                break;
            }
            match self.received.recv_timeout(IDLE) {
                Ok(Input::Event(event)) => events.push_back(event),
                Ok(Input::Ask(event, answer)) => {
                    let handled = self.machine.handle(event);
                    let (told, commands) = match handled {
                        Ok(commands) => (Ok(()), commands),
                        Err(error) => (Err(error.into()), Vec::new()),
                    };
                    self.execute(commands, &mut events);
                    self.show();
                    // Who asked may not wait any more.
                    let _ = answer.send(told);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.count_first_faults();
        }
        self.end();
    }

    fn execute(&mut self, commands: Vec<Command>, events: &mut VecDeque<Event>) {
        for command in commands {
            tracing::debug!(?command, "resume");
            match self.carry_out(&command) {
                Ok(event) => events.extend(event),
                Err(why) => events.push_back(Event::Failed(why)),
            }
        }
    }

    /// Notes when the guest ran.
    pub(super) fn note_started(&mut self) {
        let now = Instant::now();
        self.started = Some(now);
        self.shared.seen().report.start_ms = Some(ms(now - self.shared.since));
    }

    /// What the machine says is what is seen, and what is on disk.
    fn show(&mut self) {
        let (phase, stalled) = (self.machine.phase(), self.machine.stalled().map(str::to_owned));
        let now = Instant::now();
        match (&stalled, self.stalled) {
            (Some(why), None) => {
                self.stalled = Some(now);
                let name = &self.shared.vm.spec().name;
                tracing::error!("{name} is paused: its store does not give a page it needs: {why}");
                self.keep(Left::Stalled(why.clone()));
            }
            (None, Some(since)) => {
                self.stalled = None;
                self.shared.seen().report.stalled_ms += ms(now - since);
                tracing::info!(
                    "{} goes on: its store gives its pages again",
                    self.shared.vm.spec().name
                );
                self.keep(Left::Running);
            }
            _ => {}
        }
        let mut seen = self.shared.seen();
        if seen.phase != phase {
            let ended = ResumePhase {
                name: seen.phase.to_owned(),
                start_ms: ms(self.phase_since - self.shared.since),
                end_ms: ms(now - self.shared.since),
            };
            seen.report.phases.push(ended);
            self.phase_since = now;
        }
        seen.phase = phase;
        seen.ours = self.machine.owns();
        seen.standing = self.machine.stands();
        seen.stalled = stalled;
    }

    /// Notes how far it is for a daemon that goes on after this one. That it cannot is no reason to stop the guest: the worst is
    /// that the other one has to find out by itself.
    pub(super) fn keep(&mut self, left: Left) {
        self.saved.left = Some(left);
        // Once it is let go of, the directory may be another guest's.
        if self.machine.ended().is_none()
            && !self.shared.over()
            && let Err(error) = self.saved.store(&self.shared.dir)
        {
            tracing::warn!("cannot note how far the resume is: {}", chain(&error));
        }
    }

    fn count_first_faults(&mut self) {
        let over = self.started.is_some_and(|started| started.elapsed() >= FIRST);
        let mut seen = self.shared.seen();
        if over && !seen.first_counted {
            measure(&self.shared, &mut seen);
            seen.first_counted = true;
        }
    }

    /// It is over, or the daemon lets go of it.
    fn end(mut self) {
        let total_ms = ms(self.shared.since.elapsed());
        if self.machine.ended().is_some() {
            self.await_first_answer();
        }
        self.shared.filling.end();
        drop(self.switch.take());
        for thread in self.threads.drain(..) {
            // Where one panicked the resume failed by that already.
            let _ = thread.join();
        }
        // Where it can not go on here, the next daemon may be able to.
        if let Some((Outcome::Completed, _)) = self.machine.ended() {
            remove(&self.shared.dir.resume());
            remove(&self.shared.dir.page_states());
        }
        let shared = self.shared.clone();
        let mut seen = shared.seen();
        measure(&shared, &mut seen);
        seen.report.total_ms = total_ms;
        if let Some((outcome, error)) = self.machine.ended() {
            seen.report.outcome = Some(outcome);
            seen.report.error = error.map(str::to_owned);
        }
        seen.ended = true;
        shared.changed.notify_all();
    }

    /// A service may answer after the last page has come.
    fn await_first_answer(&mut self) {
        let Some(answered) = self.answered.take() else {
            return;
        };
        if self.machine.owns()
            && let Ok(Some(at)) = answered.recv()
        {
            self.shared.seen().report.first_answer_ms = Some(ms(at - self.shared.since));
        }
    }

    /// Asks the guest's service from now on, on a thread of its own.
    pub(super) fn ask_service(&mut self) {
        let Some(service) = self.shared.request.service.clone() else {
            return;
        };
        let (answer, answered) = unbounded();
        let shared = self.shared.clone();
        self.threads.push(spawn("resume probe", move || {
            let at = probe::ask(&service, &shared.filling.over);
            if let Some(at) = at {
                shared.seen().report.first_answer_ms = Some(ms(at - shared.since));
            }
            let _ = answer.send(at);
        }));
        self.answered = Some(answered);
    }

    /// Starts the threads that read, and the one that finds out what there is to read.
    fn open(&mut self) -> Vec<Event> {
        let demands = usize::from(self.shared.filling.pager.is_some()) * 2;
        let duties = std::iter::repeat_n(Duty::Demands, demands);
        let readers = match self.shared.request.readers {
            0 => super::steps::default_readers(),
            readers => readers,
        };
        let duties: Vec<_> = duties
            .chain(std::iter::repeat_n(Duty::Anything, readers))
            .collect();
        match self.find_work() {
            Ok(events) => {
                for duty in duties {
                    let shared = self.shared.clone();
                    self.threads
                        .push(spawn("resume reader", move || shared.filling.read(duty)));
                }
                events
            }
            Err(event) => vec![event],
        }
    }
}

/// Brings what changes by itself in the report up to date.
pub(super) fn measure(shared: &Shared, seen: &mut Seen) {
    let (filling, report) = (&shared.filling, &mut seen.report);
    report.total_ms = ms(shared.since.elapsed());
    if let Some(work) = filling.work() {
        report.pages = work.counts();
        report.data_bytes = report.pages.data * PAGE_SIZE;
    }
    if let Some(pager) = &filling.pager {
        let faults = pager.fault_report();
        report.faults = ResumeFaults {
            count: faults.count,
            store: faults.network,
            local: faults.local,
            store_first_10s: match seen.first_counted {
                true => report.faults.store_first_10s,
                false => faults.network,
            },
            p50_us: faults.p50_us,
            p99_us: faults.p99_us,
            max_us: faults.max_us,
        };
    }
    report.store_bytes = filling.reader.bytes_read();
    report.store_retries = filling.retries.load(Ordering::Relaxed);
    report.cpu_seconds = filling.usage.cpu_seconds();
}

/// The report of a resume of which nothing is known yet.
pub(super) fn blank_report(vm: &Arc<dyn Vm>, reader: &Reader, request: &Request) -> ResumeReport {
    ResumeReport {
        vm: vm.spec().name.clone(),
        checkpoint: request.checkpoint.to_string(),
        mode: request.mode,
        backend: vm.spec().backend.clone(),
        outcome: None,
        error: None,
        start_ms: None,
        first_answer_ms: None,
        total_ms: 0.0,
        ram_bytes: vm.ram().layout().bytes(),
        data_bytes: 0,
        device_state_bytes: reader.manifest().device_state.bytes,
        pages: ResumePages::default(),
        faults: ResumeFaults::default(),
        store_bytes: 0,
        store_retries: 0,
        stalled_ms: 0.0,
        cpu_seconds: 0.0,
        phases: Vec::new(),
        notes: Vec::new(),
    }
}
