//! The connection of a destination: its control stream, and what goes out over it.

use std::sync::atomic::Ordering;
use std::thread;

use vmferry_core::PageBitmap;
use vmferry_core::destination::Event;
use vmferry_core::handover::{Claim, Epoch};
use vmferry_guest::PlacedDisk;
use vmferry_transport::BoxedStream;
use vmferry_wire::{OwnerState, ToSource, read_control, write_control};

use super::disks::places_json;
use super::driver::Driver;
use super::session::Input;
use crate::link::chain;

impl Driver<'_> {
    pub(super) fn begin_connection(&mut self, control: BoxedStream) -> Result<(), String> {
        self.close_connection();
        let mut reader = control.try_clone().map_err(|e| chain(&e))?;
        let (session, vm) = (self.session.clone(), self.arrival.vm.clone());
        let connection = session.connection.load(Ordering::Acquire);
        let read = move || {
            let _usage = session.usage.thread();
            loop {
                match read_control(&mut reader) {
                    Ok(message) => {
                        let _ = session.inputs.send(Input::Message { connection, message });
                    }
                    Err(error) => {
                        // Loading may wait for a page that will not come any more. The guest is the source's
                        // then: it heard of no `Ready`.
                        if session.loading.load(Ordering::Acquire) {
                            vm.destroy();
                        }
                        return session.tell(connection, Event::Broken(chain(&error)));
                    }
                }
            }
        };
        let thread = thread::Builder::new()
            .name("in control".into())
            .spawn(read)
            .expect("a thread can be started");
        self.control_reader = Some(thread);
        self.control = Some(control);
        Ok(())
    }

    pub(super) fn close_connection(&mut self) {
        if let Some(control) = self.control.take() {
            let _ = control.shutdown();
        }
        self.session.close_streams();
        if let Some(thread) = self.control_reader.take() {
            let _ = thread.join();
        }
    }

    pub(super) fn send(&mut self, message: &ToSource) -> Result<(), String> {
        let control = self
            .control
            .as_mut()
            .ok_or("there is no connection to the source")?;
        write_control(control, message).map_err(|e| chain(&e))
    }

    /// Tells the source where its disks go, where they come.
    pub(super) fn say_where_disks_are(&mut self, places: &[PlacedDisk]) -> Result<(), String> {
        let come = self
            .session
            .guest
            .get()
            .is_some_and(|guest| guest.disks.is_some());
        if !come {
            return Ok(());
        }
        let places_json = places_json(places)?;
        self.send(&ToSource::DisksPlaced { places_json })
    }

    /// Sends what the source will ask for again after a reconnect.
    pub(super) fn send_or_break(&mut self, message: &ToSource) -> Result<Option<Event>, String> {
        Ok(self.send(message).err().map(Event::Broken))
    }

    pub(super) fn round_received(&mut self, round: u32) -> Result<(), String> {
        let sink = self.sink();
        let total = (
            sink.pages.load(Ordering::Relaxed),
            sink.bytes.load(Ordering::Relaxed),
        );
        let before = std::mem::replace(&mut self.reported, total);
        self.send(&ToSource::RoundReceived {
            round,
            pages: total.0 - before.0,
            bytes: total.1 - before.1,
        })
    }

    pub(super) fn send_claim(&mut self, epoch: Epoch, claim: Claim) -> Result<(), String> {
        let state = match claim {
            Claim::Prepared => OwnerState::Prepared,
            Claim::Owner => OwnerState::Owner,
            Claim::Declined => OwnerState::Declined,
        };
        self.send(&ToSource::Owner {
            epoch: epoch.0,
            state,
        })?;
        if claim == Claim::Declined {
            return Ok(());
        }
        let sink = self.sink();
        let have = match sink.pager.get() {
            Some(pager) => pager.have(),
            None => PageBitmap::full(self.pending.len()),
        };
        ToSource::received(&have)
            .iter()
            .try_for_each(|message| self.send(message))
    }
}
