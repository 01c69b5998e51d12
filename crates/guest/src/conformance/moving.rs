//! A guest that moves while nothing faults: all of RAM is in place before it runs.

use vmferry_core::PageBitmap;

use super::snapshot::{Snapshot, copy, some_of};
use super::{Check, Held, Outcome, Subject, demand, demand_error, demand_intact};
use crate::guest::GuestState;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "a paused guest moves",
            check: stop_and_copy,
        },
        Check {
            name: "a running guest moves by rounds",
            check: pre_copy,
        },
        Check {
            name: "a device state that is garbage is refused",
            check: garbage,
        },
    ]
}

fn stop_and_copy(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    subject.let_run(&*source);
    source.pause()?;
    let destination = Held::incoming(subject, &source);
    copy(source.ram(), destination.ram(), &source.ram().data_pages()?);
    hand_over(subject, &source, &destination)
}

fn pre_copy(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    let destination = Held::incoming(subject, &source);
    source.pause()?;
    let mut tracker = source.dirty_tracker()?;
    tracker.arm()?;
    source.resume()?;
    copy(source.ram(), destination.ram(), &source.ram().data_pages()?);
    let mut round = || -> Outcome {
        let mut dirty = PageBitmap::new(source.ram().layout().pages());
        tracker.scan(&mut dirty)?;
        copy(source.ram(), destination.ram(), &dirty);
        Ok(())
    };
    for _ in 0..5 {
        subject.let_run(&*source);
        round()?;
    }
    source.pause()?;
    round()?;
    drop(tracker);
    hand_over(subject, &source, &destination)
}

/// The end of a migration of the paused guest `source`, whose RAM has arrived.
fn hand_over(subject: &dyn Subject, source: &Held, destination: &Held) -> Outcome {
    let at_stop = Snapshot::of(source.ram())?;
    let differing = Snapshot::of(destination.ram())?.changed(&at_stop);
    demand(differing.is_empty(), || {
        format!("{} differ at the destination", some_of(&differing))
    })?;
    destination.prepare_load()?;
    let mut state = Vec::new();
    let bytes = source.stream_device_state(&mut state)?;
    demand(bytes == state.len() as u64, || {
        format!(
            "{} bytes of device state came, {bytes} by its own account",
            state.len()
        )
    })?;
    destination.load_device_state(&state)?;
    source.confirm_device_state()?;
    demand(destination.state() == GuestState::Paused, || {
        format!(
            "with its device state loaded the guest is {:?}",
            destination.state()
        )
    })?;
    demand_intact(subject, &**destination)?;
    destination.resume()?;
    destination.announce()?;
    subject.let_run(&**destination);
    destination.pause()?;
    demand_intact(subject, &**destination)?;
    let went_on = !Snapshot::of(destination.ram())?.changed(&at_stop).is_empty();
    demand(went_on || !subject.is_busy(), || {
        "the guest does not go on at the destination".into()
    })?;
    let at_source = Snapshot::of(source.ram())?.changed(&at_stop);
    demand(at_source.is_empty(), || {
        format!("{} changed at the source after the handover", some_of(&at_source))
    })?;
    demand(source.state() == GuestState::Paused, || {
        format!("the source is {:?}", source.state())
    })?;
    source.destroy();
    destination.resume()?;
    subject.let_run(&**destination);
    destination.pause()?;
    demand_intact(subject, &**destination)
}

fn garbage(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    source.pause()?;
    let state = source.save_device_state()?;
    let mut damaged = state.clone();
    damaged[..16.min(state.len())].fill(0xa5);
    for bad in [b"garbage".to_vec(), state[..state.len() / 2].to_vec(), damaged] {
        let destination = Held::incoming(subject, &source);
        copy(source.ram(), destination.ram(), &source.ram().data_pages()?);
        demand_error(
            destination.load_device_state(&bad),
            "a device state that is garbage",
        )?;
        demand_error(
            destination.resume(),
            "resuming after a device state that is garbage",
        )?;
        destination.destroy();
        demand(destination.state() == GuestState::Gone, || {
            "the guest cannot be ended".into()
        })?;
    }
    source.resume()?;
    subject.let_run(&*source);
    source.pause()?;
    demand_intact(subject, &*source)
}
