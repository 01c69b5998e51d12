//! Takes incremental checkpoints of running guests, and resumes them.
#![forbid(unsafe_code)]

pub mod resume;
pub mod take;
