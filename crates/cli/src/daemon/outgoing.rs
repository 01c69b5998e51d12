//! Migrations away from this host.

use std::sync::Arc;
use std::thread;

use vmferry_core::limits::check_cpu;
use vmferry_core::report::{Outcome, Report};
use vmferry_core::source::Side;
use vmferry_runtime::{GuestDir, Outgoing, RuntimeError};
use vmferry_transport::Endpoint;

use super::disks;
use super::host::LocalHost;
use super::refusal::Refusal;
use super::registry::{Member, Slot};
use super::reports::new_id;
use super::state_dir::{self, Marker};
use crate::api::{LimitsRequest, MigrateRequest, Migration, Owner, ReportSide, Stage, Started, StoredReport};
use crate::failure;

impl LocalHost {
    /// Starts a migration.
    pub(super) fn migrate(
        self: &Arc<Self>,
        name: &str,
        request: &MigrateRequest,
    ) -> Result<Started, Refusal> {
        self.check_open()?;
        let destination: Endpoint = request.to.parse().map_err(Refusal::bad_request)?;
        if request.auto && request.forecast.is_none() {
            return Err(Refusal::bad_request(
                "a strategy that a forecast is to choose needs that forecast in the request",
            )
            .mend("use `vmferry migrate --strategy auto`, which makes one first"));
        }
        let (claim, member) = self
            .registry
            .take(name, "is about to be moved", |slot| may_leave(name, slot))?;
        let asked = request;
        self.checkpoints.check_off(name)?;
        let request = request.clone().directed_to(destination);
        let (id, to) = (new_id(name), request.to.to_string());
        state_dir::set_marker(&member.dir, Marker::Leaving).map_err(Refusal::failed)?;
        let dir = GuestDir::new(member.dir.clone());
        let ready = self.samplers.let_go(name);
        self.history.begins(&id, asked);
        let started = Outgoing::start_knowing(Arc::clone(&member.vm), dir, request, ready);
        let outgoing = started.map_err(|error| {
            self.history.ends(&id, None);
            state_dir::clear_marker(&member.dir, Marker::Leaving);
            self.samplers.begin(&member);
            of_runtime(error)
        })?;
        tracing::info!("moving {name} to {to}");
        claim.settle(Some(Slot::Leaving {
            member,
            id: id.clone(),
            to,
            outgoing: outgoing.clone(),
        }));
        self.watch(name, &id, outgoing);
        Ok(Started { id })
    }

    /// Waits for the end of a migration, on a thread of its own, and acts on it.
    pub(super) fn watch(self: &Arc<Self>, name: &str, id: &str, outgoing: Outgoing) {
        let (host, name, id) = (Arc::clone(self), name.to_owned(), id.to_owned());
        let watch = move || host.left(&name, &id, &outgoing.wait());
        let started = thread::Builder::new().name("migration end".into()).spawn(watch);
        started.expect("a thread can be started");
    }

    /// A migration ended.
    fn left(&self, name: &str, id: &str, report: &Report) {
        log_end(name, report);
        // Kept first, so that whoever sees that it is over finds it.
        self.reports.keep(id, name, ReportSide::Source, report);
        self.history.ends(id, Some(report));
        match (report.outcome, self.registry.get(name)) {
            (Outcome::Cancelled | Outcome::Failed, Ok(Slot::Leaving { member, .. })) => {
                self.samplers.begin(&member);
            }
            _ => self.samplers.forget(name),
        }
        // Ended outside of the lock.
        let mut gone = None;
        self.registry.change(name, |slot| {
            let Slot::Leaving { member, .. } = slot else {
                return Some(slot);
            };
            match report.outcome {
                Outcome::Completed => {
                    if let Some(moved) = &report.disks {
                        disks::left(name, moved);
                    }
                    state_dir::remove_guest(&member.dir);
                    gone = Some(member);
                    None
                }
                Outcome::Cancelled | Outcome::Failed => {
                    state_dir::clear_marker(&member.dir, Marker::Leaving);
                    Some(Slot::Here(member))
                }
                Outcome::Unresolved => {
                    let why = report.error.as_deref().unwrap_or("the handover broke off");
                    Some(Slot::Stuck {
                        backend: member.vm.spec().backend.clone(),
                        why: format!("{why}; restart the daemon to take it up again"),
                        dir: member.dir,
                        vm: Some(member.vm),
                    })
                }
            }
        });
    }

    /// Cancels a migration, away or to here.
    pub(super) fn cancel(&self, name: &str) -> Result<(), Refusal> {
        match self.registry.get(name)? {
            Slot::Leaving { outgoing, .. } => outgoing.cancel().map_err(of_runtime),
            Slot::Arriving { .. } => match self.incoming() {
                Some(incoming) => incoming.cancel(name).map_err(of_runtime),
                None => Err(Refusal::stopping()),
            },
            Slot::Resuming { resuming, .. } => resuming.cancel().map_err(|_| {
                Refusal::conflict(format!(
                    "guest {name} is started already: its resume can only be completed"
                ))
                .mend(format!("`vmferry stop {name}` ends it"))
            }),
            Slot::Receiving { .. } => Err(Refusal::conflict(format!(
                "guest {name} runs here already: its migration can only be completed"
            ))),
            _ => Err(not_moving(name)),
        }
    }

    /// Changes the limits of a migration under way.
    pub(super) fn limit(&self, name: &str, request: LimitsRequest) -> Result<(), Refusal> {
        let outgoing = match self.registry.get(name)? {
            Slot::Leaving { outgoing, .. } => outgoing,
            Slot::Arriving { .. } | Slot::Receiving { .. } => {
                let why = format!("guest {name} comes from another host: that one sends its pages");
                let mend = format!("use `vmferry limit {name}` at the host it comes from");
                return Err(Refusal::conflict(why).mend(mend));
            }
            _ => return Err(not_moving(name)),
        };
        let LimitsRequest {
            bandwidth_bytes_per_s,
            cpu_percent,
        } = request;
        if (bandwidth_bytes_per_s, cpu_percent) == (None, None) {
            return Err(Refusal::bad_request("no limit was named")
                .mend("name bandwidth_bytes_per_s, cpu_percent or both"));
        }
        // Neither is changed where one of them makes no sense.
        let percent = cpu_percent.map(|cap| {
            let percent: Option<u64> = cap.into();
            percent.map(|percent| u32::try_from(percent).unwrap_or(u32::MAX))
        });
        check_cpu(percent.flatten()).map_err(Refusal::bad_request)?;
        if let Some(cap) = bandwidth_bytes_per_s {
            outgoing.limit_bandwidth(cap.into()).map_err(of_runtime)?;
        }
        if let Some(percent) = percent {
            outgoing.limit_cpu(percent).map_err(of_runtime)?;
        }
        tracing::info!("limits of the migration of {name} changed: {request:?}");
        Ok(())
    }

    /// The operator says whose a guest is.
    pub(super) fn resolve(&self, name: &str, owner: Owner) -> Result<(), Refusal> {
        let side = match owner {
            Owner::Here => Side::Source,
            Owner::There => Side::Destination,
        };
        match self.registry.get(name)? {
            Slot::Leaving { outgoing, .. } => {
                tracing::warn!("the operator settles that the owner of {name} is {owner:?}");
                outgoing.resolve(side).map_err(of_runtime)
            }
            Slot::Arriving { .. } | Slot::Receiving { .. } => Err(Refusal::conflict(format!(
                "guest {name} came from another host: that one has to be told"
            ))
            .mend(format!("use `vmferry resolve {name}` at the host it came from"))),
            _ => Err(not_moving(name)),
        }
    }

    /// The migration of a guest that is under way, else the last one.
    pub(super) fn migration(&self, name: &str) -> Result<Migration, Refusal> {
        let slot = self.registry.get(name);
        if let Some(under_way) = slot
            .as_ref()
            .ok()
            .and_then(|slot| self.migration_under_way(name, slot))
        {
            return Ok(under_way);
        }
        let last = self
            .reports
            .last_of(name, |side| side != ReportSide::Resume)
            .and_then(of_stored);
        last.ok_or_else(|| {
            Refusal::not_found(format!("no migration of a guest {name} is known on this host"))
        })
    }
}

fn may_leave(name: &str, slot: &Slot) -> Result<Member, Refusal> {
    let refuse = |why: &str, mend: String| Err(Refusal::conflict(format!("guest {name} {why}")).mend(mend));
    match slot {
        Slot::Here(member) => Ok(member.clone()),
        Slot::Leaving { to, .. } => refuse(
            &format!("is being moved to {to} already"),
            format!("wait, or `vmferry cancel {name}`"),
        ),
        Slot::Arriving { .. } => refuse("is not this host's yet", "wait until it has arrived".into()),
        Slot::Receiving { .. } => refuse(
            "still lacks pages that its last host has",
            format!("wait until `vmferry status {name}` shows none"),
        ),
        Slot::Resuming { .. } => refuse(
            "still lacks pages that are in its store",
            format!(
                "have them brought with `vmferry fill {name}`, and wait until `vmferry status {name}` shows none"
            ),
        ),
        Slot::Stuck { why, .. } => refuse(
            &format!("cannot be used: {why}"),
            "see the log of the daemon".into(),
        ),
        Slot::Busy { doing } => refuse(doing, "wait a moment and repeat it".into()),
    }
}

fn not_moving(name: &str) -> Refusal {
    Refusal::conflict(format!("guest {name} is not being moved"))
        .mend(format!("`vmferry status {name}` shows its last migration"))
}

fn of_stored(stored: StoredReport) -> Option<Migration> {
    let stage = match stored.side {
        ReportSide::Source => Stage::Sent {
            report: serde_json::from_value(stored.report).ok()?,
        },
        ReportSide::Destination => Stage::Received {
            report: stored.report,
        },
        ReportSide::Resume => return None,
    };
    Some(Migration { id: stored.id, stage })
}

fn of_runtime(error: RuntimeError) -> Refusal {
    match error {
        RuntimeError::BadRequest(_) => Refusal::bad_request(error),
        RuntimeError::NoSession(_) => {
            Refusal::conflict(error).mend("where it has just begun, wait a moment and repeat it")
        }
        RuntimeError::NotOwner(_) | RuntimeError::Refused(_) => {
            Refusal::conflict(failure::chain(&error.into()))
        }
        RuntimeError::Guest(error) => super::host::of_guest(error),
        error => Refusal::failed(error),
    }
}

fn log_end(name: &str, report: &Report) {
    let why = report.error.as_deref().unwrap_or_default();
    match report.outcome {
        Outcome::Completed => tracing::info!("{name} was moved, downtime {:.2} ms", report.downtime_ms),
        Outcome::Cancelled => tracing::info!("moving {name} was cancelled, it goes on here"),
        Outcome::Failed => tracing::warn!("moving {name} failed, it goes on here: {why}"),
        Outcome::Unresolved => tracing::error!("moving {name} broke off after the handover: {why}"),
    }
}
