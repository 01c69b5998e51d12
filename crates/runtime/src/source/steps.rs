//! What a source does to its guest and its journal, one step a command.

use std::time::Instant;

use vmferry_core::PageBitmap;
use vmferry_core::handover::{Epoch, Record};
use vmferry_core::source::Event;

use super::driver::Driver;
use crate::link::{chain, token_text};

impl Driver {
    /// The first protect happens inside a short stop: see `vmferry_core::tracking`.
    pub(super) fn arm(&mut self) -> Result<Event, String> {
        let mut tracker = self.vm.dirty_tracker().map_err(|e| chain(&e))?;
        let began = Instant::now();
        self.vm.pause().map_err(|e| chain(&e))?;
        self.paused = true;
        let armed = tracker.arm().map_err(|e| chain(&e));
        self.tracker = Some(tracker);
        self.resume()?;
        let paused = began.elapsed();
        armed?;
        // What became data since is dirty as well, so looking after the pause loses nothing.
        let data = self.vm.ram().data_pages().map_err(|e| chain(&e))?;
        Ok(Event::Armed { data, paused })
    }

    pub(super) fn scan(&mut self) -> Result<PageBitmap, String> {
        let mut dirty = PageBitmap::new(self.vm.ram().layout().pages());
        let tracker = self.tracker.as_mut().ok_or("tracking is not armed")?;
        tracker.scan(&mut dirty).map_err(|e| chain(&e))?;
        Ok(dirty)
    }

    pub(super) fn stop(&mut self, scan: bool, free: bool) -> Result<Event, String> {
        self.vm.before_stop().map_err(|e| chain(&e))?;
        let data = || self.vm.ram().data_pages().map_err(|e| chain(&e));
        // Looking through all of memory takes long: at the stop only what was empty has to be looked at again.
        let before = if scan { None } else { Some(data()?) };
        let paused_at = self.shared.now();
        self.paused = true;
        self.vm.pause().map_err(|e| chain(&e))?;
        let free = match self.vm.enlightened() {
            Some(guest) if free => guest.free_while_paused(),
            _ => None,
        };
        if let Some(mut pages) = before {
            self.vm.ram().add_new_data(&mut pages).map_err(|e| chain(&e))?;
            return Ok(Event::Stopped {
                paused_at,
                pages,
                discarded: None,
                free,
            });
        }
        let discarded = match self.vm.may_discard_pages() {
            true => {
                let mut holes = data()?;
                holes.invert();
                Some(holes)
            }
            false => None,
        };
        Ok(Event::Stopped {
            paused_at,
            pages: self.scan()?,
            discarded,
            free,
        })
    }

    pub(super) fn resume(&mut self) -> Result<(), String> {
        self.vm.resume().map_err(|e| chain(&e))?;
        self.paused = false;
        Ok(())
    }

    /// The guest goes on here. There is nobody to fail to: what goes wrong is logged.
    pub(super) fn rollback(&mut self) {
        if let Some(mut tracker) = self.tracker.take()
            && let Err(error) = tracker.disarm()
        {
            tracing::error!(
                vm = self.vm.spec().name,
                error = chain(&error),
                "cannot stop tracking"
            );
        }
        // Nothing of the copy may hold the guest's writes up.
        self.end_disks();
        if self.paused
            && let Err(error) = self.resume()
        {
            tracing::error!(vm = self.vm.spec().name, error, "cannot resume the guest");
        }
    }

    pub(super) fn release(&mut self, epoch: Epoch) {
        drop(self.tracker.take());
        self.vm.destroy();
        if let Err(error) = self.journal.append(&Record::Released { epoch }) {
            tracing::error!(
                vm = self.vm.spec().name,
                error = chain(&error),
                "cannot write the journal"
            );
        }
    }

    pub(super) fn journal_handed_over(&self, epoch: Epoch) -> Event {
        let to = self.shared.request.to.to_string();
        self.append(&Record::HandedOver {
            epoch,
            to,
            session: token_text(self.shared.session),
        })
    }

    pub(super) fn append(&self, record: &Record) -> Event {
        match self.journal.append(record) {
            Ok(()) => Event::Journaled,
            Err(error) => Event::JournalFailed(chain(&error)),
        }
    }
}
