//! Starting QEMU: its RAM in memfds of ours, its monitor on a socket, its life independent of ours.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_core::{PAGE_SIZE, RamBlock, RamLayout};
use vmferry_guest::{GuestError, GuestRam, Result};
use vmferry_memory::{SharedMemory, spawn_detached};

use crate::agent;
use crate::args::{escape, join, key_values, options, value_of};
use crate::process::QemuProcess;
use crate::qmp::Qmp;
use crate::spec::{BackendSize, QemuConfig, is_memory_backend, unsuitable};

/// How long QEMU may take from its start to the greeting of its monitor.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether the monitor's socket is there.
const START_POLL: Duration = Duration::from_millis(2);
/// Bytes of QEMU's own output quoted in an error.
const LOG_TAIL_BYTES: u64 = 2048;
/// The longest path of a unix socket.
const MAX_SOCKET_PATH: usize = 107;

/// A QEMU that has just been started.
pub(crate) struct Started {
    pub(crate) process: QemuProcess,
    pub(crate) qmp: Qmp,
    pub(crate) ram: GuestRam,
}

/// What the guest does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// It boots.
    Boot,
    /// It waits for a migration.
    Incoming,
}

/// QEMU's output within the guest's directory.
pub(crate) fn log_path(dir: &Path) -> PathBuf {
    dir.join("qemu.log")
}

/// The monitor's socket within the guest's directory.
pub(crate) fn qmp_path(dir: &Path) -> PathBuf {
    dir.join("qmp.sock")
}

/// Starts QEMU and waits until its monitor answers. On an error nothing is left but its log.
pub(crate) fn start(config: &QemuConfig, name: &str, dir: &Path, start: Start) -> Result<Started> {
    config.check_host(name)?;
    let socket = qmp_path(dir);
    let sockets = [socket.clone(), agent::socket_path(dir)];
    if let Some(long) = sockets
        .iter()
        .find(|path| path.as_os_str().len() > MAX_SOCKET_PATH)
    {
        let problem = format!("the path {} is too long for a unix socket", long.display());
        return Err(unsuitable(name, problem, "use a shorter state folder or name"));
    }
    let ram = create_ram(&config.backends(name)?)?;
    let process = spawn(config, name, dir, &ram, start)?;
    match wait_for_monitor(&process, &socket) {
        Ok(qmp) => Ok(Started { process, qmp, ram }),
        Err(error) => {
            process.kill();
            process.wait(Duration::from_secs(10));
            let _ = fs::remove_file(&socket);
            let tail = log_tail(dir).unwrap_or_else(|| error.to_string());
            Err(GuestError::operation(
                format!("starting {} for {name}", config.binary),
                tail,
            ))
        }
    }
}

fn create_ram(backends: &[BackendSize]) -> Result<GuestRam> {
    let wrong = |error| GuestError::operation("laying out the guest's RAM", error);
    let blocks = backends
        .iter()
        .map(|b| RamBlock {
            name: b.id.clone(),
            pages: b.bytes / PAGE_SIZE,
        })
        .collect();
    let layout = RamLayout::new(blocks).map_err(|error| wrong(Box::new(error)))?;
    let memory = backends
        .iter()
        .map(|backend| SharedMemory::create(&format!("vmferry {}", backend.id), backend.bytes).map(Arc::new))
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| GuestError::operation("creating the guest's RAM", error))?;
    Ok(GuestRam::new(layout, memory))
}

fn spawn(config: &QemuConfig, name: &str, dir: &Path, ram: &GuestRam, start: Start) -> Result<QemuProcess> {
    let failed = |what: String| move |error: io::Error| GuestError::operation(what, error);
    let log_path = log_path(dir);
    let log = File::create(&log_path).map_err(failed(format!("creating {}", log_path.display())))?;
    let errors = log.try_clone().map_err(failed("duplicating the log".into()))?;
    let _ = fs::remove_file(qmp_path(dir));
    let mut command = Command::new(&config.binary);
    command
        .args(command_line(config, name, dir, ram, start))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    let fds: Vec<BorrowedFd<'_>> = (0..ram.layout().blocks().len())
        .map(|index| ram.block(index).fd())
        .collect();
    let child = spawn_detached(command, &fds).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unsuitable(
            name,
            format!("{} is not installed on this host", config.binary),
            "install QEMU",
        ),
        _ => GuestError::operation(format!("starting {}", config.binary), error),
    })?;
    QemuProcess::of_child(child).map_err(failed("watching QEMU".into()))
}

fn command_line(config: &QemuConfig, name: &str, dir: &Path, ram: &GuestRam, start: Start) -> Vec<String> {
    let mut line: Vec<String> = ["-name", &format!("guest={}", escape(name)), "-no-user-config"]
        .map(String::from)
        .into();
    line.extend(config.own_args());
    line.extend(["-m".into(), format!("size={}", format_size(config.memory_bytes))]);
    if !config.ram_is_numa() {
        line.extend(["-object".into(), backend_object(ram, &config.ram_id, &[])]);
        line.extend([
            "-machine".into(),
            format!("memory-backend={}", escape(&config.ram_id)),
        ]);
    }
    line.extend(shared_args(config, ram));
    let socket = escape(&qmp_path(dir).display().to_string());
    line.extend(["-qmp".into(), format!("unix:{socket},server=on,wait=off")]);
    if config.agent {
        line.extend(agent::port_args(&escape(
            &agent::socket_path(dir).display().to_string(),
        )));
    }
    if start == Start::Incoming {
        line.extend(["-incoming", "defer"].map(String::from));
    }
    line
}

/// QEMU takes plain numbers of `-m` for MiB; sizes of whole pages are whole KiB.
pub(crate) fn format_size(bytes: u64) -> String {
    format!("{}k", bytes >> 10)
}

/// The guest's own arguments with every memory backend put into a memfd of ours: only that is skipped by the
/// migration stream of all versions, and two hosts (or one) never meet in the same file.
fn shared_args(config: &QemuConfig, ram: &GuestRam) -> Vec<String> {
    let mut args = config.args.clone();
    for arg in options(&config.args).filter(|arg| is_memory_backend(*arg)) {
        let value = arg.value.unwrap_or_default();
        if let Some(id) = value_of(value, "id") {
            args[arg.at + 1] = backend_object(ram, &id, &key_values(value));
        }
    }
    args
}

/// The `-object` of the memory backend `id`, with what the user's `pairs` say beside its backing.
fn backend_object(ram: &GuestRam, id: &str, pairs: &[(String, String)]) -> String {
    const OURS: &[&str] = &[
        "",
        "qom-type",
        "id",
        "size",
        "mem-path",
        "share",
        "seal",
        "hugetlb",
        "hugetlbsize",
        "prealloc",
        "discard-data",
        "pmem",
        "readonly",
        "align",
        "offset",
        "rom",
    ];
    let index = ram
        .layout()
        .blocks()
        .iter()
        .position(|block| block.name == id)
        .expect("a block a backend");
    let memory = ram.block(index);
    let mut object = vec![
        (String::new(), "memory-backend-file".to_owned()),
        ("id".into(), id.to_owned()),
        ("size".into(), memory.len().to_string()),
        (
            "mem-path".into(),
            format!("/proc/self/fd/{}", memory.fd().as_raw_fd()),
        ),
        ("share".into(), "on".into()),
    ];
    object.extend(
        pairs
            .iter()
            .filter(|(key, _)| !OURS.contains(&key.as_str()))
            .cloned(),
    );
    join(&object)
}

pub(crate) fn wait_for_monitor(process: &QemuProcess, socket: &Path) -> Result<Qmp> {
    let deadline = Instant::now() + START_TIMEOUT;
    let failed = |why: String| GuestError::operation("waiting for QEMU's monitor", why);
    while !socket.exists() {
        if process.wait(START_POLL) {
            return Err(failed(process.end()));
        }
        if Instant::now() > deadline {
            return Err(failed(format!("it did not open it within {START_TIMEOUT:?}")));
        }
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match Qmp::connect(socket, left) {
            Ok(qmp) => return Ok(qmp),
            // Bound but not listening yet.
            Err(error) if error.is_disconnect() && !left.is_zero() && !process.wait(START_POLL) => {}
            Err(error) => {
                // An end during start-up explains more than its consequence.
                let ended = process.wait(Duration::from_millis(100));
                return Err(failed(if ended { process.end() } else { error.to_string() }));
            }
        }
    }
}

/// The end of what QEMU said, in one line.
pub(crate) fn log_tail(dir: &Path) -> Option<String> {
    let mut log = File::open(log_path(dir)).ok()?;
    let len = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    log.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_memory_backend_is_put_into_our_memfds() {
        let args = [
            "-object",
            "memory-backend-file,id=d0,size=2M,mem-path=/dev/shm/x,policy=bind,host-nodes=0",
            "-device",
            "pc-dimm,memdev=d0",
        ];
        let config = QemuConfig::new(4 << 20, args);
        let ram = create_ram(&config.backends("vm").unwrap()).unwrap();
        let line = command_line(&config, "vm", Path::new("/run/x"), &ram, Start::Incoming).join(" ");
        let fd = |index: usize| ram.block(index).fd().as_raw_fd();
        let main = format!(
            "memory-backend-file,id=vmferry.ram0,size=4194304,mem-path=/proc/self/fd/{},share=on",
            fd(0)
        );
        let dimm = format!(
            "memory-backend-file,id=d0,size=2097152,mem-path=/proc/self/fd/{},share=on,policy=bind,host-nodes=0",
            fd(1)
        );
        assert!(line.contains(&main) && line.contains(&dimm), "{line}");
        assert!(
            line.contains("-m size=4096k") && line.ends_with("-incoming defer"),
            "{line}"
        );
        assert!(!line.contains("/dev/shm"), "{line}");
    }
}
