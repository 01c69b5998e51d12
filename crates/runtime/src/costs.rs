//! What a host takes for its part of a migration, measured on memory and data of our own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_memory::PageCosts;
use vmferry_wire::{Coding, EncodedPages, PageDecoder, PageEncoder};

use crate::usage::thread_cpu;

/// Pages of a batch that is encoded, and batches.
const BATCH_PAGES: usize = 64;
const BATCHES: usize = 24;
/// Records that are forced to disk.
const RECORDS: u32 = 8;

const PAGE: usize = PAGE_SIZE as usize;

/// Processor time of a byte or a page, nanoseconds, and what else a host takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostCosts {
    /// Processors.
    pub processors: f64,
    /// The share of a processor that a busy thread got while it was measured, 0 to 1.
    pub cpu_share: f64,
    /// Copying a byte of a page and looking whether the page is of one byte.
    pub copy_ns: f64,
    /// Compressing a byte by LZ4.
    pub lz4_ns: f64,
    /// By zstd at level 1.
    pub zstd_ns: f64,
    /// By zstd at level 5.
    pub zstd_5_ns: f64,
    /// The difference to an earlier version, a byte.
    pub delta_ns: f64,
    /// Decompressing a byte of a page by LZ4, its checksum included; absent, as the next one, of a host that does not measure it yet.
    pub decode_lz4_ns: Option<f64>,
    /// By zstd, of level 1.
    pub decode_zstd_ns: Option<f64>,
    /// Protecting a page for the first time; absent, as the next ones, where this host may not track.
    pub arm_ns: Option<f64>,
    /// Looking at a page in a scan.
    pub scan_ns: Option<f64>,
    /// The same for a dirty page, in addition.
    pub scan_dirty_ns: Option<f64>,
    /// The first write to a page after a scan.
    pub write_fault_ns: Option<f64>,
    /// Taking a page in before the resume.
    pub receive_ns: Option<f64>,
    /// Making a page appear after the resume.
    pub install_ns: Option<f64>,
    /// Forcing a record to disk, milliseconds; absent where no place was named.
    pub journal_ms: Option<f64>,
}

impl HostCosts {
    /// Measures this host, in about a quarter of a second of one processor. Records are forced to disk in `dir`.
    pub fn measure(dir: Option<&Path>) -> Self {
        let (began, before) = (Instant::now(), thread_cpu());
        let codecs = Codecs::measure();
        let used = thread_cpu().saturating_sub(before).as_secs_f64();
        let cpu_share = (used / began.elapsed().as_secs_f64().max(1e-9)).clamp(0.01, 1.0);
        let pages = PageCosts::measure().ok();
        let of = |cost: fn(&PageCosts) -> Option<Duration>| {
            pages.as_ref().and_then(cost).map(|cost| cost.as_secs_f64() * 1e9)
        };
        Self {
            processors: std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64),
            cpu_share,
            copy_ns: codecs.copy,
            lz4_ns: codecs.lz4,
            zstd_ns: codecs.zstd,
            zstd_5_ns: codecs.zstd_5,
            delta_ns: codecs.delta,
            decode_lz4_ns: codecs.decode_lz4,
            decode_zstd_ns: codecs.decode_zstd,
            arm_ns: of(|pages| Some(pages.arm)),
            scan_ns: of(|pages| Some(pages.scan)),
            scan_dirty_ns: of(|pages| Some(pages.scan_dirty)),
            write_fault_ns: of(|pages| Some(pages.write_fault)),
            receive_ns: of(|pages| Some(pages.receive)),
            install_ns: of(|pages| pages.install),
            journal_ms: dir.and_then(|dir| forced(dir).ok()),
        }
    }
}

/// Nanoseconds of a processor a byte.
struct Codecs {
    copy: f64,
    lz4: f64,
    zstd: f64,
    zstd_5: f64,
    delta: f64,
    decode_lz4: Option<f64>,
    decode_zstd: Option<f64>,
}

impl Codecs {
    fn measure() -> Self {
        let batches: Vec<Vec<u8>> = (0..BATCHES).map(pages).collect();
        let decoding = |coding, encode: Encode| decoding(&batches, coding, encode);
        let decode_lz4 = decoding(Coding::Lz4, PageEncoder::lz4);
        let decode_zstd = decoding(Coding::Zstd, |encoder, batch| encoder.zstd(1, batch));
        let mut encoder = PageEncoder::default();
        let mut per_byte = |act: &mut dyn FnMut(&mut PageEncoder, &[u8])| {
            let before = thread_cpu();
            batches.iter().for_each(|batch| act(&mut encoder, batch));
            let bytes = (BATCHES * BATCH_PAGES * PAGE) as f64;
            thread_cpu().saturating_sub(before).as_secs_f64() * 1e9 / bytes
        };
        let mut copy = vec![0; BATCH_PAGES * PAGE];
        let mut uniform = 0;
        Self {
            copy: per_byte(&mut |_, batch| {
                copy.copy_from_slice(batch);
                uniform += copy
                    .chunks(PAGE)
                    .filter(|page| page[1..] == page[..PAGE - 1])
                    .count();
            }),
            lz4: per_byte(&mut |encoder, batch| use_up(encoder.lz4(batch))),
            zstd: per_byte(&mut |encoder, batch| use_up(encoder.zstd(1, batch))),
            zstd_5: per_byte(&mut |encoder, batch| use_up(encoder.zstd(5, batch))),
            delta: {
                let mut new = batches[0].clone();
                new.iter_mut().step_by(97).for_each(|byte| *byte ^= 1);
                per_byte(&mut |encoder, _| use_up(encoder.delta(&batches[0], &new)))
            },
            decode_lz4,
            decode_zstd,
        }
    }
}

/// Encodes a batch, where that is worthwhile.
type Encode = for<'a> fn(&'a mut PageEncoder, &[u8]) -> Option<&'a [u8]>;

/// Decoding a byte of what `encode` makes of `batches`, as the destination does it; none where it makes nothing of them.
fn decoding(batches: &[Vec<u8>], coding: Coding, encode: Encode) -> Option<f64> {
    let mut encoder = PageEncoder::default();
    let run = PageRun::new(0, BATCH_PAGES as u64);
    let mut encoded = Vec::new();
    for batch in batches {
        let payload = encode(&mut encoder, batch)?.to_vec();
        let frame = EncodedPages {
            run,
            round: 0,
            coding,
            len: payload.len() as u32,
            crc: coding.checksum(&payload, batch),
        };
        encoded.push((frame, payload));
    }
    let (mut decoder, mut pages) = (PageDecoder::default(), vec![0; BATCH_PAGES * PAGE]);
    let before = thread_cpu();
    for (frame, payload) in &encoded {
        decoder.read(&mut &payload[..], frame, &mut pages).ok()?;
        std::hint::black_box(&pages);
    }
    let bytes = (batches.len() * BATCH_PAGES * PAGE) as f64;
    Some(thread_cpu().saturating_sub(before).as_secs_f64() * 1e9 / bytes)
}

/// So that the compiler does not leave out what nobody looks at.
fn use_up(payload: Option<&[u8]>) {
    std::hint::black_box(payload.map(<[u8]>::len));
}

/// Pages of records, such as programs keep: words, numbers, and what is neither.
fn pages(seed: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "page", "round", "guest", "table", "index", "session", "value", "memory", "0x7f3a", "cache", "entry",
        "null",
    ];
    let mut random = seed as u64 + 1;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    let mut data = Vec::with_capacity(BATCH_PAGES * PAGE + 64);
    while data.len() < BATCH_PAGES * PAGE {
        match next() % 3 {
            0 => data.extend_from_slice(&next().to_le_bytes()),
            1 => data.extend_from_slice(
                format!("{}={};", WORDS[(next() % 12) as usize], next() % 1000).as_bytes(),
            ),
            _ => data.extend_from_slice(WORDS[(next() % 12) as usize].as_bytes()),
        }
    }
    data.truncate(BATCH_PAGES * PAGE);
    data
}

/// The median time of forcing a record to disk, milliseconds.
fn forced(dir: &Path) -> std::io::Result<f64> {
    let path = dir.join("calibrate");
    let mut file = File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..RECORDS {
        let began = Instant::now();
        file.write_all(&[0; 128])?;
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(path)?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let costs = HostCosts::measure(Some(dir.path()));
        assert!(
            costs.copy_ns > 0.0 && costs.copy_ns < costs.zstd_5_ns,
            "{costs:?}"
        );
        assert!(
            costs.lz4_ns < costs.zstd_5_ns && costs.delta_ns > 0.0,
            "{costs:?}"
        );
        for decoding in [costs.decode_lz4_ns, costs.decode_zstd_ns] {
            let ns = decoding.expect("what was compressed is decompressed");
            assert!(ns > 0.0 && ns < costs.zstd_5_ns, "{costs:?}");
        }
        assert!(costs.cpu_share > 0.0 && costs.cpu_share <= 1.0, "{costs:?}");
        assert!(costs.journal_ms.is_some() && costs.processors >= 1.0, "{costs:?}");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left behind"
        );
        let text = serde_json::to_string(&costs).unwrap();
        let read: HostCosts = serde_json::from_str(&text).unwrap();
        assert_eq!(read, costs, "what is kept is what was measured");
    }
}
