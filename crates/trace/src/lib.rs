//! What a guest writes over time.
#![forbid(unsafe_code)]
