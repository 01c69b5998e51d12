//! What became of disks, for people.

use vmferry_core::disks::DisksReport;

use crate::units::{millis, size};

/// Rows for the summary of a report.
pub(crate) fn summary(report: &DisksReport, row: &mut impl FnMut(&str, String)) {
    row(
        "disks",
        format!(
            "in sync after {}, settled in {} of the stop, {} on the wire",
            millis(report.copy_ms),
            millis(report.settle_ms),
            size(report.bytes_on_wire)
        ),
    );
    for disk in &report.disks {
        let copied = size(disk.copied_bytes);
        row(
            &format!("disk {}", disk.id),
            format!("{} of {}, {copied} copied", disk.format, size(disk.bytes)),
        );
        row("  at the source", format!("{}: {}", disk.source, disk.source_is));
        if !disk.destination.is_empty() {
            row(
                "  at the destination",
                format!("{}: {}", disk.destination, disk.destination_is),
            );
        }
    }
    if let Some(tunnel) = &report.tunnel {
        row(
            "disk tunnel",
            format!(
                "{} written: {} zero, {} known by their hash, {} as {}",
                size(tunnel.written_bytes),
                size(tunnel.zero_bytes),
                size(tunnel.deduplicated_bytes),
                size(tunnel.data_bytes),
                size(tunnel.compressed_bytes)
            ),
        );
    }
}
