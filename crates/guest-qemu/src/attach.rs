//! Taking over a QEMU that runs already.
//!
//! It has to have all RAM in shared files and a QMP socket that no other client holds. Nothing of it is changed;
//! from then on it is a guest like one that vmferry started.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, RamBlock, RamLayout};
use vmferry_guest::{Guest, GuestError, GuestRam, GuestSpec, Result};
use vmferry_memory::{FileId, MapEntry, RemoteProcess, SharedMemory, read_maps};

use crate::args::{key_values, options, value_of};
use crate::cmdline;
use crate::guest::{Phase, QemuGuest};
use crate::launch::Started;
use crate::physical::GuestPhysicalMap;
use crate::process::QemuProcess;
use crate::qmp::commands::{Memdev, QueryMemdev};
use crate::qmp::{Qmp, QmpError};
use crate::record::open_file_of;
use crate::spec::{BackendSize, QemuConfig};

/// How long the monitor may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(3);

/// Takes over QEMU process `pid` as the guest `name`. `qmp` is its QMP socket; when absent, the one on its
/// command line is used. `dir` is the guest's directory on this host.
///
/// # Errors
/// With exactly what is missing, and how to start QEMU so that it is there: no such process, another
/// architecture, no right to trace it, no QMP socket or one that is in use, RAM that is not shared.
pub fn attach(pid: u32, qmp: Option<&Path>, name: &str, dir: &Path) -> Result<QemuGuest> {
    let process = QemuProcess::open(pid)
        .map_err(|error| GuestError::operation(format!("finding process {pid}"), error))?;
    let binary = check_binary(pid)?;
    let remote = RemoteProcess::open(pid).map_err(|error| missing(pid, error.to_string()))?;
    // Copying a descriptor takes the same right as injecting a call, and disturbs nobody.
    remote.getfd(0).map(drop).or_else(|error| match error {
        vmferry_memory::Error::TraceForbidden { .. } => Err(missing(pid, error.to_string())),
        _ => Ok(()),
    })?;
    let args = cmdline::read(pid).map_err(|error| {
        GuestError::operation(format!("reading the command line of process {pid}"), error)
    })?;
    let qmp = connect(pid, qmp, &args)?;
    let config = cmdline::to_config(&binary, &args).map_err(|problem| missing(pid, problem))?;
    let spec = config.clone().into_spec(name);
    let config = QemuConfig::from_spec(&spec)?;
    let ram = map_ram(pid, &qmp, &config, name)?;
    adopt(spec, config, dir, Started { process, qmp, ram })
}

fn adopt(spec: GuestSpec, config: QemuConfig, dir: &Path, qemu: Started) -> Result<QemuGuest> {
    let guest = QemuGuest::new(spec, config, dir, qemu, Phase::Live)?;
    let _ = guest.state();
    Ok(guest)
}

fn missing(pid: u32, what: impl Into<String>) -> GuestError {
    GuestError::Unsupported {
        what: format!("taking over process {pid}"),
        mend: what.into(),
    }
}

/// The emulator's name or path, if it is one that vmferry can move.
fn check_binary(pid: u32) -> Result<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).map_err(|error| {
        missing(
            pid,
            format!("its program cannot be read ({error}): run as root or as its user"),
        )
    })?;
    // The kernel marks a program that was replaced while it runs (an upgrade).
    let exe = exe.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let file = exe.rsplit('/').next().unwrap_or_default();
    match file.strip_prefix("qemu-system-") {
        Some("x86_64" | "i386") => {}
        Some(other) => {
            return Err(missing(
                pid,
                format!("it emulates {other}, and only x86_64 guests can move so far"),
            ));
        }
        None if ["qemu-kvm", "kvm"].contains(&file) => {}
        None => {
            return Err(missing(
                pid,
                format!("it runs {exe}, which is no QEMU system emulator"),
            ));
        }
    }
    let in_path = ["/usr/bin/", "/bin/", "/usr/local/bin/"]
        .iter()
        .any(|folder| exe == format!("{folder}{file}"));
    Ok(if in_path { file.to_owned() } else { exe })
}

fn connect(pid: u32, given: Option<&Path>, args: &[String]) -> Result<Qmp> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => qmp_socket(pid, args).ok_or_else(|| {
            missing(
                pid,
                "it has no QMP socket: restart it with -qmp unix:/run/NAME.qmp,server=on,wait=off, or name the \
                 socket if it has one",
            )
        })?,
    };
    Qmp::connect(&path, GREETING_TIMEOUT).map_err(|error| match error {
        QmpError::NoGreeting { .. } | QmpError::NotQmp { .. } => missing(pid, error.to_string()),
        error => GuestError::operation(format!("talking to QEMU (pid {pid})"), error),
    })
}

/// The first QMP server socket on the command line.
fn qmp_socket(pid: u32, args: &[String]) -> Option<PathBuf> {
    let control = |value: &str| value_of(value, "mode").as_deref() == Some("control");
    let of_chardev = |id: &str| {
        options(args)
            .filter(|arg| arg.name == "chardev")
            .filter_map(|arg| arg.value)
            .find(|value| value_of(value, "id").as_deref() == Some(id))
            .and_then(|value| value_of(value, "path"))
    };
    let path = options(args).find_map(|arg| {
        let value = arg.value?;
        match arg.name {
            "qmp" | "qmp-pretty" => {
                let target = key_values(value).swap_remove(0).1;
                match target.strip_prefix("unix:") {
                    Some(path) => Some(path.to_owned()),
                    None => of_chardev(target.strip_prefix("chardev:").unwrap_or(&target)),
                }
            }
            "mon" if control(value) => {
                of_chardev(&value_of(value, "chardev").or_else(|| value_of(value, ""))?)
            }
            _ => None,
        }
    })?;
    // Relative paths are relative to where QEMU was started.
    Some(if path.starts_with('/') {
        path.into()
    } else {
        format!("/proc/{pid}/cwd/{path}").into()
    })
}

/// Maps the files behind all RAM of the guest.
fn map_ram(pid: u32, qmp: &Qmp, config: &QemuConfig, name: &str) -> Result<GuestRam> {
    let failed = |error: QmpError| GuestError::operation("asking QEMU for its RAM", error);
    let wanted = config.backends(name)?;
    let known = qmp.run(&QueryMemdev {}).map_err(failed)?;
    let mtree = qmp.human("info mtree -f").map_err(failed)?;
    check_all_shared(pid, &known, &wanted, &mtree)?;
    let blocks = wanted
        .iter()
        .map(|b| RamBlock {
            name: b.id.clone(),
            pages: b.bytes / PAGE_SIZE,
        })
        .collect();
    let layout =
        RamLayout::new(blocks).map_err(|error| GuestError::operation("laying out the guest's RAM", error))?;
    let physical = GuestPhysicalMap::parse(&mtree, &layout);
    let maps = read_maps(pid).map_err(|error| missing(pid, error.to_string()))?;
    let mut memory = Vec::with_capacity(wanted.len());
    for (index, backend) in wanted.iter().enumerate() {
        let first = layout.block_run(index).first;
        let seen = physical
            .ranges()
            .iter()
            .find(|range| layout.block_run(index).contains(range.pages.first));
        let Some(seen) = seen else {
            return Err(missing(
                pid,
                format!("its memory backend {} is not plugged in: remove it", backend.id),
            ));
        };
        let host = gpa2hva(qmp, seen.address)?;
        let offset = (seen.pages.first - first) * PAGE_SIZE;
        memory.push(Arc::new(map_block(pid, &maps, backend, host, offset)?));
    }
    Ok(GuestRam::new(layout, memory))
}

/// Every backend that the guest uses has to be among those that will exist at the destination, and shared.
fn check_all_shared(pid: u32, known: &[Memdev], wanted: &[BackendSize], mtree: &str) -> Result<()> {
    for backend in known {
        let Some(id) = backend.id.as_deref() else { continue };
        if !mtree
            .lines()
            .any(|line| line.contains(&format!("ram): {id}")) || line.contains(&format!("/{id} ")))
        {
            continue;
        }
        let Some(found) = wanted.iter().find(|wanted| wanted.id == id) else {
            return Err(missing(pid, how_to_share(id, backend.size)));
        };
        if backend.share == Some(false) {
            return Err(missing(pid, how_to_share(id, found.bytes)));
        }
    }
    Ok(())
}

fn how_to_share(id: &str, bytes: u64) -> String {
    let mib = bytes >> 20;
    format!(
        "its RAM {id} is not shared: restart it with -object memory-backend-file,id=ram0,size={mib}M,\
         mem-path=/dev/shm/NAME,share=on -machine memory-backend=ram0, or by `vmferry run`"
    )
}

/// Where QEMU has a guest-physical address mapped. The monitor answers `Host virtual address for ... is 0x...`.
fn gpa2hva(qmp: &Qmp, address: u64) -> Result<u64> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        GuestError::operation("asking QEMU where its RAM is mapped", source)
    };
    let answer = qmp
        .human(&format!("gpa2hva {address:#x}"))
        .map_err(|error| failed(error.into()))?;
    answer
        .trim()
        .rsplit_once(" is 0x")
        .and_then(|(_, address)| u64::from_str_radix(address, 16).ok())
        .ok_or_else(|| failed(format!("it says {:?}", answer.trim()).into()))
}

/// Maps the file of a block, whose byte `offset` QEMU has mapped at `host`.
fn map_block(
    pid: u32,
    maps: &[MapEntry],
    backend: &BackendSize,
    host: u64,
    offset: u64,
) -> Result<SharedMemory> {
    let holds = |range: &Range<u64>| range.contains(&host);
    let found = maps
        .iter()
        .find(|entry| holds(&entry.addresses))
        .filter(|entry| entry.shared);
    let file: Option<(FileId, u64)> = found.and_then(|entry| {
        let in_file = entry.file_offset + (host - entry.addresses.start);
        Some((entry.file?, in_file.checked_sub(offset)?))
    });
    let Some((file, file_offset)) = file else {
        return Err(missing(pid, how_to_share(&backend.id, backend.bytes)));
    };
    let opened = open_file_of(pid, file)
        .map_err(|error| GuestError::operation(format!("opening the file of RAM {}", backend.id), error))?;
    SharedMemory::from_fd(opened, file_offset, backend.bytes)
        .map_err(|error| GuestError::operation(format!("mapping RAM {}", backend.id), error))
}
