//! What a mirror writes, on its way to another host, with as few bytes as that takes.
//!
//! The source cuts data into *blocks* of 64 KiB. A block is put as a question first: its place and its hash. The destination
//! answers whether it *has* the block (in the disk so far, or in another disk of the same guest) and copies it in place then;
//! only what it *needs* crosses in full, compressed. What is no whole block crosses in full at once, zeros cross as their
//! bounds.
//!
//! ```text
//! source                                   destination
//! Ask(n, place, hash)          ------->    has it: writes it; else remembers the question
//!                              <-------    Answer(n, has) / Answer(n, needs)
//! Data(n, bytes)               ------->    checks them by the hash, writes them
//! Write(place, bytes), Zero(range) --->    writes
//! Flush(n)                     ------->    flushes
//!                              <-------    Flushed(n)
//! ```
//!
//! **Order.** The destination works frame by frame, but the data of a question follows later, when other frames have been
//! worked. So the source holds back whatever overlaps a question that is open ([`Sender`]): two writes to one place
//! never pass each other.
//!
//! **Trust.** A block is known by blake3, and the destination reads what it thinks that it has and hashes it again before it
//! uses it: an index that is out of date costs a crossing, never a wrong block. Frames are bounded, and places are checked
//! against the disk.

pub mod frame;
pub mod index;
pub mod receiver;
pub mod sender;

pub use frame::{BLOCK_BYTES, FromSource, Hash, MAX_WRITE_BYTES, ToSource};
pub use index::Index;
pub use receiver::{Receiver, Target};
pub use sender::{Sender, Sent};
