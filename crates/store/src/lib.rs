//! A content-addressed store of checkpoints in any object store: a local folder, S3, or memory for tests.
//!
//! A [`Store`] works on bytes. It knows no guest and maps no memory; it blocks, and keeps its asynchronous client to itself.
//!
//! # What lies in a store
//!
//! | object | what it is |
//! |---|---|
//! | `checkpoints/VM/N.manifest` | a checkpoint: it exists exactly when this object does and no mark stands beside it ([`manifest`]) |
//! | `checkpoints/VM/N.deleted` | the mark that checkpoint N is deleted; its objects go with the next sweep |
//! | `checkpoints/VM/N.resumed` | the mark that a guest was resumed from checkpoint N ([`Resumed`]) |
//! | `tables/xx/HASH` | where 32,768 consecutive pages are ([`table`]) |
//! | `chunks/xx/HASH` | pages or a piece of a blob, compressed ([`chunk`]) |
//! | `replaced/VM/...` | manifests that a merge replaced a short while ago |
//! | `leases/...` | who writes a VM's checkpoints, who reads, who sweeps ([`lease`]) |
//!
//! Chunks and tables are named by the BLAKE3 hash of their plain content: they are never changed, equal ones are one, and
//! whoever reads one can tell whether it is whole. Manifests are put last, and only where none is: a writer that dies leaves
//! objects that nobody names, and a second writer of the same VM cannot commit.
//!
//! Every manifest is whole: it names the tables of all of RAM, so no checkpoint needs another one to be read, and a chain of
//! them has no length. What the checkpoints of a VM share is tables and chunks; what old ones leave of their chunks is merged
//! ([`Store::merge`]).
#![forbid(unsafe_code)]

mod backend;
pub mod chunk;
mod error;
mod hash;
mod holdings;
mod id;
mod index;
mod keys;
pub mod lease;
mod location;
pub mod manifest;
mod merge;
mod reader;
mod resumed;
mod runtime;
mod store;
mod sweep;
pub mod table;
mod verify;
mod writer;

pub use error::{Result, StoreError};
pub use hash::Hash;
pub use holdings::Holdings;
pub use id::CheckpointId;
pub use manifest::{BlobRef, DiskExtent, DiskState, Manifest, PageCounts};
pub use merge::Merged;
pub use reader::{PageSource, Reader};
pub use resumed::Resumed;
pub use store::{Store, StoreOptions};
pub use sweep::{Retention, Swept};
pub use table::Place;
pub use verify::{Damage, Scope, Verified};
pub use writer::{Draft, Taken, Writer};
