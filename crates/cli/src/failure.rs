//! From arguments to an exit code: 0 done, 1 failed, 2 used wrongly.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::commands;

/// Carries out a command line, with the program's name first, and says how that ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version come this way too. Nobody is left to tell when this cannot be printed.
            let _ = answer.print();
            return match answer.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    match commands::run(cli) {
        Ok(code) => code,
        // `vmferry list | head` is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes on one line, each said once.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace('\n', " ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    // Only our own output: a broken connection to the daemon is a failure.
    error.chain().count() == 1 && kind(error.root_cause()) == Some(io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn causes_are_said_once_on_one_line() {
        let error = Err::<(), _>(io::Error::other("disk\nfull"))
            .context("cannot write")
            .unwrap_err();
        assert_eq!(chain(&error), "cannot write: disk full");
        let error = anyhow::anyhow!("no room").context("cannot write: no room");
        assert_eq!(chain(&error), "cannot write: no room");
    }

    #[test]
    fn only_our_own_output_may_break() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&pipe().into()));
        assert!(!is_broken_pipe(
            &anyhow::Error::from(pipe()).context("no daemon answers")
        ));
    }
}
