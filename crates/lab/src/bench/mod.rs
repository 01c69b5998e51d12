//! Scenarios measured in the lab: every variant with every guest over every link, again and again, in an order of
//! chance.
//!
//! Each run has hosts, a link and a guest of its own, so that it begins as every other one does and a run that fails
//! is a line of the results and nothing else.

mod account;
pub mod catalog;
pub mod compare;
mod experiment;
mod fit;
mod ground;
mod history;
pub mod machine;
mod measure;
pub mod metric;
mod micro;
mod neighbour;
mod operations;
pub mod papers;
mod plan;
pub mod quantity;
mod reading;
pub mod results;
pub mod rounds;
pub mod scenario;
pub mod statistics;
pub mod summary;

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use vmferry_core::report::Progress;

pub use account::Account;
pub use experiment::ExperimentReport;
pub use fit::Dropped;
pub use history::{record, records, records_of, workload_of};
pub use machine::Machine;
pub use measure::Measured;
pub use micro::{Compared, Function, Micro};
pub use operations::{Latencies, Operations};
pub use plan::{CommandLine, PlannedRun, Request, RunKey};
pub use results::{Outcome, Results, Run};
pub use scenario::{GuestKind, Scenario};

use crate::error::Result;
use crate::guards::Interrupt;
use crate::{namespace, requirements};
use measure::Workbench;

/// What to measure, and how.
pub struct Bench<'a> {
    /// Name of a scenario, or path of a file.
    pub scenario: &'a str,
    /// Kinds of guests.
    pub kinds: &'a [GuestKind],
    /// Scaled down.
    pub quick: bool,
    /// In place of what the scenario says.
    pub repetitions: Option<u32>,
    /// Where results are kept.
    pub file: Option<&'a Path>,
    /// Whether results that are in the file already are thrown away.
    pub fresh: bool,
    /// The `vmferry` program.
    pub program: &'a Path,
    /// The folder of the guest image.
    pub image: Option<PathBuf>,
    /// Reads the options of guests and migrations.
    pub command: &'a dyn CommandLine,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
}

/// What happens while a bench goes on.
pub enum Event<'a> {
    /// So many runs are to be made, and so many are known from before.
    Planned {
        /// To be made.
        runs: usize,
        /// Known.
        known: usize,
        /// What the file had and the scenario, as it is now, has no use for.
        dropped: &'a [Dropped],
    },
    /// A run begins.
    Begins {
        /// Which one.
        run: &'a PlannedRun,
        /// How long it and all that follow may take, seconds, where runs before it tell.
        eta_s: Option<f64>,
    },
    /// A migration is under way.
    Moves(&'a Progress),
    /// A run ended.
    Ended(&'a Run),
}

impl Bench<'_> {
    /// Makes all runs that the file does not have yet. Ctrl-C ends it; then the file has those that were made.
    ///
    /// # Errors
    /// When the scenario cannot be measured at all, or the file cannot be used. A run that fails is part of the results.
    pub fn run(&self, mut observe: impl FnMut(Event<'_>)) -> Result<Results> {
        let (name, mut scenario) = catalog::find(self.scenario)?;
        if self.quick {
            scenario = scenario.quick();
        }
        scenario.repetitions = self.repetitions.unwrap_or(scenario.repetitions);
        let runs = plan::plan(&name, &scenario, self.kinds, self.command)?;
        let mut results = Results::new(&name, &scenario, self.quick);
        let mut dropped = Vec::new();
        if let (Some(file), false) = (self.file, self.fresh) {
            (results, dropped) = results.resume(file)?;
        }
        let machine = Machine::here();
        let machine = results.machine(&machine);
        let (known, left): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| results.has(&run.key));
        observe(Event::Planned {
            runs: left.len(),
            known: known.len(),
            dropped: &dropped,
        });
        // Also where nothing is left to be measured: what the file says may have come from an older program.
        self.keep(&mut results)?;
        if requirements::missing_for_network().is_none() {
            namespace::remove_stale();
        }
        for (index, run) in left.iter().enumerate() {
            let eta_s = eta_s(&left[index..], &results.runs);
            observe(Event::Begins { run, eta_s });
            let started = Instant::now();
            let started_unix_ms = unix_ms();
            let load_average = machine::load_average();
            let past = history::past(&results);
            let bench = Workbench {
                program: self.program,
                image: self.image.clone(),
                command: self.command,
                interrupt: self.interrupt,
                scenario: &scenario,
                past: &past,
            };
            let outcome = match bench.measure(run, |progress| observe(Event::Moves(progress))) {
                Ok(measured) => Outcome::Measured(Box::new(measured)),
                Err(error) if error.is_interrupted() => return Err(error),
                Err(error) => Outcome::Failed { why: error.chain() },
            };
            let run = Run {
                key: run.key.clone(),
                seed: run.seed,
                conditions: run.conditions.clone(),
                command: run.words.clone(),
                request: run.request.clone(),
                machine,
                started_unix_ms,
                took_s: started.elapsed().as_secs_f64(),
                load_average,
                outcome,
            };
            observe(Event::Ended(&run));
            results.runs.push(run);
            self.keep(&mut results)?;
        }
        Ok(results)
    }

    fn keep(&self, results: &mut Results) -> Result<()> {
        results.summarise();
        match self.file {
            Some(file) => results.store(file),
            None => Ok(()),
        }
    }
}

/// How many runs a scenario has, if this version can make them.
///
/// # Errors
/// When the command does not understand an option, or a strategy does not exist.
pub fn count_runs(name: &str, scenario: &Scenario, command: &dyn CommandLine) -> Result<usize> {
    let kinds = [GuestKind::Synth, GuestKind::Qemu];
    plan::plan(name, scenario, &kinds, command).map(|runs| runs.len())
}

/// How long runs may take: as long as earlier ones of the same kind did, or else as all did on average.
fn eta_s(left: &[PlannedRun], made: &[Run]) -> Option<f64> {
    let mean = |runs: &mut dyn Iterator<Item = &Run>| {
        let (count, sum) = runs.fold((0, 0.0), |(count, sum), run| (count + 1, sum + run.took_s));
        (count > 0).then(|| sum / f64::from(count))
    };
    let all = mean(&mut made.iter())?;
    let alike = |one: &RunKey, other: &RunKey| {
        one.guest == other.guest && one.link == other.link && one.variant == other.variant
    };
    let of = |run: &PlannedRun| mean(&mut made.iter().filter(|made| alike(&made.key, &run.key)));
    Some(left.iter().map(|run| of(run).unwrap_or(all)).sum())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
