//! `vmferry doctor`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;
use rustix::fs::Access;
use serde::Serialize;
use vmferry_guest::Backend as _;
use vmferry_guest_qemu::{QemuBackend, QemuConfig};
use vmferry_memory::{Capabilities, Check};
use vmferry_transport::{Endpoint, Listener};

use super::output;
use crate::cli::Common;
use crate::failure;
use crate::table;

/// What was found out about this machine.
#[derive(Debug, Serialize)]
struct Findings {
    /// Migrations of the synthetic guest work.
    synthetic: bool,
    /// Migrations of QEMU guests work.
    qemu: bool,
    findings: Vec<Finding>,
}

/// One thing that vmferry uses.
#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    ok: bool,
    found: String,
    /// What does not work, or works less well, without it; of use only where it is missing.
    costs: &'static str,
    mend: Option<String>,
    #[serde(skip)]
    needed_for: Needed,
}

/// What cannot be done without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    /// Any migration.
    Synthetic,
    /// Migrations of QEMU guests.
    Qemu,
    /// Something less.
    Nothing,
}

pub(super) fn run(common: &Common) -> Result<ExitCode> {
    let findings = probe();
    match common.json {
        true => output::json(&findings)?,
        false => output::text(&render(&findings))?,
    }
    Ok(if findings.synthetic {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn probe() -> Findings {
    let capabilities = Capabilities::probe();
    let mut findings: Vec<_> = capabilities.checks().into_iter().map(of_memory).collect();
    findings.push(loopback());
    findings.push(qemu());
    findings.push(kvm());
    findings.push(tap());
    findings.push(namespaces());
    findings.push(demo_programs());
    let works = |without: &[Needed]| {
        !findings
            .iter()
            .any(|finding| !finding.ok && without.contains(&finding.needed_for))
    };
    Findings {
        synthetic: works(&[Needed::Synthetic]),
        qemu: works(&[Needed::Synthetic, Needed::Qemu]),
        findings,
    }
}

fn of_memory(check: Check) -> Finding {
    let (needed_for, costs) = match check.name.as_str() {
        "shared memory" => (Needed::Synthetic, "no guest at all"),
        "kernel" => (
            Needed::Qemu,
            "no migration of QEMU guests; synthetic guests keep a dirty log of their own",
        ),
        "userfaultfd" => (
            Needed::Nothing,
            "no post-copy of QEMU guests, no pre-copy either where not permitted at all",
        ),
        "dirty tracking" => (Needed::Qemu, "no pre-copy of QEMU guests"),
        "post-copy" => (Needed::Nothing, "no post-copy of QEMU guests"),
        "attaching" => (
            Needed::Qemu,
            "the userfaultfd of a QEMU cannot be reached: no migration of QEMU guests",
        ),
        _ => (Needed::Nothing, "nothing"),
    };
    Finding {
        name: check.name,
        ok: check.ok,
        found: check.found,
        costs,
        mend: check.hint,
        needed_for,
    }
}

fn loopback() -> Finding {
    let bound = Listener::bind(&Endpoint::tcp("127.0.0.1", 0));
    Finding {
        name: "network".into(),
        ok: bound.is_ok(),
        found: match &bound {
            Ok(_) => "loopback works".into(),
            Err(error) => error.to_string(),
        },
        costs: "no migration over TCP",
        mend: bound
            .is_err()
            .then(|| "bring the loopback interface up: ip link set lo up".into()),
        needed_for: Needed::Synthetic,
    }
}

/// Really starts one, since what can stand in the way is found out no other way.
fn qemu() -> Finding {
    let name = "qemu-system-x86_64";
    let (found, mend) = match vmferry_guest_qemu::probe(name) {
        Err(_) if find_program(name).is_none() => (
            format!("{name} is not installed"),
            Some("apt install qemu-system-x86"),
        ),
        Err(error) => (failure::chain(&error.into()), Some("install QEMU 7.2 or newer")),
        Ok(info) if !info.ignores_shared => (
            format!(
                "QEMU {} cannot leave shared RAM out (x-ignore-shared)",
                info.version
            ),
            Some("install QEMU 7.2 or newer"),
        ),
        Ok(info) => match try_qemu() {
            Ok(()) => (
                format!(
                    "QEMU {}: a guest was started and its writes were tracked",
                    info.version
                ),
                None,
            ),
            Err(error) => (failure::chain(&error), Some("mend what is missing above first")),
        },
    };
    Finding {
        name: "QEMU".into(),
        ok: mend.is_none(),
        found,
        costs: "no QEMU guests",
        mend: mend.map(str::to_owned),
        needed_for: Needed::Qemu,
    }
}

/// An empty machine, whose writes are tracked for a moment.
fn try_qemu() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("vmferry-doctor-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let _removed = RemoveDir(&dir);
    let spec = QemuConfig::new(16 << 20, [""; 0]).into_spec("doctor");
    let guest = QemuBackend.launch(&spec, &dir)?;
    let tried = guest.prepare_out().and_then(|()| {
        guest.pause()?;
        guest.dirty_tracker()?.arm()
    });
    guest.destroy();
    Ok(tried?)
}

struct RemoveDir<'a>(&'a Path);

impl Drop for RemoveDir<'_> {
    fn drop(&mut self) {
        // In the temporary directory, and nearly empty: not worth a word.
        let _ = std::fs::remove_dir_all(self.0);
    }
}

fn kvm() -> Finding {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    Finding {
        name: "KVM".into(),
        ok: opened.is_ok(),
        found: match &opened {
            Ok(_) => "/dev/kvm can be opened".into(),
            Err(error) => format!("/dev/kvm: {error}"),
        },
        costs: "QEMU guests run emulated (TCG), several times slower",
        mend: opened
            .is_err()
            .then(|| "enable virtualization, load the kvm module, join the group kvm".into()),
        needed_for: Needed::Nothing,
    }
}

fn tap() -> Finding {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    Finding {
        name: "tap devices".into(),
        ok: opened.is_ok(),
        found: match &opened {
            Ok(_) => "/dev/net/tun can be opened".into(),
            Err(error) => format!("/dev/net/tun: {error}"),
        },
        costs: "no QEMU guests with a network of their own, and the demo takes the synthetic guest",
        mend: opened
            .is_err()
            .then(|| "modprobe tun, and run as root; in a container pass /dev/net/tun in".into()),
        needed_for: Needed::Nothing,
    }
}

/// Makes a namespace with a bridge in it, and removes it.
fn namespaces() -> Finding {
    let tried = try_namespace();
    Finding {
        name: "namespaces and bridges".into(),
        ok: tried.is_ok(),
        costs: "the demo takes the synthetic guest",
        mend: tried.is_err().then(|| match find_program("ip") {
            None => "apt install iproute2".into(),
            Some(_) => "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN, and modprobe bridge".into(),
        }),
        found: tried.map_or_else(|why| why, |()| "iproute2 makes both".into()),
        needed_for: Needed::Nothing,
    }
}

fn try_namespace() -> Result<(), String> {
    if find_program("ip").is_none() {
        return Err("ip is not installed".into());
    }
    let name = format!("vmferry-doctor-{}", std::process::id());
    ip(&["netns", "add", &name])?;
    let bridge = ip(&["-n", &name, "link", "add", "probe", "type", "bridge"]);
    ip(&["netns", "delete", &name])?;
    bridge
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(why.lines().next().unwrap_or("ip failed").to_owned())
        }
    }
}

fn demo_programs() -> Finding {
    let missing: Vec<_> = ["tc", "busybox", "memcached"]
        .into_iter()
        .filter(|name| find_program(name).is_none())
        .collect();
    Finding {
        name: "programs of the demo".into(),
        ok: missing.is_empty(),
        found: match missing.is_empty() {
            true => "tc, busybox and memcached are installed".into(),
            false => format!("not installed: {}", missing.join(", ")),
        },
        costs: "the demo cannot build its guest image or shape its link",
        mend: (!missing.is_empty()).then(|| "apt install iproute2 busybox-static memcached".into()),
        needed_for: Needed::Nothing,
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok())
}

fn render(findings: &Findings) -> String {
    let mut table = table::list(&["what", "", "found"]);
    for finding in &findings.findings {
        let verdict = if finding.ok { "ok" } else { "missing" };
        table.add_row([finding.name.as_str(), verdict, &finding.found]);
        if !finding.ok {
            table.add_row(["", "", &format!("costs: {}", finding.costs)]);
        }
        if let Some(mend) = &finding.mend {
            table.add_row(["", "", &format!("mend:  {mend}")]);
        }
    }
    let verdict = |works| if works { "work" } else { "do NOT work" };
    format!(
        "{}\nMigrations of QEMU guests {} here, those of synthetic guests {}.\n",
        table::render(table),
        verdict(findings.qemu),
        verdict(findings.synthetic)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_cost_and_its_mend() {
        let finding = |name: &str, ok| Finding {
            name: name.into(),
            ok,
            found: "as found".into(),
            costs: "a lot",
            mend: (!ok).then(|| "do this".into()),
            needed_for: Needed::Qemu,
        };
        let findings = Findings {
            synthetic: true,
            qemu: false,
            findings: vec![finding("good", true), finding("bad", false)],
        };
        let text = render(&findings);
        assert_eq!(text.matches("a lot").count(), 1, "{text}");
        assert!(
            text.contains("mend:  do this") && text.contains("QEMU guests do NOT work"),
            "{text}"
        );
    }

    #[test]
    fn a_machine_without_anything_still_moves_synthetic_guests_if_it_has_memory() {
        let check = |name: &str| Check {
            name: name.into(),
            ok: false,
            required: true,
            found: String::new(),
            hint: None,
        };
        for name in ["kernel", "dirty tracking", "attaching"] {
            assert_eq!(of_memory(check(name)).needed_for, Needed::Qemu);
        }
        assert_eq!(of_memory(check("shared memory")).needed_for, Needed::Synthetic);
    }
}
