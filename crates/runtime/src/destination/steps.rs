//! What a destination does to its guest and its journal, one step a command.

use std::sync::atomic::Ordering;
use std::thread;

use vmferry_core::PageBitmap;
use vmferry_core::destination::Event;
use vmferry_core::handover::{Epoch, Record};

use super::driver::Driver;
use super::opening::log_entry;
use super::pages::Intake;
use super::session::Input;
use super::session_log::Became;
use crate::dir::remove;
use crate::link::chain;

impl Driver<'_> {
    /// From here on pages go through the pager.
    pub(super) fn expect_pages(&mut self) -> Result<Option<Event>, String> {
        let sink = self.sink();
        let pager = sink
            .pager
            .get()
            .ok_or("pages after the resume were not part of the offer")?;
        let outstanding = pager.switch(&self.pending);
        sink.set_intake(Intake::Paged);
        self.serve_faults();
        Ok((outstanding == 0).then_some(Event::AllArrived))
    }

    pub(super) fn serve_faults(&mut self) {
        let (session, sink) = (self.session.clone(), self.sink());
        let serve = move || {
            let _usage = session.usage.thread();
            let Some(pager) = sink.pager.get() else { return };
            if let Err(error) = pager.serve(&sink.closing, |page| session.faults.ask(page)) {
                let reason = format!("faults of the guest cannot be served: {}", chain(&error));
                let _ = session.inputs.send(Input::Local(Event::Failed(reason)));
            }
        };
        self.fault_thread = Some(
            thread::Builder::new()
                .name("in faults".into())
                .spawn(serve)
                .expect("a thread can be started"),
        );
    }

    pub(super) fn load(&mut self) -> Result<(), String> {
        if let Some(disks) = self.session.guest.get().and_then(|guest| guest.disks.as_ref()) {
            disks.end(&self.arrival.vm)?;
        }
        let sink = self.sink();
        if self.fault_thread.is_none() {
            sink.set_intake(Intake::Closed);
            // Nothing is outstanding, but accesses fault while the mechanism is armed.
            if let Some(pager) = sink.pager.get() {
                pager.switch(&PageBitmap::new(self.pending.len()));
                self.serve_faults();
            }
        }
        let state = std::mem::take(&mut self.device_state);
        self.session.loading.store(true, Ordering::Release);
        let loaded = self.arrival.vm.load_device_state(&state);
        self.session.loading.store(false, Ordering::Release);
        loaded.map_err(|e| chain(&e))
    }

    pub(super) fn run_guest(&mut self) -> Result<Event, String> {
        self.arrival.vm.resume().map_err(|e| chain(&e))?;
        self.running = Some(self.clock.now());
        Ok(Event::Started)
    }

    pub(super) fn announce(&mut self) {
        let name = self.session.name().to_owned();
        if let Err(error) = self.arrival.vm.announce() {
            tracing::warn!(
                vm = name,
                error = chain(&error),
                "cannot announce the guest to the network"
            );
        }
        let owner = log_entry(self.session.token, &self.arrival, Became::Owner);
        if let Err(error) = self.shared.log.append(&owner) {
            tracing::error!(
                vm = name,
                error = chain(&error),
                "cannot write the log of sessions"
            );
        }
        self.shared.host.arrived(&name);
    }

    pub(super) fn release_faults(&mut self) -> Result<(), String> {
        let sink = self.sink();
        if let Some(pager) = sink.pager.get() {
            pager.release().map_err(|e| chain(&e))?;
        }
        sink.set_intake(Intake::Closed);
        self.stop_fault_thread();
        remove(&self.arrival.dir.page_states());
        Ok(())
    }

    pub(super) fn compare(&mut self) -> Result<Event, String> {
        let verified = self.comparison.result(self.pending.len())?;
        self.verified = Some(verified);
        Ok(Event::Compared {
            mismatches: verified.mismatches,
        })
    }

    pub(super) fn compare_arrived(&mut self) -> Result<Event, String> {
        let sink = self.sink();
        let pager = sink.pager.get().ok_or("nothing was paged in")?;
        let compared = self
            .expected
            .compare(self.pending.len(), |page| pager.arrival_hash(page));
        let mismatches = match compared {
            Ok(verified) => {
                self.verified = Some(verified);
                verified.mismatches
            }
            Err(reason) => {
                tracing::error!(vm = self.session.name(), reason, "pages could not be compared");
                0
            }
        };
        Ok(Event::Compared { mismatches })
    }

    pub(super) fn decline(&mut self, epoch: Epoch) -> Result<(), String> {
        self.arrival
            .journal
            .append(&Record::Declined { epoch })
            .map_err(|e| chain(&e))?;
        let declined = log_entry(self.session.token, &self.arrival, Became::Declined);
        self.shared.log.append(&declined).map_err(|e| chain(&e))
    }
}
