//! The way from one host to the other, and what the hosts take for their part.

use serde::{Deserialize, Serialize};
use vmferry_core::Codec;

use crate::error::SimError;

/// The least share of a processor: with less of it nothing gets done in a time that can be counted.
const LEAST_SHARE: f64 = 1e-3;
/// The greatest relative standard deviation. [`PathModel::varied`] goes no further than six of them, by the exponential function.
const MOST_DEVIATION: f64 = 2.0;
/// A second for each page, or twelve days for each step: the largest guest takes a time that can be counted, on any such path.
const MOST_TIME: f64 = 1e9;
const MOST_STATE_BYTES: f64 = 1e12;
/// Most reads of other pages for a page written: each of them is simulated.
pub(crate) const MOST_READS: f64 = 1000.0;

/// What the parts of a migration take. `vmferry calibrate` measures most of it on a pair of hosts; the others are of the
/// machine that the project was measured on ([`PathModel::typical`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathModel {
    /// What the link carries, bytes a second.
    pub link_bytes_per_s: f64,
    /// Round trip of a small message while the link is idle.
    pub rtt_ms: f64,
    /// What a small message waits at most for pages that are under way.
    pub queue_ms: f64,
    /// Bytes that a stream may have under way, in the buffers of both sockets.
    pub socket_buffer_bytes: f64,
    /// Processors of the source that page streams can have.
    pub processors: f64,
    /// The share of a processor that a busy stream gets of it, 0 to 1: others have the rest.
    pub cpu_share: f64,
    /// The same at the destination, of threads that take pages in.
    pub destination_cpu_share: f64,
    /// What encoding takes.
    pub codecs: CodecCosts,
    /// Writing a byte to a socket, nanoseconds of a processor.
    pub write_ns_per_byte: f64,
    /// Taking a page in before the resume, nanoseconds.
    pub receive_ns_per_page: f64,
    /// Making a page appear after the resume, nanoseconds.
    pub install_ns_per_page: f64,
    /// Protecting a page for the first time, nanoseconds.
    pub arm_ns_per_page: f64,
    /// Looking at a page in a scan, nanoseconds.
    pub scan_ns_per_page: f64,
    /// The same for a page that is dirty, in addition.
    pub scan_ns_per_dirty_page: f64,
    /// What the first write to a page after a scan costs the guest, nanoseconds.
    pub write_fault_ns: f64,
    /// Creating the guest at the destination.
    pub prepare_ms: f64,
    /// Flushing disks before the stop, while the guest runs.
    pub flush_ms: f64,
    /// Stopping the guest, until its devices are drained.
    pub stop_ms: f64,
    /// Saving the device state.
    pub save_ms: f64,
    /// Loading it.
    pub load_ms: f64,
    /// Letting the guest run at the destination, or again at the source.
    pub resume_ms: f64,
    /// Forcing a record of the journal to disk.
    pub journal_ms: f64,
    /// Bytes of device state.
    pub device_state_bytes: f64,
    /// Serving a page fault, beside the network.
    pub fault_ms: f64,
    /// Pages read beside each page written, which a trace does not have: programs load about twice as often as they store (Hennessy and
    /// Patterson, Computer Architecture, appendix A).
    pub reads_per_write: f64,
    /// Whether the source's sampler knows the guest when its migration begins: then `hybrid-learning` need not learn first, and
    /// `pre-copy-filter` has a model to try ([`vmferry_core::sampling`]).
    pub sampled: bool,
    /// How much of this differs from one migration to the next.
    pub variation: Variation,
}

/// Processor time of encoding and decoding a byte of a page, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodecCosts {
    /// Copying a page and looking whether it is of one byte.
    pub copy: f64,
    /// LZ4.
    pub lz4: f64,
    /// zstd at level 1.
    pub zstd: f64,
    /// zstd at level 5.
    pub zstd_5: f64,
    /// The difference to an earlier version.
    pub delta: f64,
    /// Decoding LZ4.
    pub decode_lz4: f64,
    /// Decoding zstd.
    pub decode_zstd: f64,
}

/// Relative standard deviations, from one migration to the next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variation {
    /// Of the link's rate.
    pub link: f64,
    /// Of everything that processors do.
    pub cpu: f64,
    /// Of what stopping, saving, loading and resuming take.
    pub devices: f64,
    /// Of the reads beside a write, from one guest to the next.
    pub reads: f64,
}

impl Default for CodecCosts {
    fn default() -> Self {
        Self {
            copy: 0.25,
            lz4: 1.0,
            zstd: 1.7,
            zstd_5: 5.0,
            delta: 0.6,
            decode_lz4: 0.4,
            decode_zstd: 0.9,
        }
    }
}

impl Default for Variation {
    fn default() -> Self {
        Self {
            link: 0.03,
            cpu: 0.15,
            devices: 0.25,
            reads: 0.8,
        }
    }
}

impl Default for PathModel {
    /// Loopback, as far as it goes.
    fn default() -> Self {
        Self::typical(2.2e9, 0.05)
    }
}

impl PathModel {
    /// This link between hosts as the project was measured on: two shared cores, QEMU 7.2 with a few devices.
    pub fn typical(link_bytes_per_s: f64, rtt_ms: f64) -> Self {
        Self {
            link_bytes_per_s,
            rtt_ms,
            queue_ms: 0.4,
            socket_buffer_bytes: f64::from(3 << 19),
            processors: 2.0,
            cpu_share: 1.0,
            destination_cpu_share: 1.0,
            codecs: CodecCosts::default(),
            write_ns_per_byte: 0.4,
            receive_ns_per_page: 1400.0,
            install_ns_per_page: 2000.0,
            arm_ns_per_page: 65.0,
            scan_ns_per_page: 1.4,
            scan_ns_per_dirty_page: 35.0,
            write_fault_ns: 1000.0,
            prepare_ms: 150.0,
            flush_ms: 1.0,
            stop_ms: 0.6,
            save_ms: 4.0,
            load_ms: 4.0,
            resume_ms: 0.5,
            journal_ms: 0.5,
            device_state_bytes: 210e3,
            fault_ms: 0.03,
            reads_per_write: 2.0,
            sampled: false,
            variation: Variation::default(),
        }
    }

    /// Checks that something can move on it.
    ///
    /// # Errors
    /// With the figure that makes no sense, and what would.
    pub fn check(&self) -> Result<(), SimError> {
        let positive = [
            ("a link rate in bytes a second", self.link_bytes_per_s),
            ("a socket buffer in bytes", self.socket_buffer_bytes),
            ("a number of processors", self.processors),
        ];
        for (what, value) in positive {
            if !(value >= 1.0 && value.is_finite()) {
                let mend = "choose at least 1: nothing crosses otherwise";
                return Err(refused(what, value, mend));
            }
        }
        for share in [self.cpu_share, self.destination_cpu_share] {
            if !(LEAST_SHARE..=1.0).contains(&share) {
                let mend = "choose at least 0.001 and at most 1";
                return Err(refused("a share of a processor", share, mend));
            }
        }
        for (what, deviation) in self.variation.deviations() {
            if !(0.0..=MOST_DEVIATION).contains(&deviation) {
                let mend = "choose 0 to 2: it is a relative standard deviation";
                return Err(refused(what, deviation, mend));
            }
        }
        if !(0.0..=MOST_READS).contains(&self.reads_per_write) {
            let mend = "choose 0 to 1000";
            return Err(refused("a number of reads a write", self.reads_per_write, mend));
        }
        for (what, value) in self.times() {
            if !(0.0..MOST_TIME).contains(&value) {
                return Err(refused(what, value, "choose 0 or more, and less than 1e9"));
            }
        }
        if !(0.0..MOST_STATE_BYTES).contains(&self.device_state_bytes) {
            let mend = "choose 0 or more, and less than 1e12";
            return Err(refused(
                "a size of the device state in bytes",
                self.device_state_bytes,
                mend,
            ));
        }
        Ok(())
    }

    fn times(&self) -> [(&'static str, f64); 24] {
        let codecs = &self.codecs;
        [
            ("a round trip time in ms", self.rtt_ms),
            ("a queue in ms", self.queue_ms),
            ("a cost of copying in ns a byte", codecs.copy),
            ("a cost of lz4 in ns a byte", codecs.lz4),
            ("a cost of zstd in ns a byte", codecs.zstd),
            ("a cost of zstd:5 in ns a byte", codecs.zstd_5),
            ("a cost of differences in ns a byte", codecs.delta),
            ("a cost of decoding lz4 in ns a byte", codecs.decode_lz4),
            ("a cost of decoding zstd in ns a byte", codecs.decode_zstd),
            ("a cost of writing in ns a byte", self.write_ns_per_byte),
            ("a cost of receiving in ns a page", self.receive_ns_per_page),
            ("a cost of installing in ns a page", self.install_ns_per_page),
            ("a cost of arming in ns a page", self.arm_ns_per_page),
            ("a cost of scanning in ns a page", self.scan_ns_per_page),
            (
                "a cost of scanning in ns a dirty page",
                self.scan_ns_per_dirty_page,
            ),
            ("a cost of a write fault in ns", self.write_fault_ns),
            ("a time to prepare in ms", self.prepare_ms),
            ("a time to flush disks in ms", self.flush_ms),
            ("a time to stop in ms", self.stop_ms),
            ("a time to save the device state in ms", self.save_ms),
            ("a time to load the device state in ms", self.load_ms),
            ("a time to resume in ms", self.resume_ms),
            ("a time of the journal in ms", self.journal_ms),
            ("a time to serve a fault in ms", self.fault_ms),
        ]
    }
}

impl Variation {
    fn deviations(&self) -> [(&'static str, f64); 4] {
        [
            ("a variation of the link", self.link),
            ("a variation of processors", self.cpu),
            ("a variation of devices", self.devices),
            ("a variation of reads", self.reads),
        ]
    }
}

impl CodecCosts {
    /// Encoding a byte with `codec`, copying included.
    pub(crate) fn encode_ns(&self, codec: Codec) -> f64 {
        match codec {
            Codec::Raw => self.copy,
            Codec::Lz4 => self.copy + self.lz4,
            Codec::Zstd(level) => self.copy + by_level(level, self.lz4, self.zstd, self.zstd_5),
        }
    }

    /// Decoding a byte.
    pub(crate) fn decode_ns(&self, codec: Codec) -> f64 {
        match codec {
            Codec::Raw => 0.0,
            Codec::Lz4 => self.decode_lz4,
            Codec::Zstd(_) => self.decode_zstd,
        }
    }
}

/// A figure of zstd at `level`, from those of the fastest levels (about LZ4's), level 1 and level 5.
pub(crate) fn by_level(level: i32, fastest: f64, one: f64, five: f64) -> f64 {
    match level {
        ..=0 => one + (fastest - one) * f64::from(1 - level) / 8.0,
        1..=5 => one + (five - one) * f64::from(level - 1) / 4.0,
        // Each level from there on takes about a third longer, for little.
        _ => five + (five - one).max(0.0) * ((f64::from(level - 5) * 0.3).exp() - 1.0) / 2.0,
    }
}

fn refused(what: &'static str, value: f64, mend: &'static str) -> SimError {
    SimError::Path {
        what,
        value: value.to_string(),
        mend,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_zero_are_refused_and_say_what_is_possible() {
        PathModel::default().check().unwrap();
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let why = PathModel::typical(rate, 0.1).check().unwrap_err().to_string();
            assert!(why.contains("link rate") && why.contains("at least 1"), "{why}");
        }
        let why = PathModel::typical(1e9, -0.1).check().unwrap_err().to_string();
        assert!(why.contains("round trip") && why.contains("0 or more"), "{why}");
        let path = PathModel {
            cpu_share: 0.0,
            ..PathModel::default()
        };
        assert!(path.check().is_err());
    }

    #[test]
    fn figures_that_lead_nowhere_are_refused() {
        let of = |text: &str| serde_json::from_str::<PathModel>(text).unwrap();
        for (text, words) in [
            (
                r#"{"variation": {"cpu": 400}}"#,
                ["variation of processors", "0 to 2"],
            ),
            (
                r#"{"variation": {"link": -0.1}}"#,
                ["variation of the link", "0 to 2"],
            ),
            (
                r#"{"variation": {"devices": 2.1}}"#,
                ["variation of devices", "0 to 2"],
            ),
            (r#"{"cpu_share": 1e-300}"#, ["share of a processor", "0.001"]),
            (
                r#"{"destination_cpu_share": 1.1}"#,
                ["share of a processor", "at most 1"],
            ),
            (
                r#"{"install_ns_per_page": 1e11}"#,
                ["installing", "less than 1e9"],
            ),
            (
                r#"{"device_state_bytes": -1}"#,
                ["device state", "less than 1e12"],
            ),
            (r#"{"reads_per_write": 1e11}"#, ["reads a write", "0 to 1000"]),
        ] {
            let why = of(text).check().unwrap_err().to_string();
            assert!(words.iter().all(|word| why.contains(word)), "{text}: {why}");
        }
        let unknown = PathModel {
            variation: Variation {
                cpu: f64::NAN,
                ..Variation::default()
            },
            ..PathModel::default()
        };
        assert!(unknown.check().is_err());
        let utmost = r#"{"variation": {"cpu": 2, "link": 2, "devices": 2, "reads": 2}, "cpu_share": 0.001, "reads_per_write": 1000}"#;
        of(utmost).check().unwrap();
    }

    #[test]
    fn what_a_file_does_not_say_is_typical() {
        let path: PathModel = serde_json::from_str(r#"{"link_bytes_per_s": 125e6, "rtt_ms": 0.2}"#).unwrap();
        assert_eq!(path, PathModel::typical(125e6, 0.2));
    }

    #[test]
    fn levels_of_zstd_lie_between_those_that_are_known() {
        let costs = CodecCosts::default();
        let mut before = 0.0;
        for level in -7..=19 {
            let cost = costs.encode_ns(Codec::Zstd(level));
            assert!(cost > before, "level {level}: {cost} after {before}");
            before = cost;
        }
    }
}
