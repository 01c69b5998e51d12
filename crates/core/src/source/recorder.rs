//! What a source measures along the way.

use std::time::Duration;

use super::Measured;
use super::event::{SentBatch, Summary};
use crate::bitmap::PageBitmap;
use crate::ledger::Ledger;
use crate::pages::PAGE_SIZE;
use crate::report::{PageCounts, PhaseReport, RoundReport};

/// How far back the displayed rate looks.
const RATE_WINDOW: Duration = Duration::from_millis(500);

/// What a round held back, to be judged by what was dirtied.
pub(super) struct RoundJudged {
    /// Held back to its end.
    pub held_back: Option<PageBitmap>,
    /// Pages sent after all.
    pub taken_back: u64,
    /// Dirtied according to its samples.
    pub dirtied: PageBitmap,
}

pub(super) struct Recorder {
    pub counts: PageCounts,
    pub bytes: u64,
    pub demands: u64,
    missed: u64,
    pub device_state_bytes: u64,
    pub paused_at: Option<Duration>,
    pub summary: Summary,
    data_pages: u64,
    execution_transfer: Option<Duration>,
    downtime: Option<Duration>,
    micro_stops: Duration,
    total: Duration,
    rounds: Vec<RoundReport>,
    phases: Vec<PhaseReport>,
    notes: Vec<String>,
    /// Start of the rate window and bytes then; the last full window's rate.
    window: std::cell::Cell<(Duration, u64, f64)>,
}

impl Recorder {
    pub(super) fn new(phase: &str) -> Self {
        Self {
            counts: PageCounts::default(),
            bytes: 0,
            demands: 0,
            missed: 0,
            device_state_bytes: 0,
            paused_at: None,
            summary: Summary::default(),
            data_pages: 0,
            execution_transfer: None,
            downtime: None,
            micro_stops: Duration::ZERO,
            total: Duration::ZERO,
            rounds: Vec::new(),
            phases: vec![PhaseReport {
                name: phase.into(),
                start_ms: 0.0,
                end_ms: 0.0,
            }],
            notes: Vec::new(),
            window: std::cell::Cell::new((Duration::ZERO, 0, 0.0)),
        }
    }

    pub(super) fn enter(&mut self, now: Duration, phase: &str) {
        let now_ms = now.as_secs_f64() * 1e3;
        let last = self.phases.last_mut().expect("begins with a phase");
        last.end_ms = now_ms;
        if last.name != phase && phase != "ended" {
            self.phases.push(PhaseReport {
                name: phase.into(),
                start_ms: now_ms,
                end_ms: now_ms,
            });
        }
    }

    pub(super) fn data_found(&mut self, data: &PageBitmap) {
        self.data_pages = data.count();
    }

    pub(super) fn sent(&mut self, batch: SentBatch) {
        self.counts.sent += batch.pages();
        self.counts.raw += batch.raw;
        self.counts.uniform += batch.uniform;
        self.counts.compressed += batch.compressed;
        self.counts.delta += batch.delta;
        self.counts.deduplicated += batch.deduplicated;
        self.bytes += batch.bytes;
    }

    pub(super) fn micro_stop(&mut self, paused: Duration) {
        self.micro_stops += paused;
    }

    pub(super) fn round(&mut self, round: RoundReport) {
        self.rounds.push(round);
    }

    /// The scan of a round's end came: `dirtied` are all pages dirtied during the round.
    pub(super) fn judge_last_round(&mut self, judged: RoundJudged, dirtied: &PageBitmap) {
        let Some(round) = self.rounds.last_mut() else {
            return;
        };
        round.pages_dirtied = dirtied.count();
        let Some(held_back) = judged.held_back else {
            return;
        };
        let mut hit = held_back.clone();
        hit.intersect_with(dirtied);
        let hits = hit.count();
        let share = |of: u64| (of > 0).then(|| hits as f64 / of as f64);
        round.filter_precision = share(held_back.count());
        round.filter_recall = share(round.pages_dirtied);
        round.pages_filtered = Some(held_back.count());
        round.pages_taken_back = Some(judged.taken_back);
        round.bytes_saved = Some(hits * PAGE_SIZE);
    }

    pub(super) fn runs_at_destination(&mut self, now: Duration) {
        if self.execution_transfer.is_none() {
            self.execution_transfer = Some(now);
            self.downtime = self.paused_at.map(|at| now.saturating_sub(at));
        }
    }

    pub(super) fn ran_at_destination(&self) -> bool {
        self.execution_transfer.is_some()
    }

    pub(super) fn ended(&mut self, now: Duration) {
        self.total = now;
    }

    /// Pages that crossed as references in vain.
    pub(super) fn missed(&mut self, pages: u64) {
        self.missed += pages;
    }

    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Bytes a second over the recent past.
    pub(super) fn recent_rate(&self, now: Duration) -> f64 {
        let (since, bytes, rate) = self.window.get();
        let span = now.saturating_sub(since);
        if span < RATE_WINDOW {
            return rate;
        }
        let rate = (self.bytes - bytes) as f64 / span.as_secs_f64();
        self.window.set((now, self.bytes, rate));
        rate
    }

    pub(super) fn measured(&self, ledger: &Ledger) -> Measured {
        Measured {
            total: self.total,
            execution_transfer: self.execution_transfer,
            downtime: self.downtime,
            micro_stops: self.micro_stops,
            page_bytes: self.bytes,
            device_state_bytes: self.device_state_bytes,
            data_pages: self.data_pages,
            counts: PageCounts {
                hole: ledger.holes(),
                ..self.counts
            },
            rounds: self.rounds.clone(),
            phases: self.phases.clone(),
            summary: self.summary,
            notes: self.notes.clone(),
            ..Measured::default()
        }
    }
}
