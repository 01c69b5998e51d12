//! Asking the source for pages that the guest waits for: the thread that serves its faults does, another takes the answers.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vmferry_transport::BoxedStream;
use vmferry_wire::FaultRequest;

use crate::pager::Pager;

/// The way to the source, while there is one.
#[derive(Default)]
pub(super) struct FaultLine(Mutex<Line>);

#[derive(Default)]
struct Line {
    stream: Option<BoxedStream>,
    seq: u32,
}

impl FaultLine {
    /// A new connection: what the guest waits for is asked for again.
    pub(super) fn connect(&self, stream: BoxedStream, pager: &Pager) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.stream = Some(stream);
        for page in pager.waiting() {
            line.ask(page);
        }
    }

    pub(super) fn ask(&self, page: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ask(page);
    }
}

impl Line {
    /// Asks for a page. Where the connection is gone, the next one asks for it.
    fn ask(&mut self, page: u64) {
        let Some(stream) = &mut self.stream else { return };
        self.seq = self.seq.wrapping_add(1);
        let request = FaultRequest { page, seq: self.seq };
        if stream.write_all(&request.encode()).is_err() {
            self.stream = None;
        }
    }
}
