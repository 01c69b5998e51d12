//! A page stream of a destination: pages from the socket into guest memory.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vmferry_core::destination::Event;
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::GuestRam;
use vmferry_memory::TransferPipe;
use vmferry_transport::BoxedStream;
use vmferry_wire::{
    Coding, EncodedPages, HeldPages, PAGE_HEADER_BYTES, PageDecoder, PageFrame, PageHash, crc32,
};

use super::holdings::Holdings;
use crate::link::chain;
use crate::pager::Pager;

/// How pages get into memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Intake {
    /// Straight: the guest does not run.
    Direct,
    /// Through the pager: the guest may run.
    Paged,
    /// Not at all: everything was here.
    Closed,
}

/// Where all page streams and the fault stream of a session deliver.
pub(super) struct Sink {
    pub ram: Arc<GuestRam>,
    /// In sessions whose guest may run before all pages are here.
    pub pager: OnceLock<Arc<Pager>>,
    /// Pages of a store of this host, where the source asked for them.
    pub holdings: OnceLock<Arc<dyn Holdings>>,
    /// The store did not answer.
    holdings_failed: AtomicBool,
    intake: AtomicU8,
    pub pages: AtomicU64,
    /// Bytes of page frames, headers included.
    pub bytes: AtomicU64,
    /// Pages wait for the guest's own writes no more: set at the end, for threads that wait.
    pub closing: AtomicBool,
}

impl Sink {
    pub(super) fn new(ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            pager: OnceLock::new(),
            holdings: OnceLock::new(),
            holdings_failed: AtomicBool::new(false),
            intake: AtomicU8::new(Intake::Direct as u8),
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        }
    }

    pub(super) fn set_intake(&self, intake: Intake) {
        self.intake.store(intake as u8, Ordering::Release);
    }

    /// Puts the page of this hash into `page`, where the store of this host has it.
    fn read_held(&self, hash: &PageHash, page: &mut [u8]) -> bool {
        let Some(holdings) = self.holdings.get() else {
            return false;
        };
        if self.holdings_failed.load(Ordering::Relaxed) {
            return false;
        }
        holdings.read(hash, page).unwrap_or_else(|error| {
            tracing::warn!(error, "the store of this host is not asked for pages any more");
            self.holdings_failed.store(true, Ordering::Relaxed);
            false
        })
    }

    fn intake(&self) -> Intake {
        match self.intake.load(Ordering::Acquire) {
            0 => Intake::Direct,
            1 => Intake::Paged,
            _ => Intake::Closed,
        }
    }
}

/// What a stream delivered besides pages.
pub(super) enum Delivered {
    /// Pages, nothing else.
    Pages,
    /// Something the state machine has to know.
    Event(Event),
}

/// Pages that came as hashes and that the store does not have.
pub(super) enum Missed {
    /// None.
    Nothing,
    /// Before the switch: the source is told before the end of the round.
    InRound(Vec<PageRun>),
    /// After it: they are demanded, one by one.
    AfterSwitch(Vec<PageRun>),
}

/// Reads page frames of one stream.
pub(super) struct PageReader {
    stream: BoxedStream,
    index: usize,
    /// Version of the protocol agreed on.
    version: u16,
    buffer: Vec<u8>,
    decoder: PageDecoder,
    /// Of the last frame.
    missed: Missed,
    /// Pages that need no look on their way cross it; none where there were no descriptors for it.
    pipe: Option<TransferPipe>,
}

impl PageReader {
    pub(super) fn new(stream: BoxedStream, index: usize, version: u16) -> Self {
        Self {
            stream,
            index,
            version,
            buffer: Vec::new(),
            decoder: PageDecoder::default(),
            missed: Missed::Nothing,
            pipe: TransferPipe::new().ok(),
        }
    }

    /// Takes the next frame in.
    ///
    /// # Errors
    /// One line: what came and what was expected, or what the connection says.
    pub(super) fn next(&mut self, sink: &Sink) -> Result<Delivered, String> {
        let frame = PageFrame::read(&mut self.stream, sink.ram.layout()).map_err(|e| chain(&e))?;
        frame.check_version(self.version).map_err(|e| chain(&e))?;
        let bytes = PAGE_HEADER_BYTES as u64 + frame.payload_bytes();
        sink.bytes.fetch_add(bytes, Ordering::Relaxed);
        let last = match frame {
            PageFrame::RoundEnd { round } => {
                return Ok(Delivered::Event(Event::RoundEnd {
                    stream: self.index,
                    round,
                }));
            }
            PageFrame::PushEnd => return Ok(Delivered::Pages),
            PageFrame::Raw { run, crc, .. } => {
                sink.pages.fetch_add(run.count, Ordering::Relaxed);
                self.raw(sink, &frame, run, crc.is_some())?
            }
            PageFrame::Uniform { run, byte, .. } => {
                sink.pages.fetch_add(run.count, Ordering::Relaxed);
                self.uniform(sink, run, byte)?
            }
            PageFrame::Held(pages) => {
                sink.pages.fetch_add(pages.run.count, Ordering::Relaxed);
                self.held(sink, &pages)?
            }
            PageFrame::Encoded(pages) => {
                sink.pages.fetch_add(pages.run.count, Ordering::Relaxed);
                self.encoded(sink, &pages)?
            }
        };
        Ok(if last {
            Delivered::Event(Event::AllArrived)
        } else {
            Delivered::Pages
        })
    }

    fn raw(&mut self, sink: &Sink, frame: &PageFrame, run: PageRun, checked: bool) -> Result<bool, String> {
        let intake = sink.intake();
        if let (Intake::Direct, false, Some(socket), Some(pipe)) =
            (intake, checked, self.stream.plain_fd(), &mut self.pipe)
        {
            sink.ram.receive(socket, pipe, run).map_err(|e| chain(&e))?;
            note_received(sink, run);
            return Ok(false);
        }
        self.buffer.resize(run.bytes() as usize, 0);
        self.stream.read_exact(&mut self.buffer).map_err(|e| chain(&e))?;
        frame
            .check_payload(|| crc32(&self.buffer))
            .map_err(|e| chain(&e))?;
        self.place(sink, intake, run)
    }

    fn uniform(&mut self, sink: &Sink, run: PageRun, byte: u8) -> Result<bool, String> {
        let intake = sink.intake();
        self.buffer.clear();
        self.buffer.resize((run.count * PAGE_SIZE) as usize, byte);
        self.place(sink, intake, run)
    }

    fn encoded(&mut self, sink: &Sink, pages: &EncodedPages) -> Result<bool, String> {
        let (intake, run) = (sink.intake(), pages.run);
        self.buffer.resize(run.bytes() as usize, 0);
        if pages.coding == Coding::Delta {
            // Later the guest may have written what the difference would be made to.
            if intake != Intake::Direct {
                return Err(format!(
                    "got the difference of pages {}..{} after the switch, expected whole pages",
                    run.first,
                    run.end()
                ));
            }
            sink.ram.read(run, &mut self.buffer);
        }
        self.decoder
            .read(&mut self.stream, pages, &mut self.buffer)
            .map_err(|e| chain(&e))?;
        self.place(sink, intake, run)
    }

    /// Takes pages of which the hashes came from the store of this host.
    fn held(&mut self, sink: &Sink, pages: &HeldPages) -> Result<bool, String> {
        let hashes = pages.read(&mut self.stream).map_err(|e| chain(&e))?;
        let intake = sink.intake();
        let mut content = vec![0; pages.run.bytes() as usize];
        let found: Vec<bool> = hashes
            .iter()
            .zip(content.chunks_exact_mut(PAGE_SIZE as usize))
            .map(|(hash, page)| sink.read_held(hash, page))
            .collect();
        let (mut last, mut missed, mut at) = (false, Vec::new(), 0);
        for part in found.chunk_by(|a, b| a == b) {
            let run = PageRun::new(pages.run.first + at as u64, part.len() as u64);
            if part[0] {
                let from = at * PAGE_SIZE as usize;
                self.buffer.clear();
                self.buffer
                    .extend_from_slice(&content[from..from + run.bytes() as usize]);
                last |= self.place(sink, intake, run)?;
            } else {
                missed.push(run);
            }
            at += part.len();
        }
        self.missed = match intake {
            _ if missed.is_empty() => Missed::Nothing,
            Intake::Direct => Missed::InRound(missed),
            Intake::Paged => Missed::AfterSwitch(missed),
            Intake::Closed => Missed::Nothing,
        };
        Ok(last)
    }

    /// The pages of the last frame that this host lacks.
    pub(super) fn take_missed(&mut self) -> Missed {
        std::mem::replace(&mut self.missed, Missed::Nothing)
    }

    /// Puts the buffer where it belongs; answers whether these were the last pages outstanding.
    fn place(&mut self, sink: &Sink, intake: Intake, run: PageRun) -> Result<bool, String> {
        match intake {
            Intake::Direct => {
                sink.ram.write_fresh(run, &self.buffer).map_err(|e| chain(&e))?;
                note_received(sink, run);
                Ok(false)
            }
            Intake::Paged => {
                let pager = sink
                    .pager
                    .get()
                    .ok_or("no pages were expected after the resume")?;
                pager.arrived(run, &self.buffer).map_err(|e| chain(&e))
            }
            // A page that was demanded while it came from the store comes twice.
            Intake::Closed if sink.holdings.get().is_some() => Ok(false),
            Intake::Closed => Err(format!(
                "got pages {}..{} when all pages were here, expected none",
                run.first,
                run.end()
            )),
        }
    }
}

fn note_received(sink: &Sink, run: PageRun) {
    if let Some(pager) = sink.pager.get() {
        pager.received(run);
    }
}
