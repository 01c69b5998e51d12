//! What vmferry and its agent in the guest say to each other. No sockets.
//!
//! They talk over the virtio-serial port [`PORT`]: the host sends a [`Request`], the agent its [`Answer`]s, each in a
//! [`frame`]. A map of page frames comes in [`MapChunk`]s, run-length coded ([`map`]).
//!
//! Neither side trusts the other: what comes never makes this crate panic or allocate beyond the bound of a frame. The
//! byte stream survives both sides: it may begin in the middle of what was said to a host before, so a reader looks
//! for the beginning of a frame, within a bound.
#![forbid(unsafe_code)]

pub mod error;
pub mod frame;
pub mod kernel;
pub mod map;
pub mod message;

pub use error::{ProtoError, Result};
pub use frame::{FRAME_HEADER_BYTES, MAX_PAYLOAD_BYTES};
pub use kernel::{Extent, FreeRule, Kernel, StructPages};
pub use map::{FrameRun, MapChunk, MapCoder, MapReader, Use};
pub use message::{
    Answer, Body, Call, FrameRange, LastRun, Load, Request, read_answer, read_request, write_answer,
    write_request,
};

/// Name of the virtio-serial port.
pub const PORT: &str = "org.vmferry.agent.0";
/// The version that this build speaks.
pub const VERSION: u16 = 1;
