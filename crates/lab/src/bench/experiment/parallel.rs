//! Several guests that are moved at once. Source: performance-model paper (Sakhare and Vishwakarma), section 5, where models of single
//! migrations bound those of parallel ones from below; here they are made.

use std::thread;
use std::time::{Duration, Instant};

use vmferry_api::MigrateRequest;
use vmferry_core::report::Report;

use super::{Bed, ExperimentReport};
use crate::bench::measure::check_report;
use crate::bench::plan::GUEST;
use crate::error::{LabError, Result};

/// Guests that have just started are given so long.
const SETTLE: Duration = Duration::from_secs(1);

impl Bed<'_> {
    /// Starts more guests like the one that is there, until there are so many, and moves all of them to the other host at once.
    pub(super) fn parallel(&self, guests: u32, request: &MigrateRequest) -> Result<ExperimentReport> {
        let names = self.start_others(guests)?;
        let began = Instant::now();
        let moved: Vec<Result<Report>> = thread::scope(|scope| {
            let ([from, to], limit) = (self.hosts, self.limit);
            let move_one = |name| move || from.migrate(name, to, request, Some(limit), |_| {});
            let moves: Vec<_> = names.iter().map(|name| scope.spawn(move_one(name))).collect();
            let join = |it: thread::ScopedJoinHandle<'_, _>| {
                it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            moves.into_iter().map(join).collect()
        });
        let reports = moved.into_iter().collect::<Result<Vec<_>>>()?;
        reports.iter().try_for_each(check_report)?;
        Ok(found(&reports, began))
    }

    /// Names of all guests that are to be moved.
    fn start_others(&self, guests: u32) -> Result<Vec<String>> {
        let mut names = vec![GUEST.to_owned()];
        for number in 2..=guests {
            let like = self
                .spec
                .ok_or_else(|| LabError::Missing("only synthetic guests are moved several at once".into()))?;
            let mut spec = like.clone();
            spec.name = format!("{GUEST}-{number}");
            // Content of its own.
            let seed = like.config["seed"].as_u64().unwrap_or(0);
            spec.config["seed"] = seed.wrapping_add(u64::from(number) << 32).into();
            self.hosts[0].run(&spec)?;
            names.push(spec.name);
        }
        self.interrupt.sleep(SETTLE)?;
        Ok(names)
    }
}

fn found(reports: &[Report], began: Instant) -> ExperimentReport {
    let totals = || reports.iter().map(|report| report.total_ms);
    let mut found = ExperimentReport {
        // All were asked for within a moment.
        total_ms: totals().fold(0.0, f64::max),
        began: Some(began),
        ..ExperimentReport::default()
    };
    let bytes: u64 = reports.iter().map(|report| report.bytes_on_wire).sum();
    for (name, value) in [
        ("guests", reports.len() as f64),
        ("first_ms", totals().fold(f64::INFINITY, f64::min)),
        ("bytes_on_wire", bytes as f64),
    ] {
        found.figures.insert(name.to_owned(), value);
    }
    found.said = serde_json::json!({ "reports": reports });
    found
}
