//! The agent in the guest, asked over its virtio-serial port.
//!
//! The guest is not trusted: what it says is bounded in size and in time, every frame it names must be memory that it
//! has, and the pages it can call free are its own.

mod client;
mod ranges;
mod struct_pages;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};
use vmferry_agent_proto::{Call, FrameRun, LastRun, Use};
use vmferry_core::hints::Class;
use vmferry_core::{Hints, PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{Enlightened, FreeKnowledge, Guest as _, GuestError, GuestLoad, ProcessRan, Result};

use crate::args::{options, value_of};
use crate::guest::QemuGuest;
use crate::physical::GuestPhysicalMap;
use crate::qmp::{Cursor, Event};
use client::{Client, Fault};
use struct_pages::FreeFinder;

/// Comparisons of what the host reads with what the guest's kernel says, until one holds: the guest runs meanwhile.
const CALIBRATIONS: u32 = 3;
/// One in so many of all pages compared may differ.
const DIFFERENCE: u64 = 200;

/// How often it is looked whether somebody else is through with the agent.
const TURN: Duration = Duration::from_millis(5);

/// What is known of the agent of a guest.
#[derive(Default)]
pub(crate) struct AgentState {
    calibrated: Mutex<Option<Calibrated>>,
    /// The connection, where there is one in order. It is kept: an agent that sees nobody has to look now and then.
    client: Mutex<Option<Client>>,
}

/// Free pages can be told by the account of the guest's kernel.
struct Calibrated {
    finder: FreeFinder,
    /// The kernel has not changed if the guest was not reset since.
    since: Cursor,
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

/// The path of the socket behind a port for the agent that QEMU's own arguments make.
fn port_in(args: &[String]) -> Option<String> {
    let values = |name| {
        options(args)
            .filter(move |arg| arg.name == name)
            .filter_map(|arg| arg.value)
    };
    let is_port = |device: &&str| {
        value_of(device, "name").as_deref() == Some(vmferry_agent_proto::PORT)
            && (device.starts_with("virtserialport,")
                || value_of(device, "driver").as_deref() == Some("virtserialport"))
    };
    let chardev = value_of(values("device").find(is_port)?, "chardev")?;
    let socket = values("chardev").find(|value| value_of(value, "id").as_ref() == Some(&chardev))?;
    socket
        .starts_with("socket,")
        .then(|| value_of(socket, "path"))
        .flatten()
}

impl Enlightened for QemuGuest {
    fn enlighten(&self, active_within: Duration, timeout: Duration) -> Result<Hints> {
        let active_within_ms = u32::try_from(active_within.as_millis()).unwrap_or(u32::MAX);
        let found = self.calibrated().as_ref().map(|known| {
            let free = known.finder.find(self.ram());
            (free, known.finder.map().clone())
        });
        let asked = match found {
            // The agent looks only at what is in use: that is where the time goes in a guest with much memory.
            Some((Ok(free), map)) => self.with_agent(timeout, |client| {
                let frames = ranges::outside(&free, &map);
                let call = Call::ClassifyIn {
                    active_within_ms,
                    frames,
                };
                ask_for_map(client, call, &map, Hints::with_free(free))
            }),
            _ => {
                let map = self.physical_map()?;
                let unknown = Hints::new(self.ram().layout().pages());
                let call = Call::Classify { active_within_ms };
                self.with_agent(timeout, |client| ask_for_map(client, call, &map, unknown))
            }
        };
        let mut hints = asked.map_err(|fault| self.agent_error(fault, timeout))?;
        add_rings(&mut hints, &self.ring_pages());
        Ok(hints)
    }

    fn calibrate(&self, timeout: Duration) -> Result<FreeKnowledge> {
        *self.calibrated() = None;
        let since = self.qmp.events().now();
        let map = self.physical_map()?;
        let finder = self
            .with_agent(timeout, |client| self.trusted_finder(client, map))
            .map_err(|fault| self.agent_error(fault, timeout))?;
        match finder {
            Ok(finder) => {
                *self.calibrated() = Some(Calibrated { finder, since });
                Ok(FreeKnowledge::Exact)
            }
            Err(why) => Ok(FreeKnowledge::Listed { why }),
        }
    }

    fn free_while_paused(&self) -> Option<PageBitmap> {
        let mut calibrated = self.calibrated();
        let known = calibrated.as_ref()?;
        let is_reset = |event: &Event| event.name == "RESET";
        if self.qmp.events().may_have_come(known.since, is_reset) {
            *calibrated = None;
            return None;
        }
        let found = known.finder.find(self.ram());
        found
            .inspect_err(|why| warn!(guest = %self.spec.name, %why, "free pages cannot be told"))
            .ok()
    }

    fn load(&self, timeout: Duration) -> Result<GuestLoad> {
        let load = self
            .with_agent(timeout, Client::load)
            .map_err(|fault| self.agent_error(fault, timeout))?;
        Ok(GuestLoad {
            load_averages: load.averages_percent.map(|percent| f64::from(percent) / 100.0),
            memory_total_bytes: load.total_kib.saturating_mul(1024),
            memory_free_bytes: load.free_kib.saturating_mul(1024),
            memory_available_bytes: load.available_kib.saturating_mul(1024),
        })
    }

    fn last_runs(&self, timeout: Duration) -> Result<Vec<ProcessRan>> {
        let runs = self
            .with_agent(timeout, Client::last_runs)
            .map_err(|fault| self.agent_error(fault, timeout))?;
        let ran = |run: LastRun| ProcessRan {
            pid: run.pid,
            name: run.name,
            ago_ms: run.ago_ms,
        };
        Ok(runs.into_iter().map(ran).collect())
    }
}

impl QemuGuest {
    /// The socket of the agent's port, where the guest has one: vmferry's, or one that somebody gave it.
    pub(crate) fn agent_socket(&self) -> Option<PathBuf> {
        if self.config.agent {
            return Some(socket_path(&self.dir));
        }
        let path = port_in(&self.config.args)?;
        // Relative paths are relative to where QEMU was started.
        Some(match path.starts_with('/') {
            true => path.into(),
            false => format!("/proc/{}/cwd/{path}", self.process.pid()).into(),
        })
    }

    /// Lets `talk` talk to the agent.
    fn with_agent<T>(
        &self,
        timeout: Duration,
        talk: impl FnOnce(&mut Client) -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        let asked = Instant::now();
        let mut kept = self.client_within(timeout)?;
        let left = timeout.saturating_sub(asked.elapsed());
        let mut client = match kept.take() {
            Some(mut client) => {
                client.renew(left);
                client
            }
            None => {
                let socket = self.agent_socket().ok_or(Fault::NoPort)?;
                Client::connect(&socket, left)?
            }
        };
        let said = talk(&mut client);
        // After anything else the rest of an answer may still come.
        if matches!(said, Ok(_) | Err(Fault::Refused(_))) {
            *kept = Some(client);
        }
        said
    }

    /// The connection, once nobody else talks to the agent: others may have more patience with it.
    fn client_within(&self, timeout: Duration) -> std::result::Result<MutexGuard<'_, Option<Client>>, Fault> {
        let asked = Instant::now();
        loop {
            match self.agent.client.try_lock() {
                Ok(client) => return Ok(client),
                Err(TryLockError::Poisoned(client)) => return Ok(client.into_inner()),
                Err(TryLockError::WouldBlock) if asked.elapsed() < timeout => thread::sleep(TURN),
                Err(TryLockError::WouldBlock) => return Err(Fault::Silent),
            }
        }
    }

    /// A finder of free pages whose answer was found right: what it finds between two answers of the guest's kernel is
    /// what both say. Else why there is none.
    fn trusted_finder(
        &self,
        client: &mut Client,
        map: GuestPhysicalMap,
    ) -> std::result::Result<std::result::Result<FreeFinder, String>, Fault> {
        let finder = match client
            .kernel()?
            .and_then(|struct_pages| FreeFinder::new(struct_pages, map))
        {
            Ok(finder) => finder,
            Err(why) => return Ok(Err(why)),
        };
        let nothing = || Hints::new(self.ram().layout().pages());
        let (frames, compared) = ranges::sample(finder.map(), nothing().pages());
        let call = || Call::FreeIn {
            frames: frames.clone(),
        };
        let mut last = (0, 0);
        for _ in 0..CALIBRATIONS {
            let before = ask_for_map(client, call(), finder.map(), nothing())?;
            let mut found = match finder.find(self.ram()) {
                Ok(found) => found,
                Err(why) => return Ok(Err(why)),
            };
            let after = ask_for_map(client, call(), finder.map(), nothing())?;
            found.intersect_with(&compared);
            last = differences(before.free(), &found, after.free());
            debug!(guest = %self.spec.name, too_many = last.0, too_few = last.1, free = found.count(), "calibrated");
            if last.0.max(last.1) <= compared.count() / DIFFERENCE {
                return Ok(Ok(finder));
            }
        }
        Ok(Err(format!(
            "by its own words its kernel's account shows {} pages too many as free and {} too few",
            last.0, last.1
        )))
    }

    fn calibrated(&self) -> MutexGuard<'_, Option<Calibrated>> {
        self.agent
            .calibrated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn agent_error(&self, fault: Fault, timeout: Duration) -> GuestError {
        let operation = match &fault {
            Fault::Silent => format!(
                "asking the agent in {} (no answer within {} ms; is vmferry-agent running in it?)",
                self.spec.name,
                timeout.as_micros().div_ceil(1000)
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

/// The classes of the pages, by a call whose answer is a map; `hints` is what is known without it.
fn ask_for_map(
    client: &mut Client,
    call: Call,
    map: &GuestPhysicalMap,
    mut hints: Hints,
) -> std::result::Result<Hints, Fault> {
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

/// The pages of rings are memory that devices are talked to through, unless they are of a more urgent class. The agent cannot
/// know: to the guest's kernel they are pages like others.
fn add_rings(hints: &mut Hints, rings: &[PageRun]) {
    for page in rings.iter().flat_map(|run| run.pages()) {
        if hints.class_of(page) > Class::MemoryIo {
            hints.set(PageRun::single(page), Class::MemoryIo);
        }
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
    use super::*;

    fn set(runs: &[(u64, u64)]) -> PageBitmap {
        let mut set = PageBitmap::new(1000);
        runs.iter()
            .for_each(|&(first, count)| set.insert_run(PageRun::new(first, count)));
        set
    }

    #[test]
    fn a_port_that_somebody_gave_is_found() {
        let args = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let port = "-device virtio-serial-pci -chardev socket,id=qga,path=/run/qga,server=on \
                    -chardev socket,id=a,path=/run/agent,server=on,wait=off \
                    -device virtserialport,chardev=qga,name=org.qemu.guest_agent.0 \
                    -device virtserialport,chardev=a,name=org.vmferry.agent.0";
        assert_eq!(port_in(&args(port)).as_deref(), Some("/run/agent"));
        assert_eq!(port_in(&args(&port.replace("vmferry", "other"))), None);
        assert_eq!(port_in(&args(&port.replace("socket,id=a", "pty,id=a"))), None);
    }

    #[test]
    fn rings_are_memory_of_devices_unless_they_are_more() {
        let mut hints = Hints::new(100);
        hints.set(PageRun::new(0, 10), Class::KernelAllocated);
        hints.set(PageRun::new(20, 10), Class::Free);
        add_rings(&mut hints, &[PageRun::new(8, 4), PageRun::single(25)]);
        let found = [8, 9, 10, 11, 12, 25, 26].map(|page| hints.class_of(page));
        let (kernel, io) = (Class::KernelAllocated, Class::MemoryIo);
        assert_eq!(found, [kernel, kernel, io, io, Class::Other, io, Class::Free]);
        assert!(!hints.free().contains(25) && hints.free().contains(26));
    }

    #[test]
    fn what_changed_between_two_answers_is_no_difference() {
        let (before, after) = (set(&[(0, 100)]), set(&[(50, 100)]));
        assert_eq!(differences(&before, &set(&[(50, 50)]), &after), (0, 0));
        assert_eq!(differences(&before, &set(&[(0, 150)]), &after), (0, 0));
        assert_eq!(differences(&before, &set(&[(60, 100)]), &after), (10, 10));
    }
}
