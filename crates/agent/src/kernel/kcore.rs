//! `/proc/kcore`: the kernel's address space as an ELF core file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::error::{AgentError, Result};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// The most segments: one for each piece of memory and a few more.
const MAX_SEGMENTS: usize = 4096;
/// The most bytes of notes.
const MAX_NOTE_BYTES: u64 = 256 << 10;
const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// A part of the kernel's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its first address.
    pub(crate) address: u64,
    /// Its length.
    pub(crate) bytes: u64,
    /// The physical address of its first byte, where it is mapped linearly.
    pub(crate) physical: Option<u64>,
    /// Where it lies in the file.
    pub(crate) offset: u64,
}

/// The opened file.
pub(crate) struct Kcore {
    file: File,
    segments: Vec<Segment>,
    note: Vec<u8>,
}

impl Kcore {
    /// Reads its headers and notes.
    pub(crate) fn open(path: &str) -> Result<Self> {
        let failed = || AgentError::file(path);
        let file = File::open(path).map_err(failed())?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(failed())?;
        let strange = |problem: &str| AgentError::Strange {
            path: "/proc/kcore",
            problem: problem.into(),
        };
        // 64 bits, little-endian.
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return Err(strange("it is no ELF file of 64 bits"));
        }
        let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
        if count > MAX_SEGMENTS {
            return Err(strange("it has too many segments"));
        }
        let mut table = vec![0; count * PROGRAM_HEADER_BYTES];
        file.read_exact_at(&mut table, u64_at(&header, 32))
            .map_err(failed())?;
        let (segments, notes) = parse_table(&table);
        let mut note = Vec::new();
        if let Some((offset, bytes)) = notes {
            note.resize(bytes.min(MAX_NOTE_BYTES) as usize, 0);
            file.read_exact_at(&mut note, offset).map_err(failed())?;
        }
        Ok(Self { file, segments, note })
    }

    /// All segments that show memory.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The notes.
    pub(crate) fn note(&self) -> &[u8] {
        &self.note
    }

    /// The 8 bytes at a physical address, where that is memory.
    pub(crate) fn read_physical(&self, address: u64) -> Result<u64> {
        let offset = self.segments.iter().find_map(|segment| {
            let within = address.checked_sub(segment.physical?)?;
            (within.checked_add(8)? <= segment.bytes).then(|| segment.offset + within)
        });
        let offset = offset.ok_or_else(|| AgentError::Strange {
            path: "/proc/kcore",
            problem: format!("it does not show physical address {address:#x}"),
        })?;
        let mut bytes = [0; 8];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(AgentError::file("/proc/kcore"))?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The segments of a table of program headers, and where the notes lie: offset and length.
fn parse_table(table: &[u8]) -> (Vec<Segment>, Option<(u64, u64)>) {
    let mut segments = Vec::new();
    let mut notes = None;
    for header in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let (offset, address, physical) = (u64_at(header, 8), u64_at(header, 16), u64_at(header, 24));
        let bytes = u64_at(header, 32);
        match kind {
            NOTE => notes = Some((offset, bytes)),
            LOAD => segments.push(Segment {
                address,
                bytes,
                // All ones: not linear. Old kernels write zero everywhere, where only firmware lies.
                physical: (physical != u64::MAX && physical != 0).then_some(physical),
                offset,
            }),
            _ => {}
        }
    }
    (segments, notes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |&bytes| u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn program_header(kind: u32, offset: u64, address: u64, physical: u64, bytes: u64) -> Vec<u8> {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend(7u32.to_le_bytes());
        for number in [offset, address, physical, bytes, bytes, 4096] {
            header.extend(number.to_le_bytes());
        }
        header
    }

    #[test]
    fn memory_is_read_by_its_physical_address() {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(32, 0);
        bytes.extend(64u64.to_le_bytes());
        bytes.resize(56, 0);
        bytes.extend(3u16.to_le_bytes());
        bytes.resize(64, 0);
        bytes.extend(program_header(NOTE, 232, 0, 0, 4));
        bytes.extend(program_header(LOAD, 0, 0xffff_c900_0000_0000, u64::MAX, 1 << 40));
        bytes.extend(program_header(LOAD, 240, 0xffff_8880_0010_0000, 0x10_0000, 16));
        bytes.extend(b"note\0\0\0\0");
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(0x1234u64.to_le_bytes());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let kcore = Kcore::open(&file.path().display().to_string()).unwrap();
        assert_eq!((kcore.note(), kcore.segments().len()), (&b"note"[..], 2));
        assert_eq!(kcore.read_physical(0x10_0008).unwrap(), 0x1234);
        for outside in [0, 0x10_0009, u64::MAX] {
            assert!(kcore.read_physical(outside).is_err(), "{outside:#x}");
        }
    }

    #[test]
    fn what_is_no_core_file_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 100]).unwrap();
        assert!(Kcore::open(&file.path().display().to_string()).is_err());
    }
}
