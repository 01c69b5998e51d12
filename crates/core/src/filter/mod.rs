//! The data filter: a model of where the guest writes, and which pages it will have dirtied before a round is sent.
//!
//! Source: data-filter paper (Ruan, Cao, Wang, "Efficient Live Migration of Virtual Machines with a Novel Data
//! Filter", NPC 2014), section 3. RAM is cut into equal regions; the hottest region of a sample of dirty pages is
//! the *state* ([`states`]); a Markov model holds how states follow each other and, for each, the pages written
//! often in it, its *local writable working set* ([`model`]). From the state of the last sample the model walks on
//! for as long as the pages need to cross ([`forecast`]). Whether it still fits the guest is tested again and again
//! ([`fit`], [`learner`], [`trust`]).
//!
//! Memory, for N pages and S states (regions, and one for an idle guest): 4 S² bytes of transitions, at most
//! 18 N bytes of working sets however the guest behaves (16 counters and their verdicts a page, see
//! [`model::SETS_PER_PAGE`]), N / 8 bytes for the sample under way: O(N + S²).

pub mod fit;
pub mod forecast;
pub mod learner;
pub mod model;
pub mod regions;
pub mod report;
pub mod states;
pub mod trust;

pub use learner::{Learner, Tested};
pub use model::Model;
pub use report::{FilterReport, SampleCost, StateCount};
pub use trust::{Trust, Verdict};
