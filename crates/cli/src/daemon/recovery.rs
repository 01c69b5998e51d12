//! What a daemon does with the guests that an earlier one left, before it answers anybody.
//!
//! The last record of a guest's journal decides:
//!
//! | journal | then |
//! |---|---|
//! | owner, or none | the guest is ours: found again, and resumed where a migration had paused it; if pages still arrive or are in the store of its checkpoint, its faults are taken over |
//! | handed over | the guest is the destination's: the migration is taken up again |
//! | declined, released | leftovers are ended and removed |
//! | none, marked as arriving | it never was ours: as above |

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use vmferry_checkpoint::resume::Saved;
use vmferry_core::handover::Record;
use vmferry_guest::{GuestError, GuestSpec, GuestState, Vm};
use vmferry_runtime::{GuestDir, Incoming, Journal, Outgoing};

use super::disks;
use super::host::LocalHost;
use super::registry::{Member, Slot};
use super::reports::new_id;
use super::state_dir::{self, Marker};
use crate::failure;

/// What its directory says of a guest.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is ours.
    Ours,
    /// It was handed over to this endpoint.
    HandedOver(String),
    /// It is not ours and never will be.
    Leftover,
}

/// Recovers every guest. What the operator should know of it is returned, one line each.
///
/// # Errors
/// When the directory of guests cannot be read. What concerns one guest does not stand against the others.
pub(super) fn recover(host: &Arc<LocalHost>, incoming: &Incoming) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for name in host.state.guests()? {
        let dir = host.state.guest(&name);
        match recover_guest(host, incoming, &name, &dir) {
            Ok(None) => {}
            Ok(Some(note)) => notes.push(note),
            Err(error) => {
                let why = failure::chain(&error);
                notes.push(format!("{name} could not be recovered: {why}"));
                let backend = state_dir::load_spec(&dir)
                    .ok()
                    .flatten()
                    .map(|spec| spec.backend)
                    .unwrap_or_default();
                host.registry.insert(
                    &name,
                    Slot::Stuck {
                        dir,
                        backend,
                        why,
                        vm: None,
                    },
                );
            }
        }
    }
    for note in &notes {
        tracing::warn!("{note}");
    }
    Ok(notes)
}

fn recover_guest(
    host: &Arc<LocalHost>,
    incoming: &Incoming,
    name: &str,
    dir: &Path,
) -> Result<Option<String>> {
    let Some(spec) = state_dir::load_spec(dir)? else {
        state_dir::remove_guest(dir);
        return Ok(None);
    };
    let fate = fate(dir)?;
    let backend = host
        .backend(&spec.backend)
        .map_err(|refusal| anyhow::anyhow!("{}", refusal.line()))?;
    let vm = match backend.reopen(&spec, dir) {
        Ok(vm) if vm.state() == GuestState::Gone => return Ok(forget(name, dir, &fate, "its process ended")),
        Ok(vm) => vm,
        Err(GuestError::Gone { why, .. }) => return Ok(forget(name, dir, &fate, &why)),
        Err(error) if fate == Fate::Leftover => {
            return Err(error).context("it is a leftover of a migration and cannot be ended");
        }
        Err(error) => return Err(error.into()),
    };
    match fate {
        Fate::Leftover => {
            vm.destroy();
            disks::discarded(name, dir, "the daemon ended before its guest had arrived");
            state_dir::remove_guest(dir);
            Ok(Some(format!("{name} was a leftover of a migration: ended")))
        }
        Fate::HandedOver(to) => {
            let outgoing = Outgoing::recover(Arc::clone(&vm), GuestDir::new(dir.to_owned()))?;
            let (member, id) = (
                Member {
                    vm,
                    dir: dir.to_owned(),
                },
                new_id(name),
            );
            host.registry.insert(
                name,
                Slot::Leaving {
                    member,
                    id: id.clone(),
                    to: to.clone(),
                    outgoing: outgoing.clone(),
                },
            );
            host.watch(name, &id, outgoing);
            Ok(Some(format!(
                "{name} was handed over to {to}: its migration is taken up again"
            )))
        }
        Fate::Ours => take_back(host, incoming, &spec, &vm, dir),
    }
}

/// A guest of ours is found again, which is news only in the middle of a migration.
fn take_back(
    host: &Arc<LocalHost>,
    incoming: &Incoming,
    spec: &GuestSpec,
    vm: &Arc<dyn Vm>,
    dir: &Path,
) -> Result<Option<String>> {
    let (name, guest_dir) = (&spec.name, GuestDir::new(dir.to_owned()));
    let member = Member {
        vm: Arc::clone(vm),
        dir: dir.to_owned(),
    };
    let may_be_paused = [Marker::Leaving, Marker::Arriving, Marker::Checkpointed];
    let may_be_paused = may_be_paused
        .into_iter()
        .any(|marker| state_dir::has_marker(dir, marker));
    if let Some(saved) = Saved::load(&guest_dir)? {
        state_dir::clear_marker(dir, Marker::Leaving);
        return host.take_up_resume(name, member, saved).map(Some);
    }
    disks::arrived(dir);
    let note = if guest_dir.page_states().exists() {
        host.registry.insert(
            name,
            Slot::Receiving {
                member,
                id: new_id(name),
            },
        );
        incoming.recover(Arc::clone(vm), guest_dir)?;
        Some(format!("{name} was found again, pages of it still arrive"))
    } else {
        host.samplers.begin(&member);
        host.registry.insert(name, Slot::Here(member));
        tracing::info!("{name} was found again");
        None
    };
    // A migration or a checkpoint had paused it, or had not come to let it run.
    if may_be_paused && vm.state() == GuestState::Paused {
        vm.resume()?;
    }
    state_dir::clear_marker(dir, Marker::Leaving);
    state_dir::clear_marker(dir, Marker::Arriving);
    state_dir::clear_marker(dir, Marker::Checkpointed);
    Ok(note)
}

fn fate(dir: &Path) -> Result<Fate> {
    let arriving = state_dir::has_marker(dir, Marker::Arriving);
    Ok(match Journal::open(dir)?.last() {
        Some(Record::Owner { .. }) => Fate::Ours,
        Some(Record::HandedOver { to, .. }) => Fate::HandedOver(to),
        Some(Record::Declined { .. } | Record::Released { .. }) => Fate::Leftover,
        None if arriving => Fate::Leftover,
        None => Fate::Ours,
    })
}

/// Nothing runs any more. Only a guest that was ours is news.
fn forget(name: &str, dir: &Path, fate: &Fate, why: &str) -> Option<String> {
    if *fate == Fate::Leftover {
        disks::discarded(name, dir, why);
    }
    state_dir::remove_guest(dir);
    match fate {
        Fate::Leftover => None,
        Fate::Ours => Some(format!("{name} is gone: {why}")),
        Fate::HandedOver(to) => Some(format!(
            "what was left of {name} after its handover to {to} is gone: {why}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use vmferry_core::Epoch;

    use super::*;

    #[test]
    fn the_journal_decides_and_the_marker_only_where_it_is_silent() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        assert_eq!(fate(dir).unwrap(), Fate::Ours);
        state_dir::set_marker(dir, Marker::Arriving).unwrap();
        assert_eq!(fate(dir).unwrap(), Fate::Leftover);
        let journal = Journal::open(dir).unwrap();
        let epoch = Epoch(1);
        journal.append(&Record::Owner { epoch }).unwrap();
        assert_eq!(fate(dir).unwrap(), Fate::Ours);
        let (to, session) = ("tcp:b:7120".to_owned(), "00".to_owned());
        journal
            .append(&Record::HandedOver {
                epoch,
                to: to.clone(),
                session,
            })
            .unwrap();
        assert_eq!(fate(dir).unwrap(), Fate::HandedOver(to));
        journal.append(&Record::Released { epoch }).unwrap();
        assert_eq!(fate(dir).unwrap(), Fate::Leftover);
        journal.append(&Record::Declined { epoch }).unwrap();
        assert_eq!(fate(dir).unwrap(), Fate::Leftover);
    }
}
