//! What the other end of a disk's tunnel, an NBD client and an NBD server may send.
#![no_main]

use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use vmferry_disk::error::Result;
use vmferry_disk::nbd::client::ALLOCATION;
use vmferry_disk::nbd::server::{Wanted, greet, read_request};
use vmferry_disk::tunnel::index::Place;
use vmferry_disk::tunnel::{FromSource, Index, Receiver, Target, ToSource};
use vmferry_disk::NbdClient;

const BYTES: u64 = 200_000;

/// A disk that only checks its bounds.
struct Bounds;

impl Target for Bounds {
    fn bytes(&self) -> u64 {
        BYTES
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        assert!(offset + data.len() as u64 <= BYTES);
        Ok(())
    }
    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        assert!(offset + bytes <= BYTES);
        Ok(())
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
    fn read(&mut self, place: Place, block: &mut [u8]) -> Result<()> {
        assert!(place.offset + block.len() as u64 <= BYTES);
        block.fill(0);
        Ok(())
    }
}

/// Reads the input, and takes everything that is written.
struct Script<'a>(Cursor<&'a [u8]>);

impl Read for Script<'_> {
    fn read(&mut self, part: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(part)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        Ok(part.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut receiver = Receiver::new(Bounds, 0, true, Arc::new(Mutex::new(Index::new(8))));
    let mut frames = data;
    while let Ok(Some(frame)) = FromSource::read(&mut frames) {
        if receiver.take(frame).is_err() {
            break;
        }
    }
    let mut answers = data;
    while let Ok(Some(_)) = ToSource::read(&mut answers) {}
    let _ = greet(&mut Script(Cursor::new(data)), "d", BYTES);
    let mut requests = data;
    while let Ok(Some(request)) = read_request(&mut requests, BYTES) {
        if let Wanted::Write { offset, data } = request.what {
            assert!(offset + data.len() as u64 <= BYTES);
        }
    }
    if let Ok(mut client) = NbdClient::open(Script(Cursor::new(data)), "d", Some(ALLOCATION)) {
        let size = client.bytes().min(4096) as usize;
        let _ = client.read(0, &mut vec![0; size]);
        let _ = client.extents(0, size as u64);
    }
});
