//! The commands of QEMU's block layer that move and read disks.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::commands::{Command, Nothing, command};

command! {
    /// The drives of the guest, with what is known of their images.
    QueryDrives = "query-block" -> Vec<Drive> {}
}
command! {
    /// Starts the one NBD server of a QEMU.
    NbdServerStart = "nbd-server-start" -> Nothing {
        /// Where it listens.
        addr: Value,
    }
}
command! {
    /// Ends the NBD server, its connections and exports.
    NbdServerStop = "nbd-server-stop" -> Nothing {}
}
command! {
    /// Exports a node.
    BlockExportAdd = "block-export-add" -> Nothing {
        /// How; `nbd` here.
        r#type: &'static str,
        /// Id of the export.
        id: String,
        /// The node.
        node_name: String,
        /// Name for clients.
        name: String,
        /// Whether they may write.
        writable: bool,
        /// Dirty bitmaps that they may ask for.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        bitmaps: Vec<String>,
    }
}
command! {
    /// Removes a node.
    BlockdevDel = "blockdev-del" -> Nothing {
        /// Its name.
        node_name: String,
    }
}
command! {
    /// Starts a mirror.
    BlockdevMirror = "blockdev-mirror" -> Nothing {
        /// Id of the job.
        job_id: String,
        /// What is mirrored: a drive or a node.
        device: String,
        /// The node that becomes equal.
        target: String,
        /// What is copied at first.
        sync: &'static str,
        /// How writes of the guest reach the target.
        copy_mode: &'static str,
        /// Most bytes a second; 0 for no limit.
        speed: u64,
        /// Most bytes under way.
        buf_size: u64,
    }
}
command! {
    /// Starts a backup.
    BlockdevBackup = "blockdev-backup" -> Nothing {
        /// Id of the job.
        job_id: String,
        /// What is copied: a drive or a node.
        device: String,
        /// Where to.
        target: String,
        /// What is copied.
        sync: &'static str,
        /// Most bytes a second; 0 for no limit.
        speed: u64,
        /// The bitmap that says what, where `sync` needs one.
        #[serde(skip_serializing_if = "Option::is_none")]
        bitmap: Option<String>,
        /// What becomes of it.
        #[serde(skip_serializing_if = "Option::is_none")]
        bitmap_mode: Option<&'static str>,
    }
}
command! {
    /// The block jobs under way.
    QueryBlockJobs = "query-block-jobs" -> Vec<BlockJob> {}
}
command! {
    /// Ends a block job; a mirror that is ready ends well, with both sides equal.
    BlockJobCancel = "block-job-cancel" -> Nothing {
        /// Id of the job.
        device: String,
        /// At once, whatever that leaves.
        force: bool,
    }
}
command! {
    /// Limits a block job.
    BlockJobSetSpeed = "block-job-set-speed" -> Nothing {
        /// Id of the job.
        device: String,
        /// Bytes a second; 0 for no limit.
        speed: u64,
    }
}
command! {
    /// Records writes to a node from now on.
    BlockDirtyBitmapAdd = "block-dirty-bitmap-add" -> Nothing {
        /// The node.
        node: String,
        /// Name of the bitmap.
        name: String,
        /// Whether it is kept in the image.
        persistent: bool,
    }
}
command! {
    /// Forgets a bitmap.
    BlockDirtyBitmapRemove = "block-dirty-bitmap-remove" -> Nothing {
        /// The node.
        node: String,
        /// Name of the bitmap.
        name: String,
    }
}
command! {
    /// Adds what some bitmaps say to another one.
    BlockDirtyBitmapMerge = "block-dirty-bitmap-merge" -> Nothing {
        /// The node.
        node: String,
        /// The bitmap that grows.
        target: String,
        /// The others.
        bitmaps: Vec<String>,
    }
}
command! {
    /// Formats an image; a job does it.
    BlockdevCreate = "blockdev-create" -> Nothing {
        /// Id of the job.
        job_id: String,
        /// What image.
        options: Value,
    }
}
command! {
    /// The jobs under way or concluded.
    QueryJobs = "query-jobs" -> Vec<Job> {}
}
command! {
    /// Forgets a job that has concluded.
    JobDismiss = "job-dismiss" -> Nothing {
        /// Its id.
        id: String,
    }
}
command! {
    /// Does all of them at one moment, or none.
    Transaction = "transaction" -> Nothing {
        /// Each a type and its data.
        actions: Vec<Value>,
    }
}

/// Opens a node of the block layer; which members there are depends on its driver.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(
    /// The options.
    pub Value,
);

impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    type Reply = Nothing;
}

/// A drive and what is in it.
#[derive(Clone, Debug, Deserialize)]
pub struct Drive {
    /// Name of the drive; empty where its device names a node directly.
    pub device: String,
    /// Path of its device.
    pub qdev: Option<String>,
    /// The medium.
    pub inserted: Option<Medium>,
}

/// What is in a drive.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Medium {
    /// File or URL.
    pub file: String,
    /// Name of the driver: of the format.
    pub drv: String,
    /// Name of the node.
    pub node_name: Option<String>,
    /// Whether writing is impossible.
    pub ro: bool,
    /// Its image.
    pub image: Image,
    /// How many files its content is layered over.
    #[serde(rename = "backing_file_depth", default)]
    pub backing_depth: u32,
    /// Which of its writes are recorded.
    #[serde(default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
}

/// An image.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// Bytes that the guest sees.
    pub virtual_size: u64,
}

/// A record of writes.
#[derive(Clone, Debug, Deserialize)]
pub struct DirtyBitmap {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Bytes that were written.
    pub count: u64,
    /// Whether writes are recorded now.
    pub recording: bool,
    /// QEMU was not ended in order, and it says nothing.
    #[serde(default)]
    pub inconsistent: bool,
}

/// A block job.
#[derive(Clone, Debug, Deserialize)]
pub struct BlockJob {
    /// Its id.
    pub device: String,
    /// Bytes to do as far as known.
    pub len: u64,
    /// Bytes done.
    pub offset: u64,
    /// Whether a mirror has copied everything once.
    pub ready: bool,
}

/// A job.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// `running`, `concluded`, ...
    pub status: String,
    /// Why it failed.
    pub error: Option<String>,
}
