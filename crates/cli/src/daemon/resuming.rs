//! Guests that are resumed from checkpoints.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use vmferry_checkpoint::resume::{Request, ResumeError, Resuming, Saved, Survey};
use vmferry_core::report::Outcome;
use vmferry_core::resume::{ResumeProgress, ResumeReport};
use vmferry_guest::{GuestSpec, GuestState};
use vmferry_runtime::GuestDir;
use vmferry_store::{CheckpointId, Reader, Resumed, Store, StoreError, StoreOptions};

use super::host::{LocalHost, of_guest};
use super::refusal::Refusal;
use super::registry::{Member, Slot};
use super::reports::{new_id, unix_ms};
use super::state_dir::{self, Marker};
use crate::api::{ReportSide, ResumeRequest, ResumeStarted, ResumeState};
use crate::{failure, names};

/// How long a store may fail where the request does not say.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a store may take to have a mark taken away: nobody's guest waits for that.
const MARK_PATIENCE: Duration = Duration::from_secs(5);
/// How soon a store that does not answer a starting daemon is asked again.
const REOPEN_EVERY: Duration = Duration::from_secs(5);

/// The checkpoint that a guest was resumed from, in its directory: its mark goes when the guest is ended.
#[derive(Serialize, Deserialize)]
struct From {
    store: String,
    checkpoint: CheckpointId,
    mark: Resumed,
}

/// What has to go again if a resume does not begin.
struct Begun<'a> {
    host: &'a LocalHost,
    dir: PathBuf,
    kept: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.host.forget_resumed(&self.dir);
        }
    }
}

impl LocalHost {
    /// Begins to resume a checkpoint.
    pub(super) fn resume(self: &Arc<Self>, request: &ResumeRequest) -> Result<ResumeStarted, Refusal> {
        let since = Instant::now();
        self.check_open()?;
        let location = request.store.as_ref().unwrap_or(&self.store);
        let patience = request.patience_ms.map_or(PATIENCE, Duration::from_millis);
        let store = open(location, patience).map_err(of_store)?;
        let checkpoint = find(&store, &request.checkpoint)?;
        let reader = store.reader(&checkpoint).map_err(of_store)?;
        check_disks(&reader, request)?;
        let spec = spec_of(&reader, request.name.as_deref())?;
        self.check_alone(&checkpoint, &spec.name, request)?;
        let backend = self.backend(&spec.backend)?;
        let name = spec.name.clone();
        let claim = self.registry.claim(&name, "is being resumed")?;
        let dir = self.state.create_guest(&spec, true).map_err(Refusal::failed)?;
        let mut begun = Begun {
            host: self,
            dir: dir.clone(),
            kept: false,
        };
        if !request.clone {
            mark(&store, location, &checkpoint, &name, &dir)?;
        }
        let layout = reader.manifest().layout.clone();
        let survey = Survey::begin(reader);
        let vm = backend.launch_incoming(&spec, &layout, &dir).map_err(of_guest)?;
        let resuming = Resuming::start(
            vm.clone(),
            GuestDir::new(dir.clone()),
            survey,
            of_request(request, location, &checkpoint, patience),
            since,
            own(&dir),
        );
        let resuming = resuming.map_err(of_resume)?;
        begun.kept = true;
        let id = new_id(&name);
        tracing::info!("resuming {checkpoint} as {name}, {}", request.mode);
        let member = Member { vm, dir };
        claim.settle(Some(Slot::Resuming {
            member,
            id: id.clone(),
            resuming: resuming.clone(),
        }));
        self.watch_resume(&name, &id, resuming);
        let checkpoint = checkpoint.to_string();
        Ok(ResumeStarted { id, name, checkpoint })
    }

    /// The VM of a checkpoint may be here under its own name, which the registry does not find where another was asked for.
    fn check_alone(
        &self,
        checkpoint: &CheckpointId,
        name: &str,
        request: &ResumeRequest,
    ) -> Result<(), Refusal> {
        if request.clone || name == checkpoint.vm() || self.registry.get(checkpoint.vm()).is_err() {
            return Ok(());
        }
        let vm = checkpoint.vm();
        Err(Refusal::conflict(format!(
            "guest {vm}, of which {checkpoint} is a checkpoint, is on this host: two guests would use the same disks and addresses"
        ))
        .mend(format!("stop it first with `vmferry stop {vm}`, or use --clone if that cannot do harm")))
    }

    /// Waits for the end of a resume, on a thread of its own, and acts on it.
    fn watch_resume(self: &Arc<Self>, name: &str, id: &str, resuming: Resuming) {
        let (host, name, id) = (Arc::clone(self), name.to_owned(), id.to_owned());
        let watch = move || host.resume_ended(&name, &id, &resuming.wait());
        let started = thread::Builder::new().name("resume end".into()).spawn(watch);
        started.expect("a thread can be started");
    }

    fn resume_ended(&self, name: &str, id: &str, report: &ResumeReport) {
        // Without an outcome it was only let go of, by a daemon that stops or with a guest that was stopped.
        let Some(outcome) = report.outcome else { return };
        log_end(name, outcome, report);
        // Kept first, so that whoever sees that it is over finds it.
        self.reports.keep(id, name, ReportSide::Resume, report);
        if let (Outcome::Completed, Ok(Slot::Resuming { member, .. })) = (outcome, self.registry.get(name)) {
            self.samplers.begin(&member);
        }
        let mut gone = None;
        self.registry.change(name, |slot| {
            let Slot::Resuming {
                member,
                id: found,
                resuming,
            } = slot
            else {
                return Some(slot);
            };
            if found != id {
                return Some(Slot::Resuming {
                    member,
                    id: found,
                    resuming,
                });
            }
            match outcome {
                Outcome::Completed => Some(Slot::Here(member)),
                Outcome::Unresolved if member.vm.state() == GuestState::Gone => Some(Slot::Here(member)),
                Outcome::Unresolved => Some(Slot::Stuck {
                    backend: member.vm.spec().backend.clone(),
                    why: report.error.clone().unwrap_or_default(),
                    dir: member.dir,
                    vm: Some(member.vm),
                }),
                Outcome::Failed | Outcome::Cancelled => {
                    gone = Some(member);
                    Some(Slot::Busy {
                        doing: "is being forgotten",
                    })
                }
            }
        });
        if let Some(member) = gone {
            self.forget_resumed(&member.dir);
            self.registry.change(name, |_| None);
        }
    }

    /// Goes on with what an earlier daemon left. Its store may not answer yet: then the guest waits for its pages, and the store is
    /// asked again until it does.
    pub(super) fn take_up_resume(
        self: &Arc<Self>,
        name: &str,
        member: Member,
        saved: Saved,
    ) -> anyhow::Result<String> {
        let what = format!(
            "{name} was found again, pages of it are in the store {} only",
            saved.store
        );
        match self.reopen(name, &member, &saved) {
            Ok(()) => Ok(what),
            Err(error) => {
                let why = failure::chain(&error);
                let slot = Slot::Stuck {
                    backend: member.vm.spec().backend.clone(),
                    why: format!("pages of it are in its store, which is asked again and again: {why}"),
                    dir: member.dir.clone(),
                    vm: Some(member.vm.clone()),
                };
                self.registry.insert(name, slot);
                self.reopen_later(name, member, saved);
                Ok(format!("{what}: {why}"))
            }
        }
    }

    fn reopen(self: &Arc<Self>, name: &str, member: &Member, saved: &Saved) -> anyhow::Result<()> {
        let store = open(&saved.store, saved.patience)?;
        let reader = store.reader(&saved.checkpoint)?;
        let dir = GuestDir::new(member.dir.clone());
        let resuming = Resuming::recover(member.vm.clone(), dir, Survey::begin(reader), saved.clone())?;
        let id = new_id(name);
        self.registry.insert(
            name,
            Slot::Resuming {
                member: member.clone(),
                id: id.clone(),
                resuming: resuming.clone(),
            },
        );
        self.watch_resume(name, &id, resuming);
        Ok(())
    }

    fn reopen_later(self: &Arc<Self>, name: &str, member: Member, saved: Saved) {
        let (host, name) = (Arc::downgrade(self), name.to_owned());
        let again = move || loop {
            thread::sleep(REOPEN_EVERY);
            let Some(host) = host.upgrade() else { return };
            let waits = matches!(host.registry.get(&name), Ok(Slot::Stuck { dir, .. }) if dir == member.dir);
            if !waits || host.check_open().is_err() {
                return;
            }
            match host.reopen(&name, &member, &saved) {
                Ok(()) => return tracing::info!("the store of {name} is there again"),
                Err(error) => tracing::debug!("{}", failure::chain(&error)),
            }
        };
        let started = thread::Builder::new().name("resume again".into()).spawn(again);
        started.expect("a thread can be started");
    }

    /// The resume of a guest that is under way, else the last one.
    pub(super) fn resume_state(&self, name: &str) -> Result<ResumeState, Refusal> {
        if let Ok(Slot::Resuming { id, resuming, .. }) = self.registry.get(name) {
            let (progress, report) = (resuming.progress(), resuming.report());
            return Ok(ResumeState {
                id,
                progress: Some(progress),
                report,
            });
        }
        let last = self.reports.last_of(name, |side| side == ReportSide::Resume);
        let last = last.and_then(|stored| {
            Some(ResumeState {
                id: stored.id,
                progress: None,
                report: serde_json::from_value(stored.report).ok()?,
            })
        });
        last.ok_or_else(|| Refusal::not_found(format!("no resume of a guest {name} is known on this host")))
    }

    /// Lets a guest run that was resumed to stand paused.
    pub(super) fn go_on(&self, name: &str) -> Result<(), Refusal> {
        match self.registry.get(name)? {
            Slot::Resuming { resuming, .. } => resuming.go_on().map_err(|error| {
                let refusal = of_resume(error);
                match resuming.progress().stalled {
                    Some(_) => refusal.mend("it goes on by itself once its store gives its pages again"),
                    None => refusal,
                }
            }),
            _ => Err(Refusal::conflict(format!(
                "guest {name} was not resumed with --paused, or runs already"
            ))),
        }
    }

    /// Brings the rest of the pages of a guest that was resumed.
    pub(super) fn fill(&self, name: &str) -> Result<(), Refusal> {
        match self.registry.get(name)? {
            Slot::Resuming { resuming, .. } => resuming.fill().map_err(of_resume),
            _ => Err(Refusal::conflict(format!(
                "no page of guest {name} is in a store only"
            ))),
        }
    }

    /// A guest is ended: the checkpoint that it was resumed from may be resumed again.
    pub(super) fn give_back_checkpoint(&self, name: &str) {
        unmark(&self.state.guest(name));
    }

    /// Nothing is left of a guest that was being resumed.
    fn forget_resumed(&self, dir: &Path) {
        unmark(dir);
        state_dir::remove_guest(dir);
    }
}

/// Why the store does not give what it should, as a problem of the guest, and what to do.
pub(super) fn lack(progress: &ResumeProgress) -> Option<String> {
    let mend = "it goes on by itself once the store gives it again: bring the store back, or what is missing from a copy of it";
    match (&progress.stalled, &progress.problem) {
        (Some(why), _) => Some(format!("paused for want of a page: {why}; {mend}")),
        (None, Some(why)) => Some(format!(
            "a page that it has not asked for yet cannot be had: {why}"
        )),
        (None, None) => None,
    }
}

fn open(location: &str, patience: Duration) -> Result<Store, StoreError> {
    let options = StoreOptions {
        patience,
        ..StoreOptions::default()
    };
    Store::open(location, options)
}

/// The checkpoint that `web/17`, `web` or `web@latest` stands for.
fn find(store: &Store, text: &str) -> Result<CheckpointId, Refusal> {
    if text.contains('/') {
        return text.parse().map_err(of_store);
    }
    let vm = text.strip_suffix("@latest").unwrap_or(text);
    let all = store.list(Some(vm)).map_err(of_store)?;
    all.into_iter().max_by_key(CheckpointId::number).ok_or_else(|| {
        Refusal::not_found(format!(
            "there is no checkpoint of {vm} in the store {}",
            store.name()
        ))
        .mend("`vmferry checkpoints list` shows what there is; choose another store with --store")
    })
}

/// Disks that the checkpoint has are put back, or left alone, on demand only: either may lose data.
fn check_disks(reader: &Reader, request: &ResumeRequest) -> Result<(), Refusal> {
    let manifest = reader.manifest();
    if manifest.disks.is_empty() || request.overwrite_disks || request.without_disks {
        return Ok(());
    }
    let names: Vec<_> = manifest.disks.iter().map(|disk| disk.device.as_str()).collect();
    Err(Refusal::conflict(format!(
        "checkpoint {} has the disks {} as of its moment, and what was written to them since would be lost",
        manifest.id,
        names.join(", ")
    ))
    .mend("use --overwrite-disks to put them back, or --without-disks if they are as they were"))
}

/// The guest of a checkpoint, under its own name or another.
fn spec_of(reader: &Reader, name: Option<&str>) -> Result<GuestSpec, Refusal> {
    let manifest = reader.manifest();
    let spec: GuestSpec = serde_json::from_value(manifest.spec.clone()).map_err(|error| {
        Refusal::failed(anyhow!(
            "checkpoint {} does not say what guest it is of: {error}",
            manifest.id
        ))
    })?;
    let name = name.map_or(spec.name, str::to_owned);
    names::check(&name).map_err(Refusal::bad_request)?;
    Ok(GuestSpec { name, ..spec })
}

fn of_request(
    request: &ResumeRequest,
    location: &str,
    checkpoint: &CheckpointId,
    patience: Duration,
) -> Request {
    Request {
        store: absolute(location),
        checkpoint: checkpoint.clone(),
        mode: request.mode,
        drain_after: request.drain_after_ms.map(Duration::from_millis),
        paused: request.paused,
        put_disks_back: request.overwrite_disks,
        patience,
        readers: request.readers.unwrap_or(0).into(),
        service: request.service.clone(),
    }
}

/// A daemon that goes on later may be started in another folder.
fn absolute(location: &str) -> String {
    if location.contains(':') {
        return location.to_owned();
    }
    let path = std::path::absolute(location);
    path.map_or_else(
        |_| location.to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

/// Notes that the guest in `dir` is this host's: a restarted daemon finds it as ours from here on.
fn own(dir: &Path) -> Box<dyn FnOnce() -> Result<(), String> + Send> {
    let dir = dir.to_owned();
    Box::new(move || {
        state_dir::clear_marker(&dir, Marker::Arriving);
        let synced = fs::File::open(&dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| format!("cannot write {}: {error}", dir.display()))
    })
}

fn from_file(dir: &Path) -> PathBuf {
    dir.join("resumed-from.json")
}

/// Takes the checkpoint for the guest in `dir`.
fn mark(
    store: &Store,
    location: &str,
    checkpoint: &CheckpointId,
    name: &str,
    dir: &Path,
) -> Result<(), Refusal> {
    let at_ms = unix_ms();
    let mark = Resumed {
        vm: name.to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        at_ms,
        token: format!("{}-{at_ms}", std::process::id()),
    };
    let from = From {
        store: absolute(location),
        checkpoint: checkpoint.clone(),
        mark: mark.clone(),
    };
    // First, so that no mark is left that nobody knows of.
    let written = serde_json::to_vec_pretty(&from).map_err(std::io::Error::from);
    let written = written.and_then(|bytes| state_dir::store(&from_file(dir), &bytes));
    written
        .with_context(|| format!("cannot fill {}", dir.display()))
        .map_err(Refusal::failed)?;
    let there = store.mark_resumed(checkpoint, &mark).map_err(of_store)?;
    match there {
        None => Ok(()),
        Some(other) => {
            let ago_s = at_ms.saturating_sub(other.at_ms) / 1000;
            let (vm, host) = (&other.vm, &other.host);
            Err(Refusal::conflict(format!(
                "checkpoint {checkpoint} was resumed on host {host} as {vm} {ago_s} s ago: two guests would use the same disks \
                 and addresses"
            ))
            .mend(format!(
                "stop that one with `vmferry stop {vm}` there, or use --clone if it is gone or cannot do harm"
            )))
        }
    }
}

/// Gives the checkpoint back that the guest in `dir` was resumed from, if it was.
fn unmark(dir: &Path) {
    let Ok(bytes) = fs::read(from_file(dir)) else {
        return;
    };
    let Ok(from) = serde_json::from_slice::<From>(&bytes) else {
        return tracing::warn!("{} is damaged", from_file(dir).display());
    };
    let taken =
        open(&from.store, MARK_PATIENCE).and_then(|store| store.unmark_resumed(&from.checkpoint, &from.mark));
    if let Err(error) = taken {
        let why = failure::chain(&error.into());
        tracing::warn!("checkpoint {} stays marked as resumed: {why}", from.checkpoint);
    }
}

pub(super) fn of_store(error: StoreError) -> Refusal {
    match error {
        StoreError::NoCheckpoint(_) => {
            Refusal::not_found(error).mend("`vmferry checkpoints list` shows what there is")
        }
        StoreError::BadLocation { .. }
        | StoreError::BadId(_)
        | StoreError::BadVm(_)
        | StoreError::BadRequest(_) => Refusal::bad_request(failure::chain(&error.into())),
        error => Refusal::failed(error),
    }
}

fn of_resume(error: ResumeError) -> Refusal {
    match error {
        ResumeError::Store(error) => of_store(error),
        ResumeError::Guest(error) => of_guest(error),
        ResumeError::OtherRam { .. } => Refusal::bad_request(error),
        ResumeError::WrongTime(_) | ResumeError::NotRunning(_) | ResumeError::Over(_) => {
            Refusal::conflict(error)
        }
        error => Refusal::failed(error),
    }
}

fn log_end(name: &str, outcome: Outcome, report: &ResumeReport) {
    let (checkpoint, why) = (&report.checkpoint, report.error.as_deref().unwrap_or_default());
    match outcome {
        Outcome::Completed => tracing::info!(
            "{name} was resumed from {checkpoint}: it ran after {:.1} ms, all of it is here after {:.1} ms",
            report.start_ms.unwrap_or_default(),
            report.total_ms
        ),
        Outcome::Cancelled => tracing::info!("resuming {checkpoint} as {name} was cancelled"),
        Outcome::Failed => {
            tracing::warn!("resuming {checkpoint} as {name} failed, nothing is left of it: {why}");
        }
        Outcome::Unresolved => tracing::error!("{name}, resumed from {checkpoint}, cannot go on: {why}"),
    }
}
