//! A page stream of a source: asks for batches and has them written.

use std::sync::atomic::Ordering;

use vmferry_core::source::Batch;
use vmferry_transport::BoxedStream;

use super::Shared;
use super::control::Peer;
use super::page_writer::PageWriter;

/// Runs until the migration or the connection ends.
pub(super) fn send(stream: BoxedStream, index: usize, shared: &Shared, peer: &Peer) {
    let mut usage = shared.usage.thread();
    let mut writer = PageWriter::new(stream, index, shared.encodings.clone());
    let mut source = shared.source();
    while !peer.closing.load(Ordering::Relaxed) {
        let batch = source.next_batch(shared.now(), index);
        match batch {
            Batch::Finished => return,
            Batch::Idle(until) => {
                usage.flush();
                source = shared.wait(source, until);
            }
            Batch::RoundEnd(round) => {
                drop(source);
                if let Err(error) = writer.round_end(round) {
                    return peer.broken(&format!("cannot send pages: {error}"));
                }
                source = shared.source();
            }
            Batch::Pages { runs, round, point } => {
                drop(source);
                let sent = match writer.batch(&shared.ram, &runs, round, point) {
                    Ok(sent) => sent,
                    Err(error) => return peer.broken(&format!("cannot send pages: {error}")),
                };
                source = shared.source();
                source.sent(sent);
                peer.follow_up(source.check_all_pushed());
            }
        }
    }
}
