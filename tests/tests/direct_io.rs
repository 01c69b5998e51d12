//! Disks opened with O_DIRECT write into guest RAM without a fault: no page of such a write may be lost.
//!
//! The guest reads and writes such a disk by four threads, keeps what it read and checks it again and again; at the
//! end of each migration all of RAM is compared besides.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vmferry_core::report::Outcome;
use vmferry_core::{Limits, Strategy};
use vmferry_guest::{
    DirtyTracker, FaultMode, Guest, GuestRam, GuestSpec, GuestState, MigrateIn, MigrateOut, PageFaults,
    Result, Vm,
};
use vmferry_runtime::Request;
use vmferry_tests::{Pair, TestGuest, need, shared_turn};

/// How often each guest is moved.
const MOVES: usize = 2;
/// Reads a second that the disk serves. A request that waits for its turn has the guest's pages pinned already: so they
/// are pinned far longer than a page takes from its scan onto the wire, which is when a write through the pin is lost.
const READS_PER_S: u32 = 300;
/// A page stays stale only until its buffer is read into again: what counts are the scans of the last moments, so the
/// memory load is small and rounds are short and many.
const ROUNDS: u32 = 60;
const RAM_MIB: u64 = 256;

/// A guest under disk and memory load with a disk that passes the page cache by.
fn guest(dir: &Path, aio: &str) -> TestGuest {
    // Not in a tmpfs, which knows no O_DIRECT.
    let disk = dir.join("disk.img");
    File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let drive = format!(
        "file={},format=raw,if=none,id=d,cache=none,aio={aio}",
        disk.display()
    );
    let args = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d"];
    TestGuest::new("vm", dir, RAM_MIB, "disk:32,write:2:10", &args)
}

/// Rounds that never reach their goal, so that many live scans meet requests in flight.
fn many_rounds(pair: &Pair) -> Request {
    Request {
        limits: Limits {
            downtime: Duration::from_micros(1),
            rounds: ROUNDS,
            ..Limits::default()
        },
        ..pair.request(Strategy::PreCopy)
    }
}

fn nothing_is_lost(aio: &str) {
    let _turn = shared_turn();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let guest = guest(dir.path(), aio);
    let slow = SlowReads::of(dir.path());
    println!("{aio}, slow disk: {}", slow.is_some());
    let mut pair = Pair::new();
    let mut vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    for _ in 0..MOVES {
        assert!(vm.has_pinned_io(), "cache=none is seen");
        slow.iter().for_each(|slow| slow.apply_to(vm.pid()));
        let report = pair.migrate(&vm, many_rounds(&pair));
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        assert!(report.rounds.len() as u32 >= ROUNDS, "{:?}", report.rounds);
        let verified = report.verified.expect("it was asked for");
        assert_eq!((verified.pages, verified.mismatches), (RAM_MIB * 256, 0));
        println!(
            "{aio}: {} rounds, down {:.1} ms, micro-stops {:.1} ms",
            report.rounds.len(),
            report.downtime_ms,
            report.micro_stops_ms
        );
        // And back again.
        pair.turn_round("vm");
        vm = pair.source.guest("vm");
    }
    guest.console.assert_healthy(3);
}

#[test]
fn nothing_is_lost_with_threads() {
    need!(Qemu, Root, Userfaultfd);
    nothing_is_lost("threads");
}

#[test]
fn nothing_is_lost_with_native_aio() {
    need!(Qemu, Root, Userfaultfd);
    nothing_is_lost("native");
}

/// The tests above can fail: without the tracker's care for pinned pages the comparison finds stale ones. That takes a
/// read under way between a scan and the end of its page's crossing, which depends on the machine: it says so where a
/// few tries did not show one.
#[test]
fn without_care_for_pinned_pages_stale_ones_are_found() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    for _ in 0..3 {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let Some(slow) = SlowReads::of(dir.path()) else {
            return println!("skipped: this machine cannot slow a disk down");
        };
        let guest = guest(dir.path(), "threads");
        let pair = Pair::new();
        let vm: Arc<dyn Vm> = Arc::new(Careless(pair.launch(&guest.spec)));
        guest.console.wait_for("guest-load: ok");
        slow.apply_to(vm.pid());
        let report = pair.migrate(&vm, many_rounds(&pair));
        let (outcome, verified, error) = (report.outcome, report.verified, report.error);
        println!("without care: {outcome:?}, {verified:?}, {error:?}");
        if outcome != Outcome::Completed {
            assert!(error.is_some_and(|error| error.contains("pages differ")));
            assert_eq!(vm.state(), GuestState::Running, "it was not handed over");
            return;
        }
    }
    println!("skipped: no read was under way at the wrong moment in three tries");
}

/// A limit of the reads that processes may make from the disk under a folder; it goes with this value.
struct SlowReads(PathBuf);

impl SlowReads {
    /// None where the kernel or the file system does not offer it.
    fn of(folder: &Path) -> Option<Self> {
        let device = std::fs::metadata(folder).ok()?.dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "vmferry-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let limits = [
            (
                "/sys/fs/cgroup/blkio",
                "blkio.throttle.read_iops_device",
                format!("{device} {READS_PER_S}"),
            ),
            (
                "/sys/fs/cgroup",
                "io.max",
                format!("{device} riops={READS_PER_S}"),
            ),
        ];
        limits.into_iter().find_map(|(root, file, limit)| {
            let group = Self(Path::new(root).join(&name));
            std::fs::create_dir(&group.0).ok()?;
            std::fs::write(group.0.join(file), limit).ok()?;
            Some(group)
        })
    }

    fn apply_to(&self, pid: Option<u32>) {
        let pid = pid.expect("it has a process").to_string();
        std::fs::write(self.0.join("cgroup.procs"), pid).unwrap();
    }
}

impl Drop for SlowReads {
    fn drop(&mut self) {
        // The processes in it end at the same time as the test.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A guest that hides its direct I/O from the migration.
struct Careless(Arc<dyn Vm>);

impl Guest for Careless {
    fn spec(&self) -> &GuestSpec {
        self.0.spec()
    }
    fn ram(&self) -> &Arc<GuestRam> {
        self.0.ram()
    }
    fn state(&self) -> GuestState {
        self.0.state()
    }
    fn pid(&self) -> Option<u32> {
        self.0.pid()
    }
    fn pause(&self) -> Result<()> {
        self.0.pause()
    }
    fn resume(&self) -> Result<()> {
        self.0.resume()
    }
    fn destroy(&self) {
        self.0.destroy();
    }
}

impl MigrateOut for Careless {
    fn prepare_out(&self) -> Result<()> {
        self.0.prepare_out()
    }
    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        self.0.dirty_tracker()
    }
    fn has_pinned_io(&self) -> bool {
        false
    }
    fn may_discard_pages(&self) -> bool {
        self.0.may_discard_pages()
    }
    fn before_stop(&self) -> Result<()> {
        self.0.before_stop()
    }
    fn save_device_state(&self) -> Result<Vec<u8>> {
        self.0.save_device_state()
    }
}

impl MigrateIn for Careless {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        self.0.page_faults(mode)
    }
    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        self.0.reopen_page_faults()
    }
    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        self.0.load_device_state(state)
    }
    fn announce(&self) -> Result<()> {
        self.0.announce()
    }
}
