//! Encodings of pages: their names, which one to use next, and what became of the pages.
//!
//! How bytes are encoded is the matter of `vmferry-wire`; nothing here sees a byte of a page.

mod chooser;
mod log;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use chooser::{Chooser, Encoded, Plan, SentWith};
pub use log::{EncodingLog, EncodingReport, EncodingSlice, PagesByEncoding};

/// The levels of zstd: negative ones are faster, higher ones shorter.
pub const ZSTD_LEVELS: RangeInclusive<i32> = -7..=19;
/// The level of zstd where none is named.
pub const DEFAULT_ZSTD_LEVEL: i32 = 1;
/// Most that the versions last sent take, where nothing is said.
const MOST_DELTA_CACHE_BYTES: u64 = 64 << 20;

/// What the versions last sent may take, where nothing is said, for a guest of this much RAM: a 256th of it, because a
/// migration should not need much memory of a host that may be short of it.
pub fn default_delta_cache_bytes(ram_bytes: u64) -> u64 {
    (ram_bytes / 256).min(MOST_DELTA_CACHE_BYTES)
}

/// How the pages of a batch are encoded. A page that does not shrink crosses raw all the same, and one of equal bytes as
/// one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    Raw,
    /// LZ4.
    Lz4,
    /// Zstandard of this level.
    Zstd(i32),
}

/// What the operator asks for.
///
/// As text: `auto`, or `raw`, `lz4`, `zstd`, `zstd:LEVEL`, each of them also with `+delta`; `delta` is `raw+delta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Encoding {
    /// Whatever finishes soonest at each time, by what link and processors have to spare. With deltas.
    #[default]
    Auto,
    /// Always the same.
    Fixed {
        /// For pages that have no earlier version.
        codec: Codec,
        /// Whether pages cross as the difference to the version sent before, where that is known and shorter.
        delta: bool,
    },
}

/// An encoding that does not exist.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadEncoding {
    /// An unknown name.
    #[error(
        "unknown encoding {0:?}; known are auto, raw, lz4, zstd, zstd:LEVEL and delta, and combinations such as lz4+delta"
    )]
    Unknown(String),
    /// A level that zstd does not have.
    #[error("zstd has no level {level:?}; choose {} to {}", ZSTD_LEVELS.start(), ZSTD_LEVELS.end())]
    Level {
        /// What was asked for.
        level: String,
    },
}

impl Encoding {
    /// Every page as it is.
    pub const RAW: Self = Self::Fixed {
        codec: Codec::Raw,
        delta: false,
    };

    /// Whether versions sent are kept for deltas.
    pub const fn uses_delta(self) -> bool {
        matches!(self, Self::Auto | Self::Fixed { delta: true, .. })
    }
}

impl FromStr for Encoding {
    type Err = BadEncoding;

    fn from_str(text: &str) -> Result<Self, BadEncoding> {
        let (name, delta) = match text.strip_suffix("+delta") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let codec = match name {
            "auto" if !delta => return Ok(Self::Auto),
            "delta" if !delta => {
                return Ok(Self::Fixed {
                    codec: Codec::Raw,
                    delta: true,
                });
            }
            "raw" => Codec::Raw,
            "lz4" => Codec::Lz4,
            "zstd" => Codec::Zstd(DEFAULT_ZSTD_LEVEL),
            _ => match name.strip_prefix("zstd:") {
                Some(level) => match level.parse() {
                    Ok(number) if ZSTD_LEVELS.contains(&number) => Codec::Zstd(number),
                    _ => return Err(BadEncoding::Level { level: level.into() }),
                },
                None => return Err(BadEncoding::Unknown(text.into())),
            },
        };
        Ok(Self::Fixed { codec, delta })
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(DEFAULT_ZSTD_LEVEL) => f.write_str("zstd"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed {
                codec: Codec::Raw,
                delta: true,
            } => f.write_str("delta"),
            Self::Fixed { codec, delta: true } => write!(f, "{codec}+delta"),
            Self::Fixed { codec, delta: false } => codec.fmt(f),
        }
    }
}

impl TryFrom<String> for Encoding {
    type Error = BadEncoding;

    fn try_from(text: String) -> Result<Self, BadEncoding> {
        text.parse()
    }
}

impl From<Encoding> for String {
    fn from(encoding: Encoding) -> Self {
        encoding.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in [
            "auto",
            "raw",
            "lz4",
            "zstd",
            "zstd:-7",
            "zstd:19",
            "delta",
            "lz4+delta",
            "zstd+delta",
            "zstd:3+delta",
        ] {
            assert_eq!(name.parse::<Encoding>().unwrap().to_string(), name);
        }
        assert_eq!("raw+delta".parse::<Encoding>().unwrap().to_string(), "delta");
        assert_eq!("zstd:1".parse::<Encoding>().unwrap().to_string(), "zstd");
        let json: Encoding = serde_json::from_str("\"zstd:5\"").unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), "\"zstd:5\"");
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        for name in [
            "",
            "gzip",
            "auto+delta",
            "delta+delta",
            "LZ4",
            "lz4:3",
            "lz4+",
            "+delta",
            "delta+lz4",
        ] {
            let why = name.parse::<Encoding>().unwrap_err().to_string();
            assert!(
                why.contains(&format!("{name:?}")) && why.contains("known are auto, raw, lz4, zstd"),
                "{why}"
            );
        }
        for level in ["", "x", "20", "-8", "99999999999"] {
            let why = format!("zstd:{level}")
                .parse::<Encoding>()
                .unwrap_err()
                .to_string();
            assert!(why.contains("choose -7 to 19"), "{why}");
        }
    }
}
