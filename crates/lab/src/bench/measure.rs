//! One run: hosts, link and guest are made for it, and go with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmferry_core::report::{Outcome, Progress, Report};
use vmferry_guest::GuestSpec;

use super::account::Account;
use super::ground::{Ground, Mover, Watched};
use super::neighbour::Neighbour;
use super::operations::{self, Counters, Moments, Operations};
use super::plan::{CommandLine, GUEST, PlannedRun, guest_words};
use super::scenario::{GuestKind, Scenario};
use crate::error::{LabError, Result};
use crate::forecasting::Past;
use crate::guards::Interrupt;
use crate::linux::{self, LinuxGuest, Place as _};
use crate::relay::LinkDelay;
use crate::requirements;
use crate::topology::{HostEnd, Seat, Topology};

/// Lines of the guest's console that are shown when it failed.
const CONSOLE_LINES: usize = 3;

/// What a run measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// What whoever moved the guest says of it, `perceived_downtime_ms` filled in where there was a client.
    pub account: Account,
    /// Bytes that the source put on its link during the migration, by the network device's counter: headers, and what the
    /// guest and its client said to each other meanwhile, included. Absent without a device of its own.
    pub link_bytes: Option<u64>,
    /// What the guest's client saw; absent where there was none.
    pub operations: Option<Operations>,
    /// What the clients of the guest beside it saw, in the same windows; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<Operations>,
    /// How the link really was.
    pub link: String,
    /// How it kept its delay; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_delay: Option<LinkDelay>,
    /// The guest's specification.
    pub guest: GuestSpec,
}

/// What all runs of a bench have in common.
pub(crate) struct Workbench<'a> {
    /// The `vmferry` program.
    pub(crate) program: &'a Path,
    /// The folder of the guest image.
    pub(crate) image: Option<PathBuf>,
    pub(crate) command: &'a dyn CommandLine,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) scenario: &'a Scenario,
    /// Runs that were made before, for forecasts.
    pub(crate) past: &'a Past,
}

impl Workbench<'_> {
    /// Makes a run.
    ///
    /// # Errors
    /// Why it has no figures.
    pub(crate) fn measure(&self, run: &PlannedRun, watch: impl FnMut(&Progress)) -> Result<Measured> {
        if run.guest.kind == GuestKind::Qemu
            && let Some(missing) = requirements::missing_for_qemu(self.image.as_deref())
        {
            return Err(LabError::Missing(missing));
        }
        let ground = Ground::prepare(self, run)?;
        let measured = match run.guest.kind {
            GuestKind::Synth => self.measure_synthetic(run, &ground, watch),
            GuestKind::Qemu => self.measure_linux(run, &ground, watch),
        }?;
        check(&measured)?;
        Ok(measured)
    }

    fn measure_synthetic(
        &self,
        run: &PlannedRun,
        ground: &Ground,
        watch: impl FnMut(&Progress),
    ) -> Result<Measured> {
        let mut spec = self.spec(run, &[])?;
        spec.config["seed"] = run.seed.into();
        let Mover::Vmferry(hosts, request) = &ground.mover else {
            return Err(LabError::Missing("peers move no synthetic guest".into()));
        };
        let [source, _] = hosts.as_ref();
        let last = &hosts[request.last_host()];
        source.run(&spec)?;
        let counters = Counters::watch(hosts)?;
        let watched = Watched {
            spec: Some(&spec),
            ..Watched::default()
        };
        let (mut measured, moments) = self.act(run, ground, spec.clone(), watched, watch, || {
            source.reset_gap(GUEST)
        })?;
        if measured.is_moved() {
            let stats = last.stats(GUEST)?;
            // An idle guest has no client.
            if stats.operations > 0 {
                measured = measured.seen_by(counters.stop(&stats, &moments));
            }
        }
        Ok(measured)
    }

    fn measure_linux(
        &self,
        run: &PlannedRun,
        ground: &Ground,
        watch: impl FnMut(&Progress),
    ) -> Result<Measured> {
        let (Some(image), Some(topology)) = (&self.image, &ground.topology) else {
            return Err(LabError::Missing("no guest image or no network".into()));
        };
        let folder = ground.folder.path();
        let guest = LinuxGuest {
            seat: Seat::MOVED,
            workload: run.guest.workload.clone(),
            load: run.guest.load.clone(),
            agent: run.guest.agent,
            disk: run.guest.disk,
        };
        let image = std::path::absolute(image).map_err(LabError::system("find the guest image"))?;
        let spec = self.spec(run, &guest.args(&image, folder)?)?;
        let console = linux::console(folder);
        ground.run(&spec)?;
        let alive = || ground.check_alive(GUEST);
        let load = linux::wait_for_text(ground, GUEST, folder, "vmferry-guest: ready", self.interrupt)
            .and_then(|()| {
                let patience = self.scenario.client_patience();
                let workload = &guest.workload;
                workload.start_clients(
                    Seat::MOVED.address,
                    &topology.client,
                    self.interrupt,
                    patience,
                    alive,
                )
            })
            .map_err(|error| with_console(error, &console))?;
        let watched = Watched {
            workload: Some(&guest.workload),
            load: load.as_ref(),
            spec: None,
        };
        let moved = self.act(run, ground, spec, watched, watch, || Ok(()));
        let printed = std::fs::read(&console).unwrap_or_default();
        // What the guest says explains more than what came of it.
        if let Some(found) = trouble(&String::from_utf8_lossy(&printed))
            && !matches!(moved, Err(LabError::Interrupted))
        {
            return Err(LabError::Guest(format!("says: {found}")));
        }
        let (measured, moments) = moved?;
        Ok(match load {
            Some(load) => measured.seen_by(operations::of_client(&load.stop(), &moments)),
            None => measured,
        })
    }

    pub(super) fn spec(&self, run: &PlannedRun, qemu: &[String]) -> Result<GuestSpec> {
        let words = guest_words(&run.guest, qemu).and_then(|words| self.command.guest(&words));
        words.map_err(|why| LabError::Guest(format!("{:?} cannot be: {why}", run.guest.name)))
    }

    /// Warms up, moves the guest or carries the experiment out, cools down.
    fn act(
        &self,
        run: &PlannedRun,
        ground: &Ground,
        guest: GuestSpec,
        watched: Watched<'_>,
        watch: impl FnMut(&Progress),
        about_to_begin: impl FnOnce() -> Result<()>,
    ) -> Result<(Measured, Moments)> {
        let sent = || ground.sender().map(HostEnd::sent_bytes).transpose();
        let limit = Duration::from_secs_f64(run.limit_s);
        ground.expect(limit, self.interrupt)?;
        let start = Instant::now();
        self.interrupt
            .sleep(Duration::from_secs_f64(self.scenario.warm_up_s))?;
        let forecast = ground.forecast(self.past, run.seed)?;
        about_to_begin()?;
        ground
            .neighbour
            .as_ref()
            .map_or(Ok(()), Neighbour::about_to_begin)?;
        let before = sent()?;
        let began = Instant::now();
        let account = ground.act(forecast.as_ref(), limit, self.interrupt, watched, watch)?;
        let began = account.began().unwrap_or(began);
        // The look that saw the end may have come late.
        let ended = (began + Duration::from_secs_f64(account.total_ms().max(0.0) / 1e3)).min(Instant::now());
        let link_bytes = before.zip(sent()?).map(|(before, after)| after - before);
        self.interrupt
            .sleep(Duration::from_secs_f64(self.scenario.cool_down_s))?;
        let moments = Moments {
            start,
            migration: began..ended,
            end: Instant::now(),
        };
        let neighbour = match &ground.neighbour {
            Some(neighbour) => neighbour.seen(&moments)?,
            None => None,
        };
        let measured = Measured {
            account,
            link_bytes,
            operations: None,
            neighbour,
            link: ground.link.clone(),
            link_delay: ground.topology.as_ref().map_or(Ok(None), Topology::delay)?,
            guest,
        };
        Ok((measured, moments))
    }
}

impl Measured {
    fn seen_by(mut self, operations: Operations) -> Self {
        self.account.set_perceived_downtime_ms(operations.longest_gap_ms);
        self.operations = Some(operations);
        self
    }

    /// Whether the guest is at the destination. A peer that did not move it has no account.
    fn is_moved(&self) -> bool {
        match &self.account {
            Account::Vmferry(report) => report.outcome == Outcome::Completed,
            Account::Qemu(_) | Account::Experiment(_) => true,
        }
    }
}

/// A run whose guest was not moved, or was damaged, has no figures.
fn check(measured: &Measured) -> Result<()> {
    if let Account::Vmferry(report) = &measured.account {
        check_report(report)?;
    }
    match &measured.operations {
        Some(seen) if seen.errors > 0 => Err(LabError::Guest(format!(
            "gave its client {} errors: {}",
            seen.errors,
            seen.descriptions.join("; ")
        ))),
        _ => Ok(()),
    }
}

pub(super) fn check_report(report: &Report) -> Result<()> {
    if report.outcome != Outcome::Completed {
        let why = report
            .error
            .clone()
            .unwrap_or_else(|| "no reason was given".into());
        return Err(LabError::NotMoved {
            outcome: report.outcome,
            why,
        });
    }
    if let Some(verified) = report.verified
        && verified.mismatches > 0
    {
        return Err(LabError::Guest(format!(
            "is damaged: {} pages of {} differ at the destination",
            verified.mismatches, verified.pages
        )));
    }
    Ok(())
}

/// The first line in which a Linux guest complains.
fn trouble(printed: &str) -> Option<&str> {
    let bad = [
        "CORRUPT",
        "Kernel panic",
        "guest-load: FAILED",
        "unknown parameter",
        "unknown load",
    ];
    printed
        .lines()
        .find(|line| bad.iter().any(|word| line.contains(word)))
}

fn with_console(error: LabError, console: &Path) -> LabError {
    match (&error, crate::hosts::last_lines(console, CONSOLE_LINES)) {
        (LabError::TimedOut { .. } | LabError::Guest(_), printed) if !printed.is_empty() => {
            let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
            LabError::Guest(format!(
                "did not boot ({error}); its console ends with: {printed}"
            ))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_complains_is_heard() {
        let healthy = "vmferry-guest: ready\nguest-load: ok passes=3\n";
        assert_eq!(trouble(healthy), None);
        let line = "guest-load: CORRUPT page 5";
        assert_eq!(trouble(&format!("{healthy}{line}\nguest-load: ok\n")), Some(line));
    }
}
