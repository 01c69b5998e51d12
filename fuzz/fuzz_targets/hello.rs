//! The first bytes of a connection, in both directions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_wire::hello::HELLO_BYTES;
use vmferry_wire::{Hello, HelloReply, SPOKEN, crc32};

fuzz_target!(|data: &[u8]| {
    let _ = Hello::read(&mut &*data);
    if let Ok(reply) = HelloReply::read(&mut &*data) {
        let _ = reply.accepted(SPOKEN);
    }
    // Beyond the magic and the checksum, which chance does not find.
    if let Some(fields) = data.first_chunk::<{ HELLO_BYTES - 12 }>() {
        let mut bytes = *b"VMFERRY\0--------------------------------";
        bytes[8..36].copy_from_slice(fields);
        let crc = crc32(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(hello) = Hello::read(&mut bytes.as_slice()) {
            assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }
    }
});
