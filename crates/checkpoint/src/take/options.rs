//! How checkpoints are taken.

use std::path::PathBuf;
use std::time::Duration;

/// How checkpoints are taken; what each costs whom.
#[derive(Clone, Debug)]
pub struct TakeOptions {
    /// Most bytes of copies of pages that the guest overwrote before the store had them. With no room left, a writer waits.
    pub copies_bytes: u64,
    /// The longest a write of the guest may wait for the store; then the checkpoint is given up, not the guest.
    pub patience: Duration,
    /// The part of the pause that protecting pages should take.
    pub protect_goal: Duration,
    /// Where the hypervisor keeps what the guest overwrites of its disks until the store has them; absent: the disks are left
    /// out.
    pub disk_folder: Option<PathBuf>,
    /// Threads that read pages and hand them to the store.
    pub savers: usize,
}

impl TakeOptions {
    /// For a guest with so much RAM.
    pub fn for_guest(ram_bytes: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            copies_bytes: (ram_bytes / 8).clamp(64 << 20, 1 << 30),
            patience: Duration::from_secs(1),
            protect_goal: Duration::from_millis(2),
            disk_folder: None,
            savers: cores.clamp(1, 4),
        }
    }
}
