//! Strategies compared on the same recorded traces, in virtual time.

mod hybrid;
mod replay;
mod traces;
