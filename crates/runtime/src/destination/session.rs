//! One session of a destination, as other threads see it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded};
use vmferry_core::PageRun;
use vmferry_core::destination::Event;
use vmferry_transport::BoxedStream;
use vmferry_wire::{SessionToken, StreamRole};

use super::IncomingProgress;
use super::disks::DisksIn;
use super::faults::FaultLine;
use super::pages::{Delivered, Missed, PageReader, Sink};
use crate::cpu_cap::{CpuCap, Member};
use crate::error::RuntimeError;
use crate::usage::Usage;

/// How often a page stream counts its CPU time.
const FRAMES_PER_FLUSH: u64 = 64;

/// What reaches the driver of a session.
pub(super) enum Input {
    /// From a connection; of an older connection it does not count.
    Peer {
        /// Number of the connection.
        connection: u64,
        /// What happened.
        event: Event,
    },
    /// A control message.
    Message {
        /// Number of the connection.
        connection: u64,
        /// What the source says.
        message: vmferry_wire::ToDestination,
    },
    /// Pages that came as hashes and are not here, before the end of their round.
    Missed {
        /// Number of the connection.
        connection: u64,
        /// Which.
        pages: Vec<PageRun>,
    },
    /// From this host.
    Local(Event),
    /// The source is back.
    Connected(BoxedStream),
    /// The operator gives the guest up; answered with whether that is possible.
    Cancel(Sender<bool>),
}

/// See the module.
pub(super) struct Session {
    pub token: SessionToken,
    pub inputs: Sender<Input>,
    pub usage: Usage,
    /// What the page streams may use.
    pub cpu_cap: CpuCap,
    pub faults: FaultLine,
    /// Once a guest is admitted.
    pub guest: OnceLock<Guest>,
    pub streams: Mutex<Streams>,
    pub phase: Mutex<&'static str>,
    /// Number of the current connection.
    pub connection: AtomicU64,
    /// The device state is being loaded, which may wait for pages of the source.
    pub loading: AtomicBool,
}

/// The admitted guest.
pub(super) struct Guest {
    pub name: String,
    pub strategy: String,
    pub sink: Arc<Sink>,
    /// How many page streams were granted.
    pub streams: u16,
    /// A fault stream belongs to the session.
    pub paged: bool,
    /// Its disks, where they come with it.
    pub disks: Option<DisksIn>,
}

/// The page and fault streams of the current connection.
#[derive(Default)]
pub(super) struct Streams {
    /// Page streams that are taken.
    taken: Vec<bool>,
    faults_taken: bool,
    /// To unblock the threads when the connection ends.
    open: Vec<BoxedStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Session {
    pub(super) fn name(&self) -> &str {
        self.guest.get().map_or("", |guest| guest.name.as_str())
    }

    pub(super) fn progress(&self) -> IncomingProgress {
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let guest = self.guest.get();
        let pager = guest.and_then(|guest| guest.sink.pager.get());
        IncomingProgress {
            phase: phase.to_owned(),
            strategy: guest.map_or_else(String::new, |guest| guest.strategy.clone()),
            pages_received: guest.map_or(0, |guest| guest.sink.pages.load(Ordering::Relaxed)),
            outstanding: pager.map_or(0, |pager| pager.outstanding()),
            faults: pager.map_or(0, |pager| pager.fault_summary().count),
        }
    }

    pub(super) fn reconnected(&self, control: BoxedStream) {
        // The driver may have ended; the source then asks again and is answered from the log.
        let _ = self.inputs.send(Input::Connected(control));
    }

    pub(super) fn cancel(&self) -> Result<(), RuntimeError> {
        let over = || RuntimeError::BadRequest("the migration is over".into());
        let (answer, answered) = bounded(1);
        self.inputs.send(Input::Cancel(answer)).map_err(|_| over())?;
        match answered.recv() {
            Ok(true) => Ok(()),
            Ok(false) => Err(RuntimeError::BadRequest(
                "the guest runs here already; migrate it elsewhere instead".into(),
            )),
            Err(_) => Err(over()),
        }
    }

    pub(super) fn tell(&self, connection: u64, event: Event) {
        let _ = self.inputs.send(Input::Peer { connection, event });
    }

    /// Takes a page or fault stream, which speaks `version`, in and starts its thread.
    ///
    /// # Errors
    /// Gives the stream back with the reason to refuse it.
    pub(super) fn take_stream(
        self: &Arc<Self>,
        role: StreamRole,
        version: u16,
        mut stream: BoxedStream,
        welcome: impl FnOnce(&mut BoxedStream) -> bool,
    ) -> Result<(), (BoxedStream, String)> {
        let Some(guest) = self.guest.get() else {
            return Err((stream, "no guest was accepted yet".into()));
        };
        if let StreamRole::Disk { index } = role {
            return self.take_disk(guest, index, stream, welcome);
        }
        let mut streams = self.streams();
        let taken = match role {
            StreamRole::Pages { index } if index < guest.streams => {
                streams.taken.resize(usize::from(guest.streams), false);
                &mut streams.taken[usize::from(index)]
            }
            StreamRole::Pages { index } => {
                let reason = format!("page stream {index} of {} that were agreed on", guest.streams);
                return Err((stream, reason));
            }
            _ if guest.paged => &mut streams.faults_taken,
            _ => return Err((stream, "this migration has no fault stream".into())),
        };
        if std::mem::replace(taken, true) {
            return Err((stream, "this stream is connected already".into()));
        }
        let Ok(handle) = stream.try_clone() else {
            return Err((stream, "out of file descriptors".into()));
        };
        if !welcome(&mut stream) {
            return Ok(());
        }
        if role == StreamRole::Faults {
            let (Some(pager), Ok(requests)) = (guest.sink.pager.get(), stream.try_clone()) else {
                return Err((stream, "faults cannot be served".into()));
            };
            self.faults.connect(requests, pager);
        }
        streams.open.push(handle);
        let index = match role {
            StreamRole::Pages { index } => usize::from(index),
            _ => usize::from(guest.streams),
        };
        let (session, sink) = (self.clone(), guest.sink.clone());
        let connection = self.connection.load(Ordering::Acquire);
        let capped = role != StreamRole::Faults;
        let read = move || {
            let reader = PageReader::new(stream, index, version);
            session.read_pages(reader, &sink, connection, capped);
        };
        streams.threads.push(
            thread::Builder::new()
                .name("in pages".into())
                .spawn(read)
                .expect("a thread can be started"),
        );
        Ok(())
    }

    /// Takes the stream of a disk in.
    fn take_disk(
        &self,
        guest: &Guest,
        index: u16,
        mut stream: BoxedStream,
        welcome: impl FnOnce(&mut BoxedStream) -> bool,
    ) -> Result<(), (BoxedStream, String)> {
        let Some(arriving) = &guest.disks else {
            return Err((stream, "this migration moves no disks".into()));
        };
        let carry = match arriving.connect(index) {
            Ok(disk) => arriving.carrier(index, disk),
            Err(reason) => return Err((stream, reason)),
        };
        let Ok(handle) = stream.try_clone() else {
            return Err((stream, "out of file descriptors".into()));
        };
        if !welcome(&mut stream) {
            return Ok(());
        }
        let mut streams = self.streams();
        streams.open.push(handle);
        streams.threads.push(
            thread::Builder::new()
                .name("in disk".into())
                .spawn(move || carry(stream))
                .expect("a thread can be started"),
        );
        Ok(())
    }

    /// Pages that the guest waits for come over the stream that is not `capped`.
    fn read_pages(&self, mut reader: PageReader, sink: &Sink, connection: u64, capped: bool) {
        let mut usage = self.usage.thread();
        let mut cpu = capped.then(|| self.cpu_cap.member());
        for frames in 1u64.. {
            // Holding no page: what waits are the source's own.
            cpu.as_mut().map(Member::pace);
            let delivered = reader.next(sink);
            match reader.take_missed() {
                Missed::Nothing => {}
                Missed::InRound(pages) => {
                    let _ = self.inputs.send(Input::Missed { connection, pages });
                }
                Missed::AfterSwitch(runs) => {
                    let pages = runs.into_iter().flat_map(PageRun::pages);
                    pages.for_each(|page| self.faults.ask(page));
                }
            }
            match delivered {
                Ok(Delivered::Pages) if frames.is_multiple_of(FRAMES_PER_FLUSH) => usage.flush(),
                Ok(Delivered::Pages) => {}
                Ok(Delivered::Event(event)) => {
                    usage.flush();
                    self.tell(connection, event);
                }
                Err(reason) => return self.tell(connection, Event::Broken(reason)),
            }
        }
    }

    /// Ends the streams of the current connection; what their threads still say does not count any more.
    pub(super) fn close_streams(&self) {
        self.connection.fetch_add(1, Ordering::AcqRel);
        let streams = std::mem::take(&mut *self.streams());
        for stream in &streams.open {
            let _ = stream.shutdown();
        }
        self.cpu_cap.close();
        if let Some(disks) = self.guest.get().and_then(|guest| guest.disks.as_ref()) {
            disks.close();
        }
        for thread in streams.threads {
            let _ = thread.join();
        }
        self.cpu_cap.open();
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
