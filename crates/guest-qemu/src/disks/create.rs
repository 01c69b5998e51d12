//! Creating an empty image as QEMU itself does it: by a QEMU without a machine, so that nothing else has to be installed.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vmferry_guest::{DiskInfo, GuestError, Result};

use crate::args::escape;
use crate::launch::wait_for_monitor;
use crate::process::QemuProcess;
use crate::qmp::Qmp;
use crate::qmp::block::{BlockdevAdd, BlockdevCreate, BlockdevDel, JobDismiss, QueryJobs};
use crate::qmp::commands::Quit;
use crate::spec::{QemuConfig, unsuitable};

/// How long an image may take: only its tables are written.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the job is looked at.
const JOB_POLL: Duration = Duration::from_millis(2);

/// Creates an empty image for `disk` at `path`, where nothing is.
pub(crate) fn create(config: &QemuConfig, name: &str, disk: &DiskInfo, path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| GuestError::operation(format!("creating {}", path.display()), error);
    if !["raw", "qcow2"].contains(&disk.format.as_str()) {
        let problem = format!("an image of format {} cannot be created here", disk.format);
        return Err(unsuitable(
            name,
            problem,
            "create one of the same size beforehand and allow it to be overwritten",
        ));
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    let made = match disk.format.as_str() {
        "raw" => file.set_len(disk.bytes).map_err(failed),
        _ => format_qcow2(config, path, disk.bytes),
    };
    made.inspect_err(|_| drop(fs::remove_file(path)))
}

/// A QEMU without a machine; it goes with this value.
struct Helper {
    process: QemuProcess,
    socket: PathBuf,
    qmp: Option<Qmp>,
}

impl Helper {
    fn start(binary: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("vmferry-image-{}-{count}.sock", std::process::id()));
        let failed = |error: std::io::Error| GuestError::operation(format!("starting {binary}"), error);
        let child = Command::new(binary)
            .args([
                "-machine",
                "none",
                "-nodefaults",
                "-display",
                "none",
                "-no-user-config",
                "-qmp",
            ])
            .arg(format!(
                "unix:{},server=on,wait=off",
                escape(&socket.display().to_string())
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let process = QemuProcess::of_child(child).map_err(failed)?;
        let mut helper = Self {
            process,
            socket,
            qmp: None,
        };
        helper.qmp = Some(wait_for_monitor(&helper.process, &helper.socket)?);
        Ok(helper)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let asked = self.qmp.as_ref().is_some_and(|qmp| qmp.run(&Quit {}).is_ok());
        if !(asked && self.process.wait(Duration::from_secs(3))) {
            self.process.kill();
        }
        let _ = fs::remove_file(&self.socket);
    }
}

fn format_qcow2(config: &QemuConfig, path: &Path, bytes: u64) -> Result<()> {
    let helper = Helper::start(&config.binary)?;
    let Some(qmp) = &helper.qmp else { return Ok(()) };
    let absolute = std::path::absolute(path)
        .map_err(|error| GuestError::operation(format!("creating {}", path.display()), error))?;
    format_with(qmp, &absolute, "image", "image", bytes)
}

/// Formats the file at `path`, which is there, as an empty qcow2 image, by a QEMU in which `node` and `job` are free names.
pub(super) fn format_with(qmp: &Qmp, path: &Path, node: &str, job: &str, bytes: u64) -> Result<()> {
    let doing = || format!("creating {}", path.display());
    let failed = |error| GuestError::operation(doing(), error);
    let file = json!({"driver": "file", "node-name": node, "filename": path});
    qmp.run(&BlockdevAdd(file)).map_err(failed)?;
    let options = json!({"driver": "qcow2", "file": node, "size": bytes});
    let create = BlockdevCreate {
        job_id: job.to_owned(),
        options,
    };
    let created = qmp
        .run(&create)
        .map_err(failed)
        .and_then(|_| wait_for(qmp, job, &doing));
    let removed = qmp.run(&BlockdevDel {
        node_name: node.to_owned(),
    });
    created.and(removed.map(drop).map_err(failed))
}

fn wait_for(qmp: &Qmp, job: &str, doing: &impl Fn() -> String) -> Result<()> {
    let deadline = Instant::now() + CREATE_TIMEOUT;
    loop {
        let jobs = qmp
            .run(&QueryJobs {})
            .map_err(|error| GuestError::operation(doing(), error))?;
        match jobs.into_iter().find(|found| found.id == job) {
            Some(job) if job.status == "concluded" => {
                let dismissed = qmp.run(&JobDismiss { id: job.id });
                if let Some(why) = job.error {
                    return Err(GuestError::operation(doing(), why));
                }
                return dismissed
                    .map(drop)
                    .map_err(|error| GuestError::operation(doing(), error));
            }
            Some(_) if Instant::now() < deadline => thread::sleep(JOB_POLL),
            _ => return Err(GuestError::operation(doing(), "the job did not conclude")),
        }
    }
}
