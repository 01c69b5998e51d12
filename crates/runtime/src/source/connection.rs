//! The connection of a source: dialling, its streams, its control messages.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmferry_core::policy::Faults;
use vmferry_core::source::Event;
use vmferry_transport::BoxedStream;
use vmferry_wire::{FaultModeWire, HELD_PAGES_SINCE, Offer, StreamRole, ToDestination, write_control};

use super::driver::{Driver, Input};
use super::{control, faults, pages};
use crate::link::{chain, dial};

/// How often a broken connection is tried again.
const RECONNECT_EVERY: Duration = Duration::from_millis(500);
/// And how soon at first.
const RECONNECT_AT_FIRST: Duration = Duration::from_millis(50);

/// Bytes of device state in one message: few enough that the first go out while the hypervisor still saves the rest.
const STATE_PART_BYTES: usize = 64 << 10;

/// One connection to the destination: its control stream, and whatever threads serve it.
pub(super) struct Connection {
    control: BoxedStream,
    /// All streams, to unblock the threads when it ends.
    streams: Vec<BoxedStream>,
    threads: Vec<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
}

impl Driver {
    /// Dials the destination and makes the offer.
    pub(super) fn offer(&mut self) -> Result<(), String> {
        let shared = self.shared.clone();
        let request = &shared.request;
        let (control, version) = dial(&request.to, shared.session, StreamRole::Control { resume: false })?;
        shared.peer_speaks(version);
        self.begin_connection(control)?;
        let faults = match self.shared.source().needs().faults {
            Faults::None => None,
            Faults::Missing => Some(FaultModeWire::Missing),
            Faults::MissingAndStale => Some(FaultModeWire::MissingAndStale),
        };
        if let Some(disks) = &request.disks {
            self.offer_disks(disks, version)?;
        }
        let spec_json = serde_json::to_string(self.vm.spec()).map_err(|e| chain(&e))?;
        self.send(&ToDestination::Offer(Offer {
            spec_json,
            layout: self.vm.ram().layout().clone(),
            strategy: request.strategy.name().into(),
            streams: super::streams(request),
            faults,
            verify: request.verify,
            epoch: self.journal.epoch().next().0,
        }))?;
        if shared.reuse.wanted() && version >= HELD_PAGES_SINCE {
            shared.reuse.asked();
            self.send(&ToDestination::AskHeld)?;
        }
        Ok(())
    }

    pub(super) fn begin_connection(&mut self, control: BoxedStream) -> Result<(), String> {
        self.close_connection();
        self.connections += 1;
        let reader = control.try_clone().map_err(|e| chain(&e))?;
        let mut connection = Connection {
            streams: Vec::new(),
            threads: Vec::new(),
            control,
            closing: Arc::default(),
        };
        let peer = control::Peer {
            inputs: self.inputs.clone(),
            connection: self.connections,
            closing: connection.closing.clone(),
            destination: self.shared.request.to.to_string().into(),
        };
        let shared = self.shared.clone();
        connection
            .threads
            .push(spawn("control", move || control::read(reader, &shared, &peer)));
        self.connection = Some(connection);
        Ok(())
    }

    /// Dials the page streams and the fault stream, once the destination has agreed to take them.
    pub(super) fn open_streams(&mut self) -> Result<(), String> {
        if let Some(percent) = self.shared.destination_cpu_percent() {
            self.send(&ToDestination::CpuCap {
                percent: Some(percent),
            })?;
        }
        let Some(connection) = &mut self.connection else {
            return Err("no connection".into());
        };
        let peer = control::Peer {
            inputs: self.inputs.clone(),
            connection: self.connections,
            closing: connection.closing.clone(),
            destination: self.shared.request.to.to_string().into(),
        };
        let endpoint = &self.shared.request.to;
        for index in 0..self.streams {
            let (stream, _) = dial(endpoint, self.shared.session, StreamRole::Pages { index })?;
            connection
                .streams
                .push(stream.try_clone().map_err(|e| chain(&e))?);
            let (shared, peer) = (self.shared.clone(), peer.clone());
            connection.threads.push(spawn("pages", move || {
                pages::send(stream, usize::from(index), &shared, &peer);
            }));
        }
        if self.shared.source().needs().faults != Faults::None {
            let (stream, _) = dial(endpoint, self.shared.session, StreamRole::Faults)?;
            connection
                .streams
                .push(stream.try_clone().map_err(|e| chain(&e))?);
            let (shared, peer) = (self.shared.clone(), peer.clone());
            connection
                .threads
                .push(spawn("faults", move || faults::serve(stream, &shared, &peer)));
        }
        Ok(())
    }

    pub(super) fn close_connection(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        // What its threads still say does not count any more, and what arrived nobody knows.
        self.connections += 1;
        self.shared.encodings.no_more_deltas();
        self.shared.reuse.end();
        connection.closing.store(true, Ordering::Relaxed);
        for stream in connection.streams.iter().chain([&connection.control]) {
            let _ = stream.shutdown();
        }
        self.shared.wake.notify_all();
        self.shared.cpu_cap.close();
        for thread in connection.threads {
            let _ = thread.join();
        }
        self.shared.cpu_cap.open();
        self.control_bytes += connection.control.bytes_written();
    }

    /// Keeps dialling on a thread of its own, so that the operator can still resolve.
    pub(super) fn reconnect(&mut self) {
        self.close_connection();
        let (shared, inputs, stop) = (
            self.shared.clone(),
            self.inputs.clone(),
            self.stop_reconnecting.clone(),
        );
        spawn("reconnect", move || {
            let mut pause = RECONNECT_AT_FIRST;
            loop {
                thread::sleep(std::mem::replace(&mut pause, RECONNECT_EVERY));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                match dial(
                    &shared.request.to,
                    shared.session,
                    StreamRole::Control { resume: true },
                ) {
                    Ok((control, version)) => {
                        // Its daemon may be another one now.
                        shared.peer_speaks(version);
                        let _ = inputs.send(Input::Connected(control));
                        return;
                    }
                    Err(reason) => tracing::info!(reason, "the destination cannot be reached yet"),
                }
            }
        });
    }

    /// Connected again: whose is the guest?
    pub(super) fn ask_owner(&mut self, control: BoxedStream) -> Option<Event> {
        let asked = self.begin_connection(control).and_then(|()| {
            let epoch = self.journal.epoch().0;
            self.send(&ToDestination::Query { epoch })
        });
        // Still severed: try again.
        if asked.is_err() {
            self.reconnect();
        }
        None
    }

    pub(super) fn send(&mut self, message: &ToDestination) -> Result<(), String> {
        let Some(connection) = &mut self.connection else {
            return Err("there is no connection to the destination".into());
        };
        write_control(&mut connection.control, message).map_err(|e| chain(&e))
    }

    pub(super) fn send_all(&mut self, messages: &[ToDestination]) -> Result<(), String> {
        messages.iter().try_for_each(|message| self.send(message))
    }

    pub(super) fn send_state(&mut self) -> Result<Event, String> {
        let vm = self.vm.clone();
        let mut messages = StateMessages {
            driver: self,
            gathered: Vec::with_capacity(STATE_PART_BYTES),
        };
        let bytes = vm.stream_device_state(&mut messages).map_err(|e| chain(&e))?;
        messages.send(true)?;
        Ok(Event::StateSent { bytes })
    }

    pub(super) fn send_hashes(&mut self) -> Result<(), String> {
        let ram = self.vm.ram().clone();
        let dropped = self.shared.source().dropped().cloned();
        let shared = self.shared.clone();
        crate::destination::compare::hashes(&ram, dropped.as_ref(), &shared.usage, |first, hashes| {
            self.send(&ToDestination::PageHashes { first, hashes })
        })
    }
}

/// Sends device state in messages as it comes.
struct StateMessages<'a> {
    driver: &'a mut Driver,
    gathered: Vec<u8>,
}

impl StateMessages<'_> {
    fn send(&mut self, last: bool) -> Result<(), String> {
        let bytes = std::mem::take(&mut self.gathered);
        self.driver.send(&ToDestination::DeviceState { last, bytes })
    }
}

impl Write for StateMessages<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let taken = part.len().min(STATE_PART_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(&part[..taken]);
        if self.gathered.len() == STATE_PART_BYTES {
            self.send(false).map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(format!("out {name}"))
        .spawn(run)
        .expect("a thread can be started")
}
