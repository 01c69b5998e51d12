//! The `vmferry` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vmferry_cli::run(std::env::args_os())
}
