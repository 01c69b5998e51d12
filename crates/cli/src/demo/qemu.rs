//! The demo with QEMU: a Linux guest whose memcached serves a client all the while.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vmferry_core::Strategy;
use vmferry_guest::{GuestSpec, GuestState};
use vmferry_guest_qemu::QemuConfig;

use super::guards::{Interrupt, Interrupted};
use super::hosts::{self, Host, timed};
use super::load::{Load, Record, Settings};
use super::memcached::Connection;
use super::requirements::{INITRAMFS, KERNEL};
use super::result::{ClientResult, DemoResult};
use super::topology::{GUEST, PREFIX_BITS, TAP, Topology};
use super::{narrate, watch::Watch};

/// Name of the guest.
const NAME: &str = "demo";
const MEMCACHED_PORT: u16 = 11211;
/// Where guests arrive.
const PORT: u16 = 7120;
const MAC: &str = "52:54:00:0a:4d:0a";
/// How long the guest may take to boot: tens of times what it takes.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Values of the client: 64 MiB in all, each about a page.
const VALUES: u32 = 16_384;
const VALUE_BYTES: usize = 4096;
/// The least RAM in which all of that finds room beside the kernel and the unpacked initramfs, in MiB.
pub(super) const LEAST_MIB: u64 = 256;
/// What memcached may use for them (with what it needs itself, so that it drops none), in MiB.
const MEMCACHED_MIB: u64 = 112;
const OPERATIONS_PER_S: u32 = 1000;
const ONE_SET_IN: u64 = 5;
/// Time under load before and after each migration.
const UNDER_LOAD: Duration = Duration::from_secs(2);

/// What the demo with QEMU is made of.
pub(super) struct Setup<'a> {
    /// The folder with the guest's kernel and initramfs.
    pub(super) image: &'a Path,
    /// RAM of the guest.
    pub(super) memory_bytes: u64,
    /// The folder of this run.
    pub(super) folder: &'a Path,
    /// The network.
    pub(super) topology: &'a Topology,
    /// Ctrl-C.
    pub(super) interrupt: &'a Interrupt,
}

impl Setup<'_> {
    /// Boots the guest, loads it, moves it there and back.
    pub(super) fn run(&self) -> Result<DemoResult> {
        let topology = self.topology;
        narrate(&format!(
            "network: two hosts and a client at a switch, links {}",
            topology.link
        ));
        let start = |index: usize, name| {
            let host = &topology.hosts[index];
            Host::start(
                name,
                self.folder,
                (host.address, PORT),
                Some(&host.namespace),
                self.interrupt,
            )
        };
        let hosts = [start(0, "a")?, start(1, "b")?];
        self.move_there_and_back(&hosts)
            .inspect_err(|error| hosts::narrate_logs(&hosts, error))
    }

    fn move_there_and_back(&self, hosts: &[Host; 2]) -> Result<DemoResult> {
        let [a, b] = hosts;
        self.boot(a)?;
        let settings = Settings {
            address: SocketAddr::from((GUEST, MEMCACHED_PORT)),
            values: VALUES,
            value_bytes: VALUE_BYTES,
            operations_per_s: OPERATIONS_PER_S,
            one_set_in: ONE_SET_IN,
        };
        let (load, filled) = timed(|| Load::start(settings, Some(&self.topology.client)));
        let load = load?;
        narrate(&format!(
            "client: stored {} MiB in {:.1} s; from now on reads and writes over one connection",
            (u64::from(VALUES) * VALUE_BYTES as u64) >> 20,
            (filled.end - filled.start).as_secs_f64()
        ));

        let start = Instant::now();
        self.interrupt.sleep(UNDER_LOAD)?;
        let mut windows = vec![("before".to_owned(), start..Instant::now())];
        let mut migrations = Vec::new();
        for (source, destination, strategy) in [(a, b, Strategy::PostCopyPush), (b, a, Strategy::PreCopy)] {
            let mut watch = Watch::start(source.name, destination.name, strategy);
            let (report, window) =
                timed(|| source.migrate(NAME, destination, strategy, |look| watch.look(look)));
            let mut report = report?;
            watch.end(&report);
            self.interrupt.sleep(UNDER_LOAD)?;
            // With what comes after it: the answer to what was lost in the end may be late.
            let with_effects = window.start..Instant::now();
            let gap = load.record().timeline.longest_gap(&with_effects);
            report.perceived_downtime_ms = Some(gap.as_secs_f64() * 1e3);
            windows.push((format!("during {strategy}"), window.clone()));
            windows.push(("after".to_owned(), window.end..with_effects.end));
            let completed = report.outcome == vmferry_core::report::Outcome::Completed;
            migrations.push(report);
            if !completed {
                break;
            }
        }
        let record = load.stop();
        let client = client_result(&record, start, &windows);
        Ok(DemoResult { migrations, client })
    }

    fn boot(&self, host: &Host) -> Result<()> {
        let console = self.folder.join("console.log");
        let spec = self.spec(&console)?;
        narrate(&format!(
            "guest: booting Linux in QEMU (TCG), {} MiB, on host {}",
            self.memory_bytes >> 20,
            host.name
        ));
        let (version, booted) = timed(|| {
            host.run(&spec)?;
            self.interrupt.wait_for("memcached in the guest", BOOT_LIMIT, || {
                if let None | Some(GuestState::Gone) = host.guest(NAME)?.state {
                    bail!("the guest ended while it booted");
                }
                let ask =
                    || Connection::open((GUEST, MEMCACHED_PORT).into(), Duration::from_secs(1))?.version();
                Ok(self.topology.client.enter(ask)?.ok())
            })
        });
        let version = version.inspect_err(|error| {
            let said = hosts::last_lines(&console, 12);
            if !said.is_empty() && !error.is::<Interrupted>() {
                narrate(&format!("the guest's console:{said}"));
            }
        })?;
        let took = (booted.end - booted.start).as_secs_f64();
        narrate(&format!("guest: memcached {version} answers after {took:.1} s"));
        Ok(())
    }

    /// The guest, the same on both hosts. Its console file is appended to by one QEMU after the other.
    fn spec(&self, console: &Path) -> Result<GuestSpec> {
        let parameters = kernel_parameters(self.image)?;
        let file = |name: &str| self.image.join(name).display().to_string();
        let args = [
            "-kernel",
            &file(KERNEL),
            "-initrd",
            &file(INITRAMFS),
            "-append",
            &format!("{parameters} vmferry.ip={GUEST}/{PREFIX_BITS} vmferry.memcached={MEMCACHED_MIB}"),
            "-netdev",
            &format!("tap,id=net0,ifname={TAP},script=no,downscript=no"),
            "-device",
            &format!("virtio-net-pci,netdev=net0,mac={MAC},romfile="),
            "-device",
            "virtio-rng-pci",
            // Where it dies it shall not begin again.
            "-no-reboot",
            "-chardev",
            &format!("file,id=console,path={},append=on", console.display()),
            "-serial",
            "chardev:console",
        ];
        Ok(QemuConfig::new(self.memory_bytes, args).into_spec(NAME))
    }
}

/// What `cargo xtask image` says the kernel has to be told.
fn kernel_parameters(image: &Path) -> Result<String> {
    let path = image.join("image.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let about: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not understood", path.display()))?;
    let parameters = about["kernel_parameters"].as_str();
    Ok(parameters
        .with_context(|| format!("{} has no kernel_parameters", path.display()))?
        .to_owned())
}

fn client_result(
    record: &Record,
    start: Instant,
    windows: &[(String, std::ops::Range<Instant>)],
) -> ClientResult {
    let longest_gap = record.timeline.longest_gap(&(start..Instant::now()));
    let rate = |(name, window): &(String, _)| (name.clone(), record.timeline.operations_per_s(window));
    ClientResult {
        operations: record.operations,
        errors: record.errors(),
        longest_gap_ms: longest_gap.as_secs_f64() * 1e3,
        descriptions: record.descriptions.clone(),
        rates: windows.iter().map(rate).collect(),
    }
}
