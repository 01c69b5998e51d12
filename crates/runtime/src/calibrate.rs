//! Measures the way to another host, and what both hosts take for their part. No guest is touched.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmferry_sim::{CodecCosts, PathModel};
use vmferry_transport::{BoxedStream, Endpoint};
use vmferry_wire::{Probe, StreamRole};

use crate::costs::HostCosts;
use crate::link::{chain, dial, new_token};
use crate::usage::thread_cpu;

/// Shortest and longest time that the link may be loaded for.
pub const LOAD_TIME: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);
/// Pings of the idle link.
const PINGS: u64 = 20;
/// Time between two pings of the loaded link.
const PING_EVERY: Duration = Duration::from_millis(20);
/// Bytes of a load: the first of a stream grow the window and are not counted.
const PART: u64 = 1 << 20;
/// Parts that a stream has on their way before it waits for the first answer.
const AHEAD: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What the link carries, bytes a second.
    pub link_bytes_per_s: f64,
    /// Median round trip while it is idle, milliseconds.
    pub rtt_ms: f64,
    /// Median round trip while it is loaded.
    pub loaded_rtt_ms: f64,
    /// Bytes that a stream has under way while it is loaded.
    pub under_way_bytes: f64,
    /// Processor time of writing a byte to a socket, nanoseconds.
    pub write_ns_per_byte: f64,
    /// This host.
    pub here: HostCosts,
    /// The other one.
    pub there: HostCosts,
}

impl Measured {
    /// What it means for migrations, and which figures could not be measured and are only typical.
    pub fn path(&self) -> (PathModel, Vec<String>) {
        let Self { here, there, .. } = self;
        let typical = PathModel::typical(self.link_bytes_per_s, self.rtt_ms);
        let mut notes = Vec::new();
        let mut or_typical = |what: &str, value: Option<f64>, typical: f64| match value {
            Some(value) => value,
            None => {
                notes.push(format!("{what} could not be measured: it is taken for {typical}"));
                typical
            }
        };
        let path = PathModel {
            queue_ms: (self.loaded_rtt_ms - self.rtt_ms).max(0.0),
            socket_buffer_bytes: self.under_way_bytes,
            processors: here.processors.max(1.0),
            cpu_share: share(here),
            destination_cpu_share: share(there),
            codecs: CodecCosts {
                copy: here.copy_ns,
                lz4: here.lz4_ns,
                zstd: here.zstd_ns,
                zstd_5: here.zstd_5_ns,
                delta: here.delta_ns,
                // The destination decodes.
                decode_lz4: or_typical(
                    "decoding a byte by lz4 (ns)",
                    there.decode_lz4_ns,
                    typical.codecs.decode_lz4,
                ),
                decode_zstd: or_typical(
                    "decoding a byte by zstd (ns)",
                    there.decode_zstd_ns,
                    typical.codecs.decode_zstd,
                ),
            },
            write_ns_per_byte: self.write_ns_per_byte,
            receive_ns_per_page: or_typical(
                "taking a page in (ns)",
                there.receive_ns,
                typical.receive_ns_per_page,
            ),
            install_ns_per_page: or_typical(
                "installing a page (ns)",
                there.install_ns,
                typical.install_ns_per_page,
            ),
            arm_ns_per_page: or_typical("arming a page (ns)", here.arm_ns, typical.arm_ns_per_page),
            scan_ns_per_page: or_typical("scanning a page (ns)", here.scan_ns, typical.scan_ns_per_page),
            scan_ns_per_dirty_page: or_typical(
                "scanning a dirty page (ns)",
                here.scan_dirty_ns,
                typical.scan_ns_per_dirty_page,
            ),
            write_fault_ns: or_typical("a write fault (ns)", here.write_fault_ns, typical.write_fault_ns),
            journal_ms: or_typical("the journal (ms)", here.journal_ms, typical.journal_ms),
            ..typical
        };
        (path, notes)
    }
}

/// The share of a processor that a thread gets on a host; all of one where that is not said.
fn share(costs: &HostCosts) -> f64 {
    match costs.cpu_share {
        share if share > 0.0 && share <= 1.0 => share,
        _ => 1.0,
    }
}

/// Why nothing could be measured.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CalibrateError {
    /// The time makes no sense.
    #[error(
        "loading the link for {} ms is not possible; choose {} to {} ms",
        .0.as_millis(),
        LOAD_TIME.start().as_millis(),
        LOAD_TIME.end().as_millis()
    )]
    BadTime(Duration),
    /// The peer cannot be reached, or does not know how.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke.
    #[error("measuring the way to {to} broke off: {why}")]
    Broken {
        /// The peer.
        to: String,
        /// What happened.
        why: String,
    },
}

/// Measures the way to the host at `to`, which it loads for about `load`. Records are forced to disk in `dir`.
///
/// # Errors
/// When the peer cannot be reached, or the connection breaks.
pub fn measure(to: &Endpoint, load: Duration, dir: &Path) -> Result<Measured, CalibrateError> {
    if !LOAD_TIME.contains(&load) {
        return Err(CalibrateError::BadTime(load));
    }
    let broken = |why: String| CalibrateError::Broken {
        to: to.to_string(),
        why,
    };
    let mut pings = open(to)?;
    let rtt_ms = median(
        (0..PINGS)
            .map(|_| ping(&mut pings))
            .collect::<Result<Vec<_>, _>>()
            .map_err(&broken)?,
    );
    let there = ask_costs(&mut pings).map_err(&broken)?;
    let loaded_stream = open(to)?;
    let loading = thread::spawn(move || load_link(loaded_stream, load));
    let mut loaded = Vec::new();
    while !loading.is_finished() {
        loaded.push(ping(&mut pings).map_err(&broken)?);
        thread::sleep(PING_EVERY);
    }
    let loading = loading.join().unwrap_or_else(|_| Err("it panicked".into()));
    let loading = loading.map_err(broken)?;
    Ok(Measured {
        link_bytes_per_s: loading.bytes_per_s,
        rtt_ms,
        loaded_rtt_ms: if loaded.is_empty() { rtt_ms } else { median(loaded) },
        under_way_bytes: (loading.bytes_per_s * (loading.last_answer.as_secs_f64() - rtt_ms / 1e3))
            .max(4096.0),
        write_ns_per_byte: loading.write_ns_per_byte,
        here: HostCosts::measure(Some(dir)),
        there,
    })
}

fn open(to: &Endpoint) -> Result<BoxedStream, CalibrateError> {
    let unreachable = CalibrateError::Unreachable;
    let token = new_token().map_err(|error| unreachable(error.to_string()))?;
    let (stream, _) = dial(to, token, StreamRole::Probe).map_err(|why| {
        let older = why.contains("role of a stream");
        let mend = "; the daemon there is older than this one and cannot be measured: update it";
        unreachable(why + if older { mend } else { "" })
    })?;
    let ready = stream.set_read_timeout(Some(PATIENCE));
    ready.map_err(|error| unreachable(error.to_string()))?;
    Ok(stream)
}

/// A round trip, milliseconds.
fn ping(stream: &mut BoxedStream) -> Result<f64, String> {
    let began = Instant::now();
    let sent = Probe::Ping(7);
    sent.write(stream).map_err(|e| chain(&e))?;
    match Probe::read(stream).map_err(|e| chain(&e))? {
        answer if answer == sent => Ok(began.elapsed().as_secs_f64() * 1e3),
        other => Err(format!("got {other:?} in answer to a ping")),
    }
}

fn ask_costs(stream: &mut BoxedStream) -> Result<HostCosts, String> {
    Probe::Costs(0).write(stream).map_err(|e| chain(&e))?;
    let Probe::Costs(len) = Probe::read(stream).map_err(|e| chain(&e))? else {
        return Err("got something else than the costs of a host".into());
    };
    // Its bound was checked when it was read.
    let mut text = vec![0; len as usize];
    stream.read_exact(&mut text).map_err(|e| chain(&e))?;
    serde_json::from_slice(&text)
        .map_err(|error| format!("the costs of the host are not understood: {error}"))
}

/// What loading the link showed.
struct Loading {
    bytes_per_s: f64,
    /// From the last byte written to its answer.
    last_answer: Duration,
    write_ns_per_byte: f64,
}

/// Fills the link for `time`; the first fifth of it only grows the window.
fn load_link(mut stream: BoxedStream, time: Duration) -> Result<Loading, String> {
    let mut answers = stream.try_clone().map_err(|e| chain(&e))?;
    let (parts, expected) = crossbeam_channel::bounded::<()>(AHEAD);
    // When each part had arrived.
    let reader = thread::spawn(move || {
        let mut arrived = Vec::new();
        while expected.recv().is_ok() {
            match Probe::read(&mut answers) {
                Ok(Probe::Load(_)) => arrived.push(Instant::now()),
                Ok(other) => return Err(format!("got {other:?} in answer to a load")),
                Err(error) => return Err(chain(&error)),
            }
        }
        Ok(arrived)
    });
    let (began, cpu_before) = (Instant::now(), thread_cpu());
    // What does not compress, in case somebody on the way tries.
    let data: Vec<u8> = (0..PART)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect();
    let mut written = 0;
    while began.elapsed() < time {
        Probe::Load(PART).write(&mut stream).map_err(|e| chain(&e))?;
        stream.write_all(&data).map_err(|e| chain(&e))?;
        written += PART;
        if parts.send(()).is_err() {
            break;
        }
    }
    let (last_written, cpu) = (Instant::now(), thread_cpu().saturating_sub(cpu_before));
    drop(parts);
    let arrived = reader.join().map_err(|_| "a thread panicked".to_owned())??;
    let counted: Vec<&Instant> = arrived.iter().filter(|at| **at - began > time / 5).collect();
    let (first, last) = match (counted.first(), counted.last(), arrived.last()) {
        (Some(first), Some(last), _) if counted.len() > 1 => (**first, **last),
        // Slower than that: all of it has to do.
        (_, _, Some(last)) => {
            let bytes_per_s = written as f64 / (*last - began).as_secs_f64();
            return Ok(loading(
                bytes_per_s,
                last.saturating_duration_since(last_written),
                cpu,
                written,
            ));
        }
        _ => return Err("nothing arrived".into()),
    };
    let bytes = (counted.len() as u64 - 1) * PART;
    let bytes_per_s = bytes as f64 / (last - first).as_secs_f64().max(1e-9);
    Ok(loading(
        bytes_per_s,
        last.saturating_duration_since(last_written),
        cpu,
        written,
    ))
}

fn loading(bytes_per_s: f64, last_answer: Duration, cpu: Duration, written: u64) -> Loading {
    Loading {
        bytes_per_s,
        last_answer,
        write_ns_per_byte: cpu.as_secs_f64() * 1e9 / written.max(1) as f64,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_destination_did_not_measure_is_typical_and_noted() {
        let there = r#"{"processors": 2, "cpu_share": 1, "copy_ns": 1, "lz4_ns": 1, "zstd_ns": 1, "zstd_5_ns": 1, "delta_ns": 1}"#;
        let older: HostCosts = serde_json::from_str(there).unwrap();
        let mut measured = Measured {
            link_bytes_per_s: 1e9,
            rtt_ms: 0.1,
            loaded_rtt_ms: 0.2,
            under_way_bytes: 1e6,
            write_ns_per_byte: 0.5,
            here: older.clone(),
            there: older,
        };
        let typical = CodecCosts::default();
        let (path, notes) = measured.path();
        assert_eq!(path.codecs.decode_zstd.to_bits(), typical.decode_zstd.to_bits());
        let noted = |notes: &[String]| notes.iter().filter(|note| note.contains("decoding")).count();
        assert_eq!(noted(&notes), 2, "{notes:?}");
        measured.there.decode_lz4_ns = Some(3.5);
        measured.there.decode_zstd_ns = Some(7.5);
        let (path, notes) = measured.path();
        assert_eq!((path.codecs.decode_lz4, path.codecs.decode_zstd), (3.5, 7.5));
        assert_eq!(noted(&notes), 0, "{notes:?}");
    }
}
