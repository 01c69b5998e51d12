//! What the vCPUs do. One file a load.

mod compress;
mod compute;
mod key_value;
mod oltp;
mod read;
mod text;
mod tree_page;
mod write;

use rand_xoshiro::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};

use crate::config::LoadConfig;
use crate::memory::{GuestMemory, Region};

pub(crate) use compress::CompressCursor;
pub(crate) use compute::PERIOD as COMPUTE_PERIOD;
pub(crate) use key_value::KeyValueCursor;
pub(crate) use oltp::OltpCursor;
pub(crate) use read::ReadCursor;
pub(crate) use write::WriteCursor;

/// A load of one worker: where its data lies in RAM, and how far it is. All data is in RAM; what it remembers
/// itself is a few numbers, its [`Cursor`], which is also what it judges RAM by.
///
/// RAM may hold anything (that is what is being tested): nothing read from it is trusted beyond a check, and no
/// content makes a load panic or run for ever.
pub(crate) trait Load: Send + Sync {
    /// Writes the data it starts with.
    fn prefill(&self, ram: &GuestMemory);
    /// One operation, which checks what it reads.
    fn operate(&mut self, cx: &mut Context<'_>);
    /// Checks all of its data. It stands still.
    fn verify(&self, ram: &GuestMemory, checks: &mut Checks);
    /// How far it is.
    fn cursor(&self) -> Cursor;
    /// Goes on from `cursor`; `false`, and nothing is changed, when that is not one of this load.
    fn restore(&mut self, cursor: &Cursor) -> bool;
}

/// How far a load is: part of a vCPU's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cursor {
    Write(WriteCursor),
    KeyValue(KeyValueCursor),
    Oltp(OltpCursor),
    Compress(CompressCursor),
    Idle,
    Read(ReadCursor),
    Compute,
}

/// What an operation works with.
pub(crate) struct Context<'a> {
    pub ram: &'a GuestMemory,
    pub rng: &'a mut Xoshiro256PlusPlus,
    pub checks: &'a mut Checks,
}

/// What a load's checks of its own data found.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Checks made.
    pub made: u64,
    /// Those that failed.
    pub violations: u64,
    /// Descriptions of the first failures since they were last taken.
    pub descriptions: Vec<String>,
}

/// Descriptions kept between two visits of whoever takes them.
const MAX_DESCRIPTIONS: usize = 32;

impl Checks {
    /// Counts a check; one that failed is described.
    pub(crate) fn expect(&mut self, holds: bool, describe: impl FnOnce() -> String) -> bool {
        self.made += 1;
        if !holds {
            self.violations += 1;
            if self.descriptions.len() < MAX_DESCRIPTIONS {
                self.descriptions.push(describe());
            }
        }
        holds
    }

    /// Counts a check given as its outcome.
    pub(crate) fn record<T>(&mut self, outcome: Result<T, String>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.made += 1;
                Some(value)
            }
            Err(description) => {
                self.expect(false, || description);
                None
            }
        }
    }
}

/// The load that `config` describes, at its start, on `region`.
pub(crate) fn create(config: &LoadConfig, region: Region, seed: u64) -> Box<dyn Load> {
    match *config {
        LoadConfig::Write { .. } => Box::new(write::WriteLoop::new(region, seed)),
        LoadConfig::KeyValue {
            get_percent,
            zipf_exponent,
            value_bytes,
            ..
        } => Box::new(key_value::KeyValue::new(
            region,
            seed,
            get_percent,
            zipf_exponent,
            value_bytes,
        )),
        LoadConfig::Oltp { read_percent, .. } => Box::new(oltp::Oltp::new(region, seed, read_percent)),
        LoadConfig::Compress { .. } => Box::new(compress::Compress::new(region, seed)),
        LoadConfig::Read { .. } => Box::new(read::ReadLoop::new(region, seed)),
        LoadConfig::Cpu { percent } => Box::new(compute::Compute::new(percent)),
        LoadConfig::Idle => Box::new(Idle),
    }
}

/// No load.
struct Idle;

impl Load for Idle {
    fn prefill(&self, _: &GuestMemory) {}

    fn operate(&mut self, _: &mut Context<'_>) {}

    fn verify(&self, _: &GuestMemory, _: &mut Checks) {}

    fn cursor(&self) -> Cursor {
        Cursor::Idle
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        *cursor == Cursor::Idle
    }
}
