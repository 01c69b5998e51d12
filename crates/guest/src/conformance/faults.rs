//! A guest that runs before its memory is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmferry_core::{PageBitmap, PageRun};

use super::snapshot::{Snapshot, chunks, copy, page_of, read, some_of};
use super::{Check, Held, Outcome, Problem, Subject, demand, demand_intact};
use crate::guest::{FaultMode, GuestState, Installed, PageFaults};
use crate::ram::GuestRam;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "pages are installed once and whole",
            check: install,
        },
        Check {
            name: "a guest runs on pages it faults in",
            check: post_copy,
        },
        Check {
            name: "pages that are out of date fault before they are seen",
            check: stale_pages,
        },
        Check {
            name: "all pages arrive at a guest that stays paused",
            check: post_copy_paused,
        },
        Check {
            name: "faults survive whoever serves them",
            check: reopen,
        },
        Check {
            name: "a guest can be ended while it waits for a page",
            check: destroy_while_waiting,
        },
    ]
}

/// Installing, seen through the memory file. The guest does not run.
fn install(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    source.pause()?;
    let guest = Held::incoming(subject, &source);
    // Written before faults are on, as a push phase does.
    guest.ram().write(PageRun::single(1), &page_of(1));
    let faults = guest.page_faults(FaultMode::Missing)?;
    let install = |run: PageRun, byte: u8| faults.install(run, &page_of(byte).repeat(run.count as usize));
    let expect = |page: u64, byte: u8| {
        let found = guest.ram().uniform_byte(page);
        demand(found == Some(byte), || {
            format!("page {page} holds {found:?}, expected {byte}")
        })
    };
    let demand_installed = |found: Installed, expected: Installed, what: &str| {
        demand(found == expected, || {
            format!("{what}: {found:?}, expected {expected:?}")
        })
    };
    demand_installed(
        install(PageRun::single(4), 4)?,
        Installed::Fresh,
        "a page that was a hole",
    )?;
    expect(4, 4)?;
    demand_installed(
        install(PageRun::single(4), 5)?,
        Installed::SomePresent,
        "a page that was installed",
    )?;
    expect(4, 4)?;
    demand_installed(
        install(PageRun::single(1), 5)?,
        Installed::SomePresent,
        "a page that was written",
    )?;
    expect(1, 1)?;
    demand_installed(
        faults.install_zero(PageRun::single(4))?,
        Installed::SomePresent,
        "zeros on a page",
    )?;
    expect(4, 4)?;
    demand_installed(
        install(PageRun::new(2, 6), 6)?,
        Installed::SomePresent,
        "a run around a page",
    )?;
    for (page, byte) in [(1, 1), (2, 6), (3, 6), (4, 4), (5, 6), (6, 6), (7, 6)] {
        expect(page, byte)?;
    }
    demand_installed(
        faults.install_zero(PageRun::new(8, 4))?,
        Installed::Fresh,
        "zeros in a hole",
    )?;
    demand_installed(
        install(PageRun::new(8, 4), 9)?,
        Installed::SomePresent,
        "pages of zeros",
    )?;
    expect(8, 0)?;
    let beyond: Vec<_> = guest
        .ram()
        .data_pages()?
        .pages()
        .filter(|&page| page > 11)
        .collect();
    demand(beyond.is_empty(), || {
        format!("pages {beyond:?} appeared that nobody installed")
    })?;
    faults.release()?;
    faults.release()?;
    Ok(())
}

/// Serves the faults of a destination out of the RAM of a paused source.
struct Server<'a> {
    source: &'a GuestRam,
    /// Pages of the source that are not zero.
    data: PageBitmap,
    destination: &'a GuestRam,
    /// Pages the destination holds an old version of: written once they are wanted.
    stale: PageBitmap,
    /// Pages the destination holds the last version of.
    present: PageBitmap,
    /// What the guest asked for.
    asked: PageBitmap,
}

impl<'a> Server<'a> {
    fn new(source: &'a Held, destination: &'a Held) -> Outcome<Self> {
        let none = PageBitmap::new(source.ram().layout().pages());
        Ok(Self {
            source: source.ram(),
            data: source.ram().data_pages()?,
            destination: destination.ram(),
            stale: none.clone(),
            present: none.clone(),
            asked: none,
        })
    }

    /// Serves faults until `done`.
    fn serve_until(&mut self, faults: &dyn PageFaults, done: &AtomicBool) -> Outcome {
        let mut pages = Vec::new();
        while !done.load(Ordering::Acquire) {
            faults.wait(Duration::from_millis(5), &mut pages)?;
            for page in pages.drain(..) {
                demand(page < self.data.len(), || {
                    format!("a fault on page {page}, which is outside of RAM")
                })?;
                self.asked.insert(page);
                self.give(faults, page)?;
            }
        }
        Ok(())
    }

    /// Sees to it that the guest has the last version of `page`.
    fn give(&mut self, faults: &dyn PageFaults, page: u64) -> Outcome {
        let run = PageRun::single(page);
        if self.stale.remove(page) {
            self.destination.write(run, &read(self.source, run));
            self.present.insert(page);
        }
        if self.present.contains(page) {
            faults.reveal(run)?;
        } else if self.data.contains(page) {
            faults.install(run, &read(self.source, run))?;
        } else {
            faults.install_zero(run)?;
        }
        Ok(())
    }

    /// Gives everything that is still to be given, run by run.
    fn give_the_rest(&mut self, faults: &dyn PageFaults) -> Outcome {
        for run in chunks(&self.stale) {
            self.destination.write(run, &read(self.source, run));
        }
        self.present.union_with(&self.stale);
        self.stale.clear();
        for run in chunks(&self.present) {
            faults.reveal(run)?;
        }
        let mut missing = self.data.clone();
        missing.subtract(&self.present);
        for run in chunks(&missing) {
            faults.install(run, &read(self.source, run))?;
        }
        Ok(())
    }
}

/// Runs `guest_side` while `server` serves what it faults on.
fn while_serving(
    server: &mut Server<'_>,
    faults: &dyn PageFaults,
    guest_side: impl FnOnce() -> Outcome,
) -> Outcome {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve_until(faults, &done).map_err(|Problem(found)| found));
        let outcome = guest_side();
        done.store(true, Ordering::Release);
        let served = serving
            .join()
            .map_err(|_| Problem("serving faults panicked".into()))?;
        outcome.and(served.map_err(Problem))
    })
}

fn post_copy(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    subject.let_run(&*source);
    source.pause()?;
    let state = source.save_device_state()?;
    let destination = Held::incoming(subject, &source);
    let faults = destination.page_faults(FaultMode::Missing)?;
    let mut server = Server::new(&source, &destination)?;
    run_on_faults(subject, &mut server, &destination, &faults, &state)?;
    demand(!server.asked.is_empty() || !subject.is_busy(), || {
        "the guest never faulted".into()
    })?;
    complete(subject, server, &destination, &*faults)
}

/// The source runs on after its pages were pushed, so that many of them are out of date.
fn stale_pages(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    subject.let_run(&*source);
    source.pause()?;
    let destination = Held::incoming(subject, &source);
    let pushed = source.ram().data_pages()?;
    copy(source.ram(), destination.ram(), &pushed);
    let before = Snapshot::of(source.ram())?;
    source.resume()?;
    subject.let_run(&*source);
    source.pause()?;
    let state = source.save_device_state()?;
    let faults = destination.page_faults(FaultMode::MissingAndStale)?;
    let mut server = Server::new(&source, &destination)?;
    server.stale = Snapshot::of(source.ram())?.changed(&before);
    server.stale.intersect_with(&pushed);
    server.present = pushed;
    server.present.subtract(&server.stale);
    let demanded = subject.is_busy();
    demand(!server.stale.is_empty() || !demanded, || {
        "no page is out of date".into()
    })?;
    run_on_faults(subject, &mut server, &destination, &faults, &state)?;
    complete(subject, server, &destination, &*faults)
}

/// Loads the device state and runs the guest while its faults are served.
fn run_on_faults(
    subject: &dyn Subject,
    server: &mut Server<'_>,
    destination: &Held,
    faults: &Arc<dyn PageFaults>,
    state: &[u8],
) -> Outcome {
    while_serving(server, &**faults, || {
        destination.load_device_state(state)?;
        destination.resume()?;
        subject.let_run(&**destination);
        Ok(())
    })
}

/// The push that follows, with the guest running; then it is on its own.
fn complete(
    subject: &dyn Subject,
    mut server: Server<'_>,
    destination: &Held,
    faults: &dyn PageFaults,
) -> Outcome {
    server.give_the_rest(faults)?;
    // Nothing is served from here on: what is not there by now is zero.
    faults.release()?;
    subject.let_run(&**destination);
    destination.pause()?;
    demand_intact(subject, &**destination)?;
    let before = Snapshot::of(destination.ram())?;
    destination.resume()?;
    subject.let_run(&**destination);
    destination.pause()?;
    demand_intact(subject, &**destination)?;
    let changed = Snapshot::of(destination.ram())?.changed(&before);
    demand(!changed.is_empty() || !subject.is_busy(), || {
        "the guest does not go on after the release".into()
    })
}

/// Nothing writes at the destination, so RAM must be equal but for what loading the device state touched.
fn post_copy_paused(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    subject.let_run(&*source);
    source.pause()?;
    let state = source.save_device_state()?;
    let destination = Held::incoming(subject, &source);
    let faults = destination.page_faults(FaultMode::Missing)?;
    let mut server = Server::new(&source, &destination)?;
    while_serving(&mut server, &*faults, || {
        Ok(destination.load_device_state(&state)?)
    })?;
    server.give_the_rest(&*faults)?;
    faults.release()?;
    let mut differing = Snapshot::of(destination.ram())?.changed(&Snapshot::of(source.ram())?);
    differing.subtract(&server.asked);
    demand(differing.is_empty(), || {
        format!("{} differ at the destination", some_of(&differing))
    })
}

/// Whoever serves takes a few faults, does not answer them, and is gone. Who comes next must hear of them.
fn reopen(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    subject.let_run(&*source);
    source.pause()?;
    let state = source.save_device_state()?;
    let destination = Held::incoming(subject, &source);
    let faults = destination.page_faults(FaultMode::Missing)?;
    let mut server = Server::new(&source, &destination)?;
    while_serving(&mut server, &*faults, || {
        Ok(destination.load_device_state(&state)?)
    })?;
    destination.resume()?;
    let mut lost = Vec::new();
    for _ in 0..20 {
        faults.wait(Duration::from_millis(5), &mut lost)?;
    }
    demand(!lost.is_empty() || !subject.is_busy(), || {
        "the guest never faulted".into()
    })?;
    drop(faults);
    let faults = destination.reopen_page_faults()?;
    let before = server.asked.count();
    while_serving(&mut server, &*faults, || {
        subject.let_run(&*destination);
        Ok(())
    })?;
    demand(server.asked.count() > before || lost.is_empty(), || {
        "faults taken before were not heard of again".into()
    })?;
    complete(subject, server, &destination, &*faults)
}

fn destroy_while_waiting(subject: &dyn Subject) -> Outcome {
    let source = Held::source(subject);
    source.pause()?;
    let state = source.save_device_state()?;
    let destination = Held::incoming(subject, &source);
    let faults = destination.page_faults(FaultMode::Missing)?;
    let mut server = Server::new(&source, &destination)?;
    while_serving(&mut server, &*faults, || {
        Ok(destination.load_device_state(&state)?)
    })?;
    destination.resume()?;
    std::thread::sleep(Duration::from_millis(20));
    destination.destroy();
    demand(destination.state() == GuestState::Gone, || {
        "the guest is not gone".into()
    })
}
