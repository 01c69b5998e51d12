//! Pages that this host has in a store of its own.

use vmferry_core::{PageBitmap, PageRun};
use vmferry_wire::{PageHash, ToSource};

use super::driver::Driver;

/// A store of pages, found by their hash. Called from threads of sessions.
pub trait Holdings: Send + Sync {
    /// The first 8 bytes, little-endian, of the BLAKE3 hash of each page that the source should know of.
    fn fingerprints(&self) -> &[u64];
    /// Puts the page of this hash into `page`, 4096 bytes long. Answers whether it is there and whole: these very bytes have
    /// that hash then.
    ///
    /// # Errors
    /// One line, when the store does not answer: it is not asked again.
    fn read(&self, hash: &PageHash, page: &mut [u8]) -> Result<bool, String>;
}

impl Driver<'_> {
    /// Says which pages a store of this host has, and keeps it ready.
    pub(super) fn tell_holdings(&mut self) -> Result<(), String> {
        let most = self.arrival.vm.ram().layout().pages();
        let holdings = self.shared.host.holdings(self.session.name(), most);
        let fingerprints = holdings
            .as_ref()
            .map_or(&[][..], |holdings| holdings.fingerprints());
        let messages = ToSource::held(&fingerprints[..fingerprints.len().min(most as usize)]);
        if let (Some(holdings), Some(guest)) = (&holdings, self.session.guest.get()) {
            let _ = guest.sink.holdings.set(holdings.clone());
        }
        messages.iter().try_for_each(|message| self.send(message))
    }

    /// Says which pages came as hashes and are not here.
    pub(super) fn tell_missed(&mut self, runs: &[PageRun]) -> Result<(), String> {
        let mut missed = PageBitmap::new(self.arrival.vm.ram().layout().pages());
        runs.iter().for_each(|&run| missed.insert_run(run));
        let messages = ToSource::missed(&missed);
        messages.iter().try_for_each(|message| self.send(message))
    }
}
