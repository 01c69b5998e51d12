//! Running other programs. Their talk goes to stderr: stdout belongs to the result of the task.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

/// The cargo that runs us, so that a task stays with one toolchain. What it told us about ourselves is not for others: build scripts
/// that look at it would run again, and all that depends on them be built anew.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let names = std::env::vars_os().map(|(name, _)| name);
    let of_ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    names.filter(of_ours).for_each(|name| {
        cargo.env_remove(name);
    });
    cargo.current_dir(crate::repository());
    cargo
}

/// Runs the command to its end with its output on our stderr; a non-zero exit is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    run_loudly(command.stdout(std::io::stderr()))
}

/// Like [`run`], with the command's stdout on ours: for commands whose output is the result.
pub(crate) fn run_loudly(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", line(command));
    Ok(())
}

/// Runs the command and returns what it wrote to stdout; a non-zero exit is an error with the last line of its stderr.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let (line, last) = (line(command), last_words(&output));
    ensure!(
        output.status.success(),
        "`{line}` failed ({}): {last}",
        output.status
    );
    Ok(output.stdout)
}

/// The last line that a command wrote to stderr.
pub(crate) fn last_words(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    stderr.lines().last().unwrap_or("it said nothing").to_owned()
}

/// Like [`output`], for text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    String::from_utf8(output(command)?).with_context(|| format!("`{}` wrote no UTF-8", line(command)))
}

/// Whether the program can be found in `PATH`.
pub(crate) fn exists(program: &str) -> bool {
    find(program).is_some()
}

/// Where the program is: `PATH`, then the folders of system tools that a user's `PATH` may lack.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The command as one would type it, for messages.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = program.file_name().into_iter().chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_its_last_words() {
        let script = "echo first >&2; echo last >&2; exit 3";
        let error = output(Command::new("/bin/sh").args(["-c", script])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("`sh -c ") && text.ends_with("failed (exit status: 3): last"),
            "{text}"
        );
        assert!(run(&mut Command::new("false")).is_err());
    }

    #[test]
    fn programs_are_found() {
        assert!(exists("sh"));
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
