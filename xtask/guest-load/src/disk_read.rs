//! The load that reads a disk: the whole device from its first byte to its last, through the page cache, again and again. Each
//! part has to hold the same every time.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;

use crate::digest::Known;
use crate::progress::Progress;
use crate::status::Status;

/// What is read in one piece. Units of progress are bytes.
const PIECE: usize = 256 << 10;

/// Reads the device for ever.
pub(crate) fn run(device: &Path, progress: &Progress) -> Result<Infallible, String> {
    let mut disk = Disk::open(device)?;
    let status = Status::default();
    loop {
        disk.pass(progress, &status)?;
        println!("guest-load: {}", status.line());
        // What is in memory would not be read again.
        std::fs::write("/proc/sys/vm/drop_caches", "1")
            .map_err(|error| format!("cannot drop the page cache: {error}"))?;
    }
}

struct Disk {
    file: File,
    piece: Vec<u8>,
    known: Known,
}

impl Disk {
    fn open(device: &Path) -> Result<Self, String> {
        let file =
            File::open(device).map_err(|error| format!("cannot open {}: {error}", device.display()))?;
        Ok(Self {
            file,
            piece: vec![0; PIECE],
            known: Known::default(),
        })
    }

    fn pass(&mut self, progress: &Progress, status: &Status) -> Result<(), String> {
        let cannot = |error| format!("cannot read the disk: {error}");
        self.file.rewind().map_err(cannot)?;
        for index in 0.. {
            let length = self.file.read(&mut self.piece).map_err(cannot)?;
            if length == 0 {
                break;
            }
            if let Err(fault) = self.known.check(index, &self.piece[..length], "part of the disk") {
                status.fault(&fault);
            }
            progress.add(length as u64);
        }
        status.pass();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_changed_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut content = vec![7; 3 * PIECE];
        std::fs::write(&path, &content).unwrap();
        let mut disk = Disk::open(&path).unwrap();
        let (progress, status) = (Progress::default(), Status::default());
        (0..2).for_each(|_| disk.pass(&progress, &status).unwrap());
        assert_eq!(
            (status.line().as_str(), progress.total()),
            ("ok passes=2", 6 * PIECE as u64)
        );
        content[PIECE] = 8;
        std::fs::write(&path, &content).unwrap();
        disk.pass(&progress, &status).unwrap();
        let expected = "CORRUPT 1 times, first part of the disk 1 is not what it was at first";
        assert_eq!(status.line(), expected);
    }
}
