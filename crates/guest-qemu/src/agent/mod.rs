//! The agent in the guest, asked over its virtio-serial port.
//!
//! The guest is not trusted: what it says is bounded in size and in time, every frame it names must be memory that it
//! has, and the pages it can call free are its own.

mod client;
mod struct_pages;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::{debug, warn};
use vmferry_agent_proto::{Call, FrameRun, StructPages, Use};
use vmferry_core::hints::Class;
use vmferry_core::{Hints, PAGE_SIZE, PageBitmap};
use vmferry_guest::{Enlightened, Guest as _, GuestError, Result};

use crate::guest::QemuGuest;
use crate::physical::GuestPhysicalMap;
use client::{Client, Fault};
use struct_pages::FreeFinder;

/// Comparisons of what the host reads with what the guest's kernel says, until one holds: the guest runs meanwhile.
const CALIBRATIONS: u32 = 3;
/// One in so many of all pages may differ in a comparison.
const DIFFERENCE: u64 = 200;

/// What is known of the agent of a guest.
#[derive(Default)]
pub(crate) struct AgentState {
    finder: Mutex<Option<FreeFinder>>,
}

/// The socket of the agent's port within the guest's directory.
pub(crate) fn socket_path(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

/// The arguments of QEMU that make the port.
pub(crate) fn port_args(socket: &str) -> [String; 6] {
    [
        "-device".into(),
        "virtio-serial-pci,id=vmferry.serial".into(),
        "-chardev".into(),
        format!("socket,id=vmferry.agent,path={socket},server=on,wait=off"),
        "-device".into(),
        format!(
            "virtserialport,bus=vmferry.serial.0,chardev=vmferry.agent,name={}",
            vmferry_agent_proto::PORT
        ),
    ]
}

impl Enlightened for QemuGuest {
    fn enlighten(&self, active_within: Duration, timeout: Duration) -> Result<Hints> {
        let map = self.physical_map()?;
        let active_within_ms = u32::try_from(active_within.as_millis()).unwrap_or(u32::MAX);
        let call = Call::Classify { active_within_ms };
        self.agent_client(timeout)
            .and_then(|mut client| ask_for_map(&mut client, call, &map, self.ram().layout().pages()))
            .map_err(|fault| self.agent_error(fault, timeout))
    }

    fn calibrate(&self, timeout: Duration) -> Result<()> {
        let map = self.physical_map()?;
        let finder = self
            .agent_client(timeout)
            .and_then(|mut client| self.calibrated(&mut client, map))
            .map_err(|fault| self.agent_error(fault, timeout))?;
        *self.finder() = Some(finder);
        Ok(())
    }

    fn free_while_paused(&self) -> Option<PageBitmap> {
        let found = self.finder().as_ref()?.find(self.ram());
        found
            .inspect_err(|why| warn!(guest = %self.spec.name, %why, "free pages cannot be told"))
            .ok()
    }
}

impl QemuGuest {
    fn agent_client(&self, timeout: Duration) -> std::result::Result<Client, Fault> {
        Client::connect(&socket_path(&self.dir), timeout)
    }

    /// A finder of free pages whose answer was found right: what it finds between two answers of the guest's kernel is
    /// what both say.
    fn calibrated(
        &self,
        client: &mut Client,
        map: GuestPhysicalMap,
    ) -> std::result::Result<FreeFinder, Fault> {
        let struct_pages: StructPages = client.kernel()?;
        let pages = self.ram().layout().pages();
        let finder = FreeFinder::new(struct_pages, map).map_err(Fault::Lie)?;
        let mut last = (0, 0);
        for _ in 0..CALIBRATIONS {
            let before = ask_for_map(client, Call::Free, finder.map(), pages)?;
            let found = finder.find(self.ram()).map_err(Fault::Lie)?;
            let after = ask_for_map(client, Call::Free, finder.map(), pages)?;
            last = differences(before.free(), &found, after.free());
            debug!(guest = %self.spec.name, too_many = last.0, too_few = last.1, free = found.count(), "calibrated");
            if last.0.max(last.1) <= pages / DIFFERENCE {
                return Ok(finder);
            }
        }
        Err(Fault::Lie(format!(
            "by its own words its kernel's account shows {} pages too many as free and {} too few",
            last.0, last.1
        )))
    }

    fn finder(&self) -> std::sync::MutexGuard<'_, Option<FreeFinder>> {
        self.agent.finder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agent_error(&self, fault: Fault, timeout: Duration) -> GuestError {
        let operation = match &fault {
            Fault::Silent => format!(
                "asking the agent in {} (no answer within {timeout:?}; is vmferry-agent running in it?)",
                self.spec.name
            ),
            _ => format!("asking the agent in {}", self.spec.name),
        };
        GuestError::operation(operation, fault)
    }
}

/// Pages found free that were not before nor are after, and pages not found that were both.
fn differences(before: &PageBitmap, found: &PageBitmap, after: &PageBitmap) -> (u64, u64) {
    let mut too_many = found.clone();
    too_many.subtract(before);
    too_many.subtract(after);
    let mut too_few = before.clone();
    too_few.intersect_with(after);
    too_few.subtract(found);
    (too_many.count(), too_few.count())
}

/// The classes of the pages, by a call whose answer is a map.
fn ask_for_map(
    client: &mut Client,
    call: Call,
    map: &GuestPhysicalMap,
    pages: u64,
) -> std::result::Result<Hints, Fault> {
    let mut hints = Hints::new(pages);
    let mut stranger = None;
    client.map(call, map.end() / PAGE_SIZE, |run| {
        if let Use::Is(class) = run.is
            && !place(run, class, map, &mut hints)
        {
            stranger.get_or_insert(run);
        }
    })?;
    match stranger {
        None => Ok(hints),
        Some(FrameRun { first, count, .. }) => Err(Fault::Lie(format!(
            "among frames {first}..{} are some that are no memory of the guest",
            first + count
        ))),
    }
}

/// Puts a run of frames in its place; whether all of them are memory.
fn place(run: FrameRun, class: Class, map: &GuestPhysicalMap, hints: &mut Hints) -> bool {
    let mut placed = 0;
    for pages in map.pages_in(run.first..run.first + run.count) {
        hints.set(pages, class);
        placed += pages.count;
    }
    placed == run.count
}

#[cfg(test)]
mod tests {
    use vmferry_core::PageRun;

    use super::*;

    fn set(runs: &[(u64, u64)]) -> PageBitmap {
        let mut set = PageBitmap::new(1000);
        runs.iter()
            .for_each(|&(first, count)| set.insert_run(PageRun::new(first, count)));
        set
    }

    #[test]
    fn what_changed_between_two_answers_is_no_difference() {
        let (before, after) = (set(&[(0, 100)]), set(&[(50, 100)]));
        assert_eq!(differences(&before, &set(&[(50, 50)]), &after), (0, 0));
        assert_eq!(differences(&before, &set(&[(0, 150)]), &after), (0, 0));
        assert_eq!(differences(&before, &set(&[(60, 100)]), &after), (10, 10));
    }
}
