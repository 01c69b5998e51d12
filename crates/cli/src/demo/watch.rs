//! A migration of the demo as it goes: on the live line where stderr is a terminal, now and then a line where it is not.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use vmferry_core::Strategy;
use vmferry_core::report::{Outcome, Progress, Report};

use super::narrate;
use crate::progress::{self, ProgressLine};
use crate::units;

/// Time between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is shown of one migration.
pub(super) struct Watch {
    title: String,
    live: Option<ProgressLine>,
    next_line: Instant,
}

impl Watch {
    /// A migration between the two hosts of these names begins.
    pub(super) fn start(from: &str, to: &str, strategy: Strategy) -> Self {
        let title = format!("{from} -> {to} by {strategy}");
        let live = std::io::stderr()
            .is_terminal()
            .then(|| ProgressLine::new(&title, false));
        Self {
            title,
            live,
            next_line: Instant::now(),
        }
    }

    /// How far it is.
    pub(super) fn look(&mut self, look: &Progress) {
        match &self.live {
            Some(live) => live.show(look),
            None if Instant::now() >= self.next_line => {
                narrate(&format!("{}: {}", self.title, progress::line(look)));
                self.next_line = Instant::now() + INTERVAL;
            }
            None => {}
        }
    }

    /// It has ended.
    pub(super) fn end(self, report: &Report) {
        drop(self.live);
        let outcome = match report.outcome {
            Outcome::Completed => {
                format!(
                    "completed in {}, downtime {}",
                    units::millis(report.total_ms),
                    units::millis(report.downtime_ms)
                )
            }
            _ => format!(
                "did not complete: {}",
                report.error.as_deref().unwrap_or("no reason was given")
            ),
        };
        narrate(&format!("{}: {outcome}", self.title));
    }
}
