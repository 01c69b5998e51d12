//! The guest: its memory as versions of pages, at each side, and what it wrote itself.

use vmferry_core::{PageBitmap, PageRun};

use crate::chooser::Chooser;

/// The memory of one host: a version a page, 0 is zeros.
pub(crate) struct Memory {
    pub version: Vec<u32>,
    /// Pages that are no holes.
    pub data: PageBitmap,
}

impl Memory {
    pub(crate) fn hole(pages: u64) -> Self {
        Self {
            version: vec![0; pages as usize],
            data: PageBitmap::new(pages),
        }
    }

    pub(crate) fn write(&mut self, page: u64, version: u32) {
        self.version[page as usize] = version;
        self.data.insert(page);
    }

    pub(crate) fn read(&self, page: u64) -> u32 {
        self.version[page as usize]
    }
}

/// Write protection: the pages written since the last scan, once armed.
pub(crate) struct Tracker {
    pub armed: bool,
    pub dirty: PageBitmap,
}

impl Tracker {
    pub(crate) fn scan(&mut self) -> PageBitmap {
        let pages = self.dirty.len();
        std::mem::replace(&mut self.dirty, PageBitmap::new(pages))
    }
}

/// What the guest itself knows of its memory.
pub(crate) struct Guest {
    /// What it wrote last to each page.
    pub truth: Vec<u32>,
    /// Pages it does not use: what they hold does not matter.
    pub free: PageBitmap,
    /// Direct reads under way: submitted, not completed.
    pub io: Vec<u64>,
    /// The pages it writes most.
    hot: PageRun,
    next_version: u32,
}

impl Guest {
    /// A guest with data at random places.
    pub(crate) fn new(pages: u64, memory: &mut Memory, chooser: &mut Chooser) -> Self {
        let hot_pages = 1 + chooser.below(pages / 4 + 1);
        let mut guest = Self {
            truth: vec![0; pages as usize],
            free: PageBitmap::new(pages),
            io: Vec::new(),
            hot: PageRun::new(chooser.below(pages - hot_pages + 1), hot_pages),
            next_version: 1,
        };
        for _ in 0..chooser.below(6) {
            let first = chooser.below(pages);
            let run = PageRun::new(first, 1 + chooser.below(pages - first));
            for page in run.pages() {
                let version = guest.new_version();
                guest.truth[page as usize] = version;
                memory.write(page, version);
            }
        }
        guest
    }

    pub(crate) fn new_version(&mut self) -> u32 {
        self.next_version += 1;
        self.next_version
    }

    /// A page, mostly of the hot ones.
    pub(crate) fn pick(&self, chooser: &mut Chooser) -> u64 {
        match chooser.below(4) {
            0 => chooser.below(self.truth.len() as u64),
            _ => self.hot.first + chooser.below(self.hot.count),
        }
    }

    pub(crate) fn free(&mut self, page: u64) {
        self.free.insert(page);
    }

    pub(crate) fn allocate(&mut self, page: u64) {
        self.free.remove(page);
    }
}

/// What the guest does beside writing its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    pub pinned_io: bool,
    pub discards: bool,
    pub frees: bool,
}

/// The guest does something at the source.
pub(crate) fn act_at_source(
    guest: &mut Guest,
    memory: &mut Memory,
    tracker: &mut Tracker,
    habits: Habits,
    chooser: &mut Chooser,
) {
    let page = guest.pick(chooser);
    match chooser.below(12) {
        0 | 1 if habits.pinned_io => submit_io(guest, memory, tracker, page),
        2 | 3 if habits.pinned_io => complete_io(guest, memory, chooser),
        4 if habits.discards && !guest.io.contains(&page) => {
            memory.version[page as usize] = 0;
            memory.data.remove(page);
            guest.truth[page as usize] = 0;
            // Its page-table entry is gone, and the record of a write with it.
            tracker.dirty.remove(page);
        }
        5 if habits.frees && !guest.io.contains(&page) => guest.free(page),
        _ => {
            guest.allocate(page);
            let version = guest.new_version();
            guest.truth[page as usize] = version;
            memory.write(page, version);
            if tracker.armed {
                tracker.dirty.insert(page);
            }
        }
    }
}

fn submit_io(guest: &mut Guest, memory: &mut Memory, tracker: &mut Tracker, page: u64) {
    if guest.free.contains(page) {
        // Until the device has written it the guest finds what a free page happens to hold.
        guest.truth[page as usize] = memory.read(page);
    }
    guest.allocate(page);
    // Pinning for writing is a write fault.
    memory.data.insert(page);
    if tracker.armed {
        tracker.dirty.insert(page);
    }
    guest.io.push(page);
}

fn complete_io(guest: &mut Guest, memory: &mut Memory, chooser: &mut Chooser) {
    if guest.io.is_empty() {
        return;
    }
    let at = chooser.below(guest.io.len() as u64) as usize;
    let page = guest.io.swap_remove(at);
    let version = guest.new_version();
    guest.truth[page as usize] = version;
    memory.write(page, version);
}

/// A stop completes what is under way.
pub(crate) fn drain_io(guest: &mut Guest, memory: &mut Memory, chooser: &mut Chooser) {
    while !guest.io.is_empty() {
        complete_io(guest, memory, chooser);
    }
}
