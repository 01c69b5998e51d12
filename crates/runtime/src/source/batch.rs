//! A batch of pages in encoded form: copied out of guest memory first, so that everything about it (whether it is uniform,
//! its difference to the version before, its checksum) is of exactly the bytes that cross.

use std::time::{Duration, Instant};

use vmferry_core::encoding::{Codec, Encoded, PagesByEncoding};
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::GuestRam;
use vmferry_wire::{Coding, EncodedPages, PageEncoder, PageHeader, crc32};

use super::delta_cache::DeltaCache;
use crate::usage::thread_cpu;

/// Pages of one encoded frame at most: 256 KiB stay in the processor's cache between copy, encoder and checksum.
const FRAME_PAGES: u64 = 64;
/// Pages that are encoded only to be measured.
const SAMPLE_PAGES: u64 = 16;
/// Fewer say little.
const LEAST_SAMPLE_PAGES: u64 = 4;
/// A difference that is longer than this share of its pages is held against the codec.
const SHORT_DELTA: usize = 2;

const PAGE: usize = PAGE_SIZE as usize;

/// Encodes batches. Keeps its memory from one to the next.
#[derive(Default)]
pub(super) struct BatchEncoder {
    encoder: PageEncoder,
    /// The pages of the batch.
    copy: Vec<u8>,
    /// Beside each page its version before, where there is one.
    old: Vec<u8>,
    had: Vec<bool>,
    parts: Vec<Part>,
    out: Vec<u8>,
    counts: PagesByEncoding,
    payload_bytes: u64,
}

/// Pages that cross in one frame.
#[derive(Clone, Copy)]
struct Part {
    run: PageRun,
    /// Where they are in the copy, in bytes.
    at: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Uniform(u8),
    /// With a version before.
    Known,
    New,
}

/// What encoding a batch gave.
pub(super) struct BatchEncoded {
    pub counts: PagesByEncoding,
    /// Bytes that the encoded pages became.
    pub payload_bytes: u64,
    pub plain: Encoded,
    pub delta: Encoded,
    pub wall: Duration,
}

/// A moment by the clock and by the processor time of this thread.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    wall: Instant,
    cpu: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self {
            wall: Instant::now(),
            cpu: thread_cpu(),
        }
    }

    /// Time by the clock and by the processor since then.
    pub(super) fn elapsed(self) -> (Duration, Duration) {
        (self.wall.elapsed(), thread_cpu().saturating_sub(self.cpu))
    }
}

impl BatchEncoder {
    /// Encodes the pages of `runs`; the frames are in [`BatchEncoder::frames`] then. With `versions` pages cross as
    /// differences where that is shorter.
    pub(super) fn encode(
        &mut self,
        ram: &GuestRam,
        runs: &[PageRun],
        round: u32,
        codec: Codec,
        versions: Option<&DeltaCache>,
    ) -> BatchEncoded {
        let begun = Moment::now();
        self.out.clear();
        self.counts = PagesByEncoding::default();
        self.payload_bytes = 0;
        self.cut(ram, runs, round, versions);
        let (_, cut_cpu) = begun.elapsed();

        let parts = std::mem::take(&mut self.parts);
        let of = |kind| parts.iter().filter(move |part| part.kind == kind);
        let bytes = |kind| of(kind).map(|part| part.run.bytes()).sum::<u64>();
        let (new_bytes, known_bytes) = (bytes(Kind::New), bytes(Kind::Known));
        for part in &parts {
            if let Kind::Uniform(byte) = part.kind {
                self.counts.uniform += part.run.count;
                self.out
                    .extend(PageHeader::uniform(part.run, round, byte).encode());
            }
        }
        let plain = self.timed(new_bytes, |batch| {
            of(Kind::New).for_each(|&part| batch.plain(part, round, codec));
        });
        let delta = self.timed(known_bytes, |batch| {
            of(Kind::Known).for_each(|&part| batch.delta(part, round, codec));
        });
        self.parts = parts;

        // The cut belongs to both, by their bytes.
        let cut_cpu_of = |bytes: u64| cut_cpu.mul_f64(bytes as f64 / (new_bytes + known_bytes).max(1) as f64);
        let with_cut = |encoded: Encoded| Encoded {
            cpu: encoded.cpu + cut_cpu_of(encoded.page_bytes),
            ..encoded
        };
        BatchEncoded {
            counts: self.counts,
            payload_bytes: self.payload_bytes,
            plain: with_cut(plain),
            delta: with_cut(delta),
            wall: begun.elapsed().0,
        }
    }

    /// The frames of the batch, ready to be written.
    pub(super) fn frames(&self) -> &[u8] {
        &self.out
    }

    /// Encodes some of the pages of `runs` only to see what that gives and takes.
    pub(super) fn sample(
        &mut self,
        ram: &GuestRam,
        runs: &[PageRun],
        codec: Codec,
    ) -> Option<(Encoded, Duration)> {
        let begun = Moment::now();
        let mut left = SAMPLE_PAGES;
        let mut some = Vec::new();
        for run in runs {
            // A little of everything, in case of long runs.
            let count = run.count.min(left).min(SAMPLE_PAGES / 2);
            left -= count;
            some.push(PageRun::new(run.first, count));
            if left == 0 {
                break;
            }
        }
        self.cut(ram, &some, 0, None);
        let mut sample = Encoded::default();
        for part in &self.parts {
            if part.kind == Kind::New {
                let data = &self.copy[part.at..part.at + part.run.bytes() as usize];
                let payload = compress(&mut self.encoder, codec, data);
                sample.page_bytes += part.run.bytes();
                sample.bytes += payload.map_or(data.len(), <[u8]>::len) as u64;
            }
        }
        let (wall, cpu) = begun.elapsed();
        (sample.page_bytes >= LEAST_SAMPLE_PAGES * PAGE_SIZE).then_some((Encoded { cpu, ..sample }, wall))
    }

    /// Copies the pages of `runs` and cuts them into parts.
    fn cut(&mut self, ram: &GuestRam, runs: &[PageRun], round: u32, versions: Option<&DeltaCache>) {
        self.parts.clear();
        let bytes: u64 = runs.iter().map(|run| run.bytes()).sum();
        self.copy.resize(bytes as usize, 0);
        let mut begins = 0;
        for &run in runs {
            let ends = begins + run.bytes() as usize;
            ram.read(run, &mut self.copy[begins..ends]);
            for (page, at) in run.pages().zip((begins..ends).step_by(PAGE)) {
                let kind = uniform_byte(&self.copy[at..at + PAGE]).map_or(Kind::New, Kind::Uniform);
                add(&mut self.parts, page, at, kind, at > begins);
            }
            begins = ends;
        }
        if let Some(versions) = versions {
            self.tell_known(round, versions);
        }
    }

    /// Looks which of the new pages have a version before, which goes beside them, and keeps the new versions.
    fn tell_known(&mut self, round: u32, versions: &DeltaCache) {
        self.old.resize(self.copy.len(), 0);
        let mut told = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let range = part.at..part.at + part.run.bytes() as usize;
            if let Kind::Uniform(_) = part.kind {
                versions.forget(part.run);
                told.push(*part);
                continue;
            }
            self.had.clear();
            let (new, old) = (&self.copy[range.clone()], &mut self.old[range.clone()]);
            versions.exchange(part.run, round, new, old, &mut self.had);
            for ((page, at), had) in part.run.pages().zip(range.step_by(PAGE)).zip(&self.had) {
                let kind = if *had { Kind::Known } else { Kind::New };
                add(&mut told, page, at, kind, at > part.at);
            }
        }
        self.parts = told;
    }

    /// Measures `encode`, which appends frames of pages of so many bytes.
    fn timed(&mut self, page_bytes: u64, encode: impl FnOnce(&mut Self)) -> Encoded {
        if page_bytes == 0 {
            return Encoded::default();
        }
        let (begun, before) = (Moment::now(), self.out.len());
        encode(self);
        Encoded {
            page_bytes,
            bytes: (self.out.len() - before) as u64,
            cpu: begun.elapsed().1,
        }
    }

    fn plain(&mut self, part: Part, round: u32, codec: Codec) {
        let data = &self.copy[part.at..part.at + part.run.bytes() as usize];
        let (coding, count) = match codec {
            Codec::Raw => (None, &mut self.counts.raw),
            Codec::Lz4 => (Some(Coding::Lz4), &mut self.counts.lz4),
            Codec::Zstd(_) => (Some(Coding::Zstd), &mut self.counts.zstd),
        };
        match (coding, compress(&mut self.encoder, codec, data)) {
            (Some(coding), Some(payload)) => {
                *count += part.run.count;
                self.payload_bytes += payload.len() as u64;
                append(&mut self.out, part.run, round, coding, payload, data);
            }
            // It does not shrink.
            _ => {
                self.counts.raw += part.run.count;
                self.out
                    .extend(PageHeader::raw(part.run, round, Some(crc32(data))).encode());
                self.out.extend_from_slice(data);
            }
        }
    }

    fn delta(&mut self, part: Part, round: u32, codec: Codec) {
        let range = part.at..part.at + part.run.bytes() as usize;
        let data = &self.copy[range.clone()];
        let before = self.out.len();
        let Some(payload) = self.encoder.delta(&self.old[range], data) else {
            return self.plain(part, round, codec);
        };
        let delta_len = payload.len();
        append(&mut self.out, part.run, round, Coding::Delta, payload, data);
        // Content that is new altogether may be shorter by itself.
        if delta_len * SHORT_DELTA > data.len()
            && compress(&mut self.encoder, codec, data).is_some_and(|payload| payload.len() < delta_len)
        {
            self.out.truncate(before);
            return self.plain(part, round, codec);
        }
        self.counts.delta += part.run.count;
        self.payload_bytes += delta_len as u64;
    }
}

/// Adds a page to the last part, where it `follows` it and is of its kind, or begins another one.
fn add(parts: &mut Vec<Part>, page: u64, at: usize, kind: Kind, follows: bool) {
    match parts.last_mut() {
        Some(part) if follows && part.kind == kind && part.run.count < FRAME_PAGES => part.run.count += 1,
        _ => parts.push(Part {
            run: PageRun::single(page),
            at,
            kind,
        }),
    }
}

/// `data` in a form of this codec that is shorter.
fn compress<'a>(encoder: &'a mut PageEncoder, codec: Codec, data: &[u8]) -> Option<&'a [u8]> {
    match codec {
        Codec::Raw => None,
        Codec::Lz4 => encoder.lz4(data),
        Codec::Zstd(level) => encoder.zstd(level, data),
    }
}

/// Appends the frame of `payload`, which stands for `data`.
fn append(out: &mut Vec<u8>, run: PageRun, round: u32, coding: Coding, payload: &[u8], data: &[u8]) {
    let frame = EncodedPages {
        run,
        round,
        coding,
        len: payload.len() as u32,
        crc: coding.checksum(payload, data),
    };
    out.extend(PageHeader::encoded(frame).encode());
    out.extend_from_slice(payload);
}

/// The byte that fills `page` wholly, if one does: then each byte is the one before it.
fn uniform_byte(page: &[u8]) -> Option<u8> {
    (page[1..] == page[..page.len() - 1]).then_some(page[0])
}
