//! Writes batches of pages to a stream: as they are, straight from guest memory, or encoded.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use vmferry_core::encoding::{Codec, Encoded, PagesByEncoding, SentWith};
use vmferry_core::policy::Faults;
use vmferry_core::source::SentBatch;
use vmferry_core::tracking::ScanPoint;
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::GuestRam;
use vmferry_transport::BoxedStream;
use vmferry_wire::{HeldPages, PAGE_HEADER_BYTES, PageHash, PageHeader, crc32};

use super::batch::{BatchEncoder, Moment};
use super::encodings::Encodings;
use super::reuse::{Reuse, fingerprint};

/// Writes page frames.
pub(super) struct PageWriter {
    stream: BoxedStream,
    /// Number of the page stream; none on the fault stream.
    index: Option<usize>,
    encodings: Arc<Encodings>,
    reuse: Arc<Reuse>,
    encoder: BatchEncoder,
    /// Headers that go out in front of the next raw pages.
    headers: Vec<u8>,
    /// Pages of a stopped guest on their way through their checksum.
    copy: Vec<u8>,
    counts: PagesByEncoding,
    bytes: u64,
    /// Pages and bytes of the batch that crossed as hashes.
    referenced: (u64, u64),
    /// Waits since the last batch.
    held_back: HeldBack,
}

/// How long a stream waited for limits before a batch: what it sends is as slow as if the link or the processors were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeldBack {
    /// For the bandwidth cap.
    pub bandwidth: Duration,
    /// For the CPU cap.
    pub cpu: Duration,
}

impl PageWriter {
    /// For page stream `index`.
    pub(super) fn new(
        stream: BoxedStream,
        index: usize,
        encodings: Arc<Encodings>,
        reuse: Arc<Reuse>,
    ) -> Self {
        Self {
            stream,
            index: Some(index),
            encodings,
            reuse,
            encoder: BatchEncoder::default(),
            headers: Vec::new(),
            copy: Vec::new(),
            counts: PagesByEncoding::default(),
            bytes: 0,
            referenced: (0, 0),
            held_back: HeldBack::default(),
        }
    }

    /// The stream waited for limits: the choice of encodings counts that with the next batch.
    pub(super) fn held_back(&mut self, bandwidth: Duration, cpu: Duration) {
        self.held_back.bandwidth += bandwidth;
        self.held_back.cpu += cpu;
    }

    /// For the answers to faults. They cross raw or as one byte: the guest waits for a single page, and what encoding it
    /// could spare a gigabit link (half of 33 us) is what encoding and decoding take.
    pub(super) fn for_answers(stream: BoxedStream, encodings: Arc<Encodings>, reuse: Arc<Reuse>) -> Self {
        Self {
            index: None,
            ..Self::new(stream, 0, encodings, reuse)
        }
    }

    /// Sends those pages of `runs` as their hashes that the destination may have; answers the others, for
    /// [`PageWriter::batch`]. `refers` hears of them before they cross. They are copied first, so that the hash is of a content
    /// that was there: a page that is written meanwhile is dirty, and crosses again.
    pub(super) fn references(
        &mut self,
        ram: &GuestRam,
        runs: &[PageRun],
        (round, point, faults): (u32, ScanPoint, Faults),
        refers: &mut dyn FnMut(PageRun),
    ) -> io::Result<Vec<PageRun>> {
        let reuse = self.reuse.clone();
        let Some(held) = reuse.of_batch(round, point, faults) else {
            return Ok(runs.to_vec());
        };
        let (mut rest, mut hits) = (Vec::new(), Vec::new());
        for &run in runs {
            self.copy.resize(run.bytes() as usize, 0);
            ram.read(run, &mut self.copy);
            for (page, content) in run.pages().zip(self.copy.chunks_exact(PAGE_SIZE as usize)) {
                let hash = (!is_uniform(content)).then(|| *blake3::hash(content).as_bytes());
                match hash.filter(|hash| held.contains(&fingerprint(hash)) && !reuse.was_missed(page)) {
                    Some(hash) => hits.push((page, hash)),
                    None => add_page(&mut rest, page),
                }
            }
        }
        let mut frames = Vec::new();
        for hits in hits.chunk_by(|(page, _), (next, _)| page + 1 == *next) {
            let run = PageRun::new(hits[0].0, hits.len() as u64);
            let hashes: Vec<PageHash> = hits.iter().map(|(_, hash)| *hash).collect();
            refers(run);
            if let Some(versions) = self.encodings.versions() {
                versions.forget(run);
            }
            frames.extend(HeldPages::frame(run, round, &hashes).encode());
            frames.extend_from_slice(hashes.as_flattened());
        }
        self.stream.write_all(&frames)?;
        self.referenced = (hits.len() as u64, frames.len() as u64);
        reuse.crossed(self.referenced.0, self.referenced.1);
        Ok(rest)
    }

    /// Sends the pages of `runs`, in the encoding whose turn it is.
    pub(super) fn batch(
        &mut self,
        ram: &GuestRam,
        runs: &[PageRun],
        round: u32,
        point: ScanPoint,
    ) -> io::Result<SentBatch> {
        self.counts = PagesByEncoding::default();
        self.bytes = 0;
        let (deduplicated, referenced_bytes) = std::mem::take(&mut self.referenced);
        let payload_bytes = match self.index {
            _ if runs.is_empty() => 0,
            Some(index) => self.planned(index, ram, runs, round, point)?,
            None => {
                self.as_they_are(ram, runs, round, point)?;
                0
            }
        };
        self.encodings.crossed(&self.counts, payload_bytes);
        Ok(SentBatch {
            raw: self.counts.raw,
            uniform: self.counts.uniform,
            compressed: self.counts.lz4 + self.counts.zstd,
            delta: self.counts.delta,
            deduplicated,
            bytes: self.bytes + referenced_bytes,
        })
    }

    pub(super) fn round_end(&mut self, round: u32) -> io::Result<()> {
        self.stream.write_all(&PageHeader::round_end(round).encode())
    }

    /// Sends a batch by the plan and says what it took. Answers the bytes that encoded pages became.
    fn planned(
        &mut self,
        stream: usize,
        ram: &GuestRam,
        runs: &[PageRun],
        round: u32,
        point: ScanPoint,
    ) -> io::Result<u64> {
        let encodings = self.encodings.clone();
        let held_back = std::mem::take(&mut self.held_back);
        let plan = encodings.plan();
        if let Some(codec) = plan.sample
            && let Some((sample, wall)) = self.encoder.sample(ram, runs, codec)
        {
            encodings.sampled(codec, &sample, wall);
        }
        let versions = encodings.versions();
        if plan.codec == Codec::Raw && !plan.delta {
            if let Some(versions) = versions {
                runs.iter().for_each(|&run| versions.forget(run));
            }
            let begun = Moment::now();
            self.as_they_are(ram, runs, round, point)?;
            let (write_wall, write_cpu) = begun.elapsed();
            let raw_bytes = self.counts.raw * PAGE_SIZE;
            encodings.sent(&SentWith {
                codec: plan.codec,
                stream,
                plain: Encoded {
                    page_bytes: raw_bytes,
                    bytes: raw_bytes,
                    ..Encoded::default()
                },
                delta: None,
                encode_wall: held_back.cpu,
                wire_bytes: self.bytes,
                write_cpu,
                write_wall: write_wall + held_back.bandwidth,
            });
            return Ok(0);
        }
        let versions = versions.filter(|_| plan.delta);
        let encoded = self.encoder.encode(ram, runs, round, plan.codec, versions);
        let begun = Moment::now();
        self.stream.write_all(self.encoder.frames())?;
        let (write_wall, write_cpu) = begun.elapsed();
        self.counts = encoded.counts;
        self.bytes = self.encoder.frames().len() as u64;
        encodings.sent(&SentWith {
            codec: plan.codec,
            stream,
            plain: encoded.plain,
            delta: versions.map(|_| encoded.delta),
            encode_wall: encoded.wall + held_back.cpu,
            wire_bytes: self.bytes,
            write_cpu,
            write_wall: write_wall + held_back.bandwidth,
        });
        Ok(encoded.payload_bytes)
    }

    /// Uniform pages as a byte, all others straight from guest memory.
    fn as_they_are(
        &mut self,
        ram: &GuestRam,
        runs: &[PageRun],
        round: u32,
        point: ScanPoint,
    ) -> io::Result<()> {
        for &run in runs {
            self.run(ram, run, round, point)?;
        }
        self.flush_headers()
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
        self.bytes += PAGE_HEADER_BYTES as u64;
        if let Some(byte) = uniform {
            self.counts.uniform += run.count;
            self.headers
                .extend(PageHeader::uniform(run, round, byte).encode());
            return Ok(());
        }
        self.counts.raw += run.count;
        self.bytes += run.bytes();
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

/// Adds a page to the last run, where it follows it, or begins another one.
fn add_page(runs: &mut Vec<PageRun>, page: u64) {
    match runs.last_mut() {
        Some(run) if run.end() == page => run.count += 1,
        _ => runs.push(PageRun::single(page)),
    }
}

/// Such a page crosses as one byte, which is shorter still.
fn is_uniform(page: &[u8]) -> bool {
    page[1..] == page[..page.len() - 1]
}
