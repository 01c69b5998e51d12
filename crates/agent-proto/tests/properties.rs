//! What holds for whatever comes.

use proptest::prelude::*;
use vmferry_agent_proto::message::{decode_answer, decode_request};
use vmferry_agent_proto::{
    Answer, Body, FrameRun, MapChunk, MapCoder, MapReader, Use, read_answer, read_request, write_answer,
    write_request,
};
use vmferry_core::hints::Class;

fn any_use() -> impl Strategy<Value = Use> {
    (0..=10u8).prop_map(|number| Class::of_number(number).map_or(Use::Absent, Use::Is))
}

/// Neighbours, none of them equal, as a map has them.
fn expand(runs: &[(u64, Use)]) -> Vec<FrameRun> {
    let mut first = 0;
    let mut all: Vec<FrameRun> = Vec::new();
    for &(count, is) in runs {
        match all.last_mut() {
            Some(last) if last.is == is => last.count += count,
            _ => all.push(FrameRun { first, count, is }),
        }
        first += count;
    }
    all
}

proptest! {
    #[test]
    fn a_map_crosses_as_it_is(runs in prop::collection::vec((1..100_000u64, any_use()), 0..20_000)) {
        let mut coder = MapCoder::default();
        let mut chunks = Vec::new();
        let mut first = 0;
        for &(count, is) in &runs {
            chunks.extend(coder.push(FrameRun { first, count, is }));
            first += count;
        }
        chunks.extend(coder.finish());
        let mut reader = MapReader::new(first);
        let mut got: Vec<(u64, Use)> = Vec::new();
        for chunk in chunks {
            let mut bytes = Vec::new();
            write_answer(&mut bytes, &Answer { id: 1, body: Body::Map(chunk) }).unwrap();
            let Body::Map(chunk) = read_answer(&mut bytes.as_slice()).unwrap().body else { panic!("a map") };
            reader.take(&chunk, |run| got.push((run.count, run.is))).unwrap();
        }
        prop_assert!(reader.is_finished());
        prop_assert_eq!(expand(&got), expand(&runs));
    }

    #[test]
    fn noise_is_refused_or_within_all_bounds(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read_request(&mut bytes.as_slice());
        let _ = read_answer(&mut bytes.as_slice());
        if let Ok(request) = decode_request(&bytes) {
            write_request(&mut Vec::new(), &request).unwrap();
        }
        if let Ok(answer) = decode_answer(&bytes) {
            write_answer(&mut Vec::new(), &answer).unwrap();
        }
    }

    #[test]
    fn no_run_lies_beyond_memory(
        chunks in prop::collection::vec((0..2000u64, prop::collection::vec(any::<u8>(), 0..30), any::<bool>()), 1..10),
    ) {
        let mut reader = MapReader::new(1500);
        let mut reached = 0;
        for (first_frame, runs, last) in chunks {
            let chunk = MapChunk { first_frame, runs, last };
            let result = reader.take(&chunk, |run| {
                assert!(run.first >= reached && run.count > 0);
                reached = run.first + run.count;
                assert!(run.is == Use::Absent || reached <= 1500);
            });
            if result.is_err() {
                break;
            }
        }
    }
}
