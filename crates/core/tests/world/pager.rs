//! The pager of the destination: the states of pages, as `vmferry-runtime` keeps them. They survive a restart of
//! the daemon, like the memory of the guest.

use std::collections::BTreeSet;

use vmferry_core::PageBitmap;

use crate::guest::Memory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageState {
    Absent,
    Present,
    Stale,
    Zero,
}

pub(crate) struct Pager {
    pub states: Vec<PageState>,
    pub outstanding: u64,
    /// Pages that somebody waits for.
    pub demanded: BTreeSet<u64>,
    /// Versions as they arrived, where pages are compared.
    pub arrived: Vec<Option<u32>>,
}

impl Pager {
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            states: vec![PageState::Absent; pages as usize],
            outstanding: 0,
            demanded: BTreeSet::new(),
            arrived: vec![None; pages as usize],
        }
    }

    pub(crate) fn received(&mut self, page: u64) {
        self.states[page as usize] = PageState::Present;
    }

    pub(crate) fn switch(&mut self, pending: &PageBitmap, memory: &Memory) -> u64 {
        for (page, state) in self.states.iter_mut().enumerate() {
            *state = match (*state, pending.contains(page as u64)) {
                (PageState::Present, true) => PageState::Stale,
                (_, true) => PageState::Absent,
                (PageState::Present, false) => PageState::Present,
                (_, false) => PageState::Zero,
            };
            self.arrived[page] = match *state {
                PageState::Present => Some(memory.read(page as u64)),
                PageState::Zero => Some(0),
                _ => None,
            };
        }
        self.outstanding = pending.count();
        self.outstanding
    }

    /// Somebody accesses the page: whether it is there, and whether the source is to be asked for it.
    pub(crate) fn access(&mut self, page: u64) -> (bool, bool) {
        match self.states[page as usize] {
            PageState::Absent | PageState::Stale => (false, self.demanded.insert(page)),
            PageState::Zero => {
                self.states[page as usize] = PageState::Present;
                (true, false)
            }
            PageState::Present => (true, false),
        }
    }

    /// A page arrived after the switch. Answers whether it was the last one.
    pub(crate) fn arrived(&mut self, page: u64, version: u32, memory: &mut Memory) -> bool {
        if !matches!(self.states[page as usize], PageState::Absent | PageState::Stale) {
            return false;
        }
        memory.write(page, version);
        self.arrived[page as usize] = Some(version);
        self.states[page as usize] = PageState::Present;
        self.demanded.remove(&page);
        self.outstanding -= 1;
        self.outstanding == 0
    }

    /// A new daemon finds the states.
    pub(crate) fn recover(&mut self) {
        let lacking = |state: &&PageState| matches!(state, PageState::Absent | PageState::Stale);
        self.outstanding = self.states.iter().filter(lacking).count() as u64;
        self.demanded.clear();
    }

    pub(crate) fn have(&self) -> PageBitmap {
        let mut have = PageBitmap::new(self.states.len() as u64);
        for (page, state) in self.states.iter().enumerate() {
            if matches!(state, PageState::Present | PageState::Zero) {
                have.insert(page as u64);
            }
        }
        have
    }
}
