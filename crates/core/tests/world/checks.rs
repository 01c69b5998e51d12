//! What must hold, whatever happens.

use std::error::Error;

use vmferry_core::handover::Record;
use vmferry_core::report::Outcome;
use vmferry_core::source::{Measured, SentBatch};
use vmferry_core::{AtLimit, PageRun, Strategy};

use crate::world::{Scenario, World};

/// What was seen along the way.
pub(crate) struct Checks {
    /// How often each page was written to a stream.
    pub crossed: Vec<u32>,
    pub reconnects: u32,
    pub source_restarts: u32,
    /// The hosts lost each other for good, past the commit point.
    pub severed: bool,
    /// The data filter held pages back.
    pub filtered: bool,
    /// Events that a machine had no place for.
    pub errors: Vec<String>,
    sent: SentBatch,
    /// Pages that went ahead of the resume.
    pub ahead: u64,
}

impl Checks {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            crossed: vec![0; scenario.pages as usize],
            reconnects: 0,
            source_restarts: 0,
            severed: false,
            filtered: false,
            errors: Vec::new(),
            sent: SentBatch::default(),
            ahead: 0,
        }
    }

    pub(crate) fn protocol_error(&mut self, side: &str, error: &dyn Error) {
        self.errors.push(format!("{side}: {error}"));
    }

    pub(crate) fn reported(&mut self, sent: SentBatch) {
        self.sent.raw += sent.raw;
        self.sent.uniform += sent.uniform;
        self.sent.bytes += sent.bytes;
    }

    /// A batch for a page stream. Answers whether it goes ahead of the resume.
    pub(crate) fn batch(&mut self, scenario: &Scenario, runs: &[PageRun], phase: &str) -> bool {
        let mut seen = crate::world::no_pages(scenario);
        for run in runs {
            assert!(run.count > 0 && run.end() <= scenario.pages, "{run:?}");
            assert_eq!(seen.count_in(*run), 0, "a page twice in a batch");
            seen.insert_run(*run);
        }
        assert!(seen.count() <= 256, "a batch of {} pages", seen.count());
        let between = ["stop-and-copy", "load device state", "hand over", "commit"];
        let pushes = match scenario.algorithm {
            Strategy::PostCopy => vec!["pull and push"],
            Strategy::PostCopyPush | Strategy::Enlightened => [&between[..], &["pull and push"]].concat(),
            Strategy::Hybrid | Strategy::HybridLearning => {
                [&between[..], &["push", "pull and push"]].concat()
            }
            Strategy::StopAndCopy => vec!["stop-and-copy"],
            _ => [&between[..], &["push", "pull and push"]].concat(),
        };
        assert!(pushes.contains(&phase), "pages pushed in phase {phase:?}");
        let sends_rest = !matches!(
            scenario.algorithm,
            Strategy::PostCopyPush | Strategy::Enlightened | Strategy::Hybrid | Strategy::HybridLearning
        );
        // Pre-copy may do either in its stop.
        let ahead = between.contains(&phase) && !(sends_rest && phase == "stop-and-copy");
        if ahead {
            self.ahead += seen.count();
        }
        ahead
    }
}

impl World {
    pub(crate) fn check_one_runs(&self) {
        assert!(
            !(self.source.running && self.destination.running),
            "the guest runs twice: {}",
            self.describe()
        );
    }

    /// The source is about to free the guest's memory.
    pub(crate) fn check_release(&self) {
        assert!(!self.source.running, "a running guest is released");
        // Over to an operator who says that the guest is there, or has ended it.
        if self.destination.session.is_some() || self.destination.running {
            assert!(
                self.destination.owns(),
                "released without an owner: {}",
                self.describe()
            );
            let lacking = (0..self.scenario.pages)
                .filter(|&page| self.destination.has(page).is_none())
                .count();
            assert_eq!(
                lacking,
                0,
                "released before everything was there: {}",
                self.describe()
            );
        }
    }

    /// The report of a migration that ran to its end without a restart of its driver.
    pub(crate) fn check_report(&self, measured: &Measured) {
        for phases in measured.phases.windows(2) {
            assert!(phases[0].end_ms <= phases[1].start_ms, "{phases:?}");
        }
        assert!(
            measured.phases.iter().all(|phase| phase.start_ms <= phase.end_ms),
            "{:?}",
            measured.phases
        );
        let counts = measured.counts;
        assert_eq!(counts.sent, counts.raw + counts.uniform, "{counts:?}");
        if self.checks.source_restarts > 0 {
            return;
        }
        assert_eq!(
            (counts.raw, counts.uniform),
            (self.checks.sent.raw, self.checks.sent.uniform)
        );
        assert_eq!(measured.page_bytes, self.checks.sent.bytes);
        assert!(
            self.checks.ahead <= counts.ahead,
            "{} and {counts:?}",
            self.checks.ahead
        );
        let in_rounds: u64 = measured.rounds.iter().map(|round| round.pages_sent).sum();
        assert!(in_rounds <= counts.sent, "{in_rounds} of {}", counts.sent);
        assert!(counts.hole + measured.data_pages <= self.scenario.pages);
        self.check_limits(measured);
        if self.source.over == Some(Some(Outcome::Completed)) && self.checks.reconnects == 0 {
            let again: u32 = self
                .checks
                .crossed
                .iter()
                .map(|&times| times.saturating_sub(1))
                .sum();
            assert_eq!(counts.resent, u64::from(again), "resent pages");
        }
    }

    fn check_limits(&self, measured: &Measured) {
        let limits = &self.scenario.limits;
        let rounds = measured.rounds.len() as u32;
        match self.scenario.algorithm {
            Strategy::PreCopy | Strategy::PreCopyFilter => {
                assert!(rounds <= limits.rounds + 1, "{rounds} rounds, {limits:?}");
                let before_last: u64 = measured
                    .rounds
                    .iter()
                    .take(rounds.saturating_sub(2) as usize)
                    .map(|round| round.bytes)
                    .sum();
                assert!(
                    limits.bytes.is_none_or(|bytes| before_last < bytes),
                    "{before_last} bytes, {limits:?}"
                );
            }
            Strategy::StopAndCopy => assert!(rounds <= 1),
            Strategy::Hybrid | Strategy::HybridLearning => assert!(rounds <= 1),
            _ => assert_eq!(rounds, 0),
        }
        let aborts = self
            .source
            .error
            .as_ref()
            .is_some_and(|error| error.contains("dirties memory too fast"));
        assert!(!aborts || limits.at_limit == AtLimit::Abort);
    }

    /// Nothing moves any more.
    pub(crate) fn check_end(&self) {
        let (here, there) = (self.source.running, self.destination.running);
        assert!(
            here != there,
            "runs here: {here}, there: {there}: {}",
            self.describe()
        );
        if here {
            assert!(
                !self.destination.exists || self.network.down,
                "a second copy is left: {}",
                self.describe()
            );
            let owner = matches!(self.source.journal.last(), Some(Record::Owner { .. }));
            assert!(owner, "it runs without being the owner: {}", self.describe());
            // A mistake of memory at the source would be one of this world.
            for page in 0..self.scenario.pages {
                let matters = !self.guest.free.contains(page);
                let (found, wrote) = (self.source.memory.read(page), self.guest.truth[page as usize]);
                assert!(!matters || found == wrote, "page {page}: {}", self.describe());
            }
            return;
        }
        if !self.network.down {
            assert!(self.completed(), "the migration hangs: {}", self.describe());
        }
        for page in 0..self.scenario.pages {
            let found = match self.destination.has(page) {
                Some(version) => version,
                None => {
                    assert!(
                        self.network.down && !self.source.released,
                        "page {page} is lost: {}",
                        self.describe()
                    );
                    self.source.memory.read(page)
                }
            };
            let matters = !self.guest.free.contains(page);
            assert!(
                !matters || found == self.guest.truth[page as usize],
                "page {page} is stale: {}",
                self.describe()
            );
        }
        for page in self.source.dropped.pages() {
            // One that the guest has not used since.
            let zero = !self.guest.free.contains(page) || self.destination.has(page) == Some(0);
            assert!(zero, "dropped page {page} is not zero: {}", self.describe());
        }
        self.check_crossings();
    }

    /// How often a page may cross.
    fn check_crossings(&self) {
        if self.checks.reconnects > 0 || self.checks.source_restarts > 0 {
            return;
        }
        let most = match self.scenario.algorithm {
            Strategy::PreCopy | Strategy::PreCopyFilter => return,
            Strategy::Hybrid | Strategy::HybridLearning => 2,
            _ => 1,
        };
        let crossed = self.checks.crossed.iter().max();
        assert!(
            crossed.is_none_or(|&times| times <= most),
            "a page crossed {crossed:?} times, at most {most}"
        );
    }
}
