//! The agent in the guest: tells the host over a virtio-serial port what page frames are used for.
//!
//! One static binary for any Linux from 4.x, run as root; the kernel stays as it is. It writes nothing but answers. What
//! it says can only harm its own guest, and the host bounds it.
//!
//! `vmferry-agent` serves the port. `vmferry-agent --survey` prints how many frames of each class there are, and how long
//! that took.
#![forbid(unsafe_code)]

mod activity;
mod classify;
mod error;
mod flags;
mod kernel;
mod port;
mod proc;
mod serve;
mod survey;

use std::process::ExitCode;

use rustix::mm::MlockAllFlags;

const USAGE: &str = "usage: vmferry-agent [--survey]";

fn main() -> ExitCode {
    // While it classifies, its own pages must not be evicted and come back. Too little is no reason to give up.
    if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        eprintln!("vmferry-agent: its memory cannot be locked ({error}); going on without");
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve::forever(),
        ["--survey"] => survey::print(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmferry-agent: {}", error.in_one_line());
            ExitCode::FAILURE
        }
    }
}
