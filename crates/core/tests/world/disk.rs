//! A disk that moves with the guest: the guest writes it, a mirror follows. All that counts is how many writes each side has.

use vmferry_core::disks::DiskProgress;
use vmferry_core::source::Event;

use crate::source_host::Input;
use crate::world::World;

/// The disk at both sides, while it moves.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Writes to the source's, what was there before among them.
    written: u64,
    /// How many of them the destination's has.
    copied: u64,
    /// The mirror follows.
    mirrored: bool,
    /// Everything crossed once.
    in_sync: bool,
    /// Both were equal at the stop, and the mirror ended.
    settled: bool,
}

impl Disk {
    pub(crate) fn new(written: u64) -> Self {
        Self {
            written,
            ..Self::default()
        }
    }

    /// The guest, which runs at the source, writes.
    pub(crate) fn write(&mut self) {
        self.written += 1;
        self.settled = false;
    }

    pub(crate) fn begin(&mut self) {
        assert!(!self.mirrored, "the disks are copied twice");
        self.mirrored = true;
    }

    /// The guest stands still: the last writes cross.
    pub(crate) fn settle(&mut self) {
        assert!(self.in_sync, "the stop came before everything had crossed once");
        self.copied = self.written;
        self.settled = true;
        self.mirrored = false;
    }

    /// Nothing follows any more.
    pub(crate) fn give_up(&mut self) {
        self.mirrored = false;
    }

    pub(crate) fn are_equal(&self) -> bool {
        self.settled && self.copied == self.written
    }
}

impl World {
    /// The thread that follows the mirror looks at it.
    pub(crate) fn mirror_goes_on(&mut self) -> bool {
        let followed = self.source.alive && self.source.machine.is_some();
        let Some(disk) = self.source.disk.as_mut().filter(|disk| followed && disk.mirrored) else {
            return false;
        };
        if disk.in_sync && disk.copied == disk.written {
            return false;
        }
        disk.copied += (disk.written - disk.copied).min(1 + self.chooser.below(4));
        disk.in_sync |= disk.copied == disk.written;
        let progress = DiskProgress {
            total_bytes: disk.written * 512,
            done_bytes: disk.copied * 512,
            in_sync: disk.in_sync,
        };
        self.source
            .mailbox
            .push_back(Input::Local(Event::DisksProgress(progress)));
        true
    }

    /// Nobody runs the guest at the destination, or takes its device state, before the disks are equal.
    pub(crate) fn check_disks(&self) {
        if let Some(disk) = &self.source.disk {
            assert!(
                disk.are_equal(),
                "the guest goes on without its last writes: {disk:?}"
            );
        }
    }
}
