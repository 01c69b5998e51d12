//! The host: its guests, and what can be asked of it apart from migrations.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use vmferry_guest::{Backend, Guest as _, GuestError, GuestSpec, GuestState, Vm};
use vmferry_guest_qemu::QemuBackend;
use vmferry_guest_synth::{Stats, SynthBackend, SynthGuest};
use vmferry_runtime::Incoming;

use super::checkpoints::Checkpoints;
use super::disks;
use super::history::Histories;
use super::paths::Paths;
use super::refusal::Refusal;
use super::registry::{Member, Registry, Slot};
use super::reports::Reports;
use super::resuming::lack;
use super::samplers::Samplers;
use super::state_dir::{self, StateDir};
use crate::api::{Arrival, AttachRequest, GuestInfo, Migration, Role, Stage};
use crate::names;

/// Everything that the threads of a daemon share.
pub(super) struct LocalHost {
    pub(super) state: StateDir,
    pub(super) registry: Arc<Registry>,
    pub(super) reports: Reports,
    pub(super) samplers: Samplers,
    pub(super) history: Histories,
    pub(super) checkpoints: Checkpoints,
    /// Where checkpoints are, unless a request says otherwise.
    pub(super) store: String,
    pub(super) paths: Paths,
    /// Set once, right after it was made: it refers to this host in turn.
    pub(super) incoming: OnceLock<Weak<Incoming>>,
    synth: SynthBackend,
    backends: Vec<Arc<dyn Backend>>,
    stopping: AtomicBool,
}

impl LocalHost {
    pub(super) fn new(state: StateDir, samplers: Samplers, store: Option<String>) -> anyhow::Result<Self> {
        let synth = SynthBackend::new();
        Ok(Self {
            reports: Reports::load(state.reports())?,
            samplers,
            checkpoints: Checkpoints::default(),
            history: Histories::open(&state.history()),
            store: store.unwrap_or_else(|| state.path().join("checkpoints").to_string_lossy().into_owned()),
            paths: Paths::load(state.path().join("paths.json")),
            state,
            registry: Arc::default(),
            incoming: OnceLock::new(),
            backends: vec![Arc::new(QemuBackend), Arc::new(synth.clone())],
            synth,
            stopping: AtomicBool::new(false),
        })
    }

    /// Takes no new work from now on.
    pub(super) fn begin_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Once the daemon is stopping.
    pub(super) fn check_open(&self) -> Result<(), Refusal> {
        match self.stopping.load(Ordering::Relaxed) {
            true => Err(Refusal::stopping()),
            false => Ok(()),
        }
    }

    pub(super) fn backend_names(&self) -> Vec<String> {
        self.backends
            .iter()
            .map(|backend| backend.name().to_owned())
            .collect()
    }

    pub(super) fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>, Refusal> {
        self.backends
            .iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| {
                let known = self.backend_names().join(", ");
                Refusal::bad_request(format!(
                    "there is no backend {name:?} on this host; there are: {known}"
                ))
            })
    }

    /// What takes migrations in, while it is there.
    pub(super) fn incoming(&self) -> Option<Arc<Incoming>> {
        self.incoming.get()?.upgrade()
    }

    /// Starts a guest.
    pub(super) fn run(&self, spec: &GuestSpec) -> Result<GuestInfo, Refusal> {
        self.check_open()?;
        names::check(&spec.name).map_err(Refusal::bad_request)?;
        let backend = self.backend(&spec.backend)?;
        let claim = self.registry.claim(&spec.name, "is being started")?;
        let files = backend.disk_files(spec);
        files.iter().try_for_each(|file| disks::check_usable(file))?;
        let dir = self.state.create_guest(spec, false).map_err(Refusal::failed)?;
        let vm = backend.launch(spec, &dir).map_err(|error| {
            state_dir::remove_guest(&dir);
            of_guest(error)
        })?;
        tracing::info!("started {} ({})", spec.name, spec.backend);
        disks::in_use(&files);
        let member = Member { vm, dir };
        self.samplers.begin(&member);
        let slot = Slot::Here(member);
        claim.settle(Some(slot.clone()));
        Ok(self.info(&spec.name, &slot))
    }

    /// Takes over a QEMU that runs.
    pub(super) fn attach(&self, request: &AttachRequest) -> Result<GuestInfo, Refusal> {
        self.check_open()?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => own_name(request.pid),
        };
        names::check(&name)
            .map_err(|error| Refusal::bad_request(error).mend("give it a name with --name"))?;
        let claim = self.registry.claim(&name, "is being attached to")?;
        let dir = self.state.create_dir(&name).map_err(Refusal::failed)?;
        let attached = attach_in(&dir, &name, request).inspect_err(|_| state_dir::remove_guest(&dir));
        let vm = attached?;
        tracing::info!("attached to {name}, process {}", request.pid);
        let member = Member { vm, dir };
        self.samplers.begin(&member);
        let slot = Slot::Here(member);
        claim.settle(Some(slot.clone()));
        Ok(self.info(&name, &slot))
    }

    /// Ends a guest.
    pub(super) fn stop(&self, name: &str, force: bool) -> Result<(), Refusal> {
        self.check_open()?;
        let (claim, slot) = self.registry.take(name, "is being ended", |slot| {
            let refuse =
                |why: &str, mend: String| Err(Refusal::conflict(format!("guest {name} {why}")).mend(mend));
            match slot {
                Slot::Leaving { .. } => refuse(
                    "is being moved away",
                    format!("cancel that first with `vmferry cancel {name}`"),
                ),
                Slot::Arriving { .. } => refuse(
                    "is being moved here",
                    format!("cancel that first with `vmferry cancel {name}`"),
                ),
                Slot::Receiving { .. } if !force => refuse(
                    "still lacks pages that its last host has",
                    "wait, or use --force".into(),
                ),
                Slot::Stuck { why, .. } if !force => refuse(
                    &format!("cannot be used: {why}"),
                    "use --force to forget it".into(),
                ),
                _ => Ok(slot.clone()),
            }
        })?;
        self.checkpoints.forget(name);
        self.samplers.forget(name);
        self.give_back_checkpoint(name);
        match slot {
            Slot::Here(Member { vm, dir })
            | Slot::Receiving {
                member: Member { vm, dir },
                ..
            } => {
                vm.destroy();
                state_dir::remove_guest(&dir);
            }
            Slot::Resuming { member, resuming, .. } => {
                resuming.release();
                member.vm.destroy();
                state_dir::remove_guest(&member.dir);
            }
            Slot::Stuck { dir, vm, .. } => {
                if let Some(vm) = vm {
                    vm.destroy();
                }
                state_dir::remove_guest(&dir);
            }
            Slot::Busy { .. } | Slot::Leaving { .. } | Slot::Arriving { .. } => {}
        }
        tracing::info!("ended {name}");
        claim.settle(None);
        Ok(())
    }

    /// All guests.
    pub(super) fn guests(&self) -> Vec<GuestInfo> {
        self.registry
            .all()
            .iter()
            .map(|(name, slot)| self.info(name, slot))
            .collect()
    }

    /// One guest.
    pub(super) fn guest(&self, name: &str) -> Result<GuestInfo, Refusal> {
        let info = self.info(name, &self.registry.get(name)?);
        Ok(GuestInfo {
            learned: self.samplers.report(name),
            ..info
        })
    }

    /// What a synthetic guest has done.
    pub(super) fn stats(&self, name: &str) -> Result<Stats, Refusal> {
        Ok(self.synthetic(name)?.stats())
    }

    /// Starts the measurement of a synthetic guest's longest gap anew.
    pub(super) fn reset_gap(&self, name: &str) -> Result<(), Refusal> {
        self.synthetic(name)?.reset_longest_gap();
        Ok(())
    }

    pub(super) fn synthetic(&self, name: &str) -> Result<Arc<SynthGuest>, Refusal> {
        self.registry.get(name)?;
        self.synth.find(name).ok_or_else(|| {
            Refusal::conflict(format!(
                "guest {name} keeps no statistics; only synthetic guests do"
            ))
        })
    }

    /// The migration under way of what is under a name.
    pub(super) fn migration_under_way(&self, name: &str, slot: &Slot) -> Option<Migration> {
        match slot {
            Slot::Leaving { id, to, outgoing, .. } => Some(Migration {
                id: id.clone(),
                stage: Stage::Outgoing {
                    to: to.clone(),
                    progress: outgoing.progress(),
                },
            }),
            Slot::Arriving { id, .. } | Slot::Receiving { id, .. } => {
                let progress = self.incoming().and_then(|incoming| incoming.progress(name));
                let progress = progress.map_or_else(Arrival::default, |progress| Arrival {
                    phase: progress.phase,
                    received_pages: progress.pages_received,
                    outstanding_pages: progress.outstanding,
                    faults: progress.faults,
                });
                Some(Migration {
                    id: id.clone(),
                    stage: Stage::Incoming { progress },
                })
            }
            Slot::Busy { .. } | Slot::Here(_) | Slot::Stuck { .. } | Slot::Resuming { .. } => None,
        }
    }

    fn info(&self, name: &str, slot: &Slot) -> GuestInfo {
        let (role, problem) = match slot {
            Slot::Busy { doing } => (Role::Busy, Some((*doing).to_owned())),
            Slot::Here(_) => (Role::Owner, None),
            Slot::Leaving { .. } => (Role::Source, None),
            Slot::Arriving { .. } => (Role::Destination, None),
            Slot::Receiving { .. } => (Role::Receiving, None),
            Slot::Resuming { resuming, .. } => (Role::Resuming, lack(&resuming.progress())),
            Slot::Stuck { why, .. } => (Role::Unreachable, Some(why.clone())),
        };
        let vm = slot.member().map(|member| &member.vm);
        let state = match slot {
            // A vCPU that waits for a page keeps QEMU from saying so.
            Slot::Resuming { resuming, .. } if resuming.progress().stalled.is_some() => {
                Some(GuestState::Paused)
            }
            _ => vm.map(|vm| vm.state()),
        };
        let ended = (role == Role::Owner && state == Some(GuestState::Gone))
            .then(|| format!("it ended; `vmferry stop {name}` forgets it"));
        let backend = match slot {
            Slot::Stuck { backend, .. } => backend.clone(),
            _ => vm.map(|vm| vm.spec().backend.clone()).unwrap_or_default(),
        };
        GuestInfo {
            name: name.to_owned(),
            backend,
            role,
            state,
            pid: vm.and_then(|vm| vm.pid()),
            ram_bytes: vm.map_or(0, |vm| vm.ram().layout().bytes()),
            problem: problem.or(ended),
            migration: self.migration_under_way(name, slot),
            checkpoints: self.checkpoints.state(name).filter(|state| !state.ended),
            resume: match slot {
                Slot::Resuming { resuming, .. } => Some(resuming.progress()),
                _ => None,
            },
            learned: None,
        }
    }
}

/// The specification is known only afterwards. A daemon that ends in between forgets the guest, which goes on as before.
fn attach_in(dir: &Path, name: &str, request: &AttachRequest) -> Result<Arc<dyn Vm>, Refusal> {
    let guest =
        vmferry_guest_qemu::attach(request.pid, request.qmp.as_deref(), name, dir).map_err(of_guest)?;
    state_dir::store_spec(dir, guest.spec()).map_err(Refusal::failed)?;
    Ok(Arc::new(guest))
}

/// The status that suits an error of a backend.
pub(super) fn of_guest(error: GuestError) -> Refusal {
    match error {
        GuestError::Unsuitable { .. } | GuestError::Unsupported { .. } => {
            Refusal::bad_request(crate::failure::chain(&error.into()))
        }
        error => Refusal::failed(error),
    }
}

/// The name that a QEMU was given with `-name`, else one made of its process id.
fn own_name(pid: u32) -> String {
    let command_line = Path::new("/proc").join(pid.to_string()).join("cmdline");
    let command_line = std::fs::read(command_line).unwrap_or_default();
    name_in(&command_line).unwrap_or_else(|| format!("qemu-{pid}"))
}

/// The guest's name in a command line of words that end with a zero.
fn name_in(command_line: &[u8]) -> Option<String> {
    let mut words = command_line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.find(|word| *word == "-name" || *word == "--name")?;
    let value = words.next()?;
    value.split(',').find_map(|part| match part.split_once('=') {
        None => Some(part.to_owned()),
        Some(("guest", name)) => Some(name.to_owned()),
        Some(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Vec<u8> {
        words
            .split(' ')
            .flat_map(|word| [word.as_bytes(), &[0]].concat())
            .collect()
    }

    #[test]
    fn a_qemu_without_a_name_is_called_by_its_process() {
        let own = std::process::id();
        assert_eq!(own_name(own), format!("qemu-{own}"));
        assert_eq!(name_in(&line("qemu -m 512")), None);
        assert_eq!(name_in(&line("qemu -name")), Some(String::new()));
    }

    #[test]
    fn the_name_is_read_from_the_command_line() {
        for value in ["web-1", "guest=web-1,process=x", "debug-threads=on,guest=web-1"] {
            let line = line(&format!("qemu -m 512 -name {value} -S"));
            assert_eq!(name_in(&line).as_deref(), Some("web-1"), "{value}");
        }
    }
}
