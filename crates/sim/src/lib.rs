//! Replays traces through the policies and state machines of `vmferry-core`, in virtual time.
#![forbid(unsafe_code)]
