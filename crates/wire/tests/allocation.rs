//! What a peer can make us allocate. A binary of its own, with one test: the allocator counts for all.

use std::io::Read;

use peak_alloc::PeakAlloc;
use vmferry_wire::frame::{FrameKind, MAX_PAYLOAD_BYTES, encode_frame};
use vmferry_wire::{Hello, HelloReply, Result, ToDestination, ToSource, crc32, read_control};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The payload of a frame, what it decodes to, and the space both grew in.
const BOUND_BYTES: usize = 4 * MAX_PAYLOAD_BYTES;

#[test]
fn no_message_makes_us_allocate_beyond_its_bound() {
    announced_but_not_sent();
    full_payloads();
    endless_garbage();
}

/// 4 GiB, and 4 MiB, announced by a header that is right; one byte follows.
fn announced_but_not_sent() {
    let frame = encode_frame(FrameKind::ToDestination, &[0]).unwrap();
    for (len, bound) in [(u32::MAX, 64 << 10), (MAX_PAYLOAD_BYTES as u32, 1 << 20)] {
        let mut frame = frame.clone();
        frame[4..8].copy_from_slice(&len.to_le_bytes());
        let crc = crc32(&frame[..12]);
        frame[12..16].copy_from_slice(&crc.to_le_bytes());
        let (result, bytes) = peak(|| read_control::<ToDestination>(&mut frame.as_slice()));
        assert!(result.is_err());
        assert!(bytes < bound, "{bytes} bytes for {len} announced and one sent");
    }
}

/// The largest payloads of every message number, made of each byte: all zeros are a vector of empty names in
/// an offer, and the like.
fn full_payloads() {
    for number in 0..16 {
        for filler in [0u8, 1, 2, 0x7f, 0xff] {
            for length in [
                [0xff, 0xff, 0xff, 0x01],
                [0xf0, 0xff, 0xff, 0x01],
                [0x80, 0x80, 0x80, 0x00],
            ] {
                let mut payload = vec![filler; MAX_PAYLOAD_BYTES];
                payload[0] = number;
                payload[1..5].copy_from_slice(&length);
                decode_within_bound(&payload);
                payload[1] = 0;
                payload[2..6].copy_from_slice(&length);
                decode_within_bound(&payload);
            }
        }
    }
}

fn decode_within_bound(payload: &[u8]) {
    let down = encode_frame(FrameKind::ToDestination, payload).unwrap();
    let up = encode_frame(FrameKind::ToSource, payload).unwrap();
    let (_, bytes) = peak(|| read_control::<ToDestination>(&mut down.as_slice()));
    assert!(bytes <= BOUND_BYTES, "{bytes} bytes for {:?}", &payload[..8]);
    let (_, bytes) = peak(|| read_control::<ToSource>(&mut up.as_slice()));
    assert!(bytes <= BOUND_BYTES, "{bytes} bytes for {:?}", &payload[..8]);
}

/// Something that never stops sending: it is found out with the fixed size of a hello at most.
fn endless_garbage() {
    struct Endless(u8, u64);
    impl Read for Endless {
        fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
            space.fill(self.0);
            self.1 += space.len() as u64;
            Ok(space.len())
        }
    }
    for byte in 0..=255 {
        let mut stream = Endless(byte, 0);
        let (result, bytes) = peak(|| Hello::read(&mut stream));
        assert!(result.is_err());
        assert!(
            bytes < 4096 && stream.1 <= 40,
            "{bytes} bytes of memory, {} read",
            stream.1
        );
        let mut stream = Endless(byte, 0);
        let (result, bytes) = peak(|| HelloReply::read(&mut stream));
        assert!(result.is_err());
        assert!(
            bytes < 4096 && stream.1 <= 40,
            "{bytes} bytes of memory, {} read",
            stream.1
        );
    }
}

/// Result of `work` and the most bytes allocated meanwhile.
fn peak<T>(work: impl FnOnce() -> Result<T>) -> (Result<T>, usize) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = work();
    (result, ALLOCATOR.peak_usage().saturating_sub(before))
}
