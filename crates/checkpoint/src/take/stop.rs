//! The pause: as short as it can be, whatever the size of RAM.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::PageRun;
use vmferry_core::take::{Cut, Live, LiveRounds, bridged_runs, work_of};
use vmferry_guest::GuestState;

use super::disks::DisksOfMoment;
use super::error::{Result, TakeError};
use super::shared::Shared;

/// Pages protected under one lock: a writer that is held up waits for no longer than that takes.
const PROTECT_PAGES: u64 = 2048;
/// How long a guest that does not go on after its pause is asked to: a disk it shares may be somebody else's for a moment.
const RESUMING: Duration = Duration::from_secs(2);
/// Between two times.
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// What a pause gave.
pub(super) struct Stopped {
    pub(super) cut: Cut,
    pub(super) device_state: Vec<u8>,
    pub(super) pause: Duration,
}

impl Shared {
    /// Protects what holds data and is open, while the guest runs, until what is left for the pause is little or does not get
    /// less. Answers how many rounds that took.
    pub(super) fn protect_live(&self) -> Result<u32> {
        let mut rounds = LiveRounds::new(self.options.protect_goal);
        loop {
            let runs = self.unprotected_now()?;
            let work = work_of(&runs);
            if rounds.next(work) == Live::Pause {
                return Ok(rounds.count());
            }
            let began = Instant::now();
            self.protect_all(&runs)?;
            rounds.protected(work, began.elapsed());
        }
    }

    /// The cut: pauses the guest, and lets it go on whatever happens.
    pub(super) fn stop(&self, disks: Option<&DisksOfMoment<'_>>) -> Result<Stopped> {
        // Who stopped it wants it to stand still.
        if self.vm.state() == GuestState::Paused {
            return Err(TakeError::NotRunning);
        }
        let began = Instant::now();
        let paused = self.vm.pause();
        let cut = match paused {
            Ok(()) => {
                catch_unwind(AssertUnwindSafe(|| self.cut_paused(disks))).unwrap_or(Err(TakeError::Panicked))
            }
            // It may stand still even so, or will once its disks answer.
            Err(error) => Err(error.into()),
        };
        let resumed = self.let_go_on();
        let pause = began.elapsed();
        let (cut, device_state) = cut?;
        resumed?;
        Ok(Stopped {
            cut,
            device_state,
            pause,
        })
    }

    /// Has the guest run again.
    ///
    /// # Errors
    /// It does not: [`Shared::is_left_paused`] says so until it does.
    pub(super) fn let_go_on(&self) -> Result<()> {
        let began = Instant::now();
        let mut resumed = self.vm.resume();
        while resumed.is_err() && began.elapsed() < RESUMING && self.vm.state() != GuestState::Gone {
            thread::sleep(RESUME_PAUSE);
            resumed = self.vm.resume();
        }
        self.is_left_paused.store(resumed.is_err(), Ordering::Release);
        Ok(resumed.inspect_err(|error| {
            tracing::error!(%error, "the guest could not be resumed after a checkpoint");
        })?)
    }

    fn cut_paused(&self, disks: Option<&DisksOfMoment<'_>>) -> Result<(Cut, Vec<u8>)> {
        // The hypervisor saves its devices, and may write RAM for it, while pages are protected: its writes are held up and
        // answered like the guest's, and the moment that counts is the one after both.
        let (protected, device_state) = thread::scope(|scope| {
            let protect = || self.unprotected_now().and_then(|runs| self.protect_all(&runs));
            let protecting = thread::Builder::new().spawn_scoped(scope, protect);
            let device_state = self.vm.save_device_state();
            let protected = match protecting {
                Ok(protecting) => protecting.join().unwrap_or(Err(TakeError::Panicked)),
                Err(error) => Err(TakeError::Thread(error)),
            };
            (protected, device_state)
        });
        protected?;
        let device_state = device_state?;
        // A hypervisor lets go of its disks as it saves its devices, which it cannot once it keeps them as of a moment.
        disks.map_or(Ok(()), DisksOfMoment::begin)?;
        Ok((self.cut()?, device_state))
    }

    fn cut(&self) -> Result<Cut> {
        let mut inner = self.lock();
        let mut data = inner.taker.data().clone();
        self.vm.ram().add_new_data(&mut data).map_err(TakeError::Memory)?;
        inner.taker.look(data);
        for run in bridged_runs(&inner.taker.unprotected()) {
            inner.protect(run, &*self.holds)?;
        }
        Ok(inner.taker.cut())
    }

    /// The pages that hold data now and are open, as runs to protect.
    fn unprotected_now(&self) -> Result<Vec<PageRun>> {
        let known = self.lock().taker.data().clone();
        let data = match known.is_empty() {
            true => self.vm.ram().data_pages(),
            false => {
                let mut data = known;
                self.vm.ram().add_new_data(&mut data).map(|()| data)
            }
        };
        let data = data.map_err(TakeError::Memory)?;
        let mut inner = self.lock();
        inner.taker.look(data);
        Ok(bridged_runs(&inner.taker.unprotected()))
    }

    fn protect_all(&self, runs: &[PageRun]) -> Result<()> {
        for &run in runs {
            let mut rest = Some(run);
            while let Some(run) = rest {
                let (piece, behind) = run.split_at(PROTECT_PAGES);
                self.protect(piece)?;
                rest = behind;
            }
        }
        Ok(())
    }
}
