//! Strategies compared on the same recorded traces, in virtual time.

mod filter;
mod hybrid;
mod replay;
mod traces;
