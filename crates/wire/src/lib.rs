//! The migration protocol of vmferry: frames, messages, page encodings. No sockets.
//!
//! A migration has one control stream, any number of page streams and at most one fault stream, all dialled
//! by the source and tied together by a [`SessionToken`]. Each begins with a [`Hello`] and its
//! [`HelloReply`]; then
//!
//! * the control stream carries [`ToDestination`] one way and [`ToSource`] the other ([`control`]),
//! * page streams carry [`PageFrame`]s from the source to the destination ([`page`]),
//! * a stream of a disk carries what the source's mirror writes and the destination's answers (since version 3),
//! * the fault stream carries [`FaultRequest`]s to the source and [`PageFrame`]s back ([`fault`]).
//!
//! All numbers in fixed layouts are little-endian. Everything here is written against `std::io::Read` and
//! `Write`. The peer is not trusted: nothing it sends makes this crate panic, or allocate beyond the bound
//! of a frame, and every refusal says what came and what was expected ([`WireError`]).
#![forbid(unsafe_code)]

mod bounded;
pub mod checksum;
pub mod codec;
pub mod control;
pub mod encoding;
pub mod error;
pub mod fault;
pub mod frame;
pub mod hello;
pub mod page;
pub mod page_set;
pub mod probe;
mod read;
pub mod version;

pub use checksum::{Crc32, crc32};
pub use codec::{ControlMessage, decode_control, encode_control, read_control, write_control};
pub use control::{
    DestinationSummary, FaultModeWire, FaultSummary, Offer, OwnerState, ToDestination, ToSource,
    VerifySummary, clip_reason,
};
pub use encoding::{Coding, EncodedPages, PageDecoder, PageEncoder, ZSTD_LEVELS};
pub use error::{Result, WireError};
pub use fault::{FAULT_REQUEST_BYTES, FaultRequest};
pub use hello::{Hello, HelloReply, SessionToken, StreamRole};
pub use page::{
    HeldPages, MAX_RUN_PAGES, PAGE_HASH_BYTES, PAGE_HEADER_BYTES, PageFrame, PageHash, PageHeader,
};

pub use page_set::{PageSet, PageSetParts};
pub use probe::Probe;
pub use version::{CPU_CAP_SINCE, DISKS_SINCE, ENCODED_PAGES_SINCE, HELD_PAGES_SINCE, SPOKEN, VersionRange};
