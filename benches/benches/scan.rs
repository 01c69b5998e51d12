//! What tracking writes costs a guest that writes all the time: its slow-down, untracked, tracked by us, and tracked by QEMU's
//! own migration (throttled so that it moves next to nothing). What a scan takes is in `micro`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmferry_benches::{Figures, Output, runs};
use vmferry_core::PageBitmap;
use vmferry_tests::{Console, Pair, TestGuest, need};

/// How often memory is scanned while the guest is measured.
const SCAN_EVERY: Duration = Duration::from_millis(200);
const MEASURE: Duration = Duration::from_secs(5);
const LOAD_MIB: u64 = 64;

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<()> {
    let mut output = Output::from_args()?;
    slow_down(&mut output)?;
    output.finish()
}

fn slow_down(output: &mut Output) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("monitor");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let load = format!("write:{LOAD_MIB}:0");
    let guest = TestGuest::new("vm", dir.path(), 256, &load, &["-monitor", &monitor]);
    let pair = Pair::new();
    let vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    // The translator needs its time to get warm: a cold guest is many times slower.
    thread::sleep(2 * MEASURE);
    let [mut free, mut ours, mut theirs, mut ours_share, mut theirs_share] =
        [(); 5].map(|()| Figures::default());
    for _ in 0..runs(3)? {
        let before = rate(&guest.console, || Ok(()))?;
        free.push(before);
        let mut tracker = vm.dirty_tracker()?;
        vm.pause()?;
        tracker.arm()?;
        vm.resume()?;
        let tracked = rate(&guest.console, || {
            thread::sleep(SCAN_EVERY);
            Ok(tracker.scan(&mut PageBitmap::new(vm.ram().layout().pages()))?)
        })?;
        tracker.disarm()?;
        drop(tracker);
        ours.push(tracked);
        let mut monitor = Monitor::open(&socket)?;
        monitor.say("migrate_set_parameter max-bandwidth 64k")?;
        monitor.say("migrate -d exec:cat>/dev/null")?;
        let tracked_by_qemu = rate(&guest.console, || Ok(()))?;
        monitor.say("migrate_cancel")?;
        theirs.push(tracked_by_qemu);
        thread::sleep(Duration::from_secs(1));
        let after = rate(&guest.console, || Ok(()))?;
        free.push(after);
        let untracked = f64::midpoint(before, after);
        ours_share.push((1.0 - tracked / untracked) * 100.0);
        theirs_share.push((1.0 - tracked_by_qemu / untracked) * 100.0);
    }
    println!("guest that writes {LOAD_MIB} MiB in a loop, as fast as it goes:");
    output.figures("guest untracked", "MiB/s", &free);
    output.figures("guest tracked by vmferry, a scan every 200 ms", "MiB/s", &ours);
    output.figures("guest tracked by QEMU", "MiB/s", &theirs);
    output.figures("slow-down, vmferry", "%", &ours_share);
    output.figures("slow-down, QEMU", "%", &theirs_share);
    Ok(())
}

/// What the guest says it writes, MiB/s on average, while `meanwhile` is done again and again.
fn rate(console: &Console, mut meanwhile: impl FnMut() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    let from = console.text().len();
    while began.elapsed() < MEASURE {
        meanwhile()?;
        thread::sleep(Duration::from_millis(1));
    }
    let text = console.text();
    let rates: Vec<f64> = text[from..]
        .lines()
        .filter_map(|line| line.split_once("written_mib_per_s=")?.1.trim().parse().ok())
        // The first line is of a second that began before.
        .skip(1)
        .collect();
    anyhow::ensure!(
        !rates.is_empty(),
        "the guest reports no rate: {:?}",
        &text[from..]
    );
    Ok(rates.iter().sum::<f64>() / rates.len() as f64)
}

/// QEMU's monitor for people.
struct Monitor(UnixStream);

impl Monitor {
    fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("connect to QEMU's monitor")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut monitor = Self(stream);
        monitor.prompt()?;
        Ok(monitor)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.0, "{line}")?;
        let answer = self.prompt()?;
        anyhow::ensure!(!answer.contains("Error"), "QEMU on {line:?}: {answer}");
        Ok(())
    }

    /// Everything up to the next prompt.
    fn prompt(&mut self) -> Result<String> {
        let mut text = Vec::new();
        while !text.ends_with(b"(qemu) ") {
            let mut byte = [0; 256];
            let came = self.0.read(&mut byte).context("read QEMU's monitor")?;
            anyhow::ensure!(came > 0, "QEMU's monitor closed");
            text.extend(&byte[..came]);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
