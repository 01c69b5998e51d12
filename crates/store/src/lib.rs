//! A content-addressed store of checkpoints in any object store.
#![forbid(unsafe_code)]
