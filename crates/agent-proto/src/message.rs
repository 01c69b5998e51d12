//! The messages.

use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{ProtoError, Result};
use crate::frame;
use crate::kernel::{Kernel, MAX_TEXT_BYTES, bound};
use crate::map::{MAX_FRAMES, MapChunk};

/// The most ranges of frames in a question.
pub const MAX_RANGES: usize = 4096;
/// The most processes in an answer.
pub const MAX_LAST_RUNS: usize = 1024;
/// The most bytes of a process's name.
pub const MAX_NAME_BYTES: usize = 64;

/// What the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host; every answer repeats it, so that one to an earlier host is known as such.
    pub id: u32,
    /// What it asks.
    pub call: Call,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Are you there? Answered by [`Body::Pong`].
    Ping {
        /// The version that the host speaks.
        version: u16,
    },
    /// What is each frame? Answered by [`Body::Map`]s.
    Classify {
        /// Processes that ran within so many milliseconds are active.
        active_within_ms: u32,
    },
    /// Which frames are free? Answered by [`Body::Map`]s in which all other frames are absent.
    Free,
    /// How busy is the guest? Answered by [`Body::Load`].
    Load,
    /// When did processes run last? Answered by [`Body::LastRuns`].
    LastRuns,
    /// Where does the kernel keep its `struct page`s? Answered by [`Body::Kernel`].
    Kernel,
    /// As [`Call::Classify`], of these frames only; all others are absent from the answer.
    ClassifyIn {
        /// Processes that ran within so many milliseconds are active.
        active_within_ms: u32,
        /// At most [`MAX_RANGES`] of them.
        frames: Vec<FrameRange>,
    },
    /// As [`Call::Free`], of these frames only.
    FreeIn {
        /// At most [`MAX_RANGES`] of them.
        frames: Vec<FrameRange>,
    },
}

/// Consecutive page frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameRange {
    /// Number of the first one.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// That of the request.
    pub id: u32,
    /// The answer.
    pub body: Body,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// I am.
    Pong {
        /// The version that the agent speaks: the lower one of both sides'.
        version: u16,
    },
    /// A part of a map.
    Map(MapChunk),
    /// How busy the guest is.
    Load(Load),
    /// When processes ran last, the latest first; the first [`MAX_LAST_RUNS`] of them.
    LastRuns(Vec<LastRun>),
    /// The kernel.
    Kernel(Kernel),
    /// It cannot be answered.
    Failed {
        /// Why.
        #[serde(deserialize_with = "one_line")]
        reason: String,
    },
}

/// How busy a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Hundredths of the load averages over 1, 5 and 15 minutes.
    pub averages_percent: [u32; 3],
    /// Memory that the guest's kernel manages, in KiB.
    pub total_kib: u64,
    /// Memory that is free, in KiB.
    pub free_kib: u64,
    /// Memory that could be had without swapping, in KiB.
    pub available_kib: u64,
}

/// A process, and when it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Its number in the guest.
    pub pid: u32,
    /// Milliseconds since one of its threads last ran.
    pub ago_ms: u64,
    /// Its name.
    #[serde(deserialize_with = "one_line")]
    pub name: String,
}

/// Writes a request.
///
/// # Errors
/// What the port answers.
pub fn write_request(writer: &mut impl Write, request: &Request) -> Result<()> {
    request.check()?;
    frame::write(writer, &encode(request, "a request")?)
}

/// Reads a request.
///
/// # Errors
/// When the port ends, or what comes is no request.
pub fn read_request(reader: &mut impl Read) -> Result<Request> {
    decode_request(&frame::read(reader)?)
}

/// Writes an answer.
///
/// # Errors
/// When it is beyond a bound, or what the port answers.
pub fn write_answer(writer: &mut impl Write, answer: &Answer) -> Result<()> {
    answer.check()?;
    frame::write(writer, &encode(answer, "an answer")?)
}

/// Reads an answer.
///
/// # Errors
/// When the port ends, or what comes is no answer within all bounds.
pub fn read_answer(reader: &mut impl Read) -> Result<Answer> {
    decode_answer(&frame::read(reader)?)
}

/// The answer in the payload of a frame.
///
/// # Errors
/// When it does not decode or is beyond a bound.
pub fn decode_answer(payload: &[u8]) -> Result<Answer> {
    let answer: Answer = decode(payload, "an answer")?;
    answer.check()?;
    Ok(answer)
}

/// The request in the payload of a frame.
///
/// # Errors
/// When it does not decode or is beyond a bound.
pub fn decode_request(payload: &[u8]) -> Result<Request> {
    let request: Request = decode(payload, "a request")?;
    request.check()?;
    Ok(request)
}

impl Request {
    fn check(&self) -> Result<()> {
        let (Call::ClassifyIn { frames, .. } | Call::FreeIn { frames }) = &self.call else {
            return Ok(());
        };
        bound("ranges of frames", frames.len() as u64, MAX_RANGES as u64)?;
        frames.iter().try_for_each(|range| {
            let end = range.first.saturating_add(range.count);
            match end > MAX_FRAMES {
                true => Err(ProtoError::Beyond {
                    frame: end,
                    limit: MAX_FRAMES,
                }),
                false => Ok(()),
            }
        })
    }
}

impl Answer {
    fn check(&self) -> Result<()> {
        match &self.body {
            Body::Pong { .. } | Body::Load(_) => Ok(()),
            Body::Map(chunk) => chunk.check(),
            Body::Kernel(kernel) => kernel.check(),
            Body::Failed { reason } => bound("a reason in bytes", reason.len() as u64, MAX_TEXT_BYTES as u64),
            Body::LastRuns(runs) => {
                bound("processes", runs.len() as u64, MAX_LAST_RUNS as u64)?;
                runs.iter().try_for_each(|run| {
                    bound(
                        "a process's name in bytes",
                        run.name.len() as u64,
                        MAX_NAME_BYTES as u64,
                    )
                })
            }
        }
    }
}

fn encode(message: &impl Serialize, what: &'static str) -> Result<Vec<u8>> {
    postcard::to_stdvec(message).map_err(|source| ProtoError::Malformed { what, source })
}

fn decode<M: DeserializeOwned>(payload: &[u8], what: &'static str) -> Result<M> {
    let (message, rest) =
        postcard::take_from_bytes(payload).map_err(|source| ProtoError::Malformed { what, source })?;
    if !rest.is_empty() {
        return Err(ProtoError::LeftOver(rest.len(), what));
    }
    Ok(message)
}

/// The other side's text for the operator: without control characters, so that it cannot play with the terminal.
pub(crate) fn one_line<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    Ok(text.chars().map(plain).collect())
}

/// A byte string: one length and a copy, rather than byte by byte.
pub(crate) mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}
