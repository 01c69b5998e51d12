//! The demo with QEMU: a Linux guest whose memcached serves a client all the while.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use vmferry_core::Strategy;
use vmferry_guest::GuestSpec;
use vmferry_guest_qemu::QemuConfig;
use vmferry_lab::hosts::{last_lines, timed};
use vmferry_lab::linux::{self, LinuxGuest};
use vmferry_lab::load::{Load, PATIENCE, Protocol, Record, SetGet, Settings};
use vmferry_lab::workload::KeyValue;
use vmferry_lab::{Host, Interrupt, Topology, Workload};

use super::result::{ClientResult, DemoResult};
use super::watch::Watch;
use super::{narrate, narrate_logs, request, start_host};

/// Name of the guest.
const NAME: &str = "demo";
/// Values of the client: 64 MiB in all, each about a page.
const VALUES: u32 = 16_384;
const VALUE_BYTES: usize = 4096;
/// The least RAM in which all of that finds room beside the kernel and the unpacked initramfs, in MiB.
pub(super) const LEAST_MIB: u64 = 256;
/// What memcached may use for them (with what it needs itself, so that it drops none), in MiB.
const MEMCACHED_MIB: u64 = 112;
const OPERATIONS_PER_S: u32 = 1000;
const SET_GET: SetGet = SetGet { sets: 1, gets: 4 };
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
        let [a, b] = &topology.hosts;
        let start = |name, end| start_host(name, self.folder, Some(end), self.interrupt);
        let hosts = [start("a", a)?, start("b", b)?];
        self.move_there_and_back(&hosts)
            .inspect_err(|error| narrate_logs(&hosts, error))
    }

    fn move_there_and_back(&self, hosts: &[Host; 2]) -> Result<DemoResult> {
        let [a, b] = hosts;
        self.boot(a)?;
        let settings = Settings {
            protocol: Protocol::Memcached,
            address: linux::memcached(),
            values: VALUES,
            value_bytes: VALUE_BYTES,
            operations_per_s: OPERATIONS_PER_S,
            set_get: SET_GET,
            connections: 1,
            patience: PATIENCE,
        };
        let (load, filled) = timed(|| Load::start(&settings, Some(&self.topology.client)));
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
            let (report, window) = timed(|| {
                source.migrate(NAME, destination, &request(strategy), None, |look| {
                    watch.look(look);
                })
            });
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
        let spec = self.spec()?;
        narrate(&format!(
            "guest: booting Linux in QEMU (TCG), {} MiB, on host {}",
            self.memory_bytes >> 20,
            host.name
        ));
        let (version, booted) = timed(|| {
            host.run(&spec)?;
            linux::wait_for_memcached(host, NAME, &self.topology.client, self.interrupt)
        });
        let version = version.inspect_err(|error| {
            let said = last_lines(&linux::console(self.folder), 12);
            if !said.is_empty() && !error.is_interrupted() {
                narrate(&format!("the guest's console:{said}"));
            }
        })?;
        let took = (booted.end - booted.start).as_secs_f64();
        narrate(&format!("guest: memcached {version} answers after {took:.1} s"));
        Ok(())
    }

    /// The guest, the same on both hosts.
    fn spec(&self) -> Result<GuestSpec> {
        let server = KeyValue {
            mib: MEMCACHED_MIB,
            values: VALUES,
            value_bytes: VALUE_BYTES,
            operations_per_s: Some(OPERATIONS_PER_S),
            set_get: SET_GET,
            connections: 1,
        };
        let guest = LinuxGuest {
            workload: Workload::Memcached(server),
            ..LinuxGuest::default()
        };
        let args = guest.args(self.image, self.folder)?;
        Ok(QemuConfig::new(self.memory_bytes, args).into_spec(NAME))
    }
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
