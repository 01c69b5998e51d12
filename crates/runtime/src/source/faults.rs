//! The fault stream of a source: answers the pages that the guest at the destination demands, at once.

use vmferry_core::PageRun;
use vmferry_core::source::Demand;
use vmferry_core::tracking::ScanPoint;
use vmferry_transport::BoxedStream;
use vmferry_wire::FaultRequest;

use super::Shared;
use super::control::Peer;
use super::page_writer::PageWriter;
use crate::link::chain;

/// Runs until the connection ends.
pub(super) fn serve(mut stream: BoxedStream, shared: &Shared, peer: &Peer) {
    let _usage = shared.usage.thread();
    let mut answers = match stream.try_clone() {
        Ok(stream) => PageWriter::for_answers(stream, shared.encodings.clone(), shared.reuse.clone()),
        Err(error) => return peer.broken(&format!("cannot answer faults: {error}")),
    };
    loop {
        let request = match FaultRequest::read(&mut stream, shared.ram.layout()) {
            Ok(request) => request,
            Err(error) => return peer.broken(&chain(&error)),
        };
        let demand = shared.source().demanded(shared.now(), request.page);
        if demand == Demand::Send {
            let sent = answers.batch(
                &shared.ram,
                &[PageRun::single(request.page)],
                0,
                ScanPoint::Stopped,
            );
            match sent {
                Ok(sent) => shared.source().sent(sent),
                Err(error) => return peer.broken(&format!("cannot answer faults: {error}")),
            }
        }
        // The policy may want to push near the fault.
        shared.wake.notify_all();
        peer.follow_up(shared.source().check_all_pushed());
    }
}
