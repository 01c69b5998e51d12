//! A page stream of a source: asks for batches, writes them from guest memory to the socket.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use vmferry_core::source::{Batch, SentBatch};
use vmferry_core::tracking::ScanPoint;
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::GuestRam;
use vmferry_transport::BoxedStream;
use vmferry_wire::{PAGE_HEADER_BYTES, PageHeader, crc32};

use super::Shared;
use super::control::Peer;

/// Runs until the migration or the connection ends.
pub(super) fn send(stream: BoxedStream, index: usize, shared: &Shared, peer: &Peer) {
    let mut usage = shared.usage.thread();
    let mut writer = PageWriter::new(stream);
    let mut source = shared.source();
    while !peer.closing.load(Ordering::Relaxed) {
        let batch = source.next_batch(shared.now(), index);
        match batch {
            Batch::Finished => return,
            Batch::Idle(until) => {
                usage.flush();
                source = shared.wait(source, until);
            }
            Batch::RoundEnd(round) => {
                drop(source);
                if let Err(error) = writer.round_end(round) {
                    return peer.broken(&format!("cannot send pages: {error}"));
                }
                source = shared.source();
            }
            Batch::Pages { runs, round, point } => {
                drop(source);
                let sent = match writer.batch(&shared.ram, &runs, round, point) {
                    Ok(sent) => sent,
                    Err(error) => return peer.broken(&format!("cannot send pages: {error}")),
                };
                source = shared.source();
                source.sent(sent);
                peer.follow_up(source.check_all_pushed());
            }
        }
    }
}

/// Writes page frames: uniform pages as a byte, all others straight from guest memory.
pub(super) struct PageWriter {
    stream: BoxedStream,
    /// Headers that go out in front of the next raw pages.
    headers: Vec<u8>,
    /// Pages of a stopped guest on their way through their checksum.
    copy: Vec<u8>,
    sent: SentBatch,
}

impl PageWriter {
    pub(super) fn new(stream: BoxedStream) -> Self {
        Self {
            stream,
            headers: Vec::new(),
            copy: Vec::new(),
            sent: SentBatch::default(),
        }
    }

    pub(super) fn batch(
        &mut self,
        ram: &GuestRam,
        runs: &[PageRun],
        round: u32,
        point: ScanPoint,
    ) -> io::Result<SentBatch> {
        self.sent = SentBatch::default();
        for &run in runs {
            self.run(ram, run, round, point)?;
        }
        self.flush_headers()?;
        Ok(self.sent)
    }

    pub(super) fn round_end(&mut self, round: u32) -> io::Result<()> {
        self.stream.write_all(&PageHeader::round_end(round).encode())
    }

    /// Cuts a run into uniform and raw parts. The guest may write a page after it was looked at: it is dirty
    /// then, and crosses again.
    fn run(&mut self, ram: &GuestRam, run: PageRun, round: u32, point: ScanPoint) -> io::Result<()> {
        let mut part = PageRun::new(run.first, 0);
        let mut kind = None;
        for page in run.pages() {
            let found = ram.uniform_byte(page);
            if part.count > 0 && found != kind {
                self.part(ram, part, kind, round, point)?;
                part = PageRun::new(page, 0);
            }
            kind = found;
            part.count += 1;
        }
        self.part(ram, part, kind, round, point)
    }

    fn part(
        &mut self,
        ram: &GuestRam,
        run: PageRun,
        uniform: Option<u8>,
        round: u32,
        point: ScanPoint,
    ) -> io::Result<()> {
        self.sent.bytes += PAGE_HEADER_BYTES as u64;
        if let Some(byte) = uniform {
            self.sent.uniform += run.count;
            self.headers
                .extend(PageHeader::uniform(run, round, byte).encode());
            return Ok(());
        }
        self.sent.raw += run.count;
        self.sent.bytes += run.bytes();
        match (point, self.stream.plain_fd().is_some()) {
            (ScanPoint::Live, true) => self.raw_from_memory(ram, run, round),
            _ => self.raw_with_checksum(ram, run, round),
        }
    }

    fn raw_from_memory(&mut self, ram: &GuestRam, run: PageRun, round: u32) -> io::Result<()> {
        self.headers.extend(PageHeader::raw(run, round, None).encode());
        let Some(socket) = self.stream.plain_fd() else {
            return Ok(());
        };
        ram.send(socket, &self.headers, run)?;
        self.stream.note_written(self.headers.len() as u64 + run.bytes());
        self.headers.clear();
        Ok(())
    }

    fn raw_with_checksum(&mut self, ram: &GuestRam, run: PageRun, round: u32) -> io::Result<()> {
        self.copy.resize((run.count * PAGE_SIZE) as usize, 0);
        ram.read(run, &mut self.copy);
        self.headers
            .extend(PageHeader::raw(run, round, Some(crc32(&self.copy))).encode());
        self.flush_headers()?;
        self.stream.write_all(&self.copy)
    }

    fn flush_headers(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.headers)?;
        self.headers.clear();
        Ok(())
    }
}
