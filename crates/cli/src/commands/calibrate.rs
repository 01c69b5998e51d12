//! `vmferry calibrate`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use vmferry_transport::Endpoint;

use super::output;
use crate::api::{CalibrateRequest, Calibration};
use crate::cli::Common;
use crate::{table, units};

/// Measures the way to another host, where `vmferry host` has to run: what the link carries, its round trip, idle and loaded,
/// and what both hosts take to scan, encode, receive and place pages. The daemon keeps it for `vmferry simulate --to HOST`.
///
/// The link is loaded for --load, and no guest is touched.
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// Where to: HOST, HOST:PORT, tcp:HOST:PORT or unix:/PATH
    #[arg(long, value_name = "HOST")]
    to: Endpoint,
    /// How long to load the link
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = units::parse_duration)]
    load: Duration,
}

pub(super) fn run(common: &Common, args: &CalibrateArgs) -> Result<ExitCode> {
    let calibration = common.client()?.calibrate(&CalibrateRequest {
        to: args.to.to_string(),
        load_ms: args.load.as_millis() as u64,
    })?;
    match common.json {
        true => output::json(&calibration)?,
        false => output::text(&render(&calibration))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(calibration: &Calibration) -> String {
    let path = &calibration.path;
    let codecs = &path.codecs;
    let mut table = table::plain();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    let speed = |ns_per_byte: f64| units::rate(1e9 / ns_per_byte.max(1e-6));
    row("to", calibration.to.clone());
    row("link", units::bandwidth(path.link_bytes_per_s as u64));
    row(
        "round trip",
        format!(
            "{}, {} more while the link is full",
            units::millis(path.rtt_ms),
            units::millis(path.queue_ms)
        ),
    );
    row(
        "under way on a full link",
        units::size(path.socket_buffer_bytes as u64),
    );
    row(
        "a busy thread gets",
        format!(
            "{:.0} % of a processor here, {:.0} % there",
            path.cpu_share * 100.0,
            path.destination_cpu_share * 100.0
        ),
    );
    row(
        "encoding, a processor",
        format!(
            "lz4 {}, zstd {}, zstd:5 {}, differences {}",
            speed(codecs.lz4),
            speed(codecs.zstd),
            speed(codecs.zstd_5),
            speed(codecs.delta)
        ),
    );
    let gib = |ns_per_page: f64| units::millis(ns_per_page * f64::from(1 << 18) / 1e6);
    row(
        "a GiB of memory",
        format!(
            "{} to arm, {} to scan, {} to receive, {} to place after the resume",
            gib(path.arm_ns_per_page),
            gib(path.scan_ns_per_page),
            gib(path.receive_ns_per_page),
            gib(path.install_ns_per_page)
        ),
    );
    row(
        "a page written after a scan",
        format!("{:.2} us of the guest's", path.write_fault_ns / 1e3),
    );
    row(
        "the stop",
        format!(
            "{} to stop, {} to save, {} to load, {} to resume, {} for the journal",
            units::millis(path.stop_ms),
            units::millis(path.save_ms),
            units::millis(path.load_ms),
            units::millis(path.resume_ms),
            units::millis(path.journal_ms)
        ),
    );
    let notes = calibration.notes.iter().map(|note| format!("note: {note}\n"));
    table::render(table) + &notes.collect::<String>()
}

#[cfg(test)]
mod tests {
    use vmferry_sim::PathModel;

    use super::*;

    #[test]
    fn what_was_measured_is_shown_in_units_of_its_own() {
        let text = render(&Calibration {
            to: "tcp:b:7120".into(),
            measured_unix_ms: 0,
            path: PathModel::typical(125e6, 0.2),
            notes: vec!["something is typical".into()],
        });
        for part in [
            "tcp:b:7120",
            "1 Gbit/s",
            "200 us, 400 us more",
            "note: something is typical",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }
}
