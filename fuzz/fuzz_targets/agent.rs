//! What the agent in a guest may send, and what a host may send to it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_agent_proto::message::{decode_answer, decode_request};
use vmferry_agent_proto::{Body, MapReader, Use, read_answer, read_request, write_answer};

const END: u64 = 100_000;

fuzz_target!(|data: &[u8]| {
    let _ = read_request(&mut &*data);
    let _ = read_answer(&mut &*data);
    let _ = decode_request(data);
    let Ok(answer) = decode_answer(data) else { return };
    write_answer(&mut Vec::new(), &answer).expect("an answer within all bounds");
    if let Body::Map(chunk) = answer.body {
        let mut reader = MapReader::new(END);
        let mut reached = 0;
        let _ = reader.take(&chunk, |run| {
            assert!(run.first >= reached && run.count > 0);
            reached = run.first + run.count;
            assert!(run.is == Use::Absent || reached <= END);
        });
    }
});
