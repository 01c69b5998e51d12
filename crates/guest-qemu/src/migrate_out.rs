//! A QEMU guest as the source of a migration.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{
    DirtyTracker, Disks, Enlightened, GuestError, GuestState, MigrateOut, Result, WriteHolds,
};

use crate::args::options;
use crate::guest::{Phase, QemuGuest};
use crate::physical::names_backend;
use crate::qmp::commands::{
    Capability, GetFd, Migrate, MigrateCancel, MigrateSetCapabilities, MigrateSetParameters, QomList,
    QueryMigrate, QueryNamedBlockNodes,
};
use crate::qmp::{Cursor, Event, Schema};
use crate::tracker::QemuTracker;
use crate::write_holds::QemuWriteHolds;

/// Under this name QEMU holds its end of the device state's socket.
pub(crate) const STATE_FD_NAME: &str = "vmferry-state";
/// The capability that leaves shared RAM out of QEMU's own stream.
const IGNORE_SHARED: &str = "x-ignore-shared";
/// Device state beside RAM blocks that is still taken for device state.
const STATE_SLACK_BYTES: u64 = 64 << 20;
/// Bytes of device state that are read at once.
const STATE_PART_BYTES: usize = 64 << 10;
/// What is being done, in errors.
const SAVING: &str = "saving the device state";
/// How long QEMU may be silent while it saves its state.
const SAVE_TIMEOUT: Duration = Duration::from_secs(30);
/// QEMU's own limits must not slow the stop: everything the state holds goes at once.
const MAX_BANDWIDTH: u64 = 1 << 50;
/// The longest downtime QEMU lets us ask for, in milliseconds.
const MAX_DOWNTIME_MS: u64 = 2_000_000;
/// Devices that write to RAM from outside of QEMU's mappings, or cannot be moved.
const FOREIGN_WRITERS: &[(&str, &str)] = &[
    (
        "vfio",
        "a device passed through writes to RAM unseen: unplug it before the migration",
    ),
    (
        "vhost-user",
        "its back end writes to RAM through a mapping of its own, unseen: use an in-QEMU device",
    ),
    (
        "vhost-vdpa",
        "the device writes to RAM unseen: unplug it before the migration",
    ),
    (
        "ivshmem",
        "its memory is shared with others on this host: unplug it before the migration",
    ),
];

/// The device state on its way out.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// Our end of a socket whose other end QEMU holds.
    socket: Option<UnixStream>,
    /// QEMU saves since then, and its last word on it has not been looked at.
    began: Option<Cursor>,
}

impl MigrateOut for QemuGuest {
    fn prepare_out(&self) -> Result<()> {
        match *self.phase() {
            Phase::Live => {}
            Phase::Saved => {
                return Err(self.wrong_state("saved by an earlier migration", "running or paused"));
            }
            Phase::Incoming => return Err(self.wrong_state("incoming", "running or paused")),
            Phase::Broken => return Err(self.wrong_state("broken by a failed load", "running or paused")),
        }
        if self.record.fault_mode().is_some() {
            return Err(self.wrong_state("still receiving its memory", "whole"));
        }
        let schema = self.asked(self.qmp.schema(), "asking QEMU what it can do")?;
        self.check_devices()?;
        let blocked = self
            .run(&QueryMigrate {}, "asking QEMU about migration")?
            .blocked_reasons;
        if !blocked.is_empty() {
            return Err(GuestError::Unsupported {
                what: format!("migration of {}", self.spec.name),
                mend: format!("QEMU says: {}", blocked.join("; ")),
            });
        }
        self.prepare_stream(&schema)
    }

    fn shared_with_devices(&self) -> Vec<PageRun> {
        self.ring_pages()
    }

    fn enlightened(&self) -> Option<&dyn Enlightened> {
        self.agent_socket().map(|_| self as &dyn Enlightened)
    }

    fn disks(&self) -> Option<&dyn Disks> {
        Some(self)
    }

    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        Ok(Box::new(QemuTracker::new(self)?))
    }

    fn hold_writes(&self) -> Result<Arc<dyn WriteHolds>> {
        Ok(Arc::new(QemuWriteHolds::new(self)?))
    }

    fn has_pinned_io(&self) -> bool {
        match self.qmp.run(&QueryNamedBlockNodes {}) {
            Ok(nodes) => nodes.iter().any(|node| node.cache.direct),
            Err(error) => {
                warn!(%error, "whether disks bypass the page cache is not known: they are taken to do so");
                true
            }
        }
    }

    fn may_discard_pages(&self) -> bool {
        match self.device_types() {
            Ok(types) => types
                .iter()
                .any(|kind| kind.contains("balloon") || kind.starts_with("virtio-mem")),
            Err(error) => {
                warn!(%error, "whether there is a balloon is not known: it is taken to be there");
                true
            }
        }
    }

    fn before_stop(&self) -> Result<()> {
        let nodes = self.run(&QueryNamedBlockNodes {}, "asking QEMU for its disks")?;
        let pid = self.process.pid();
        for node in nodes
            .iter()
            .filter(|node| !node.ro && ["file", "host_device"].contains(&node.drv.as_str()))
        {
            // As QEMU sees the path: it may be relative, or in another file system than ours.
            let root = if Path::new(&node.file).is_absolute() {
                "root"
            } else {
                "cwd"
            };
            let path = PathBuf::from(format!("/proc/{pid}/{root}/{}", node.file));
            match File::open(&path) {
                Ok(disk) => disk
                    .sync_data()
                    .map_err(|error| GuestError::operation(format!("flushing {}", node.file), error))?,
                // The stop flushes too: it only takes longer.
                Err(error) => warn!(%error, file = node.file, "a disk is not flushed before the stop"),
            }
        }
        let socket = self.offer_state_socket()?;
        self.outgoing().socket = Some(socket);
        Ok(())
    }

    fn save_device_state(&self) -> Result<Vec<u8>> {
        let mut state = Vec::with_capacity(1 << 20);
        self.stream_device_state(&mut state)?;
        self.confirm_device_state()?;
        Ok(state)
    }

    fn stream_device_state(&self, out: &mut dyn Write) -> Result<u64> {
        let mut phase = self.phase();
        if *phase != Phase::Live {
            return Err(self.wrong_state(format!("{:?}", *phase).to_lowercase(), "paused"));
        }
        if self.known_state() != GuestState::Paused {
            return Err(self.wrong_state("running", "paused"));
        }
        let saved = self.save(out);
        match &saved {
            Ok(_) => *phase = Phase::Saved,
            Err(_) => self.give_up_saving(),
        }
        saved
    }

    fn confirm_device_state(&self) -> Result<()> {
        let began = self.outgoing().began.take();
        let Some(cursor) = began else { return Ok(()) };
        self.wait_for_migration(cursor, Some(SAVE_TIMEOUT), SAVING)
            .and_then(|()| self.check_ram_was_skipped())
            .inspect_err(|_| self.give_up_saving())
    }
}

impl QemuGuest {
    /// Switches on what both directions need of QEMU's own migration.
    pub(crate) fn set_up_stream(&self, schema: &Schema) -> Result<()> {
        for needed in [IGNORE_SHARED, "events"] {
            if !schema.supports_capability(needed) {
                return Err(GuestError::Unsupported {
                    what: format!("migration capability {needed} of {}", self.config.binary),
                    mend: "use QEMU 7.2 or newer".into(),
                });
            }
        }
        // A destination takes the disks over when it runs, not when it has loaded: until then the source owns them.
        let wanted = [IGNORE_SHARED, "events", "late-block-activate"];
        let on = |capability| Capability {
            capability,
            state: true,
        };
        let capabilities = wanted
            .into_iter()
            .filter(|name| schema.supports_capability(name))
            .map(on)
            .collect::<Vec<_>>();
        self.run(
            &MigrateSetCapabilities { capabilities },
            "setting up QEMU's migration stream",
        )?;
        let limits = MigrateSetParameters {
            max_bandwidth: MAX_BANDWIDTH,
            downtime_limit: MAX_DOWNTIME_MS,
        };
        self.run(&limits, "setting up QEMU's migration stream").map(drop)
    }

    fn prepare_stream(&self, schema: &Schema) -> Result<()> {
        self.set_up_stream(schema)?;
        self.learn_foreign_ram()
    }

    /// Gives QEMU its end of a new socket for the device state; answers ours.
    pub(crate) fn offer_state_socket(&self) -> Result<UnixStream> {
        let doing = "handing QEMU a socket for the device state";
        let (ours, theirs) = UnixStream::pair().map_err(|error| GuestError::operation(doing, error))?;
        let name = GetFd {
            fdname: STATE_FD_NAME.into(),
        };
        self.asked(self.qmp.run_with_fds(&name, &[theirs.as_fd()]), doing)?;
        Ok(ours)
    }

    fn save(&self, out: &mut dyn Write) -> Result<u64> {
        // Prepared by an earlier daemon perhaps, or not at all.
        if self.foreign_ram_bytes.load(Ordering::Relaxed) == u64::MAX {
            self.prepare_stream(&self.asked(self.qmp.schema(), SAVING)?)?;
        }
        let at_hand = self.outgoing().socket.take();
        let mut stream = match at_hand {
            Some(socket) => socket,
            None => self.offer_state_socket()?,
        };
        stream
            .set_read_timeout(Some(SAVE_TIMEOUT))
            .map_err(|error| GuestError::operation(SAVING, error))?;
        self.outgoing().began = Some(self.qmp.events().now());
        self.run(
            &Migrate {
                uri: format!("fd:{STATE_FD_NAME}"),
            },
            SAVING,
        )?;
        self.copy_state(&mut stream, out)
    }

    /// Copies to the end, or to where it cannot be device state any more.
    fn copy_state(&self, stream: &mut UnixStream, out: &mut dyn Write) -> Result<u64> {
        let limit = self.ram.layout().bytes() / 2 + STATE_SLACK_BYTES;
        let mut part = vec![0; STATE_PART_BYTES];
        let mut bytes = 0;
        loop {
            let read = match stream.read(&mut part) {
                Ok(0) => return Ok(bytes),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(GuestError::operation("reading the device state", error)),
            };
            bytes += read as u64;
            if bytes > limit {
                return Err(self.ram_not_skipped());
            }
            out.write_all(&part[..read])
                .map_err(|error| GuestError::operation("passing the device state on", error))?;
        }
    }

    /// Ends what QEMU does of it, so that `resume` works at once. Nothing under way is no error.
    fn give_up_saving(&self) {
        self.outgoing().began = None;
        let _ = self.qmp.run(&MigrateCancel {});
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until QEMU says that its migration, in or out, has ended well. Without a time-out it waits as long as
    /// QEMU lives.
    pub(crate) fn wait_for_migration(
        &self,
        cursor: Cursor,
        timeout: Option<Duration>,
        doing: &'static str,
    ) -> Result<()> {
        let status = |event: &Event| event.data["status"].as_str().unwrap_or_default().to_owned();
        let is_end = |event: &Event| {
            event.name == "MIGRATION"
                && ["completed", "failed", "cancelled"].contains(&status(event).as_str())
        };
        let timeout = timeout.unwrap_or(Duration::from_secs(365 * 24 * 3600));
        let event = self.asked(
            self.qmp.events().wait(cursor, timeout, "its migration", is_end),
            doing,
        )?;
        if status(&event) == "completed" {
            return Ok(());
        }
        let why = self
            .run(&QueryMigrate {}, doing)
            .ok()
            .and_then(|info| info.error_desc);
        Err(GuestError::operation(
            doing,
            why.unwrap_or_else(|| format!("QEMU's migration {}", status(&event))),
        ))
    }

    /// Versions differ in which RAM they skip. RAM that QEMU counts is RAM it has sent itself.
    fn check_ram_was_skipped(&self) -> Result<()> {
        let info = self.run(&QueryMigrate {}, "asking QEMU what it sent")?;
        let blocks = self.ram.layout().blocks().iter();
        let smallest = blocks
            .map(|block| block.pages * PAGE_SIZE)
            .min()
            .unwrap_or(u64::MAX);
        let expected = self.foreign_ram_bytes.load(Ordering::Relaxed);
        match info.ram {
            Some(ram) if ram.total >= expected.saturating_add(smallest) => Err(self.ram_not_skipped()),
            _ => Ok(()),
        }
    }

    /// Learns how much RAM goes with the device state: during the stop it would cost time.
    fn learn_foreign_ram(&self) -> Result<()> {
        let printed = self.asked(self.qmp.human("info ramblock"), "asking QEMU for its RAM blocks")?;
        let blocks = self.ram.layout().blocks();
        let is_shared = |name: &str| blocks.iter().any(|block| names_backend(name, &block.name));
        self.foreign_ram_bytes
            .store(foreign_ram_bytes(&printed, is_shared), Ordering::Relaxed);
        Ok(())
    }

    fn ram_not_skipped(&self) -> GuestError {
        GuestError::Unsupported {
            what: format!("leaving shared RAM out of the device state of {}", self.spec.name),
            mend: "this QEMU skips only RAM of -object memory-backend-file,mem-path=/proc/self/fd/N,share=on or the \
                   like: start the guest with `vmferry run`"
                .into(),
        }
    }

    fn check_devices(&self) -> Result<()> {
        let from_args = options(&self.config.args)
            .filter_map(|arg| arg.value)
            .map(str::to_owned);
        for kind in self.device_types()?.into_iter().chain(from_args) {
            let first = kind.split(',').next().unwrap_or_default();
            if let Some((_, mend)) = FOREIGN_WRITERS
                .iter()
                .find(|(prefix, _)| first.starts_with(prefix))
            {
                return Err(GuestError::Unsupported {
                    what: format!("migration of a guest with {first}"),
                    mend: (*mend).into(),
                });
            }
        }
        Ok(())
    }

    /// The types of the guest's devices.
    fn device_types(&self) -> Result<Vec<String>> {
        let mut types = Vec::new();
        for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let devices = self.run(&QomList { path: path.into() }, "asking QEMU for its devices")?;
            let child = |kind: &str| Some(kind.strip_prefix("child<")?.strip_suffix('>')?.to_owned());
            types.extend(devices.iter().filter_map(|device| child(&device.kind)));
        }
        Ok(types)
    }
}

/// Bytes of the RAM blocks in the output of `info ramblock` that are not among the guest's shared ones: firmware,
/// video memory and the like, which go with the device state.
///
/// A line is `NAME PAGE-SIZE UNIT OFFSET USED TOTAL ...`.
fn foreign_ram_bytes(ramblock: &str, is_shared: impl Fn(&str) -> bool) -> u64 {
    let used = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let used = u64::from_str_radix(words.get(4)?.strip_prefix("0x")?, 16).ok()?;
        (!is_shared(words[0])).then_some(used)
    };
    ramblock.lines().filter_map(used).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_blocks_that_travel_with_the_device_state() {
        let printed = "              Block Name    PSize              Offset               Used              Total\n\
            \x20           vmferry.ram0    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000\n\
            \x20   /rom@etc/acpi/tables    4 KiB  0x0000000020080000 0x0000000000020000 0x0000000000200000\n\
            \x20                pc.bios    4 KiB  0x0000000020000000 0x0000000000040000 0x0000000000040000\n";
        assert_eq!(
            foreign_ram_bytes(printed, |name| name == "vmferry.ram0"),
            0x6_0000
        );
        assert_eq!(foreign_ram_bytes(printed, |_| false), 0x2006_0000);
    }
}
