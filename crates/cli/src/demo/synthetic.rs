//! The demo without a hypervisor: a synthetic guest with a key-value store, moved between two daemons over loopback.
//!
//! Its client is the guest itself: the store checks every value it reads.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vmferry_core::Strategy;
use vmferry_core::report::Outcome;
use vmferry_guest::GuestSpec;
use vmferry_guest_synth::{Fill, LoadConfig, Stats, SynthConfig};
use vmferry_lab::{Host, Interrupt};

use super::result::{ClientResult, DemoResult};
use super::watch::Watch;
use super::{narrate, narrate_logs, request, start_host};
use crate::units;

/// Name of the guest.
const NAME: &str = "demo";
/// Name of the synthetic backend in specifications.
const BACKEND: &str = "synth";
/// The least RAM in which the store and the data beside it find room, in MiB.
const LEAST_MIB: u64 = 16;
/// Time under load before and after each migration.
const UNDER_LOAD: Duration = Duration::from_secs(1);

/// Starts the guest, moves it there and back.
pub(super) fn run(memory_bytes: u64, folder: &Path, interrupt: &Interrupt) -> Result<DemoResult> {
    let spec = spec(memory_bytes)?;
    let start = |name| start_host(name, folder, None, interrupt);
    let hosts = [start("a")?, start("b")?];
    narrate(&format!(
        "guest: a synthetic one of {} with a key-value store",
        units::size(memory_bytes)
    ));
    move_there_and_back(&spec, &hosts, interrupt).inspect_err(|error| narrate_logs(&hosts, error))
}

fn move_there_and_back(spec: &GuestSpec, [a, b]: &[Host; 2], interrupt: &Interrupt) -> Result<DemoResult> {
    a.run(spec)?;
    let mut meter = Meter::new(a.stats(NAME)?);
    interrupt.sleep(UNDER_LOAD)?;
    meter.lap("before", a.stats(NAME)?);

    let mut migrations = Vec::new();
    for (source, destination, strategy) in [(a, b, Strategy::PostCopyPush), (b, a, Strategy::PreCopy)] {
        source.reset_gap(NAME)?;
        let mut watch = Watch::start(source.name, destination.name, strategy);
        let mut report = source.migrate(NAME, destination, &request(strategy), None, |look| {
            watch.look(look);
        })?;
        watch.end(&report);
        let owner = if report.outcome == Outcome::Completed {
            destination
        } else {
            source
        };
        meter.lap(&format!("during {strategy}"), owner.stats(NAME)?);
        interrupt.sleep(UNDER_LOAD)?;
        meter.lap("after", owner.stats(NAME)?);
        report.perceived_downtime_ms = Some(meter.stats.longest_gap_us as f64 / 1e3);
        let completed = report.outcome == Outcome::Completed;
        migrations.push(report);
        if !completed {
            break;
        }
    }
    Ok(DemoResult {
        migrations,
        client: meter.into_client(),
    })
}

/// A store that the guest reads and writes at a steady rate, and data that just lies there. What is left of the RAM is
/// never touched.
fn spec(memory_bytes: u64) -> Result<GuestSpec> {
    let memory_mib = memory_bytes >> 20;
    anyhow::ensure!(
        memory_mib >= LEAST_MIB,
        "--memory has to be at least {LEAST_MIB}M"
    );
    let store = LoadConfig::KeyValue {
        region_mib: (memory_mib / 4).min(64),
        get_percent: 80,
        zipf_exponent: 0.99,
        value_bytes: 1000,
        operations_per_s: Some(20_000),
    };
    let fill = Fill {
        mib: memory_mib / 4,
        zero_percent: 20,
        uniform_percent: 10,
        compressible_percent: 30,
    };
    let config = SynthConfig {
        workers: 2,
        loads: vec![store],
        fill,
        seed: 1,
        ..SynthConfig::new(memory_bytes)
    };
    let config = config.to_json();
    SynthConfig::from_json(&config).context("a guest with that much memory is not possible")?;
    Ok(GuestSpec {
        name: NAME.into(),
        backend: BACKEND.into(),
        config,
    })
}

/// Reads the guest's counters like those of a client.
struct Meter {
    stats: Stats,
    /// Before every migration the guest begins anew with its longest gap.
    longest_gap_us: u64,
    at: Instant,
    rates: Vec<(String, f64)>,
}

impl Meter {
    fn new(stats: Stats) -> Self {
        Self {
            longest_gap_us: stats.longest_gap_us,
            stats,
            at: Instant::now(),
            rates: Vec::new(),
        }
    }

    /// What was done since the last time.
    fn lap(&mut self, name: &str, stats: Stats) {
        let now = Instant::now();
        let operations = stats.operations.saturating_sub(self.stats.operations);
        let seconds = (now - self.at).as_secs_f64().max(1e-3);
        self.rates.push((name.to_owned(), operations as f64 / seconds));
        self.at = now;
        self.longest_gap_us = self.longest_gap_us.max(stats.longest_gap_us);
        self.stats = stats;
    }

    fn into_client(self) -> ClientResult {
        ClientResult {
            operations: self.stats.operations,
            errors: self.stats.violations,
            longest_gap_ms: self.longest_gap_us as f64 / 1e3,
            descriptions: self.stats.violations_seen,
            rates: self.rates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_fits_into_any_memory_it_is_given() {
        for mib in [16, 64, 512, 4096, 65_536] {
            assert!(spec(mib << 20).is_ok(), "{mib}");
        }
        assert!(spec(8 << 20).unwrap_err().to_string().contains("16M"));
    }
}
