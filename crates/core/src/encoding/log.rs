//! In which encodings pages crossed, over time, for the report.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Encoding;
use crate::pages::PAGE_SIZE;

/// Slices of time that a log has at most.
const MAX_SLICES: usize = 32;
/// Length of a slice at first; it doubles whenever there are too many.
const FIRST_SLICE: Duration = Duration::from_millis(100);

/// How many pages crossed in which encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PagesByEncoding {
    /// As 4096 plain bytes.
    pub raw: u64,
    /// As one byte.
    pub uniform: u64,
    /// Compressed with LZ4.
    pub lz4: u64,
    /// Compressed with Zstandard.
    pub zstd: u64,
    /// As the difference to the version sent before.
    pub delta: u64,
}

impl PagesByEncoding {
    /// All of them.
    pub const fn sum(&self) -> u64 {
        self.raw + self.uniform + self.encoded()
    }

    /// Those whose encoding somebody computed.
    pub const fn encoded(&self) -> u64 {
        self.lz4 + self.zstd + self.delta
    }

    fn add(&mut self, other: &Self) {
        self.raw += other.raw;
        self.uniform += other.uniform;
        self.lz4 += other.lz4;
        self.zstd += other.zstd;
        self.delta += other.delta;
    }
}

/// What crossed in a slice of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EncodingSlice {
    /// Begin of the slice, milliseconds since the request.
    pub start_ms: f64,
    /// Its end.
    pub end_ms: f64,
    /// The pages.
    #[serde(flatten)]
    pub pages: PagesByEncoding,
}

/// In which encodings the pages of a migration crossed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncodingReport {
    /// The encoding that was asked for.
    pub asked: String,
    /// How many pages crossed in which encoding.
    pub pages: PagesByEncoding,
    /// Bytes that lz4, zstd and delta spared the link.
    pub saved_bytes: u64,
    /// CPU time that encoding took at the source, attempts that came to nothing included.
    pub cpu_seconds: f64,
    /// The same pages over time; slices in which none crossed are left out.
    pub over_time: Vec<EncodingSlice>,
}

/// Collects an [`EncodingReport`] in bounded memory.
#[derive(Clone, Debug)]
pub struct EncodingLog {
    asked: Encoding,
    slice: Duration,
    slices: Vec<PagesByEncoding>,
    payload_bytes: u64,
    cpu: Duration,
}

impl EncodingLog {
    /// Nothing crossed yet.
    pub fn new(asked: Encoding) -> Self {
        Self {
            asked,
            slice: FIRST_SLICE,
            slices: Vec::new(),
            payload_bytes: 0,
            cpu: Duration::ZERO,
        }
    }

    /// These pages crossed; those encoded became `payload_bytes`.
    pub fn sent(&mut self, now: Duration, pages: &PagesByEncoding, payload_bytes: u64) {
        while self.index(now) >= MAX_SLICES {
            self.slice *= 2;
            self.slices = self
                .slices
                .chunks(2)
                .map(|pair| {
                    let mut sum = PagesByEncoding::default();
                    pair.iter().for_each(|pages| sum.add(pages));
                    sum
                })
                .collect();
        }
        let index = self.index(now);
        if self.slices.len() <= index {
            self.slices.resize(index + 1, PagesByEncoding::default());
        }
        self.slices[index].add(pages);
        self.payload_bytes += payload_bytes;
    }

    /// Encoding took this much CPU time.
    pub fn spent(&mut self, cpu: Duration) {
        self.cpu += cpu;
    }

    /// What crossed so far.
    pub fn report(&self) -> EncodingReport {
        let mut pages = PagesByEncoding::default();
        self.slices.iter().for_each(|slice| pages.add(slice));
        let ms = |index: usize| self.slice.as_secs_f64() * 1e3 * index as f64;
        let over_time = self
            .slices
            .iter()
            .enumerate()
            .filter(|(_, pages)| pages.sum() > 0)
            .map(|(index, pages)| EncodingSlice {
                start_ms: ms(index),
                end_ms: ms(index + 1),
                pages: *pages,
            });
        EncodingReport {
            asked: self.asked.to_string(),
            pages,
            saved_bytes: (pages.encoded() * PAGE_SIZE).saturating_sub(self.payload_bytes),
            cpu_seconds: self.cpu.as_secs_f64(),
            over_time: over_time.collect(),
        }
    }

    fn index(&self, now: Duration) -> usize {
        (now.as_nanos() / self.slice.as_nanos()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_lost_however_long_it_takes() {
        let mut log = EncodingLog::new(Encoding::Auto);
        let mut sent = PagesByEncoding::default();
        for step in 0..5000u64 {
            let pages = PagesByEncoding {
                raw: step % 3,
                lz4: 2,
                delta: u64::from(step % 2 == 0),
                ..PagesByEncoding::default()
            };
            sent.add(&pages);
            log.sent(Duration::from_millis(step * step / 50), &pages, 1000);
        }
        let report = log.report();
        assert_eq!(report.pages, sent);
        assert_eq!(report.saved_bytes, (5000 * 2 + 2500) * PAGE_SIZE - 5000 * 1000);
        assert!(report.over_time.len() <= MAX_SLICES && report.over_time.len() > MAX_SLICES / 2);
        let mut sum = PagesByEncoding::default();
        report.over_time.iter().for_each(|slice| sum.add(&slice.pages));
        assert_eq!(sum, sent);
        assert!(
            report
                .over_time
                .windows(2)
                .all(|pair| pair[0].end_ms <= pair[1].start_ms)
        );
    }

    #[test]
    fn quiet_times_are_left_out() {
        let mut log = EncodingLog::new(Encoding::RAW);
        let pages = PagesByEncoding {
            raw: 7,
            ..PagesByEncoding::default()
        };
        log.sent(Duration::from_millis(20), &pages, 0);
        log.sent(Duration::from_millis(920), &pages, 0);
        let times: Vec<_> = log
            .report()
            .over_time
            .iter()
            .map(|slice| (slice.start_ms, slice.end_ms))
            .collect();
        assert_eq!(times, [(0.0, 100.0), (900.0, 1000.0)]);
    }
}
