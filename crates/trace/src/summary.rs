//! What a trace says about its guest as a whole: dirty rate over time, heat of regions, working set.

use serde::{Deserialize, Serialize};
use vmferry_core::{PAGE_SIZE, PageRun};

use crate::content::Blend;
use crate::hints::{ClassBytes, GuestHints};
use crate::sample::{LoadMark, Sample};
use crate::trace::Trace;

/// Regions of the heat map.
const REGIONS: u64 = 64;
/// Columns of the heat map at most.
const COLUMNS: usize = 200;

/// The dirty rate in one sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateAt {
    /// The middle of the sample, milliseconds since recording began.
    pub at_ms: f64,
    /// Pages dirtied a second, each counted once a sample.
    pub pages_per_s: f64,
    /// CPU that the guest used, in percent of one core, where that is known.
    pub cpu_percent: Option<f64>,
}

/// Where the guest wrote when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeatMap {
    /// Pages of a region; the last one may have fewer.
    pub region_pages: u64,
    /// The time of each column, milliseconds since recording began: begin and end.
    pub columns_ms: Vec<(f64, f64)>,
    /// Pages dirtied a second, column by column, region by region in it.
    pub pages_per_s: Vec<Vec<f64>>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the guest.
    pub vm: String,
    /// RAM, bytes.
    pub ram_bytes: u64,
    /// Bytes that held data at the beginning.
    pub data_bytes: u64,
    /// From the begin to the last sample's end, milliseconds.
    pub length_ms: f64,
    /// Covered by samples, milliseconds.
    pub observed_ms: f64,
    /// Samples.
    pub samples: usize,
    /// Bursts.
    pub bursts: usize,
    /// Samples that looked at all pages.
    pub full_samples: usize,
    /// How many pages one that was looked at stood for at most.
    pub sparsest: u32,
    /// Estimated cost to the guest, percent of its time.
    pub cost_percent: Option<f64>,
    /// Mean dirty rate over samples of the usual length, bytes a second.
    pub dirty_bytes_per_s: f64,
    /// The least and the most of these.
    pub dirty_bytes_per_s_range: (f64, f64),
    /// The writable working set ([`vmferry_core::wws`]), bytes: pages at least as hot as the mean.
    pub working_set_bytes: u64,
    /// All that was dirtied at any time, bytes; an estimate where parts were looked at.
    pub written_bytes: u64,
    /// What pages with data hold, all regions together.
    pub content: Blend,
    /// What written pages hold.
    pub written_content: Blend,
    /// Bytes that a difference makes of one, of pages written again.
    pub delta: Option<f32>,
    /// What its pages were used for at the end, where its agent said so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_for: Vec<ClassBytes>,
    /// How busy the guest was.
    pub loads: Vec<LoadMark>,
    /// Dirty rate over time.
    pub rates: Vec<RateAt>,
    /// Where the guest wrote when.
    pub heat: HeatMap,
}

impl Trace {
    /// What it says as a whole.
    pub fn summary(&self) -> Summary {
        let usual: Vec<&Sample> = self.usual_samples().collect();
        let per_s = |sample: &&Sample| {
            sample.dirty_pages() as f64 * PAGE_SIZE as f64 / sample.length().as_secs_f64().max(1e-6)
        };
        let rates_of = usual.iter().map(per_s);
        let least = rates_of.clone().fold(f64::INFINITY, f64::min);
        let most = rates_of.clone().fold(0.0, f64::max);
        let mean = rates_of.sum::<f64>() / usual.len().max(1) as f64;
        let stride = |sample: &Sample| sample.coverage.stride();
        Summary {
            vm: self.header.vm.clone(),
            ram_bytes: self.header.ram_bytes(),
            data_bytes: self.resident.count() * PAGE_SIZE,
            length_ms: self.length().as_secs_f64() * 1e3,
            observed_ms: self.observed().as_secs_f64() * 1e3,
            samples: self.samples.len(),
            bursts: self.bursts().count(),
            full_samples: self.samples.iter().filter(|s| s.coverage.is_all()).count(),
            sparsest: self.samples.iter().map(stride).max().unwrap_or(1),
            cost_percent: self.cost.map(|cost| cost.percent()),
            dirty_bytes_per_s: mean,
            dirty_bytes_per_s_range: (if usual.is_empty() { 0.0 } else { least }, most),
            working_set_bytes: self.working_set_pages() * PAGE_SIZE,
            written_bytes: self.written_pages() * PAGE_SIZE,
            content: self.all_content(),
            written_content: self.content.written,
            delta: self.content.delta,
            used_for: self.hints.as_ref().map(GuestHints::used_for).unwrap_or_default(),
            loads: self.loads.clone(),
            rates: usual.iter().map(|sample| rate_at(sample)).collect(),
            heat: self.heat_map(&usual),
        }
    }

    /// Samples of the length that was asked for, without the short ones that tell how writes spread within one.
    pub fn usual_samples(&self) -> impl Iterator<Item = &Sample> {
        let least = self.header.interval() * 7 / 10;
        self.samples.iter().filter(move |sample| sample.length() >= least)
    }

    fn all_content(&self) -> Blend {
        let mut all = Blend {
            lz4: 0.0,
            zstd: 0.0,
            zstd_5: 0.0,
            ..Blend::default()
        };
        let mut plain = 0.0;
        for blend in &self.content.regions {
            let of_region = (blend.looked_at - blend.uniform) as f32;
            plain += of_region;
            all.looked_at += blend.looked_at;
            all.uniform += blend.uniform;
            all.lz4 += blend.lz4 * of_region;
            all.zstd += blend.zstd * of_region;
            all.zstd_5 += blend.zstd_5 * of_region;
        }
        if plain == 0.0 {
            return Blend {
                looked_at: all.looked_at,
                uniform: all.uniform,
                ..Blend::default()
            };
        }
        Blend {
            lz4: all.lz4 / plain,
            zstd: all.zstd / plain,
            zstd_5: all.zstd_5 / plain,
            ..all
        }
    }

    fn heat_map(&self, samples: &[&Sample]) -> HeatMap {
        let region_pages = self.pages().div_ceil(REGIONS).max(1);
        let regions = self.pages().div_ceil(region_pages) as usize;
        let a_column = samples.len().div_ceil(COLUMNS).max(1);
        let mut map = HeatMap {
            region_pages,
            ..HeatMap::default()
        };
        for column in samples.chunks(a_column) {
            let seconds: f64 = column.iter().map(|sample| sample.length().as_secs_f64()).sum();
            let mut pages = vec![0.0; regions];
            for sample in column {
                let weight = f64::from(sample.coverage.stride()) / seconds.max(1e-6);
                for run in sample.dirty.runs() {
                    add_to_regions(&mut pages, run, region_pages, weight);
                }
            }
            let (first, last) = (column[0], column[column.len() - 1]);
            let ms = |us: u64| us as f64 / 1e3;
            map.columns_ms.push((ms(first.start_us), ms(last.end_us)));
            map.pages_per_s.push(pages);
        }
        map
    }
}

/// Operations that a guest did for its clients, a second, between marks that count them: from and until when, milliseconds since
/// recording began. A count that goes back is of a guest that began anew: nothing is known of that time.
pub fn operations_per_s(loads: &[LoadMark]) -> Vec<((f64, f64), f64)> {
    let counted = loads
        .iter()
        .filter_map(|mark| Some((mark.at_us as f64 / 1e3, mark.operations?)));
    let marks: Vec<(f64, u64)> = counted.collect();
    let between = |pair: &[(f64, u64)]| {
        let ((from, before), (until, after)) = (pair[0], pair[1]);
        let done = after.checked_sub(before)?;
        (until > from).then(|| ((from, until), done as f64 / (until - from) * 1e3))
    };
    marks.windows(2).filter_map(between).collect()
}

fn rate_at(sample: &Sample) -> RateAt {
    let seconds = sample.length().as_secs_f64().max(1e-6);
    let cpu = |us: u64| us as f64 / 1e4 / seconds;
    RateAt {
        at_ms: (sample.start_us as f64 + sample.end_us as f64) / 2e3,
        pages_per_s: sample.dirty_pages() as f64 / seconds,
        cpu_percent: sample.cpu_us.map(cpu),
    }
}

fn add_to_regions(regions: &mut [f64], run: PageRun, region_pages: u64, weight: f64) {
    let mut rest = Some(run);
    while let Some(run) = rest {
        let region = run.first / region_pages;
        let (head, tail) = run.split_at((region + 1) * region_pages - run.first);
        regions[region as usize] += head.count as f64 * weight;
        rest = tail;
    }
}
