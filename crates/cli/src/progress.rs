//! A migration under way, on one line.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vmferry_core::PAGE_SIZE;
use vmferry_core::report::Progress;
use vmferry_core::resume::ResumeProgress;

use crate::api::Arrival;
use crate::units;

/// The live line on stderr; hidden where that is no terminal.
pub(crate) struct ProgressLine {
    bar: ProgressBar,
}

impl ProgressLine {
    pub(crate) fn new(vm: &str, hidden: bool) -> Self {
        let target = if hidden {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{spinner} {prefix}: {wide_msg}");
        bar.set_style(style.expect("a template that is correct"));
        bar.set_prefix(vm.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        self.show_text(&line(progress));
    }

    pub(crate) fn show_text(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// A line that stays, above the live one.
    pub(crate) fn say(&self, text: &str) {
        match self.bar.is_hidden() {
            true => eprintln!("{text}"),
            false => self.bar.println(text),
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Phase, round, what was sent and how, rate, dirty rate, remaining, ETA.
pub(crate) fn line(progress: &Progress) -> String {
    let mut parts = vec![progress.phase.clone()];
    if progress.round > 0 {
        parts.push(format!("round {}", progress.round));
    }
    if let Some(disks) = progress.disks.filter(|_| progress.phase.contains("disks")) {
        parts.push(format!(
            "{} of {} of disks copied",
            units::size(disks.done_bytes),
            units::size(disks.total_bytes)
        ));
    }
    let encoding = progress
        .encoding
        .map(|encoding| format!(" as {encoding}"))
        .unwrap_or_default();
    parts.push(format!(
        "{} sent{encoding}",
        units::size(progress.sent_pages * PAGE_SIZE)
    ));
    if progress.rate_bytes_per_s > 0.0 {
        parts.push(units::rate(progress.rate_bytes_per_s));
    }
    let limits = [
        progress.bandwidth_limit_bytes_per_s.map(units::bandwidth),
        progress
            .cpu_limit_percent
            .map(|percent| format!("{percent}% of a core")),
    ];
    let limits: Vec<_> = limits.into_iter().flatten().collect();
    if !limits.is_empty() {
        parts.push(format!("limited to {}", limits.join(" and ")));
    }
    if progress.dirty_bytes_per_s > 0.0 {
        parts.push(format!("dirtied at {}", units::rate(progress.dirty_bytes_per_s)));
    }
    parts.push(format!(
        "{} remaining",
        units::size(progress.remaining_pages * PAGE_SIZE)
    ));
    if progress.faults > 0 {
        parts.push(format!("{} faults", units::count(progress.faults)));
    }
    if let Some(eta_ms) = progress.eta_ms {
        parts.push(format!("ETA {}", units::millis(eta_ms)));
    }
    parts.push(format!("after {}", units::millis(progress.elapsed_ms)));
    parts.join(", ")
}

/// A resume under way.
pub(crate) fn resume_line(progress: &ResumeProgress) -> String {
    let mut parts = vec![progress.phase.clone()];
    match (progress.start_ms, progress.missing_before_start_pages) {
        (Some(start_ms), _) => parts.push(format!("started after {}", units::millis(start_ms))),
        (None, 0) => {}
        (None, pages) => parts.push(format!("{} before the start", units::size(pages * PAGE_SIZE))),
    }
    parts.push(format!(
        "{} of {} in the store only",
        units::size(progress.missing_pages * PAGE_SIZE),
        units::size(progress.data_pages * PAGE_SIZE)
    ));
    if progress.store_faults > 0 {
        parts.push(format!("{} faults", units::count(progress.store_faults)));
    }
    parts.push(format!("after {}", units::millis(progress.elapsed_ms)));
    parts.join(", ")
}

/// The same at the destination.
pub(crate) fn arrival_line(arrival: &Arrival) -> String {
    let mut parts = vec![
        arrival.phase.clone(),
        format!("{} received", units::size(arrival.received_pages * PAGE_SIZE)),
    ];
    if arrival.outstanding_pages > 0 {
        parts.push(format!(
            "{} outstanding",
            units::size(arrival.outstanding_pages * PAGE_SIZE)
        ));
    }
    if arrival.faults > 0 {
        parts.push(format!("{} faults", units::count(arrival.faults)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_shown_with_all_its_figures() {
        let progress = Progress {
            phase: "push".into(),
            round: 3,
            elapsed_ms: 2500.0,
            remaining_pages: 8192,
            sent_pages: 131_072,
            bytes_on_wire: 540 << 20,
            encoding: Some("lz4+delta".parse().unwrap()),
            rate_bytes_per_s: 112.0 * 1048576.0,
            dirty_bytes_per_s: 12.5 * 1048576.0,
            eta_ms: Some(285.0),
            ..Progress::default()
        };
        assert_eq!(
            line(&progress),
            "push, round 3, 512 MiB sent as lz4+delta, 112 MiB/s, dirtied at 12.5 MiB/s, 32 MiB remaining, ETA 285 ms, after 2.5 s"
        );
    }

    #[test]
    fn limits_in_force_are_shown() {
        let progress = Progress {
            phase: "push".into(),
            bandwidth_limit_bytes_per_s: Some(25_000_000),
            cpu_limit_percent: Some(50),
            ..Progress::default()
        };
        let line = line(&progress);
        assert!(
            line.contains(", limited to 200 Mbit/s and 50% of a core, "),
            "{line}"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let progress = Progress {
            phase: "pull and push".into(),
            faults: 1200,
            ..Progress::default()
        };
        assert_eq!(
            line(&progress),
            "pull and push, 0 B sent, 0 B remaining, 1,200 faults, after 0 ms"
        );
    }
}
