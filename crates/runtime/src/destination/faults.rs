//! The faults of the guest at the destination: one thread waits for them and asks the source, another takes the
//! answers.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vmferry_guest::GuestError;
use vmferry_transport::BoxedStream;
use vmferry_wire::FaultRequest;

use super::pager::{Answer, Pager};
use super::pages::Sink;

/// How long to wait for a fault before looking whether the migration is over.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

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

    fn ask(&self, page: u64) {
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

/// Waits for faults until the migration is over.
///
/// # Errors
/// When the kernel's mechanism broke: the guest can not go on.
pub(super) fn serve(sink: &Sink, pager: &Pager, line: &FaultLine) -> Result<(), GuestError> {
    let mut pages = Vec::new();
    while !sink.closing.load(Ordering::Acquire) {
        pages.clear();
        pager.faults().wait(LOOK_UP_EVERY, &mut pages)?;
        for &page in &pages {
            if pager.fault(page)? == Answer::Demand {
                line.ask(page);
            }
        }
    }
    Ok(())
}
