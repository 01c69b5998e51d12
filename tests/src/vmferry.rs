//! The `vmferry` command as a user types it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The `vmferry` program: the one that the variable `VMFERRY_BIN` names, else the one of this build.
///
/// Cargo does not build the programs of other packages for a test, so this does, with the profile of the test; where it
/// is fresh that takes a moment.
///
/// # Panics
/// When it does not build.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("VMFERRY_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    // The test lies in TARGET/PROFILE/deps.
    let test = std::env::current_exe().expect("a program knows its path");
    let folder = test.ancestors().nth(2).expect("a test lies in a target folder");
    let profile = match folder.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    // Build scripts that look at what it told this test about itself would run again, and all that depends on them be built anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let built = cargo
        .args(["build", "--quiet", "--package", "vmferry-cli", "--bin", "vmferry"])
        .args(["--profile", profile, "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .arg("--target-dir")
        .arg(folder.parent().expect("a profile lies in a target folder"))
        .status()
        .expect("cargo runs");
    assert!(built.success(), "vmferry does not build");
    folder.join("vmferry")
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
}

impl Answer {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn of(command: &mut Command) -> Self {
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The JSON on stdout.
    ///
    /// # Panics
    /// When something else, or more, was printed.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The JSON of a command that has to succeed.
    ///
    /// # Panics
    /// When it failed.
    pub fn expect_json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.json()
    }

    /// The one clear line of a command that has to fail, which contains all of `words`.
    ///
    /// # Panics
    /// When it succeeded, said more or less than one line, or left a word out.
    pub fn expect_refusal(&self, words: &[&str]) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "it succeeded: {self:?}");
        let line = self.stderr.trim_end();
        assert!(
            line.starts_with("error: ") && line.lines().count() == 1,
            "not one clear line: {self:?}"
        );
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
        line.to_owned()
    }
}
