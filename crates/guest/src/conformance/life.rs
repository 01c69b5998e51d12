//! A guest's life: running, paused, gone.

use std::time::Duration;

use super::snapshot::{Snapshot, some_of};
use super::{Check, Held, Outcome, Problem, Subject, demand, demand_error, demand_intact};
use crate::guest::GuestState;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "pausing and resuming can be repeated",
            check: pause_resume,
        },
        Check {
            name: "a paused guest writes nothing",
            check: paused_is_still,
        },
        Check {
            name: "untouched memory is a hole",
            check: untouched_is_hole,
        },
        Check {
            name: "operations in a wrong state are refused",
            check: wrong_states,
        },
        Check {
            name: "a guest can be ended at any time, more than once",
            check: destroy,
        },
        Check {
            name: "a guest goes on after its device state was saved",
            check: save_and_go_on,
        },
    ]
}

fn pause_resume(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    demand_state(&guest, GuestState::Running)?;
    for _ in 0..3 {
        guest.pause()?;
        guest.pause()?;
        demand_state(&guest, GuestState::Paused)?;
        demand_intact(subject, &*guest)?;
        guest.resume()?;
        guest.resume()?;
        demand_state(&guest, GuestState::Running)?;
        subject.let_run(&*guest);
    }
    Ok(())
}

fn paused_is_still(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    subject.let_run(&*guest);
    guest.pause()?;
    let before = Snapshot::of(guest.ram())?;
    std::thread::sleep(Duration::from_millis(50));
    let still = Snapshot::of(guest.ram())?.changed(&before);
    demand(still.is_empty(), || {
        format!("{} changed while the guest was paused", some_of(&still))
    })?;
    guest.resume()?;
    subject.let_run(&*guest);
    guest.pause()?;
    let changed = Snapshot::of(guest.ram())?.changed(&before);
    demand(!changed.is_empty() || !subject.is_busy(), || {
        "the guest wrote nothing after it was resumed".into()
    })
}

fn untouched_is_hole(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    guest.pause()?;
    let data = guest.ram().data_pages()?.count();
    let pages = guest.ram().layout().pages();
    demand(data < pages, || format!("all {pages} pages hold data"))?;
    let mut tracker = guest.dirty_tracker()?;
    tracker.arm()?;
    let armed = guest.ram().data_pages()?.count();
    demand(armed == data, || {
        format!("arming the tracker turned {} holes into data", armed - data)
    })?;
    let incoming = Held::incoming(subject, &guest);
    demand_state(&incoming, GuestState::Incoming)?;
    let layouts = (guest.ram().layout(), incoming.ram().layout());
    demand(layouts.0 == layouts.1, || {
        format!("the layouts differ: {layouts:?}")
    })?;
    let there = incoming.ram().data_pages()?;
    demand(there.is_empty(), || {
        format!("{} hold data at the destination already", some_of(&there))
    })
}

fn wrong_states(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    demand_error(
        source.save_device_state(),
        "saving the device state of a running guest",
    )?;
    demand_state(&source, GuestState::Running)?;
    source.pause()?;
    let state = source.save_device_state()?;
    demand_error(
        source.load_device_state(&state),
        "loading a device state into a guest that has one",
    )?;
    source.resume()?;
    demand_state(&source, GuestState::Running)?;
    let incoming = Held::incoming(subject, &source);
    demand_error(incoming.resume(), "resuming a guest without a device state")?;
    demand_error(
        incoming.save_device_state(),
        "saving the device state of a guest without one",
    )?;
    demand_error(
        incoming.reopen_page_faults(),
        "reopening page faults that were never opened",
    )?;
    demand_state(&incoming, GuestState::Incoming)
}

fn destroy(subject: &dyn Subject) -> Outcome {
    let running = Held::source(subject);
    let paused = Held::source(subject);
    paused.pause()?;
    let incoming = Held::incoming(subject, &paused);
    for guest in [&running, &paused, &incoming] {
        guest.destroy();
        guest.destroy();
        demand_state(guest, GuestState::Gone)?;
        demand_error(guest.pause(), "pausing a guest that is gone")?;
        demand_error(guest.resume(), "resuming a guest that is gone")?;
        demand_error(
            guest.save_device_state(),
            "saving the device state of a guest that is gone",
        )?;
    }
    Ok(())
}

fn save_and_go_on(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    for _ in 0..2 {
        guest.prepare_out()?;
        guest.before_stop()?;
        guest.pause()?;
        let before = Snapshot::of(guest.ram())?;
        let state = guest.save_device_state()?;
        demand(!state.is_empty(), || "the device state is empty".into())?;
        demand_state(&guest, GuestState::Paused)?;
        let changed = Snapshot::of(guest.ram())?.changed(&before);
        demand(changed.is_empty(), || {
            format!("saving the device state changed {}", some_of(&changed))
        })?;
        guest.resume()?;
        subject.let_run(&*guest);
        guest.pause()?;
        demand_intact(subject, &*guest)?;
        let changed = Snapshot::of(guest.ram())?.changed(&before);
        demand(!changed.is_empty() || !subject.is_busy(), || {
            "the guest does not go on".into()
        })?;
        guest.resume()?;
    }
    Ok(())
}

fn demand_state(guest: &Held, expected: GuestState) -> Outcome {
    match guest.state() {
        found if found == expected => Ok(()),
        found => Err(Problem(format!("the guest is {found:?}, expected {expected:?}"))),
    }
}
