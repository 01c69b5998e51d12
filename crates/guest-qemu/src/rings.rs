//! Where the rings of virtio devices lie in guest memory, by QEMU's own account.
//!
//! QEMU reads them while it loads the device state, and the guest's drivers wherever they do anything. The commands are
//! experimental and came with 7.2: where they are missing or say something else nothing is known.

use tracing::debug;
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::Result;

use crate::guest::QemuGuest;
use crate::physical::GuestPhysicalMap;
use crate::qmp::commands::{VirtioQueue, XQueryVirtio, XQueryVirtioQueueStatus};

/// Queues asked for at most, of all devices: each is a question.
const MAX_QUEUES: usize = 512;
/// Descriptors of a queue at most, by the virtio specification.
const MAX_ENTRIES: u64 = 1 << 15;

impl QemuGuest {
    /// The pages of all rings; none where QEMU does not tell.
    pub(crate) fn ring_pages(&self) -> Vec<PageRun> {
        match self
            .queues()
            .and_then(|queues| Ok((queues, self.physical_map()?)))
        {
            Ok((queues, map)) => pages_of(&queues, &map),
            Err(error) => {
                debug!(guest = %self.spec.name, %error, "QEMU does not tell where the rings are");
                Vec::new()
            }
        }
    }

    fn queues(&self) -> Result<Vec<VirtioQueue>> {
        let doing = "asking QEMU for its virtio queues";
        let mut queues = Vec::new();
        for device in self.run(&XQueryVirtio {}, doing)? {
            let status = |queue| {
                self.qmp.run(&XQueryVirtioQueueStatus {
                    path: device.path.clone(),
                    queue,
                })
            };
            // Beyond the last queue, and of a device that was just unplugged, the answer is an error.
            queues.extend(
                (0..)
                    .map_while(|queue| status(queue).ok())
                    .take(MAX_QUEUES - queues.len()),
            );
        }
        Ok(queues)
    }
}

/// The pages that the parts of `queues` lie in, ascending, each once.
fn pages_of(queues: &[VirtioQueue], map: &GuestPhysicalMap) -> Vec<PageRun> {
    let mut pages: Vec<u64> = queues
        .iter()
        .flat_map(parts)
        .flat_map(|(address, bytes)| {
            let first = address / PAGE_SIZE;
            let end = address.saturating_add(bytes).div_ceil(PAGE_SIZE);
            map.pages_in(first..end)
                .flat_map(PageRun::pages)
                .collect::<Vec<_>>()
        })
        .collect();
    pages.sort_unstable();
    pages.dedup();
    let mut runs: Vec<PageRun> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.end() == page => run.count += 1,
            _ => runs.push(PageRun::single(page)),
        }
    }
    runs
}

/// Guest-physical address and size of each part of a split queue that was set up. A packed one has its parts at the same
/// addresses and is no larger.
fn parts(queue: &VirtioQueue) -> impl Iterator<Item = (u64, u64)> + use<> {
    let entries = u64::from(queue.vring_num).min(MAX_ENTRIES);
    let parts = [
        (queue.vring_desc, 16 * entries),
        (queue.vring_avail, 6 + 2 * entries),
        (queue.vring_used, 6 + 8 * entries),
    ];
    parts
        .into_iter()
        .filter(move |&(address, _)| address != 0 && entries != 0)
}

#[cfg(test)]
mod tests {
    use vmferry_core::RamLayout;

    use super::*;

    fn queue(entries: u32, desc: u64, avail: u64, used: u64) -> VirtioQueue {
        VirtioQueue {
            vring_num: entries,
            vring_desc: desc,
            vring_avail: avail,
            vring_used: used,
        }
    }

    #[test]
    fn pages_of_queues() {
        let layout = RamLayout::single("vmferry.ram0", 512 << 20).unwrap();
        let map = GuestPhysicalMap::parse(include_str!("../tests/fixtures/mtree-q35-512M.txt"), &layout);
        let queues = [
            // A page of descriptors, and the rest behind them.
            queue(256, 0x10_0000, 0x10_1000, 0x10_1240),
            // In the same page; and over the end of one.
            queue(64, 0x10_1800, 0x10_1c00, 0x10_1fc0),
            // Not set up, out of memory, of no size.
            queue(128, 0, 0, 0),
            queue(256, 0x8000_0000, u64::MAX - 5, 1 << 50),
            queue(0, 0x30_0000, 0x30_1000, 0x30_2000),
        ];
        assert_eq!(pages_of(&queues, &map), [PageRun::new(0x100, 3)]);
        assert_eq!(pages_of(&[], &map), []);
    }
}
