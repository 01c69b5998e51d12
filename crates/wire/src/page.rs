//! Page frames: what page streams carry, and the answers on the fault stream.
//!
//! A frame is a header of 32 bytes and, for some kinds, a payload:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind |
//! | 1 | flags: bit 0 *the payload has a checksum* |
//! | 2 | the byte that fills the pages (`Uniform`), else 0 |
//! | 3 | reserved: 0 |
//! | 4..8 | round of pre-copy, from 1; 0 outside of rounds |
//! | 8..16 | number of the first page |
//! | 16..20 | how many pages |
//! | 20..24 | bytes of payload |
//! | 24..28 | checksum of the payload (`Delta`: of the pages it makes); 0 without the flag |
//! | 28..32 | checksum of bytes 0..28 |
//!
//! | kind | name | payload |
//! |---|---|---|
//! | 1 | `Raw` | the pages. From a running guest without checksum: the guest may write while they are sent |
//! | 2 | `Uniform` | none: every byte of the pages is the byte in the header |
//! | 3 | `RoundEnd` | none: everything this stream sends in the round was sent before |
//! | 4 | `PushEnd` | none: everything this stream pushes was sent before |
//! | 16 | `Lz4` | the pages as an LZ4 block, shorter than they are |
//! | 17 | `Zstd` | the pages as a Zstandard frame, shorter than they are |
//! | 18 | `Delta` | an LZ4 block of the pages, exclusive-or the version the destination holds |
//! | 19 | `Held` | the BLAKE3 hash of each page, 32 bytes: the destination has it in a store of its own |
//!
//! Kinds 16 to 18 come with version 2, kind 19 with version 3; they always have a checksum ([`crate::encoding`],
//! [`HeldPages`]).

use std::io::Read;

use vmferry_core::{PAGE_SIZE, PageRun, RamLayout};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, crc32};
use crate::encoding::{Coding, EncodedPages};
use crate::error::{Result, WireError};
use crate::read::{At, read_fixed, read_payload};
use crate::version::{ENCODED_PAGES_SINCE, HELD_PAGES_SINCE};

/// Bytes of the header of a page frame.
pub const PAGE_HEADER_BYTES: usize = 32;
/// The most pages of one frame: 4 MiB.
pub const MAX_RUN_PAGES: u64 = 1024;

const FLAG_PAYLOAD_CRC: u8 = 1;

const RAW: u8 = 1;
const UNIFORM: u8 = 2;
const ROUND_END: u8 = 3;
const PUSH_END: u8 = 4;
const LZ4: u8 = 16;
const ZSTD: u8 = 17;
const DELTA: u8 = 18;
const HELD: u8 = 19;

/// Bytes of the hash of a page.
pub const PAGE_HASH_BYTES: usize = 32;

/// The BLAKE3 hash of a page.
pub type PageHash = [u8; PAGE_HASH_BYTES];

/// A page frame whose header was checked. Its payload follows on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFrame {
    /// The pages as they are: a payload of `run.bytes()` bytes follows.
    Raw {
        /// Which pages.
        run: PageRun,
        /// In which round; 0 outside of rounds.
        round: u32,
        /// Checksum of the payload, where it has one.
        crc: Option<u32>,
    },
    /// Pages of which each byte is the same.
    Uniform {
        /// Which pages.
        run: PageRun,
        /// In which round; 0 outside of rounds.
        round: u32,
        /// The byte.
        byte: u8,
    },
    /// Pages in an encoded form: a payload of `len` bytes follows, for [`PageDecoder`](crate::PageDecoder).
    Encoded(EncodedPages),
    /// Pages that the destination has: their hashes follow, for [`HeldPages::read`].
    Held(HeldPages),
    /// Everything this stream sends in the round was sent before.
    RoundEnd {
        /// The round.
        round: u32,
    },
    /// Everything this stream pushes was sent before.
    PushEnd,
}

/// Pages that cross as their hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPages {
    /// Which pages.
    pub run: PageRun,
    /// In which round; 0 outside of rounds.
    pub round: u32,
    /// Checksum of the hashes.
    pub crc: u32,
}

impl HeldPages {
    /// The frame that says that the pages of `run` have these hashes: its header, which the hashes follow.
    ///
    /// # Panics
    /// When there is not one hash a page, or the run is empty or longer than [`MAX_RUN_PAGES`].
    pub fn frame(run: PageRun, round: u32, hashes: &[PageHash]) -> PageHeader {
        assert_eq!(run.count, hashes.len() as u64, "one hash a page");
        let crc = crc32(hashes.as_flattened());
        PageHeader::held(Self { run, round, crc })
    }

    /// Bytes of payload that follow the header.
    pub fn payload_bytes(&self) -> u64 {
        self.run.count * PAGE_HASH_BYTES as u64
    }

    /// Reads the hashes, which follow the header.
    ///
    /// # Errors
    /// When the connection ends, or the checksum does not match.
    pub fn read(&self, reader: &mut impl Read) -> Result<Vec<PageHash>> {
        let bytes = read_payload(reader, self.payload_bytes() as usize, "the hashes of pages")?;
        checksum::check("the hashes of pages", self.crc, crc32(&bytes))?;
        Ok(bytes.as_chunks::<PAGE_HASH_BYTES>().0.to_vec())
    }
}

/// The encoded header of a page frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageHeader {
    kind: u8,
    flags: u8,
    byte: u8,
    reserved: u8,
    round: U32,
    first: U64,
    count: U32,
    payload_len: U32,
    payload_crc: U32,
    header_crc: U32,
}

impl PageFrame {
    /// Bytes of payload that follow the header.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Raw { run, .. } => run.bytes(),
            Self::Encoded(pages) => pages.len.into(),
            Self::Held(pages) => pages.payload_bytes(),
            Self::Uniform { .. } | Self::RoundEnd { .. } | Self::PushEnd => 0,
        }
    }

    /// The pages it brings.
    pub fn run(&self) -> Option<PageRun> {
        match *self {
            Self::Raw { run, .. } | Self::Uniform { run, .. } => Some(run),
            Self::Encoded(pages) => Some(pages.run),
            Self::Held(pages) => Some(pages.run),
            Self::RoundEnd { .. } | Self::PushEnd => None,
        }
    }

    /// Refuses a frame that the version agreed on does not have.
    ///
    /// # Errors
    /// [`WireError::UnknownKind`].
    pub fn check_version(&self, version: u16) -> Result<()> {
        match self {
            Self::Encoded(pages) if version < ENCODED_PAGES_SINCE => {
                Err(unknown_kind(coding_kind(pages.coding)))
            }
            Self::Held(_) if version < HELD_PAGES_SINCE => Err(unknown_kind(HELD)),
            _ => Ok(()),
        }
    }

    /// Compares the checksum of a raw payload with the one that came, if one came. `payload_crc` computes it, over
    /// the bytes as they were received.
    ///
    /// # Errors
    /// [`WireError::Checksum`].
    pub fn check_payload(&self, payload_crc: impl FnOnce() -> u32) -> Result<()> {
        match *self {
            Self::Raw { crc: Some(came), .. } => {
                checksum::check("the payload of a raw page frame", came, payload_crc())
            }
            _ => Ok(()),
        }
    }

    /// Reads the header of the next frame and checks it against the guest's RAM. The payload is left on the
    /// stream.
    ///
    /// # Errors
    /// When the connection ends, or what comes is not the header of a page frame for this RAM.
    pub fn read(reader: &mut impl Read, layout: &RamLayout) -> Result<Self> {
        PageHeader::decode(
            &read_fixed(reader, At::Border, "the header of a page frame")?,
            layout,
        )
    }

    /// The header that announces this frame.
    ///
    /// # Panics
    /// When it has no pages or more than [`MAX_RUN_PAGES`], or an encoded form that is no shorter than the pages.
    pub fn header(&self) -> PageHeader {
        match *self {
            Self::Raw { run, round, crc } => PageHeader::raw(run, round, crc),
            Self::Uniform { run, round, byte } => PageHeader::uniform(run, round, byte),
            Self::Encoded(pages) => PageHeader::encoded(pages),
            Self::Held(pages) => PageHeader::held(pages),
            Self::RoundEnd { round } => PageHeader::round_end(round),
            Self::PushEnd => PageHeader::push_end(),
        }
    }
}

impl PageHeader {
    /// Announces the pages of `run` as they are; `crc` is the checksum of the payload, given only where the
    /// guest cannot write meanwhile.
    ///
    /// # Panics
    /// When the run is empty or longer than [`MAX_RUN_PAGES`].
    pub fn raw(run: PageRun, round: u32, crc: Option<u32>) -> Self {
        Self {
            flags: if crc.is_some() { FLAG_PAYLOAD_CRC } else { 0 },
            payload_len: (run.bytes() as u32).into(),
            payload_crc: crc.unwrap_or(0).into(),
            ..Self::of_run(RAW, run, round)
        }
    }

    /// Says that each byte of the pages of `run` is `byte`.
    ///
    /// # Panics
    /// When the run is empty or longer than [`MAX_RUN_PAGES`].
    pub fn uniform(run: PageRun, round: u32, byte: u8) -> Self {
        Self {
            byte,
            ..Self::of_run(UNIFORM, run, round)
        }
    }

    /// Announces pages in an encoded form.
    ///
    /// # Panics
    /// When the run is empty or longer than [`MAX_RUN_PAGES`], or the payload is empty or not shorter than the pages.
    pub fn encoded(pages: EncodedPages) -> Self {
        let (len, bytes) = (u64::from(pages.len), pages.run.bytes());
        assert!(
            (1..bytes).contains(&len),
            "{bytes} bytes of pages encoded in {len}"
        );
        Self {
            flags: FLAG_PAYLOAD_CRC,
            payload_len: pages.len.into(),
            payload_crc: pages.crc.into(),
            ..Self::of_run(coding_kind(pages.coding), pages.run, pages.round)
        }
    }

    /// Announces the hashes of pages that the destination has.
    ///
    /// # Panics
    /// When the run is empty or longer than [`MAX_RUN_PAGES`].
    pub fn held(pages: HeldPages) -> Self {
        Self {
            flags: FLAG_PAYLOAD_CRC,
            payload_len: (pages.payload_bytes() as u32).into(),
            payload_crc: pages.crc.into(),
            ..Self::of_run(HELD, pages.run, pages.round)
        }
    }

    /// Says that this stream has sent all it sends in `round`.
    pub fn round_end(round: u32) -> Self {
        Self {
            round: round.into(),
            ..Self::empty(ROUND_END)
        }
    }

    /// Says that this stream has sent all it pushes.
    pub fn push_end() -> Self {
        Self::empty(PUSH_END)
    }

    /// The bytes of this header, with its checksum.
    pub fn encode(&self) -> [u8; PAGE_HEADER_BYTES] {
        let mut header = *self;
        header.header_crc = crc32(&self.as_bytes()[..PAGE_HEADER_BYTES - 4]).into();
        zerocopy::transmute!(header)
    }

    /// The frame that `bytes` announce, every field of it checked.
    ///
    /// # Errors
    /// When the checksum does not match, the kind is unknown, the pages are too many or do not exist, or a
    /// field is not what its kind demands.
    pub fn decode(bytes: &[u8; PAGE_HEADER_BYTES], layout: &RamLayout) -> Result<PageFrame> {
        let header: Self = zerocopy::transmute!(*bytes);
        let expected = crc32(&bytes[..PAGE_HEADER_BYTES - 4]);
        checksum::check("the header of a page frame", header.header_crc.get(), expected)?;
        let round = header.round.get();
        let frame = match header.kind {
            RAW => {
                let crc = (header.flags & FLAG_PAYLOAD_CRC != 0).then(|| header.payload_crc.get());
                PageFrame::Raw {
                    run: header.run(layout)?,
                    round,
                    crc,
                }
            }
            UNIFORM => PageFrame::Uniform {
                run: header.run(layout)?,
                round,
                byte: header.byte,
            },
            LZ4 => header.encoded_frame(Coding::Lz4, layout)?,
            ZSTD => header.encoded_frame(Coding::Zstd, layout)?,
            DELTA => header.encoded_frame(Coding::Delta, layout)?,
            HELD => PageFrame::Held(HeldPages {
                run: header.run(layout)?,
                round,
                crc: header.payload_crc.get(),
            }),
            ROUND_END => PageFrame::RoundEnd { round },
            PUSH_END => PageFrame::PushEnd,
            other => return Err(unknown_kind(other)),
        };
        header.check_equals(&frame.header())?;
        Ok(frame)
    }

    fn empty(kind: u8) -> Self {
        Self {
            kind,
            ..Self::new_zeroed()
        }
    }

    fn of_run(kind: u8, run: PageRun, round: u32) -> Self {
        assert!(
            (1..=MAX_RUN_PAGES).contains(&run.count),
            "a page frame of {} pages",
            run.count
        );
        Self {
            round: round.into(),
            first: run.first.into(),
            count: (run.count as u32).into(),
            ..Self::empty(kind)
        }
    }

    /// The payload's length is not given by the run, but bounded by it.
    fn encoded_frame(&self, coding: Coding, layout: &RamLayout) -> Result<PageFrame> {
        let run = self.run(layout)?;
        let len = self.payload_len.get();
        if !(1..run.bytes()).contains(&len.into()) {
            return Err(WireError::Unexpected {
                what: "the payload length of an encoded page frame",
                came: len.into(),
                expected: format!("1 to {}", run.bytes() - 1),
            });
        }
        Ok(PageFrame::Encoded(EncodedPages {
            run,
            round: self.round.get(),
            coding,
            len,
            crc: self.payload_crc.get(),
        }))
    }

    fn run(&self, layout: &RamLayout) -> Result<PageRun> {
        let run = PageRun::new(self.first.get(), self.count.get().into());
        if run.count > MAX_RUN_PAGES {
            return Err(WireError::TooLong {
                what: "a page frame",
                came: run.count,
                unit: "pages",
                limit: MAX_RUN_PAGES,
            });
        }
        layout.check(run).map_err(|source| WireError::OutOfRam {
            what: "a page frame",
            source,
        })?;
        Ok(run)
    }

    /// Refuses a header with any field other than in `expected`, which has the same kind: a payload of
    /// another length, an unknown flag, a field its kind does not have.
    fn check_equals(&self, expected: &Self) -> Result<()> {
        let fields: [(&str, u64, u64); 8] = [
            (
                "the payload length of a page frame",
                self.payload_len.into(),
                expected.payload_len.into(),
            ),
            (
                "the flags field of a page frame",
                self.flags.into(),
                expected.flags.into(),
            ),
            (
                "the byte field of a page frame",
                self.byte.into(),
                expected.byte.into(),
            ),
            (
                "the reserved field of a page frame",
                self.reserved.into(),
                expected.reserved.into(),
            ),
            (
                "the round of a page frame",
                self.round.into(),
                expected.round.into(),
            ),
            (
                "the first page of a page frame",
                self.first.into(),
                expected.first.into(),
            ),
            (
                "the page count of a page frame",
                self.count.into(),
                expected.count.into(),
            ),
            (
                "the payload checksum of a page frame",
                self.payload_crc.into(),
                expected.payload_crc.into(),
            ),
        ];
        match fields.into_iter().find(|(_, came, expected)| came != expected) {
            None => Ok(()),
            Some((what, came, expected)) => Err(WireError::Unexpected {
                what,
                came,
                expected: expected.to_string(),
            }),
        }
    }
}

const fn coding_kind(coding: Coding) -> u8 {
    match coding {
        Coding::Lz4 => LZ4,
        Coding::Zstd => ZSTD,
        Coding::Delta => DELTA,
    }
}

/// A kind that does not exist, or not in the version agreed on.
fn unknown_kind(kind: u8) -> WireError {
    let came = match kind {
        LZ4 => "16 (lz4, not before version 2)".into(),
        ZSTD => "17 (zstd, not before version 2)".into(),
        DELTA => "18 (delta, not before version 2)".into(),
        HELD => "19 (held, not before version 3)".into(),
        other => other.to_string(),
    };
    WireError::UnknownKind {
        what: "kind of page frame",
        came,
        expected: "1 (raw), 2 (uniform), 3 (round end), 4 (push end), from version 2 on 16 (lz4), 17 (zstd) or 18 (delta), \
             from version 3 on 19 (held)"
            .into(),
    }
}

const _: () = assert!(size_of::<PageHeader>() == PAGE_HEADER_BYTES);
const _: () = assert!(MAX_RUN_PAGES * PAGE_SIZE <= u32::MAX as u64);
