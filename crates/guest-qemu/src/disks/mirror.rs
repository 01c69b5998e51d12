//! Copies of disks that follow their disks, at the source of a migration.
//!
//! A whole disk is mirrored by `blockdev-mirror`. QEMU 7.2 has no mirror that begins with a bitmap; so what changed since a
//! state is copied in *passes* of `blockdev-backup`: each copies the blocks that a dirty bitmap names and clears them in it,
//! while the bitmap records what is written meanwhile. The passes shrink as the rounds of pre-copy do, and the last one is made
//! while the guest stands still.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::warn;
use vmferry_core::disks::{DiskProgress, DiskWrites};
use vmferry_guest::disks::MirrorTo;
use vmferry_guest::{GuestError, GuestState, Result};

use crate::guest::QemuGuest;
use crate::qmp::block::{
    BlockJob, BlockJobCancel, BlockJobSetSpeed, BlockdevAdd, BlockdevBackup, BlockdevDel, BlockdevMirror,
    QueryBlockJobs,
};
use crate::qmp::{Cursor, Event};

use super::inventory::{LocalDisk, bitmap_since};
use super::{PREFIX, lock};

/// Bytes of a mirror that may be under way: what is in the pipe when the guest is stopped, which has to wait for it.
const IN_FLIGHT_BYTES: u64 = 4 << 20;
/// How long an end of a job is waited for before it is looked whether the job lives.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a job that was told to end at once may take.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(10);
/// What is being done, in errors.
const MIRRORING: &str = "mirroring a disk";

/// A copy under way.
#[derive(Clone)]
pub(super) struct Mirror {
    id: String,
    device: String,
    /// Its job, and the node of its target.
    name: String,
    kind: Kind,
    /// From before the job that is under way.
    since: Cursor,
    bytes_per_s: Option<u64>,
}

#[derive(Clone)]
enum Kind {
    /// Everything.
    Whole,
    /// What a bitmap says.
    Passes {
        bitmap: String,
        /// Bytes of the passes that ended.
        done_bytes: u64,
        /// Of those that ended.
        passes: u32,
        /// Bytes of the one under way; none is.
        under_way: Option<u64>,
    },
}

/// How a job ended.
enum End {
    Well { bytes: u64 },
    Badly(String),
}

impl QemuGuest {
    pub(super) fn start_mirror(&self, id: &str, to: &MirrorTo) -> Result<()> {
        self.take_out_leftovers();
        let disk = self.local_disk(id)?;
        let mut mirrors = lock(&self.disk_state.mirrors);
        let name = format!("{PREFIX}mirror-{}", mirrors.len());
        self.remove_leftover(&name);
        let kind = match &to.since {
            None => Kind::Whole,
            Some(state) => Kind::Passes {
                bitmap: self.sound_bitmap(&disk, state)?,
                done_bytes: 0,
                passes: 0,
                under_way: None,
            },
        };
        // A target that takes discards is emptied by a mirror at first.
        let (discard, zeroes) = match to.keep {
            true => ("ignore", "on"),
            false => ("unmap", "unmap"),
        };
        let target = json!({
            "driver": "nbd", "node-name": name, "export": to.export,
            "server": {"type": "unix", "path": to.socket},
            // Zeros cross as ranges, and leave holes where the copy can have some.
            "discard": discard, "detect-zeroes": zeroes,
        });
        self.run(&BlockdevAdd(target), "reaching the copy of a disk")?;
        let mut mirror = Mirror {
            id: id.to_owned(),
            device: disk.device,
            name: name.clone(),
            kind,
            since: self.qmp.events().now(),
            bytes_per_s: to.bytes_per_s,
        };
        let started = match mirror.kind {
            Kind::Whole => self.start_whole(&mirror, to.writes),
            Kind::Passes { .. } => self.start_pass(&mut mirror),
        };
        match started {
            Ok(()) => mirrors.push(mirror),
            Err(error) => {
                self.remove_leftover(&name);
                return Err(error);
            }
        }
        Ok(())
    }

    fn start_whole(&self, mirror: &Mirror, writes: DiskWrites) -> Result<()> {
        let start = BlockdevMirror {
            job_id: mirror.name.clone(),
            device: mirror.device.clone(),
            target: mirror.name.clone(),
            sync: "full",
            copy_mode: match writes {
                DiskWrites::Background => "background",
                DiskWrites::Blocking => "write-blocking",
            },
            speed: mirror.bytes_per_s.unwrap_or(0),
            buf_size: IN_FLIGHT_BYTES,
        };
        self.run(&start, MIRRORING).map(drop)
    }

    /// Copies what the bitmap says now.
    fn start_pass(&self, mirror: &mut Mirror) -> Result<()> {
        let Kind::Passes {
            bitmap, under_way, ..
        } = &mut mirror.kind
        else {
            return Ok(());
        };
        let disk = self.local_disk(&mirror.id)?;
        let bytes = disk.bitmap(bitmap).map_or(0, |bitmap| bitmap.count);
        mirror.since = self.qmp.events().now();
        let start = BlockdevBackup {
            job_id: mirror.name.clone(),
            device: mirror.device.clone(),
            target: mirror.name.clone(),
            sync: "bitmap",
            speed: mirror.bytes_per_s.unwrap_or(0),
            bitmap: Some(bitmap.clone()),
            bitmap_mode: Some("on-success"),
        };
        self.run(&start, MIRRORING)?;
        *under_way = Some(bytes);
        Ok(())
    }

    fn sound_bitmap(&self, disk: &LocalDisk, state: &str) -> Result<String> {
        match disk.recorded_since() {
            Some(recorded) if recorded == state => Ok(bitmap_since(state)),
            _ => Err(self.unsuitable_disk(
                format!(
                    "what changed on its disk {} since the destination had it was not recorded",
                    disk.info.id
                ),
                "migrate it without --incremental",
            )),
        }
    }

    pub(super) fn look_at_mirror(&self, id: &str) -> Result<DiskProgress> {
        let mut mirrors = lock(&self.disk_state.mirrors);
        let mirror = mirrors.iter_mut().find(|mirror| mirror.id == id).ok_or_else(|| {
            self.unsuitable_disk(format!("its disk {id} is not mirrored"), "mirror it first")
        })?;
        let job = self.job(&mirror.name)?;
        match (&mut mirror.kind, job) {
            (Kind::Whole, Some(job)) => Ok(DiskProgress {
                total_bytes: job.len,
                done_bytes: job.offset,
                in_sync: job.ready,
            }),
            (Kind::Whole, None) => Err(self.mirror_ended(mirror)),
            (
                Kind::Passes {
                    done_bytes,
                    passes,
                    under_way: Some(bytes),
                    ..
                },
                Some(job),
            ) => Ok(DiskProgress {
                total_bytes: *done_bytes + (*bytes).max(job.len),
                done_bytes: *done_bytes + job.offset,
                in_sync: *passes > 0,
            }),
            (Kind::Passes { .. }, _) => {
                let left = self.take_up_pass(mirror)?;
                let done = mirror.passed_bytes();
                if left > 0 && !self.disk_state.passes_held.load(Ordering::Relaxed) {
                    self.start_pass(mirror)?;
                }
                Ok(DiskProgress {
                    total_bytes: done + left,
                    done_bytes: done,
                    in_sync: true,
                })
            }
        }
    }

    /// Before the guest is stopped: waits for the passes under way and begins no other. To stop, QEMU flushes all disks; when a
    /// backup job ends just then, QEMU 7.2 aborts (`bdrv_close: Assertion QLIST_EMPTY(&bs->dirty_bitmaps)`).
    pub(crate) fn hold_passes(&self) -> Result<()> {
        let mut mirrors = lock(&self.disk_state.mirrors);
        self.disk_state.passes_held.store(true, Ordering::Relaxed);
        for mirror in mirrors.iter_mut() {
            self.take_up_pass(mirror)?;
        }
        Ok(())
    }

    /// The guest goes on: so do they.
    pub(crate) fn release_passes(&self) {
        self.disk_state.passes_held.store(false, Ordering::Relaxed);
    }

    /// A pass has ended, or none was under way: counts it in, and answers how many bytes were written meanwhile.
    fn take_up_pass(&self, mirror: &mut Mirror) -> Result<u64> {
        let ended = match &mirror.kind {
            Kind::Passes {
                under_way: Some(_), ..
            } => Some(self.wait_for_end(mirror)?),
            _ => None,
        };
        let disk = self.local_disk(&mirror.id)?;
        let Kind::Passes {
            bitmap,
            done_bytes,
            passes,
            under_way,
        } = &mut mirror.kind
        else {
            return Ok(0);
        };
        match ended {
            Some(End::Badly(why)) => return Err(GuestError::operation(MIRRORING, why)),
            Some(End::Well { bytes }) => {
                *done_bytes += bytes;
                *passes += 1;
                *under_way = None;
            }
            None => {}
        }
        let left = disk.bitmap(bitmap).map(|bitmap| bitmap.count);
        left.ok_or_else(|| GuestError::operation(MIRRORING, format!("the bitmap {bitmap} is gone")))
    }

    pub(super) fn limit_all_mirrors(&self, bytes_per_s: Option<u64>) -> Result<()> {
        let mut mirrors = lock(&self.disk_state.mirrors);
        for mirror in mirrors.iter_mut() {
            mirror.bytes_per_s = bytes_per_s;
            if self.job(&mirror.name)?.is_some() {
                let limit = BlockJobSetSpeed {
                    device: mirror.name.clone(),
                    speed: bytes_per_s.unwrap_or(0),
                };
                self.run(&limit, "limiting the mirror of a disk")?;
            }
        }
        Ok(())
    }

    pub(super) fn settle_all_mirrors(&self) -> Result<()> {
        if self.known_state() == GuestState::Running {
            return Err(self.wrong_state("running", "paused"));
        }
        // All at once first: they settle beside each other.
        let mut mirrors = lock(&self.disk_state.mirrors).clone();
        for mirror in &mirrors {
            if matches!(mirror.kind, Kind::Whole) {
                self.end_whole(mirror)?;
            }
        }
        for mirror in &mut mirrors {
            match mirror.kind {
                Kind::Whole => {
                    if let End::Badly(why) = self.wait_for_end(mirror)? {
                        return Err(GuestError::operation("settling the mirror of a disk", why));
                    }
                }
                Kind::Passes { .. } => {
                    while self.take_up_pass(mirror)? > 0 {
                        self.start_pass(mirror)?;
                    }
                }
            }
        }
        let settled = std::mem::take(&mut *lock(&self.disk_state.mirrors));
        for mirror in settled {
            self.forget_target(&mirror.name);
        }
        Ok(())
    }

    /// A mirror that is ready ends when both sides are equal, and has written everything to stable storage then.
    fn end_whole(&self, mirror: &Mirror) -> Result<()> {
        match self.job(&mirror.name)? {
            Some(job) if job.ready => {
                let end = BlockJobCancel {
                    device: mirror.name.clone(),
                    force: false,
                };
                self.run(&end, "settling the mirror of a disk").map(drop)
            }
            Some(_) => Err(self.wrong_state("still mirroring its disks", "in sync with their copies")),
            None => Err(self.mirror_ended(mirror)),
        }
    }

    pub(super) fn abandon_all_mirrors(&self) {
        let mirrors = std::mem::take(&mut *lock(&self.disk_state.mirrors));
        for mirror in &mirrors {
            self.remove_leftover(&mirror.name);
        }
    }

    /// Ends a job of this name and removes the node, which both may have been left by a daemon that ended.
    fn remove_leftover(&self, name: &str) {
        let since = self.qmp.events().now();
        if let Ok(Some(_)) = self.job(name) {
            let end = BlockJobCancel {
                device: name.to_owned(),
                force: true,
            };
            // It may have ended meanwhile.
            let _ = self.qmp.run(&end);
            let ended = |event: &Event| is_end_of(event, name);
            if let Err(error) = self
                .qmp
                .events()
                .wait(since, ABANDON_TIMEOUT, "the end of a mirror", ended)
            {
                warn!(%error, name, "the mirror of a disk does not end");
            }
        }
        self.forget_target(name);
    }

    fn forget_target(&self, name: &str) {
        let node = BlockdevDel {
            node_name: name.to_owned(),
        };
        // There may be none.
        let _ = self.qmp.run(&node);
    }

    fn job(&self, name: &str) -> Result<Option<BlockJob>> {
        let jobs = self.run(&QueryBlockJobs {}, "asking QEMU for its block jobs")?;
        Ok(jobs.into_iter().find(|job| job.device == name))
    }

    /// Waits for the end of the job of a mirror. However long it takes: whoever does not want to wait abandons it.
    fn wait_for_end(&self, mirror: &Mirror) -> Result<End> {
        let ended = |event: &Event| is_end_of(event, &mirror.name);
        loop {
            match self
                .qmp
                .events()
                .wait(mirror.since, LOOK_EVERY, "the end of a mirror", ended)
            {
                Ok(event) => return Ok(end_of(&event)),
                // Its event may have gone by while the connection was lost.
                Err(_) if self.job(&mirror.name)?.is_none() => {
                    return match self
                        .qmp
                        .events()
                        .since(mirror.since)
                        .iter()
                        .find(|event| ended(event))
                    {
                        Some(event) => Ok(end_of(event)),
                        None => Ok(End::Badly("how it ended is not known".into())),
                    };
                }
                Err(_) => {}
            }
        }
    }

    /// The error of a mirror whose job is gone.
    fn mirror_ended(&self, mirror: &Mirror) -> GuestError {
        let events = self.qmp.events().since(mirror.since);
        let end = events
            .iter()
            .find(|event| is_end_of(event, &mirror.name))
            .map(end_of);
        let why = match end {
            Some(End::Badly(why)) => why,
            _ => "its mirror ended too early".into(),
        };
        GuestError::operation(format!("mirroring disk {}", mirror.id), why)
    }
}

impl Mirror {
    fn passed_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Whole => 0,
            Kind::Passes { done_bytes, .. } => *done_bytes,
        }
    }
}

fn is_end_of(event: &Event, job: &str) -> bool {
    ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"].contains(&event.name.as_str())
        && event.data["device"] == job
}

/// A mirror that was cancelled while it was ready has completed; what is cancelled earlier has not.
fn end_of(event: &Event) -> End {
    match (event.name.as_str(), &event.data["error"]) {
        (_, Value::String(why)) => End::Badly(why.clone()),
        ("BLOCK_JOB_COMPLETED", _) => End::Well {
            bytes: event.data["offset"].as_u64().unwrap_or(0),
        },
        _ => End::Badly("it was cancelled".into()),
    }
}
