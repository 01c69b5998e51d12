//! What pages become on the wire, and what that takes, by what the trace knows of their content.

use std::time::Duration;

use vmferry_core::encoding::{Encoded, Plan};
use vmferry_core::source::SentBatch;
use vmferry_core::{Codec, PAGE_SIZE, PageBitmap, PageRun};
use vmferry_trace::{Blend, Content};

use crate::link::ns;
use crate::path::{CodecCosts, by_level};
use crate::units::Units;

/// A frame's header, bytes.
const FRAME_HEADER: f64 = 32.0;
/// Pages of a frame, mostly.
const FRAME_PAGES: f64 = 48.0;
/// Pages of one byte that lie in a row, mostly: these share a header.
const UNIFORM_RUN_PAGES: f64 = 4.0;
/// Pages that a sample of another codec encodes.
const SAMPLE_PAGES: f64 = 16.0;

const PAGE: f64 = PAGE_SIZE as f64;

/// A batch as it crosses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch {
    /// In units, as the source counts.
    pub sent: SentBatch,
    pub plain: Encoded,
    pub delta: Option<Encoded>,
    /// Processor time of the source, without writing.
    pub encode: Duration,
    /// Processor time of the destination, without placing pages.
    pub decode: Duration,
    /// Bytes on the wire.
    pub bytes: f64,
}

/// See the module.
pub(crate) struct Sizes<'a> {
    content: &'a Content,
    costs: CodecCosts,
    units: Units,
    /// Units that crossed.
    sent: PageBitmap,
    /// Pages whose last version is kept for differences.
    delta_pages: f64,
    /// Units sent in the round before, and in this one.
    last_round: u64,
    this_round: u64,
    round: u32,
    /// Parts of units that were not counted yet, so that nothing is lost by rounding.
    carry: f64,
    carry_delta: f64,
}

/// Pages of a batch by what becomes of them.
#[derive(Default)]
struct Pages {
    uniform: f64,
    plain: f64,
    plain_bytes: f64,
    delta: f64,
    delta_bytes: f64,
}

impl<'a> Sizes<'a> {
    pub(crate) fn new(content: &'a Content, costs: CodecCosts, units: Units, delta_cache_bytes: u64) -> Self {
        Self {
            content,
            costs,
            units,
            sent: PageBitmap::new(units.count()),
            delta_pages: delta_cache_bytes as f64 / PAGE,
            last_round: 0,
            this_round: 0,
            round: 0,
            carry: 0.0,
            carry_delta: 0.0,
        }
    }

    /// The pages of `runs`, sent in `round` by `plan`.
    pub(crate) fn batch(&mut self, runs: &[PageRun], round: u32, plan: &Plan) -> Batch {
        if round != self.round {
            self.last_round = std::mem::take(&mut self.this_round);
            self.round = round;
        }
        let known = match plan.delta {
            true => self.known_share(),
            false => 0.0,
        };
        let (mut pages, mut count) = (Pages::default(), 0);
        for &run in runs {
            self.add(run, plan.codec, known, &mut pages);
            count += run.count;
        }
        self.this_round += count;
        let raw = plan.codec == Codec::Raw;
        let shrinks = !raw && pages.plain_bytes < 0.98 * pages.plain * PAGE;
        let headers = FRAME_HEADER
            * ((pages.plain + pages.delta) / FRAME_PAGES.min(count as f64).max(1.0)
                + pages.uniform / UNIFORM_RUN_PAGES);
        let bytes = headers + pages.plain_bytes + pages.delta_bytes;
        let all = pages.uniform + pages.plain + pages.delta;
        let cost = |pages: f64, each: f64| ns(each, pages * PAGE);
        let plain_cpu =
            cost(pages.plain, self.costs.encode_ns(plan.codec)) + cost(pages.uniform, self.costs.copy);
        let delta_cpu = cost(pages.delta, self.costs.copy + self.costs.delta);
        let encoded = |pages: f64, bytes: f64, cpu| Encoded {
            page_bytes: (pages * PAGE) as u64,
            bytes: bytes as u64,
            cpu,
        };
        Batch {
            sent: self.count(count, all, &pages, shrinks, bytes),
            plain: encoded(pages.plain, pages.plain_bytes, plain_cpu),
            delta: plan
                .delta
                .then(|| encoded(pages.delta, pages.delta_bytes, delta_cpu)),
            encode: plain_cpu + delta_cpu,
            decode: cost(pages.plain, self.costs.decode_ns(plan.codec)) + cost(pages.delta, self.costs.delta),
            bytes,
        }
    }

    /// What encoding some pages of `runs` with another codec shows.
    pub(crate) fn sample(&self, runs: &[PageRun], codec: Codec) -> Option<Encoded> {
        let first = runs.first()?.first;
        let blend = self.content.around(first * self.units.per());
        let plain = SAMPLE_PAGES * (1.0 - blend.uniform_share());
        (plain >= 4.0).then(|| Encoded {
            page_bytes: (plain * PAGE) as u64,
            bytes: (plain * PAGE * ratio(&blend, codec)) as u64,
            cpu: ns(self.costs.encode_ns(codec), SAMPLE_PAGES * PAGE),
        })
    }

    /// Looks at each page only: raw pages go from memory to the socket.
    pub(crate) fn look(&self, batch: &Batch) -> Duration {
        ns(self.costs.copy / 4.0, batch.plain.page_bytes as f64)
    }

    fn add(&mut self, run: PageRun, codec: Codec, known: f64, pages: &mut Pages) {
        let per = self.units.per() as f64;
        let again = self.sent.count_in(run) as f64 * per;
        let first = run.count as f64 * per - again;
        self.sent.insert_run(run);
        let around = self.content.around(run.first * self.units.per());
        let written = match self.content.written.looked_at > 0 {
            true => self.content.written,
            false => around,
        };
        for (count, blend, known) in [(first, around, 0.0), (again, written, known)] {
            let uniform = count * blend.uniform_share();
            let delta = (count - uniform) * known;
            let plain = count - uniform - delta;
            pages.uniform += uniform;
            pages.plain += plain;
            pages.plain_bytes += plain * PAGE * ratio(&blend, codec);
            let short = f64::from(self.content.delta.unwrap_or(1.0)).min(ratio(&blend, codec));
            pages.delta += delta;
            pages.delta_bytes += delta * PAGE * short;
        }
    }

    /// The share of pages that cross again whose last version is kept: the first round fills the room with whatever comes
    /// first, later ones keep what is sent again and again.
    fn known_share(&self) -> f64 {
        if self.content.delta.is_none() {
            return 0.0;
        }
        let of = self.last_round.max(1) as f64 * self.units.per() as f64;
        (self.delta_pages / of).min(1.0)
    }

    /// In whole units, of `count`.
    fn count(&mut self, count: u64, all: f64, pages: &Pages, shrinks: bool, bytes: f64) -> SentBatch {
        let whole = |part: f64, carry: &mut f64, most: u64| {
            let exact = part / all.max(1e-9) * count as f64 + *carry;
            let counted = (exact.round().max(0.0) as u64).min(most);
            *carry = exact - counted as f64;
            counted
        };
        let uniform = whole(pages.uniform, &mut self.carry, count);
        let delta = whole(pages.delta, &mut self.carry_delta, count - uniform);
        let plain = count - uniform - delta;
        let (raw, compressed) = if shrinks { (0, plain) } else { (plain, 0) };
        SentBatch {
            raw,
            uniform,
            compressed,
            delta,
            deduplicated: 0,
            bytes: bytes as u64,
        }
    }
}

/// Bytes that `codec` makes of one.
fn ratio(blend: &Blend, codec: Codec) -> f64 {
    let [lz4, one, five] = [blend.lz4, blend.zstd, blend.zstd_5].map(f64::from);
    match codec {
        Codec::Raw => 1.0,
        Codec::Lz4 => lz4,
        Codec::Zstd(level) if level <= 5 => by_level(level, lz4, one, five).min(1.0),
        // Hardly shorter from there on.
        Codec::Zstd(_) => five,
    }
}
