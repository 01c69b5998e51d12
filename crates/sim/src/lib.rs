//! Replays traces through the policies and state machines of `vmferry-core`, in virtual time.
//!
//! What decides is what runs in production: [`vmferry_core::source::Source`], [`vmferry_core::destination::Destination`],
//! the policies and the choice of encodings. What acts is simulated: the guest by its [`Trace`]
//! (recorded writes first, then what its Markov model makes likely), the link, processors and devices by a [`PathModel`]. The same trace, request, path and seed give the same
//! [`Outcome`].
//!
//! ```text
//! trace --Simulator::new--> Simulator --run(request, path, seed)--> Outcome (report::Report and what the guest felt)
//!                                     \--many(request, path, seed, n)--> n outcomes of resampled traces and varied paths
//! ```
//!
//! *What it knows nothing of.* Reads: a trace has writes only, so that units are taken to be read which the guest may write another
//! time, as often as [`PathModel::reads_per_write`] says, and more or less often in each of many simulations. What the guest's agent says, where the
//! trace has no [`vmferry_trace::GuestHints`]: `enlightened` moves as it does without an agent then. Other guests of the hosts, unless the path was measured beside them.
#![forbid(unsafe_code)]

mod asking;
mod background;
mod destination;
mod error;
mod growth;
mod learn;
mod link;
mod many;
mod neighbours;
mod outcome;
pub mod path;
mod replay;
mod sizes;
mod source;
mod units;
mod world;

use vmferry_core::MigrationRequest;
use vmferry_trace::Trace;

pub use error::SimError;
pub use outcome::Outcome;
pub use path::{CodecCosts, PathModel, Variation};
pub use units::MOST_UNITS;

use replay::Recorded;
use world::World;

/// A trace made ready to be replayed: many migrations of the same guest can be simulated with it.
pub struct Simulator {
    recorded: Recorded,
}

impl Simulator {
    /// Makes a trace ready. Guests of more than [`MOST_UNITS`] pages are simulated in coarser units.
    ///
    /// # Errors
    /// When the trace holds no sample.
    pub fn new(trace: &Trace) -> Result<Self, SimError> {
        Self::with_units(trace, MOST_UNITS)
    }

    /// The same in at most so many units.
    ///
    /// # Errors
    /// As [`Simulator::new`].
    pub fn with_units(trace: &Trace, most_units: u64) -> Result<Self, SimError> {
        Ok(Self {
            recorded: Recorded::new(trace, most_units)?,
        })
    }

    /// Pages that one unit of the simulation stands for: 1 where it is exact.
    pub fn pages_per_unit(&self) -> u64 {
        self.recorded.units().per()
    }

    /// Simulates a migration that begins where the trace does.
    ///
    /// # Errors
    /// When request or path make no sense, or the migration does not end.
    pub fn run<To>(
        &self,
        request: &MigrationRequest<To>,
        path: &PathModel,
        seed: u64,
    ) -> Result<Outcome, SimError> {
        path.check()?;
        self.check(request)?;
        World::new(self.recorded.replay(seed), request, path, seed).run()
    }

    fn check<To>(&self, request: &MigrationRequest<To>) -> Result<(), SimError> {
        let bad = |error: &dyn std::fmt::Display| SimError::BadRequest(error.to_string());
        request.limits.check().map_err(|error| bad(&error))?;
        request
            .tuning
            .check(self.recorded.pages())
            .map_err(|error| bad(&error))
    }
}

/// Simulates one migration of the guest of `trace`.
///
/// # Errors
/// As [`Simulator::new`] and [`Simulator::run`].
pub fn simulate<To>(
    trace: &Trace,
    request: &MigrationRequest<To>,
    path: &PathModel,
    seed: u64,
) -> Result<Outcome, SimError> {
    Simulator::new(trace)?.run(request, path, seed)
}

/// Simulates `runs` migrations of the guest of `trace`, each with the bursts of the trace drawn anew and the path varied
/// ([`Simulator::many`]).
///
/// # Errors
/// As [`simulate`].
pub fn simulate_many<To>(
    trace: &Trace,
    request: &MigrationRequest<To>,
    path: &PathModel,
    seed: u64,
    runs: usize,
) -> Result<Vec<Outcome>, SimError> {
    Simulator::new(trace)?.many(request, path, seed, runs)
}
