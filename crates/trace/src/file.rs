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
//! | 0 | kind: 1 header, 2 resident pages, 3 content, 4 samples, 5 loads, 6 end |
//! | 1..4 | reserved: written as zero, ignored |
//! | 4..8 | bytes of the payload as it stands in the file |
//! | 8..12 | bytes of the payload decompressed, at most 256 MiB |
//! | 12..16 | CRC-32 of bytes 0..12 and the payload |
//! | 16.. | the payload: a zstd frame of the part in postcard's encoding |
//!
//! All numbers are little-endian. Header and resident pages come first, the end last; content follows wherever it is known,
//! the last one counts. Samples come in parts of some, so that a recorder that is ended loses little. A part of a kind that is
//! not known is skipped. A file without an end was cut short: what came before is whole, and [`Partial`] reads it.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::content::Content;
use crate::error::TraceError;
use crate::header::Header;
use crate::page_set::PageSet;
use crate::sample::{LoadMark, Sample};
use crate::trace::{Cost, Trace};

/// What every trace begins with.
const MAGIC: &[u8; 8] = b"VMFTRACE";
/// The newest format.
pub const FORMAT: u16 = 1;
/// Most bytes of a part, decompressed.
const MOST_PART_BYTES: u64 = 256 << 20;
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
        if bytes > MOST_PART_BYTES {
            return Err(TraceError::TooLarge {
                bytes,
                most: MOST_PART_BYTES,
            });
        }
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
    /// The end of the file came.
    end: Option<Option<Cost>>,
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
        check_head(reader)?;
        let (mut found, mut at) = (Found::default(), HEAD_BYTES as u64);
        let problem = loop {
            match read_part(reader, at, found.samples.len()) {
                Ok(None) if found.end.is_some() => break None,
                Ok(None) => {
                    break Some(TraceError::CutShort {
                        at,
                        samples: found.samples.len(),
                    });
                }
                Ok(Some((kind, part, bytes))) => match found.take(kind, &part) {
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
                    cost: end.flatten(),
                },
                problem,
            }),
            (_, Some(problem @ (TraceError::Nonsense(_) | TraceError::Io { .. }))) => Err(problem),
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
        writer.finish(self.cost).map(drop)
    }
}

impl Found {
    /// Takes a part in.
    fn take(&mut self, kind: u8, part: &[u8]) -> Result<(), TraceError> {
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
            (SAMPLES, Some(pages)) => {
                let samples: Vec<Sample> = decode(part)?;
                for sample in samples {
                    let after_us = self.samples.last().map_or(0, |last| last.end_us);
                    sample.check(pages, after_us)?;
                    self.samples.push(sample);
                }
            }
            (LOADS, Some(_)) => self.loads.extend(decode::<Vec<LoadMark>>(part)?),
            (END, Some(_)) => self.end = Some(decode(part)?),
            (HEADER | RESIDENT | CONTENT | SAMPLES | LOADS | END, _) => {
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
    if decoded_len > MOST_PART_BYTES {
        return Err(TraceError::TooLarge {
            bytes: decoded_len,
            most: MOST_PART_BYTES,
        });
    }
    let part = decompress(&payload, decoded_len)?;
    Ok(Some((head[0], part, (PART_HEAD_BYTES + payload.len()) as u64)))
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
    postcard::from_bytes(part)
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
