//! What a resume does to its guest, one step a command.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::unbounded;
use vmferry_core::PageBitmap;
use vmferry_core::resume::{Command, Event, Interval, Left, ResumeMode, Work};

use super::driver::Driver;
use super::{Input, Shared, chain, disks, spawn};

/// Readers where nothing else is said: enough to have the processors unpack while others wait for the store.
pub(super) fn default_readers() -> usize {
    let processors = thread::available_parallelism().map_or(2, NonZero::get);
    (processors * 2).clamp(4, 16)
}

impl Driver {
    /// Finds out what there is to read. Answers what that means at once, or the event that ends it.
    pub(super) fn find_work(&mut self) -> Result<Vec<Event>, Event> {
        let shared = self.shared.clone();
        let (filling, request) = (&shared.filling, &shared.request);
        let survey = self.survey.take().expect("the work is found once");
        let placement = survey.end();
        let placement = Arc::new(placement.map_err(|error| Event::Lacking(chain(&error)))?);
        let policy = request.mode.policy(request.drain_after);
        let recovered = self.own.is_none();
        let work = match (recovered, &filling.pager) {
            (true, Some(pager)) => {
                let mut missing = pager.have();
                missing.invert();
                Work::recovered(placement, policy, &missing)
            }
            (true, None) => Work::recovered(
                placement,
                policy,
                &PageBitmap::new(shared.vm.ram().layout().pages()),
            ),
            (false, _) => Work::new(placement, policy, &self.interval()),
        };
        let (missing, early) = (work.missing(), work.early_missing());
        shared.seen().report.pages = work.counts();
        filling.begin(work);
        if recovered {
            self.take_up();
        }
        Ok(match (recovered, missing, early) {
            (_, 0, _) => vec![Event::AllPlaced],
            (false, _, 0) => vec![Event::EarlyPlaced],
            _ => Vec::new(),
        })
    }

    /// The last interval of the checkpoint. One that stands alone has none, and counts all its data as written.
    fn interval(&self) -> Interval {
        let manifest = self.shared.filling.reader.manifest();
        let written = match manifest.interval_ms {
            Some(_) => manifest.written.clone(),
            None => PageBitmap::new(manifest.layout.pages()),
        };
        let accessed = manifest.accessed.clone();
        if self.shared.request.mode == ResumeMode::Predictive && written.is_empty() && accessed.is_empty() {
            let note =
                "the checkpoint has no record of an interval before it: nothing was loaded before the start";
            self.shared.seen().report.notes.push(note.into());
        }
        Interval { written, accessed }
    }

    /// An earlier daemon ended in the middle: its guest runs, or was to.
    fn take_up(&mut self) {
        self.serve_faults();
        let stands = self.machine.stands() || self.machine.stalled().is_some();
        if !stands {
            self.turn(true);
        }
    }

    pub(super) fn carry_out(&mut self, command: &Command) -> Result<Option<Event>, String> {
        match command {
            Command::ServeFaults => self.switch_to_faults(),
            Command::Load => self.load(),
            Command::Start => return self.start().map(Some),
            Command::Announce => self.announce(),
            Command::BeginBackground => self.begin_background(),
            Command::Pause => self.turn(false),
            Command::Unpause => self.turn(true),
            Command::ReleaseFaults => {
                if let Some(pager) = &self.shared.filling.pager {
                    pager.release().map_err(|error| chain(&error))?;
                }
            }
            Command::Discard => self.shared.vm.destroy(),
        }
        Ok(None)
    }

    fn switch_to_faults(&mut self) {
        let filling = &self.shared.filling;
        if let (Some(pager), Some(work)) = (&filling.pager, filling.work()) {
            pager.switch(work.left());
        }
        filling.go_through_pager();
        self.serve_faults();
    }

    fn serve_faults(&mut self) {
        let shared = self.shared.clone();
        let Some(pager) = shared.filling.pager.clone() else {
            return;
        };
        shared.filling.go_through_pager();
        self.threads.push(spawn("resume faults", move || {
            let _usage = shared.filling.usage.thread();
            let ask = |page| {
                let now = shared.since.elapsed();
                shared.filling.change(|work| work.demanded(now, page));
            };
            if let Err(error) = pager.serve(&shared.filling.over, ask) {
                let why = format!("faults of the guest cannot be served: {}", chain(&error));
                let _ = shared.inputs.send(Input::Event(Event::Failed(why)));
            }
        }));
    }

    /// On a thread of its own: loading may wait for a page.
    fn load(&mut self) {
        let shared = self.shared.clone();
        self.threads.push(spawn("resume load", move || {
            let _usage = shared.filling.usage.thread();
            let event = load(&shared);
            let _ = shared.inputs.send(Input::Event(event));
        }));
    }

    fn start(&mut self) -> Result<Event, String> {
        self.keep(Left::Running);
        if let Some(own) = self.own.take() {
            own()?;
        }
        self.shared.vm.resume().map_err(|error| chain(&error))?;
        self.note_started();
        self.ask_service();
        Ok(Event::Started)
    }

    fn announce(&self) {
        if let Err(error) = self.shared.vm.announce() {
            let name = &self.shared.vm.spec().name;
            tracing::warn!("cannot announce {name} to the network: {}", chain(&error));
        }
    }

    fn begin_background(&mut self) {
        if self.machine.stands() {
            self.keep(Left::Standing);
            // Nothing stands against finding it again after a restart.
            if let Some(own) = self.own.take()
                && let Err(why) = own()
            {
                tracing::warn!("a restarted daemon will not find the paused guest: {why}");
            }
        }
        self.shared.filling.change(Work::begin_background);
    }

    /// Pauses the guest or lets it go on, in this order and on another thread: a vCPU that waits for a page cannot stop before the
    /// page is there.
    fn turn(&mut self, on: bool) {
        let switch = self.switch.get_or_insert_with(|| {
            let (switch, turns) = unbounded::<bool>();
            let shared = self.shared.clone();
            // Nobody waits for its end: it may wait for a page.
            drop(spawn("resume switch", move || {
                for on in turns {
                    let turned = match on {
                        true => shared.vm.resume(),
                        false => shared.vm.pause(),
                    };
                    if let Err(error) = turned {
                        let what = if on {
                            "let the guest go on"
                        } else {
                            "pause the guest"
                        };
                        tracing::warn!("cannot {what}: {}", chain(&error));
                    }
                }
            }));
            switch
        });
        // It ends after this only.
        let _ = switch.send(on);
    }
}

fn load(shared: &Shared) -> Event {
    let reader = &shared.filling.reader;
    if shared.request.put_disks_back
        && let Err(error) = disks::put_back(&*shared.vm, reader, shared.dir.path())
    {
        return Event::Failed(format!("the disks cannot be put back: {}", chain(&error)));
    }
    let state = match reader.blob(&reader.manifest().device_state) {
        Ok(state) => state,
        Err(error) => return Event::Lacking(chain(&error)),
    };
    match shared.vm.load_device_state(&state) {
        Ok(()) => Event::Loaded,
        Err(error) => Event::Failed(chain(&error)),
    }
}
