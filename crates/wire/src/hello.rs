//! The first bytes of every connection. The layouts in this file never change between versions.
//!
//! The source dials and sends a hello of 40 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `VMFERRY\0` |
//! | 8..10, 10..12 | lowest and highest protocol version the source speaks |
//! | 12..28 | session token |
//! | 28 | role: 1 control, 2 pages, 3 faults, 4 disk (since version 3), 5 probe |
//! | 29 | flags of the role: bit 0 *resume* (control only) |
//! | 30..32 | index of the page stream or disk (pages and disk only) |
//! | 32..36 | reserved: sent as zero, ignored |
//! | 36..40 | checksum of bytes 0..36 |
//!
//! The destination answers with 20 bytes, followed by the reason of a refusal in UTF-8:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `VMFERRY\0` |
//! | 8 | 1 welcome, 2 refused |
//! | 9 | reserved: sent as zero, ignored |
//! | 10..12 | the version chosen; 0 in a refusal |
//! | 12..14 | bytes of the reason, at most 1024; 0 in a welcome |
//! | 14..16 | reserved: sent as zero, ignored |
//! | 16..20 | checksum of bytes 0..16 and the reason |

use std::fmt;
use std::io::{Read, Write};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bounded::one_line;
use crate::checksum::{self, Crc32, crc32};
use crate::error::{Result, WireError};
use crate::read::{At, read_payload, read_some};
use crate::version::VersionRange;

/// What every connection begins with, in both directions.
pub const MAGIC: [u8; 8] = *b"VMFERRY\0";
/// Bytes of a hello.
pub const HELLO_BYTES: usize = 40;
/// Bytes of a reply without its reason.
pub const REPLY_BYTES: usize = 20;
/// The most bytes a refusal's reason may have.
pub const MAX_REASON_BYTES: usize = 1024;

const FLAG_RESUME: u8 = 1;
const WELCOME: u8 = 1;
const REFUSED: u8 = 2;

/// Ties the streams of one migration together. Random; whoever knows it may join the migration.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionToken(pub [u8; 16]);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRole {
    /// Control messages.
    Control {
        /// Whether the session exists already and its control stream was lost.
        resume: bool,
    },
    /// Pages that the source pushes.
    Pages {
        /// Number of the stream, from 0.
        index: u16,
    },
    /// Requests for single pages and their answers.
    Faults,
    /// Measures the way, and belongs to no session ([`crate::probe`]). Who does not know it refuses the hello, and says so.
    Probe,
    /// What the mirror of a disk writes, and the answers.
    Disk {
        /// Number of the disk in the plan, from 0.
        index: u16,
    },
}

/// What the source says first on every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Versions the source speaks.
    pub versions: VersionRange,
    /// The migration it belongs to.
    pub session: SessionToken,
    /// What the connection is for.
    pub role: StreamRole,
}

/// What the destination answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloReply {
    /// The connection is accepted.
    Welcome {
        /// The version to speak from here on.
        version: u16,
    },
    /// It is not, and will be closed.
    Refused {
        /// Why, in one line for the operator.
        reason: String,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HelloLayout {
    magic: [u8; 8],
    min: U16,
    max: U16,
    session: [u8; 16],
    role: u8,
    role_flags: u8,
    index: U16,
    reserved: [u8; 4],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ReplyLayout {
    magic: [u8; 8],
    kind: u8,
    reserved: u8,
    version: U16,
    reason_len: U16,
    reserved_too: [u8; 2],
    crc: U32,
}

impl Hello {
    /// The bytes of this hello.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let (role, role_flags, index) = match self.role {
            StreamRole::Control { resume } => (1, if resume { FLAG_RESUME } else { 0 }, 0),
            StreamRole::Pages { index } => (2, 0, index),
            StreamRole::Faults => (3, 0, 0),
            StreamRole::Probe => (5, 0, 0),
            StreamRole::Disk { index } => (4, 0, index),
        };
        let mut layout = HelloLayout {
            magic: MAGIC,
            min: self.versions.min.into(),
            max: self.versions.max.into(),
            session: self.session.0,
            role,
            role_flags,
            index: index.into(),
            reserved: [0; 4],
            crc: 0.into(),
        };
        layout.crc = crc32(&layout.as_bytes()[..HELLO_BYTES - 4]).into();
        zerocopy::transmute!(layout)
    }

    /// The hello in `bytes`. Versions are taken as they are: negotiating them is the next step.
    ///
    /// # Errors
    /// When the bytes are not a hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self> {
        check_magic(bytes)?;
        let layout: HelloLayout = zerocopy::transmute!(*bytes);
        checksum::check("the hello", layout.crc.get(), crc32(&bytes[..HELLO_BYTES - 4]))?;
        let role = match layout.role {
            1 => StreamRole::Control {
                resume: layout.role_flags & FLAG_RESUME != 0,
            },
            2 => StreamRole::Pages {
                index: layout.index.get(),
            },
            3 => StreamRole::Faults,
            5 => StreamRole::Probe,
            4 => StreamRole::Disk {
                index: layout.index.get(),
            },
            other => {
                return Err(WireError::UnknownKind {
                    what: "role of a stream",
                    came: other.to_string(),
                    expected: "1 (control), 2 (pages), 3 (faults), 4 (disk) or 5 (probe)".into(),
                });
            }
        };
        let versions = VersionRange {
            min: layout.min.get(),
            max: layout.max.get(),
        };
        Ok(Self {
            versions,
            session: SessionToken(layout.session),
            role,
        })
    }

    /// Reads a hello. Something else than vmferry is found out with its first wrong byte.
    ///
    /// # Errors
    /// When what comes is not a hello, or too little comes.
    pub fn read(reader: &mut impl Read) -> Result<Self> {
        Self::decode(&read_after_magic(reader, "a hello")?)
    }

    /// Writes this hello.
    ///
    /// # Errors
    /// What the connection answers.
    pub fn write(&self, writer: &mut impl Write) -> Result<()> {
        writer
            .write_all(&self.encode())
            .map_err(|source| WireError::Write {
                what: "a hello",
                source,
            })
    }
}

impl HelloReply {
    /// The bytes of this reply. A reason that is too long is cut.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, version, reason) = match self {
            Self::Welcome { version } => (WELCOME, *version, ""),
            Self::Refused { reason } => (REFUSED, 0, one_line::cut(reason, MAX_REASON_BYTES)),
        };
        let mut layout = ReplyLayout {
            magic: MAGIC,
            kind,
            reserved: 0,
            version: version.into(),
            reason_len: (reason.len() as u16).into(),
            reserved_too: [0; 2],
            crc: 0.into(),
        };
        layout.crc = reply_crc(layout.as_bytes(), reason.as_bytes()).into();
        [layout.as_bytes(), reason.as_bytes()].concat()
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// When what comes is not a reply, or too little comes.
    pub fn read(reader: &mut impl Read) -> Result<Self> {
        const WHAT: &str = "the reply to a hello";
        let bytes: [u8; REPLY_BYTES] = read_after_magic(reader, WHAT)?;
        let layout: ReplyLayout = zerocopy::transmute!(bytes);
        let reason_len = usize::from(layout.reason_len.get());
        if reason_len > MAX_REASON_BYTES {
            return Err(WireError::TooLong {
                what: "the reason of a refusal",
                came: reason_len as u64,
                unit: "bytes",
                limit: MAX_REASON_BYTES as u64,
            });
        }
        let reason = read_payload(reader, reason_len, WHAT)?;
        checksum::check(WHAT, layout.crc.get(), reply_crc(&bytes, &reason))?;
        match layout.kind {
            WELCOME => Ok(Self::Welcome {
                version: layout.version.get(),
            }),
            REFUSED => Ok(Self::Refused {
                reason: one_line::of(&String::from_utf8_lossy(&reason)),
            }),
            other => Err(WireError::UnknownKind {
                what: "reply to a hello",
                came: other.to_string(),
                expected: "1 (welcome) or 2 (refused)".into(),
            }),
        }
    }

    /// Writes this reply.
    ///
    /// # Errors
    /// What the connection answers.
    pub fn write(&self, writer: &mut impl Write) -> Result<()> {
        writer
            .write_all(&self.encode())
            .map_err(|source| WireError::Write {
                what: "the reply to a hello",
                source,
            })
    }

    /// The version to speak, for the source that offered `versions`.
    ///
    /// # Errors
    /// [`WireError::Refused`], or [`WireError::Unexpected`] where the peer chose a version not offered.
    pub fn accepted(self, versions: VersionRange) -> Result<u16> {
        match self {
            Self::Welcome { version } if versions.contains(version) => Ok(version),
            Self::Welcome { version } => Err(WireError::Unexpected {
                what: "the protocol version chosen by the peer",
                came: version.into(),
                expected: format!("one of {versions}"),
            }),
            Self::Refused { reason } => Err(WireError::Refused { reason }),
        }
    }
}

impl fmt::Debug for SessionToken {
    /// Only the first bytes: enough to tell sessions apart in a log, too little to join one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SessionToken({:02x}{:02x}{:02x}..)",
            self.0[0], self.0[1], self.0[2]
        )
    }
}

/// Reads `N` bytes that begin with [`MAGIC`], and stops at the first byte that is wrong.
fn read_after_magic<const N: usize>(reader: &mut impl Read, what: &'static str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut came = 0;
    while came < N {
        came += read_some(reader, &mut bytes[came..], At::Border, what, came, N)?;
        check_magic(&bytes[..came])?;
    }
    Ok(bytes)
}

/// Whether `bytes`, a beginning, agree with [`MAGIC`] as far as they go.
fn check_magic(bytes: &[u8]) -> Result<()> {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        return Err(WireError::NotVmferry {
            came: bytes.escape_ascii().to_string(),
        });
    }
    Ok(())
}

fn reply_crc(header: &[u8], reason: &[u8]) -> u32 {
    let mut crc = Crc32::new();
    crc.update(&header[..REPLY_BYTES - 4]);
    crc.update(reason);
    crc.finalize()
}
