//! A file of a trace, which may come from anybody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_trace::{Partial, Trace};

fuzz_target!(|data: &[u8]| {
    let whole = Trace::read(&mut &*data);
    let Ok(Partial { trace, problem }) = Trace::read_partial(&mut &*data) else {
        assert!(whole.is_err());
        return;
    };
    assert_eq!(whole.is_ok(), problem.is_none());
    // Nothing that was read is beyond memory, nor goes back in time. Larger guests take no more memory, but longer a sample.
    if trace.pages() <= 1 << 22 || trace.samples.len() <= 2 {
        assert_eq!(trace.summary().samples, trace.samples.len());
    }
    let mut again = Vec::new();
    trace.write(&mut again).expect("what was read can be written");
    let mut once_more = Vec::new();
    let read = Trace::read(&mut &again[..]).expect("and read again");
    read.write(&mut once_more).expect("and written again");
    assert_eq!(again, once_more);
});
