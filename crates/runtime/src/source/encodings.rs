//! What the page streams of a source share about encodings: the choice, the versions last sent, the figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmferry_core::encoding::{
    Chooser, Codec, Encoded, Encoding, EncodingLog, EncodingReport, PagesByEncoding, Plan, SentWith,
};
use vmferry_wire::ENCODED_PAGES_SINCE;

use super::delta_cache::DeltaCache;
use crate::clock::Clock;

pub(super) struct Encodings {
    asked: Encoding,
    clock: Clock,
    chooser: Mutex<Chooser>,
    log: Mutex<EncodingLog>,
    /// Of the last batch.
    in_use: Mutex<Option<Encoding>>,
    versions: DeltaCache,
    /// The destination decodes.
    understood: AtomicBool,
    /// The destination has just what was sent.
    deltas: AtomicBool,
    /// Versions are kept still.
    kept: AtomicBool,
}

impl Encodings {
    pub(super) fn new(asked: Encoding, delta_cache_bytes: u64, clock: Clock) -> Self {
        let deltas = asked.uses_delta() && delta_cache_bytes > 0;
        Self {
            asked,
            clock,
            chooser: Mutex::new(Chooser::new(
                asked,
                thread::available_parallelism().map_or(1, std::num::NonZero::get),
            )),
            log: Mutex::new(EncodingLog::new(asked)),
            in_use: Mutex::default(),
            versions: DeltaCache::new(if deltas { delta_cache_bytes } else { 0 }),
            understood: AtomicBool::new(true),
            deltas: AtomicBool::new(deltas),
            kept: AtomicBool::new(deltas),
        }
    }

    /// A connection speaks this version.
    pub(super) fn peer_speaks(&self, version: u16) {
        self.understood
            .store(version >= ENCODED_PAGES_SINCE, Ordering::Relaxed);
    }

    /// The destination may not have what was sent last any more: the guest runs there, or the connection broke. Every
    /// page that follows crosses whole. The memory is given back with the next batch, not now: the guest may be waiting.
    pub(super) fn no_more_deltas(&self) {
        self.deltas.store(false, Ordering::Release);
    }

    /// How to send the next batch.
    pub(super) fn plan(&self) -> Plan {
        let deltas = self.deltas.load(Ordering::Acquire);
        if !deltas && self.kept.swap(false, Ordering::Relaxed) {
            self.versions.clear();
        }
        let plan = match self.understood.load(Ordering::Relaxed) {
            true => self.chooser().plan(self.clock.now()),
            false => RAW,
        };
        let (codec, delta) = (plan.codec, plan.delta && deltas);
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = Some(Encoding::Fixed { codec, delta });
        Plan { delta, ..plan }
    }

    /// How the last batch was sent, for a look at the migration.
    pub(super) fn in_use(&self) -> Option<Encoding> {
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The versions last sent, while they are of use.
    pub(super) fn versions(&self) -> Option<&DeltaCache> {
        self.deltas.load(Ordering::Acquire).then_some(&self.versions)
    }

    pub(super) fn sampled(&self, codec: Codec, sample: &Encoded, wall: Duration) {
        self.chooser().sampled(codec, sample, wall);
        self.log().spent(sample.cpu);
    }

    /// A batch of a page stream was sent.
    pub(super) fn sent(&self, batch: &SentWith) {
        self.chooser().sent(self.clock.now(), batch);
        let deltas = batch.delta.map_or(Duration::ZERO, |delta| delta.cpu);
        self.log().spent(batch.plain.cpu + deltas);
    }

    /// Pages crossed in these encodings, over whichever stream; those encoded became `payload_bytes`.
    pub(super) fn crossed(&self, pages: &PagesByEncoding, payload_bytes: u64) {
        self.log().sent(self.clock.now(), pages, payload_bytes);
    }

    pub(super) fn report(&self) -> EncodingReport {
        self.log().report()
    }

    /// Says so where the encoding asked for was not possible.
    pub(super) fn fall_back(&self) -> Option<String> {
        let fell_back = !self.understood.load(Ordering::Relaxed) && self.asked != Encoding::RAW;
        fell_back.then(|| {
            format!(
                "the destination does not know encoding {}: it speaks protocol version {}; pages crossed raw",
                self.asked,
                ENCODED_PAGES_SINCE - 1
            )
        })
    }

    fn chooser(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, EncodingLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages as they are.
const RAW: Plan = Plan {
    codec: Codec::Raw,
    delta: false,
    sample: None,
};
