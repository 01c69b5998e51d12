//! Guests that are sound but for one mistake.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmferry_core::{PageBitmap, PageRun};
use vmferry_guest::conformance::Subject;
use vmferry_guest::{
    DirtyTracker, FaultMode, Guest, GuestRam, GuestSpec, GuestState, HeldEvent, Installed, MigrateIn,
    MigrateOut, PageFaults, Result, Vm, WriteHolds,
};

/// What the backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    TrackerDropsAPage,
    TrackerReportsAPageOnce,
    TrackerNeverForgets,
    PauseDoesNothing,
    DeviceStateIsOld,
    InstallSaysFresh,
    InstallOverwrites,
    AnythingLoads,
    PagesBecomeZero,
    StaleIsVisible,
    WakingIsForgotten,
    ProtectsTheSecondHalf,
    ReleasesFirst,
    TouchesGoUnseen,
}

/// The guests of `sound` with a mistake.
pub(crate) struct BrokenSubject<S> {
    pub(crate) sound: S,
    pub(crate) mistake: Mistake,
}

impl<S: Subject> Subject for BrokenSubject<S> {
    fn source(&self) -> Arc<dyn Vm> {
        let inner = self.sound.source();
        inner.pause().unwrap();
        let old_state = inner.save_device_state().unwrap();
        inner.resume().unwrap();
        Arc::new(Broken {
            inner,
            mistake: self.mistake,
            old_state,
            faults: Mutex::default(),
        })
    }

    fn incoming(&self, source: &dyn Vm) -> Arc<dyn Vm> {
        let inner = self.sound.incoming(source);
        Arc::new(Broken {
            inner,
            mistake: self.mistake,
            old_state: Vec::new(),
            faults: Mutex::default(),
        })
    }

    fn violations(&self, guest: &dyn Vm) -> Vec<String> {
        self.sound.violations(guest)
    }

    fn is_busy(&self) -> bool {
        self.sound.is_busy()
    }

    fn let_run(&self, _: &dyn Vm) {
        // A broken guest may not get far.
        std::thread::sleep(Duration::from_millis(30));
    }
}

struct Broken {
    inner: Arc<dyn Vm>,
    mistake: Mistake,
    old_state: Vec<u8>,
    faults: Mutex<Option<Arc<dyn PageFaults>>>,
}

impl Guest for Broken {
    fn spec(&self) -> &GuestSpec {
        self.inner.spec()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.inner.ram()
    }

    fn state(&self) -> GuestState {
        self.inner.state()
    }

    fn pid(&self) -> Option<u32> {
        self.inner.pid()
    }

    fn pause(&self) -> Result<()> {
        if self.mistake == Mistake::PauseDoesNothing {
            Ok(())
        } else {
            self.inner.pause()
        }
    }

    fn resume(&self) -> Result<()> {
        self.inner.resume()
    }

    fn destroy(&self) {
        self.inner.destroy();
    }
}

impl MigrateOut for Broken {
    fn prepare_out(&self) -> Result<()> {
        self.inner.prepare_out()
    }

    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        let inner = self.inner.dirty_tracker()?;
        let seen = PageBitmap::new(self.ram().layout().pages());
        Ok(Box::new(BrokenTracker {
            inner,
            mistake: self.mistake,
            seen,
            dropped: None,
        }))
    }

    fn hold_writes(&self) -> Result<Arc<dyn WriteHolds>> {
        Ok(Arc::new(BrokenHolds {
            inner: self.inner.hold_writes()?,
            mistake: self.mistake,
        }))
    }

    fn has_pinned_io(&self) -> bool {
        self.inner.has_pinned_io()
    }

    fn may_discard_pages(&self) -> bool {
        self.inner.may_discard_pages()
    }

    fn before_stop(&self) -> Result<()> {
        self.inner.before_stop()
    }

    fn save_device_state(&self) -> Result<Vec<u8>> {
        let state = self.inner.save_device_state()?;
        Ok(if self.mistake == Mistake::DeviceStateIsOld {
            self.old_state.clone()
        } else {
            state
        })
    }
}

impl MigrateIn for Broken {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        let mode = if self.mistake == Mistake::StaleIsVisible {
            FaultMode::Missing
        } else {
            mode
        };
        let inner = self.inner.page_faults(mode)?;
        let faults = Arc::new(BrokenFaults {
            inner,
            mistake: self.mistake,
            ram: self.ram().clone(),
        });
        *self.faults.lock().unwrap() = Some(faults.clone());
        Ok(faults)
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        match &*self.faults.lock().unwrap() {
            Some(faults) if self.mistake == Mistake::WakingIsForgotten => Ok(faults.clone()),
            _ => self.inner.reopen_page_faults(),
        }
    }

    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        match self.inner.load_device_state(state) {
            Err(_) if self.mistake == Mistake::AnythingLoads => Ok(()),
            outcome => outcome,
        }
    }

    fn announce(&self) -> Result<()> {
        self.inner.announce()
    }
}

struct BrokenHolds {
    inner: Arc<dyn WriteHolds>,
    mistake: Mistake,
}

impl WriteHolds for BrokenHolds {
    fn protect(&self, run: PageRun) -> Result<()> {
        match self.mistake {
            // The guest writes the first pages of its RAM, too.
            Mistake::ProtectsTheSecondHalf => {
                let (_, second) = run.split_at(run.count.div_ceil(2));
                second.map_or(Ok(()), |run| self.inner.protect(run))
            }
            _ => self.inner.protect(run),
        }
    }

    fn release(&self, run: PageRun) -> Result<()> {
        self.inner.release(run)
    }

    fn wait(&self, timeout: Duration, events: &mut Vec<HeldEvent>) -> Result<()> {
        self.inner.wait(timeout, events)?;
        if self.mistake == Mistake::ReleasesFirst {
            for event in &*events {
                if let HeldEvent::Write(page) = event {
                    self.inner.release(PageRun::single(*page))?;
                }
            }
            // Whoever was released has time to write.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn forget_touches(&self) -> Result<()> {
        self.inner.forget_touches()
    }

    fn touched(&self, pages: &mut PageBitmap) -> Result<()> {
        match self.mistake {
            Mistake::TouchesGoUnseen => Ok(()),
            _ => self.inner.touched(pages),
        }
    }

    fn end(&self) -> Result<()> {
        self.inner.end()
    }
}

struct BrokenTracker {
    inner: Box<dyn DirtyTracker>,
    mistake: Mistake,
    /// Pages reported so far.
    seen: PageBitmap,
    dropped: Option<u64>,
}

impl DirtyTracker for BrokenTracker {
    fn arm(&mut self) -> Result<()> {
        self.seen.clear();
        self.inner.arm()
    }

    fn arm_running(&mut self) -> Result<()> {
        self.seen.clear();
        self.inner.arm_running()
    }

    fn scan(&mut self, dirty: &mut PageBitmap) -> Result<()> {
        let mut found = PageBitmap::new(dirty.len());
        self.inner.scan(&mut found)?;
        let new = found.clone();
        match self.mistake {
            Mistake::TrackerDropsAPage => {
                self.dropped = self.dropped.or_else(|| found.pages().next());
                self.dropped.map(|page| found.remove(page));
            }
            Mistake::TrackerReportsAPageOnce => found.subtract(&self.seen),
            Mistake::TrackerNeverForgets => found.union_with(&self.seen),
            _ => {}
        }
        self.seen.union_with(&new);
        dirty.union_with(&found);
        Ok(())
    }

    fn disarm(&mut self) -> Result<()> {
        self.inner.disarm()
    }
}

struct BrokenFaults {
    inner: Arc<dyn PageFaults>,
    mistake: Mistake,
    ram: Arc<GuestRam>,
}

impl PageFaults for BrokenFaults {
    fn wait(&self, timeout: Duration, pages: &mut Vec<u64>) -> Result<()> {
        self.inner.wait(timeout, pages)
    }

    fn install(&self, run: PageRun, data: &[u8]) -> Result<Installed> {
        if self.mistake == Mistake::PagesBecomeZero && run.first % 3 == 1 {
            return self.inner.install_zero(run);
        }
        let installed = self.inner.install(run, data)?;
        if self.mistake == Mistake::InstallOverwrites && installed == Installed::SomePresent {
            self.ram.write(run, data);
        }
        Ok(if self.mistake == Mistake::InstallSaysFresh {
            Installed::Fresh
        } else {
            installed
        })
    }

    fn install_zero(&self, run: PageRun) -> Result<Installed> {
        self.inner.install_zero(run)
    }

    fn reveal(&self, run: PageRun) -> Result<()> {
        // Without stale faults there is nothing to reveal.
        if self.mistake == Mistake::StaleIsVisible {
            Ok(())
        } else {
            self.inner.reveal(run)
        }
    }

    fn wake(&self, run: PageRun) -> Result<()> {
        self.inner.wake(run)
    }

    fn release(&self) -> Result<()> {
        self.inner.release()
    }
}
