//! A page stream of a source: asks for batches and has them written.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vmferry_core::source::Batch;
use vmferry_transport::BoxedStream;

use super::Shared;
use super::control::Peer;
use super::page_writer::PageWriter;

/// Runs until the migration or the connection ends.
pub(super) fn send(stream: BoxedStream, index: usize, shared: &Shared, peer: &Peer) {
    let mut usage = shared.usage.thread();
    let mut writer = PageWriter::new(stream, index, shared.encodings.clone(), shared.reuse.clone());
    let mut cpu = shared.cpu_cap.member();
    cpu.pace();
    let mut source = shared.source();
    while !peer.closing.load(Ordering::Relaxed) {
        let batch = source.next_batch(shared.now(), index);
        match batch {
            Batch::Finished => return,
            Batch::Idle(until) => {
                usage.flush();
                let (limited, began) = (source.waits_for_bandwidth(), shared.now());
                source = shared.wait(source, until);
                if limited {
                    writer.held_back(shared.now() - began, Duration::ZERO);
                }
            }
            Batch::RoundEnd(round) => {
                drop(source);
                if let Err(error) = writer.round_end(round) {
                    return peer.broken(&format!("cannot send pages: {error}"));
                }
                source = shared.source();
            }
            Batch::Pages { runs, round, point } => {
                let faults = source.needs().faults;
                drop(source);
                let mut refers = |run| shared.source().refers(run);
                let sent = writer
                    .references(&shared.ram, &runs, (round, point, faults), &mut refers)
                    .and_then(|rest| writer.batch(&shared.ram, &rest, round, point));
                let sent = match sent {
                    Ok(sent) => sent,
                    Err(error) => return peer.broken(&format!("cannot send pages: {error}")),
                };
                source = shared.source();
                source.sent(sent);
                peer.follow_up(source.check_all_pushed());
                drop(source);
                writer.held_back(Duration::ZERO, cpu.pace());
                source = shared.source();
            }
        }
    }
}
