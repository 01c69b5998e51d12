//! Strategies compared on the same recorded traces, in virtual time.

mod filter;
mod hybrid;
mod kept;
mod replay;
mod traces;
