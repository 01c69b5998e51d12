//! The file of a trace.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `VMFTRACE` |
//! | 8..10 | format, 1 |
//! | 10..12 | reserved: written as zero, ignored |
//! | 12.. | parts, to the end of the file |
//!
//! A part:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind: 1 header, 2 resident pages, 3 content, 4 samples, 5 loads, 6 end, 7 hints |
//! | 1..4 | reserved: written as zero, ignored |
//! | 4..8 | bytes of the payload as it stands in the file |
//! | 8..12 | bytes of the payload decompressed, at most 256 MiB; 1 MiB of kinds 1, 3 and 6 |
//! | 12..16 | CRC-32 of bytes 0..12 and the payload |
//! | 16.. | the payload: a zstd frame of the part in postcard's encoding |
//!
//! All numbers of these are little-endian. Header and resident pages come first, the end last; content follows wherever it is
//! known, the last one counts. Samples come in parts of about 1 MiB, so that little is lost with the end of a file that is cut short.
//! (The recorder keeps all of them in memory, and writes the file when it is over: what a daemon that is killed was
//! recording is lost.) A part of a kind that is not known is skipped. A file without an end was cut short: what came before is
//! whole, and [`Partial`] reads it. A trace that takes more than [`MOST_BYTES`] in memory is read as far as that goes.
//!
//! # Postcard's encoding
//!
//! The fields of a part follow each other without names or gaps:
//!
//! | type | bytes |
//! |---|---|
//! | u16, u32, u64 | seven bits a byte, the low ones first; the top bit says that more follow |
//! | f32, f64 | 4 and 8 bytes of IEEE 754, little-endian |
//! | bool | 0 or 1 |
//! | text | its bytes as a u64, then UTF-8 |
//! | list of T | its elements as a u64, then each |
//! | option of T | 0, or 1 and T |
//! | set of pages | how many: u64; the page after the last one: u64; a list of the bytes of its runs |
//! | run | pages between the one before, or page 0, and it: u64; its pages: u64 |
//!
//! The header ([`Header`]):
//!
//! | field | type | |
//! |---|---|---|
//! | vm | text | name of the guest, at most 256 bytes |
//! | backend | text | the same of its backend |
//! | layout | list of (text, u64) | name and pages of each block of RAM: 1 to 64 blocks, 64 TiB at most |
//! | started_unix_ms | u64 | when recording began |
//! | interval_us | u64 | length of a sample that was asked for, 1 us to 60 s |
//! | plan | 0, or 1 and f64 | all pages, or a budget in percent of the guest's time |
//! | page_cost_ns | u64 | what a dirty page was taken to cost |
//! | processors | u16 | 0: not known; the recorder always writes that |
//! | pinned_io | bool | devices may write through pages pinned earlier |
//! | device_state_bytes | option of u64 | the recorder writes none |
//!
//! Resident pages are a set of pages. Content ([`Content`]):
//!
//! | field | type | |
//! |---|---|---|
//! | region_pages | u64 | pages of a region |
//! | regions | list of blends | at most 4096 |
//! | written | blend | of pages that samples found dirty |
//! | delta | option of f32 | bytes that a difference makes of one, 0 to 1 |
//!
//! A blend ([`Blend`](crate::Blend)) is looked_at: u32, at most 1,048,575; uniform: u32, of these; lz4, zstd, zstd_5: f32, bytes that
//! each makes of one, more than 0 and at most 1.
//!
//! Samples are a list of these ([`Sample`]; chunks and seeds are explained in [`vmferry_core::sampling::coverage`]):
//!
//! | field | type | |
//! |---|---|---|
//! | start_us | u64 | since recording began; not before the end of the sample before |
//! | end_us | u64 | later than that, and within a year |
//! | burst | u32 | those that follow each other without a gap have the same |
//! | coverage | u32, u32 | one chunk in how many was looked at, 1 to 64, and the seed that chose it |
//! | dirty | set of pages | of the pages looked at |
//! | cpu_us | option of u64 | CPU time of the guest within the sample |
//!
//! Loads are a list of these ([`LoadMark`]): at_us: u64; load_average: option of f32; memory_available_bytes: option of u64;
//! operations: option of u64, so far. Hints ([`GuestHints`]) are at most one part: took_us: u64; exact: bool; classes: a list of ten sets of
//! pages, in the order of [`Class::ALL`](vmferry_core::hints::Class::ALL), none of which has a page of another one. The end is an option of the cost ([`Cost`]): took_us, cost_us, scans: u64.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::content::Content;
use crate::error::TraceError;
use crate::header::Header;
use crate::hints::GuestHints;
use crate::page_set::PageSet;
use crate::sample::{LoadMark, Sample};
use crate::trace::{Cost, Trace};

/// What every trace begins with.
const MAGIC: &[u8; 8] = b"VMFTRACE";
/// The newest format.
pub const FORMAT: u16 = 1;
/// Most bytes of a part, decompressed.
const MOST_PART_BYTES: u64 = 256 << 20;
/// The same of a part that is never large; a short text may claim many blocks or regions.
const MOST_SMALL_PART_BYTES: u64 = 1 << 20;
/// What compression may add to what does not compress.
const SLACK_BYTES: u64 = 2 << 20;
/// Most bytes of memory that a trace takes, all its parts together.
pub const MOST_BYTES: u64 = 2 << 30;
const HEAD_BYTES: usize = 12;
const PART_HEAD_BYTES: usize = 16;
/// Bytes of samples that are written as one part.
const SAMPLES_BYTES: usize = 1 << 20;
/// Level of zstd.
const LEVEL: i32 = 3;

const HEADER: u8 = 1;
const RESIDENT: u8 = 2;
const CONTENT: u8 = 3;
const SAMPLES: u8 = 4;
const LOADS: u8 = 5;
const END: u8 = 6;
const HINTS: u8 = 7;

/// Writes a trace part by part.
pub struct Writer<W: Write> {
    out: W,
    /// Samples not written yet, and their bytes.
    samples: Vec<Sample>,
    bytes: usize,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// What `out` answers.
    pub fn new(mut out: W, header: &Header, resident: &PageSet) -> Result<Self, TraceError> {
        let mut head = Vec::from(MAGIC);
        head.extend(FORMAT.to_le_bytes());
        head.extend([0; 2]);
        out.write_all(&head).map_err(TraceError::writing)?;
        let mut writer = Self {
            out,
            samples: Vec::new(),
            bytes: 0,
        };
        writer.part(HEADER, header)?;
        writer.part(RESIDENT, resident)?;
        Ok(writer)
    }

    /// Adds a sample; it may stay in memory for a while.
    ///
    /// # Errors
    /// What the file answers.
    pub fn sample(&mut self, sample: Sample) -> Result<(), TraceError> {
        self.bytes += sample.dirty.memory_bytes() + size_of::<Sample>();
        self.samples.push(sample);
        match self.bytes >= SAMPLES_BYTES {
            true => self.flush_samples(),
            false => Ok(()),
        }
    }

    /// Adds what is known of the content.
    ///
    /// # Errors
    /// What the file answers.
    pub fn content(&mut self, content: &Content) -> Result<(), TraceError> {
        self.part(CONTENT, content)
    }

    /// Adds what is known of the guest's load.
    ///
    /// # Errors
    /// What the file answers.
    pub fn loads(&mut self, loads: &[LoadMark]) -> Result<(), TraceError> {
        match loads.is_empty() {
            true => Ok(()),
            false => self.part(LOADS, &loads),
        }
    }

    /// Adds what the guest said about its pages.
    ///
    /// # Errors
    /// What the file answers.
    pub fn hints(&mut self, hints: &GuestHints) -> Result<(), TraceError> {
        self.part(HINTS, hints)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// What the file answers.
    pub fn finish(mut self, cost: Option<Cost>) -> Result<W, TraceError> {
        self.flush_samples()?;
        self.part(END, &cost)?;
        self.out.flush().map_err(TraceError::writing)?;
        Ok(self.out)
    }

    /// Writes the samples that are in memory.
    ///
    /// # Errors
    /// What the file answers.
    pub fn flush_samples(&mut self) -> Result<(), TraceError> {
        let samples = std::mem::take(&mut self.samples);
        self.bytes = 0;
        match samples.is_empty() {
            true => Ok(()),
            false => self.part(SAMPLES, &samples),
        }
    }

    fn part<T: Serialize + ?Sized>(&mut self, kind: u8, content: &T) -> Result<(), TraceError> {
        let encoded = postcard::to_stdvec(content)
            .map_err(|error| TraceError::writing(std::io::Error::other(error)))?;
        let bytes = encoded.len() as u64;
        check_part(bytes, most_bytes(kind))?;
        let payload = zstd::bulk::compress(&encoded, LEVEL).map_err(TraceError::writing)?;
        let mut part = vec![kind, 0, 0, 0];
        part.extend((payload.len() as u32).to_le_bytes());
        part.extend((bytes as u32).to_le_bytes());
        part.extend(checksum(&part, &payload).to_le_bytes());
        part.extend(payload);
        self.out.write_all(&part).map_err(TraceError::writing)
    }
}

/// What could be read of a trace.
#[derive(Debug)]
pub struct Partial {
    /// What is whole.
    pub trace: Trace,
    /// What is not.
    pub problem: Option<TraceError>,
}

/// What was read so far.
#[derive(Default)]
struct Found {
    header: Option<Header>,
    resident: Option<PageSet>,
    content: Content,
    samples: Vec<Sample>,
    loads: Vec<LoadMark>,
    hints: Option<GuestHints>,
    /// The end of the file came.
    end: Option<Option<Cost>>,
}

/// What may still be taken of memory.
struct Budget {
    most: u64,
    left: u64,
}

impl Budget {
    fn new(most: u64) -> Self {
        Self { most, left: most }
    }

    fn take(&mut self, bytes: u64, samples: usize) -> Result<(), TraceError> {
        let most = self.most;
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(TraceError::TooMuch { most, samples })?;
        Ok(())
    }
}

impl Trace {
    /// Reads a whole trace.
    ///
    /// # Errors
    /// When it is not whole, damaged, or no trace.
    pub fn read(reader: &mut impl Read) -> Result<Self, TraceError> {
        let Partial { trace, problem } = Self::read_partial(reader)?;
        problem.map_or(Ok(trace), Err)
    }

    /// Reads what is whole of a trace, and says what is not.
    ///
    /// # Errors
    /// When nothing of it is of use.
    pub fn read_partial(reader: &mut impl Read) -> Result<Partial, TraceError> {
        Self::read_within(reader, Budget::new(MOST_BYTES))
    }

    fn read_within(reader: &mut impl Read, mut budget: Budget) -> Result<Partial, TraceError> {
        check_head(reader)?;
        let (mut found, mut at) = (Found::default(), HEAD_BYTES as u64);
        let problem = loop {
            match read_part(reader, at, found.samples.len(), &mut budget) {
                Ok(None) if found.end.is_some() => break None,
                Ok(None) => {
                    break Some(TraceError::CutShort {
                        at,
                        samples: found.samples.len(),
                    });
                }
                Ok(Some((kind, part, bytes))) => match found.take(kind, &part, &mut budget) {
                    Ok(()) => at += bytes,
                    Err(problem) => break Some(problem),
                },
                Err(problem) => break Some(problem),
            }
        };
        match (found, problem) {
            (
                Found {
                    header: Some(header),
                    resident: Some(resident),
                    content,
                    samples,
                    loads,
                    hints,
                    end,
                },
                problem,
            ) => Ok(Partial {
                trace: Self {
                    header,
                    resident,
                    content,
                    samples,
                    loads,
                    hints,
                    cost: end.flatten(),
                },
                problem,
            }),
            (
                _,
                Some(
                    problem @ (TraceError::Nonsense(_) | TraceError::Io { .. } | TraceError::TooLarge { .. }),
                ),
            ) => Err(problem),
            _ => Err(TraceError::NothingWhole),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// What `out` answers.
    pub fn write(&self, out: impl Write) -> Result<(), TraceError> {
        let mut writer = Writer::new(out, &self.header, &self.resident)?;
        writer.content(&self.content)?;
        for sample in &self.samples {
            writer.sample(sample.clone())?;
        }
        writer.loads(&self.loads)?;
        if let Some(hints) = &self.hints {
            writer.hints(hints)?;
        }
        writer.finish(self.cost).map(drop)
    }
}

impl Found {
    /// Takes a part in.
    fn take(&mut self, kind: u8, part: &[u8], budget: &mut Budget) -> Result<(), TraceError> {
        match (kind, self.header.as_ref().map(Header::pages)) {
            (HEADER, None) => {
                let header: Header = decode(part)?;
                header.check()?;
                self.header = Some(header);
            }
            (RESIDENT, Some(pages)) if self.resident.is_none() => {
                let resident: PageSet = decode(part)?;
                resident.check(pages)?;
                self.resident = Some(resident);
            }
            (CONTENT, Some(_)) => {
                let content: Content = decode(part)?;
                content.check()?;
                self.content = content;
            }
            (SAMPLES, Some(pages)) => decode_each(part, |sample: Sample| {
                let after_us = self.samples.last().map_or(0, |last| last.end_us);
                sample.check(pages, after_us)?;
                budget.take(size_of::<Sample>() as u64, self.samples.len())?;
                self.samples.push(sample);
                Ok(())
            })?,
            (LOADS, Some(_)) => decode_each(part, |mark: LoadMark| {
                budget.take(size_of::<LoadMark>() as u64, self.samples.len())?;
                self.loads.push(mark);
                Ok(())
            })?,
            (HINTS, Some(pages)) if self.hints.is_none() => {
                self.hints = Some(GuestHints::read(part, pages)?);
            }
            (END, Some(_)) => self.end = Some(decode(part)?),
            (HEADER | RESIDENT | CONTENT | SAMPLES | LOADS | HINTS | END, _) => {
                return Err(TraceError::Nonsense(format!(
                    "a part of kind {kind} is out of place"
                )));
            }
            // Of a newer program.
            _ => {}
        }
        Ok(())
    }
}

fn check_head(reader: &mut impl Read) -> Result<(), TraceError> {
    let mut head = [0; HEAD_BYTES];
    let got = read_up_to(reader, &mut head)?;
    if got < MAGIC.len() || !head.starts_with(MAGIC) {
        return Err(TraceError::NoTrace);
    }
    if got < HEAD_BYTES {
        return Err(TraceError::NothingWhole);
    }
    match u16::from_le_bytes([head[8], head[9]]) {
        1..=FORMAT => Ok(()),
        found => Err(TraceError::Version {
            found,
            newest: FORMAT,
        }),
    }
}

/// The next part: its kind, its bytes, and how many bytes of the file it took. None at the end of the file.
fn read_part(
    reader: &mut impl Read,
    at: u64,
    samples: usize,
    budget: &mut Budget,
) -> Result<Option<(u8, Vec<u8>, u64)>, TraceError> {
    let mut head = [0; PART_HEAD_BYTES];
    match read_up_to(reader, &mut head)? {
        0 => return Ok(None),
        PART_HEAD_BYTES => {}
        _ => return Err(TraceError::CutShort { at, samples }),
    }
    let number = |from: usize| {
        let bytes: [u8; 4] = head[from..from + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes)
    };
    let (len, decoded_len, crc) = (number(4), u64::from(number(8)), number(12));
    let most = most_bytes(head[0]);
    check_part(u64::from(len), most + SLACK_BYTES)?;
    // Nothing is allocated before it has come.
    let mut payload = Vec::new();
    let got = reader
        .take(u64::from(len))
        .read_to_end(&mut payload)
        .map_err(TraceError::reading)?;
    if got < len as usize {
        return Err(TraceError::CutShort { at, samples });
    }
    if checksum(&head[..12], &payload) != crc {
        return Err(TraceError::Damaged { at, samples });
    }
    check_part(decoded_len, most)?;
    budget.take(decoded_len, samples)?;
    let part = decompress(&payload, decoded_len)?;
    Ok(Some((head[0], part, (PART_HEAD_BYTES + payload.len()) as u64)))
}

/// Most bytes of a part of `kind`, decompressed.
fn most_bytes(kind: u8) -> u64 {
    match kind {
        HEADER | CONTENT | END => MOST_SMALL_PART_BYTES,
        _ => MOST_PART_BYTES,
    }
}

fn check_part(bytes: u64, most: u64) -> Result<(), TraceError> {
    match bytes <= most {
        true => Ok(()),
        false => Err(TraceError::TooLarge { bytes, most }),
    }
}

/// Decompresses as it comes, so that a lie about the length costs nothing.
fn decompress(payload: &[u8], len: u64) -> Result<Vec<u8>, TraceError> {
    let nonsense = |_| TraceError::Nonsense("a part cannot be decompressed".into());
    let decoder = zstd::stream::read::Decoder::with_buffer(payload).map_err(nonsense)?;
    let mut part = Vec::new();
    decoder.take(len + 1).read_to_end(&mut part).map_err(nonsense)?;
    match part.len() as u64 == len {
        true => Ok(part),
        false => Err(TraceError::Nonsense(
            "a part has another length than it says".into(),
        )),
    }
}

fn decode<T: DeserializeOwned>(part: &[u8]) -> Result<T, TraceError> {
    decode_next(part).map(|(content, _)| content)
}

/// Decodes a list an element at a time: in memory an element takes many times what it takes in a part.
fn decode_each<T: DeserializeOwned>(
    part: &[u8],
    mut each: impl FnMut(T) -> Result<(), TraceError>,
) -> Result<(), TraceError> {
    let (count, mut rest) = decode_next::<u64>(part)?;
    for _ in 0..count {
        let (element, after) = decode_next(rest)?;
        each(element)?;
        rest = after;
    }
    Ok(())
}

/// Decodes what comes next, and answers what follows it.
pub(crate) fn decode_next<T: DeserializeOwned>(part: &[u8]) -> Result<(T, &[u8]), TraceError> {
    postcard::take_from_bytes(part)
        .map_err(|error| TraceError::Nonsense(format!("a part is not understood: {error}")))
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Fills `buffer` as far as there is something.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TraceError> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(some) => got += some,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TraceError::reading(error)),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests;
