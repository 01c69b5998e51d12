//! Control frames, and their payloads with the checksums made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_wire::{ControlMessage, ToDestination, ToSource, decode_control, encode_control, read_control};

fuzz_target!(|data: &[u8]| {
    let _ = read_control::<ToDestination>(&mut &*data);
    let _ = read_control::<ToSource>(&mut &*data);
    payload::<ToDestination>(data);
    payload::<ToSource>(data);
});

/// A payload that decodes is within all bounds: it can be sent on, and takes no more bytes then.
fn payload<M: ControlMessage>(data: &[u8]) {
    if let Ok(message) = decode_control::<M>(data) {
        let again = encode_control(&message).expect("a message within all bounds");
        assert!(again.len() <= data.len());
        let twice = encode_control(&decode_control::<M>(&again).expect("what we encode decodes"));
        assert_eq!(twice.unwrap(), again);
    }
}
