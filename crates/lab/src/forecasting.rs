//! Makes a forecast of a migration with the daemon's help: the guest is recorded for a while, the path measured where it was not
//! lately, and all strategies simulated here, so that the daemon has its processors for its guests.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use vmferry_api::{
    AgentRequest, CalibrateRequest, Client, ClientError, MigrateRequest, ReportSide, TraceRequest, TraceState,
};
use vmferry_core::Strategy;
use vmferry_core::forecast::{Forecast, Goal};
use vmferry_core::report::{Outcome, Report};
use vmferry_forecast::experience::Experience;
use vmferry_forecast::history::{Beside, Record};
use vmferry_forecast::simulated::{self, ForecastError, Wish};
use vmferry_sim::PathModel;
use vmferry_trace::{Trace, TraceError};

/// A path that was measured longer ago than this is measured again.
const FRESH: Duration = Duration::from_secs(600);
/// How long the link is loaded for that.
const LOAD: Duration = Duration::from_millis(1500);
/// So many of the latest reports are learned from.
const MOST_REPORTS: usize = 50;
/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(50);
/// How long an agent may take to show that it is there.
const AGENT_TIMEOUT: Duration = Duration::from_millis(500);

/// What is to be forecast.
#[derive(Clone, Debug)]
pub struct ForecastWish<'a> {
    /// Name of the guest.
    pub vm: &'a str,
    /// The migration, its destination included; its strategy does not count.
    pub request: &'a MigrateRequest,
    /// What it is to be good at.
    pub goal: Goal,
    /// How long to record the guest; not at all where there is a trace.
    pub record: Duration,
    /// A trace that was recorded earlier.
    pub trace: Option<Trace>,
    /// What is known of earlier migrations beside what the daemon has.
    pub past: &'a Past,
    /// Simulations of each strategy.
    pub simulations: usize,
    /// Decides what chance decides.
    pub seed: u64,
}

/// Earlier migrations.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// What they left for models and forecasts.
    pub records: Vec<Record>,
    /// Their reports.
    pub reports: Vec<Report>,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ForecastStep {
    /// The guest is recorded: so far, of so long.
    Records(f64, f64),
    /// The path is being measured.
    Calibrates,
    /// A strategy is being simulated.
    Simulates(Strategy),
}

/// Why there is no forecast.
#[derive(Debug, Error)]
pub enum ForecastingError {
    /// The daemon refused, or does not answer.
    #[error("the daemon did not help")]
    Daemon(#[from] ClientError),
    /// The guest could not be recorded.
    #[error("the guest could not be recorded: {0}")]
    NotRecorded(String),
    /// The trace is of no use.
    #[error("its trace is of no use")]
    Trace(#[from] TraceError),
    /// It could not be simulated.
    #[error(transparent)]
    Forecast(#[from] ForecastError),
    /// Somebody does not want it any more.
    #[error("interrupted")]
    Interrupted,
}

/// Makes a forecast. `watch` hears of each step, and ends it by answering false; then the guest is let go of.
///
/// # Errors
/// See [`ForecastingError`].
pub fn forecast(
    client: &Client,
    wish: &ForecastWish<'_>,
    mut watch: impl FnMut(ForecastStep) -> bool,
) -> Result<Forecast, ForecastingError> {
    // Asked before the recording, which sets the host's sampler aside.
    let guest = client.guest(wish.vm)?;
    let trace = match &wish.trace {
        Some(trace) => trace.clone(),
        None => record(client, wish, &mut watch)?,
    };
    if guest.ram_bytes != trace.header.ram_bytes() {
        return Err(TraceError::Nonsense(format!(
            "it is of a guest of {} MiB, and {} has {}",
            trace.header.ram_bytes() >> 20,
            wish.vm,
            guest.ram_bytes >> 20
        ))
        .into());
    }
    let past = past(client, wish.past, &guest.backend)?;
    let path = path(client, &wish.request.to, &mut watch)?;
    let learned = guest.learned.as_ref().and_then(|learned| learned.fits);
    let path = PathModel {
        sampled: learned == Some(true),
        ..path_of_guest(path, &guest.backend, &past.reports)
    };
    let experience = Experience::of(&past.records);
    let told = trace.hints.is_some() && (wish.trace.is_none() || has_agent(client, wish.vm));
    let enlightened = |strategy: &Strategy| told || *strategy != Strategy::Enlightened;
    let strategies: Vec<Strategy> = Strategy::ALL.into_iter().filter(enlightened).collect();
    let asked = Wish {
        request: wish.request,
        goal: wish.goal,
        strategies: &strategies,
        simulations: wish.simulations,
        seed: wish.seed,
    };
    let mut wanted = true;
    let forecast = simulated::forecast(&trace, &path, &asked, &experience, |strategy| {
        wanted &= watch(ForecastStep::Simulates(strategy));
    })?;
    match wanted {
        true => Ok(forecast),
        false => Err(ForecastingError::Interrupted),
    }
}

fn record(
    client: &Client,
    wish: &ForecastWish<'_>,
    watch: &mut impl FnMut(ForecastStep) -> bool,
) -> Result<Trace, ForecastingError> {
    let request = TraceRequest {
        length_ms: u64::try_from(wish.record.as_millis()).unwrap_or(u64::MAX),
        interval_ms: 50.0,
        full: false,
        budget_percent: 3.0,
    };
    client.begin_trace(wish.vm, &request)?;
    loop {
        let info = client.trace(wish.vm)?;
        match (info.state, info.problem) {
            (TraceState::Done, _) => break,
            (TraceState::Failed, problem) => {
                let why = problem.unwrap_or_else(|| "no reason was given".into());
                return Err(ForecastingError::NotRecorded(why));
            }
            (TraceState::Recording, _) => {}
        }
        if !watch(ForecastStep::Records(info.elapsed_ms, info.length_ms)) {
            client.end_trace(wish.vm)?;
            return Err(ForecastingError::Interrupted);
        }
        thread::sleep(POLL);
    }
    Ok(Trace::read(&mut client.trace_file(wish.vm)?.as_slice())?)
}

fn path(
    client: &Client,
    to: &str,
    watch: &mut impl FnMut(ForecastStep) -> bool,
) -> Result<PathModel, ForecastingError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let fresh = |measured_unix_ms: u64| now.saturating_sub(Duration::from_millis(measured_unix_ms)) < FRESH;
    let known = client
        .paths()?
        .into_iter()
        .find(|known| known.to == to && fresh(known.measured_unix_ms));
    if let Some(known) = known {
        return Ok(known.path);
    }
    if !watch(ForecastStep::Calibrates) {
        return Err(ForecastingError::Interrupted);
    }
    let request = CalibrateRequest {
        to: to.to_owned(),
        load_ms: LOAD.as_millis() as u64,
    };
    Ok(client.calibrate(&request)?.path)
}

/// Earlier migrations of guests of this backend: those that the daemon knows, and those that are known beside.
fn past(client: &Client, beside: &Past, backend: &str) -> Result<Past, ForecastingError> {
    let mut past = beside.clone();
    // A host whose history cannot be used makes forecasts all the same.
    past.records
        .extend(client.history().map_or_else(|_| Vec::new(), |kept| kept.records));
    let stored = client
        .reports()?
        .into_iter()
        .filter(|stored| stored.side == ReportSide::Source);
    past.reports
        .extend(stored.filter_map(|stored| serde_json::from_value(stored.report).ok()));
    past.records.retain(|record| record.backend == backend);
    past.reports.retain(|report| {
        report.backend == backend
            && report.outcome == Outcome::Completed
            && Beside::reported(report).is_nothing()
    });
    let oldest = past.reports.len().saturating_sub(MOST_REPORTS);
    past.reports.drain(..oldest);
    Ok(past)
}

/// The path for a guest of this backend: what creating, saving and loading it takes is its own, and learned from its like.
fn path_of_guest(mut path: PathModel, backend: &str, reports: &[Report]) -> PathModel {
    if backend == "synth" {
        // It has no devices: what is typical of QEMU would be far off. A few threads are made, and small files written.
        path = PathModel {
            prepare_ms: 15.0,
            flush_ms: 0.0,
            stop_ms: 0.2,
            save_ms: 0.2,
            load_ms: 0.2,
            resume_ms: 0.5,
            device_state_bytes: 2e3,
            ..path
        };
    }
    if !reports.is_empty() {
        path.learn_from(reports);
    }
    path
}

/// Whether the guest may be as enlightened as the one that a trace is of.
fn has_agent(client: &Client, vm: &str) -> bool {
    let ask = AgentRequest {
        timeout_ms: AGENT_TIMEOUT.as_millis() as u64,
        balloon: false,
        classes: false,
    };
    client.agent(vm, &ask).is_ok()
}
