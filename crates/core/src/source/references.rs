//! Pages that cross as references to content that the destination has in a store of its own.
//!
//! The destination may turn out not to have it: its store is damaged, or was cleared meanwhile. While the guest runs at the source
//! it says so before the end of the round ([`Event::Missed`](super::Event::Missed)), and the pages cross once more, whole. After the
//! switch it demands them, and a page that crossed as a reference is sent on demand however often it crossed: the guest never
//! waits for the destination's store.

use super::event::Command;
use super::state::State;
use super::{Source, SourceError};
use crate::bitmap::PageBitmap;
use crate::pages::PageRun;

impl Source {
    /// The pages of `run`, which were claimed, are about to cross as references. To call before they do: the answer may be a
    /// demand at once.
    pub fn refers(&mut self, run: PageRun) {
        self.referenced.insert_run(run);
    }

    /// Whether `page`, which was demanded, crosses (again) because it did as a reference only; it does not afterwards.
    pub(super) fn dereference(&mut self, page: u64) -> bool {
        self.referenced.remove(page)
    }

    /// The destination lacks pages that crossed as references.
    pub(super) fn missed(&mut self, pages: &PageBitmap) -> Result<Vec<Command>, SourceError> {
        match self.state {
            State::Round(_) | State::StopCopy(_) => {
                let mut unheard_of = pages.clone();
                unheard_of.subtract(&self.referenced);
                if !unheard_of.is_empty() {
                    let found = format!(
                        "{} missed pages that did not cross as references",
                        unheard_of.count()
                    );
                    return Err(self.unexpected(&found, "such as did"));
                }
                self.ledger.missed(pages);
                self.referenced.subtract(pages);
                self.recorder.missed(pages.count());
                Ok(Vec::new())
            }
            State::Ended { .. } => Ok(Vec::new()),
            _ => Err(self.unexpected("missed pages", "them before the end of their round")),
        }
    }
}
