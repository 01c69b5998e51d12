//! What an installed QEMU can do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde::Serialize;
use tracing::warn;
use vmferry_guest::{GuestError, Result};

use crate::qmp::Qmp;
use crate::qmp::commands::{QueryVersion, Quit};

/// How long a QEMU without a machine may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is started before it counts as broken: on a crowded host a start may fail for want of something that
/// is there again a moment later.
const ATTEMPTS: u32 = 3;

/// An installed QEMU, by its own account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QemuInfo {
    /// Its version, for example `7.2.22`.
    pub version: String,
    /// Whether its migration stream can leave shared RAM out (`x-ignore-shared`): without it vmferry cannot move
    /// its guests.
    pub ignores_shared: bool,
    /// Accelerators built in, for example `tcg`, `kvm`; whether KVM works here is another question.
    pub accelerators: Vec<String>,
}

/// Asks `binary` (a name in `PATH` or a path), by starting it without a machine for a moment.
///
/// # Errors
/// When it is not installed, does not start or does not answer.
pub fn probe(binary: &str) -> Result<QemuInfo> {
    let accelerators = accelerators(binary)?;
    let mut attempt = 1;
    let (version, ignores_shared) = loop {
        match start_and_ask(binary) {
            Ok(answer) => break answer,
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(error) => warn!(
                attempt,
                error = &error as &dyn std::error::Error,
                "QEMU did not say what it can do"
            ),
        }
        attempt += 1;
    };
    Ok(QemuInfo {
        version,
        ignores_shared,
        accelerators,
    })
}

fn start_and_ask(binary: &str) -> Result<(String, bool)> {
    let folder = scratch_folder().map_err(|error| failed(binary, error))?;
    let asked = ask(binary, &folder.join("qmp.sock"));
    let _ = fs::remove_dir_all(&folder);
    asked
}

fn accelerators(binary: &str) -> Result<Vec<String>> {
    let output = Command::new(binary)
        .args(["-accel", "help"])
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => GuestError::Unsupported {
            what: binary.to_owned(),
            mend: "install QEMU".into(),
        },
        _ => failed(binary, error),
    })?;
    // A heading, then one name a line.
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

fn ask(binary: &str, socket: &Path) -> Result<(String, bool)> {
    let mut child = Command::new(binary)
        .args([
            "-machine",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-qmp",
        ])
        .arg(format!(
            "unix:{},server=on,wait=off",
            crate::args::escape(&socket.display().to_string())
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(binary, error))?;
    let start = Instant::now();
    while !socket.exists() && start.elapsed() < START_TIMEOUT && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(2));
    }
    let answer = (|| {
        let qmp = loop {
            match Qmp::connect(socket, START_TIMEOUT) {
                // Bound but not listening yet.
                Err(error) if error.is_disconnect() && start.elapsed() < START_TIMEOUT => {
                    if !matches!(child.try_wait(), Ok(None)) {
                        return Err(error);
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                connected => break connected?,
            }
        };
        let version = qmp.run(&QueryVersion {})?.qemu;
        let ignores_shared = qmp.schema()?.supports_capability("x-ignore-shared");
        let _ = qmp.run(&Quit {});
        Ok::<_, crate::qmp::QmpError>((
            format!("{}.{}.{}", version.major, version.minor, version.micro),
            ignores_shared,
        ))
    })();
    let _ = child.kill();
    let _ = child.wait();
    answer.map_err(|error| failed(binary, error))
}

fn scratch_folder() -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("vmferry-probe-{}-{count}", std::process::id()));
    // One of a process that had this number before and was killed.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder)?;
    Ok(folder)
}

fn failed(binary: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> GuestError {
    GuestError::operation(format!("asking {binary} what it can do"), error)
}
