//! What the agent takes: time to answer, and what a busy guest with one processor loses when it is asked once a second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmferry_benches::{Figures, Output, runs};
use vmferry_guest::{Enlightened as _, FreeKnowledge, Guest as _};
use vmferry_guest_qemu::{QemuBackend, QemuGuest};
use vmferry_tests::{Console, TestGuest, need};

const RAM_MIB: u64 = 4096;
const ACTIVE_WITHIN: Duration = Duration::from_secs(16);
const PATIENCE: Duration = Duration::from_secs(60);
/// One measurement of the load.
const SPAN: Duration = Duration::from_secs(6);

fn main() {
    need!(Qemu, Root);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

/// Ends with the bench.
struct Running(QemuGuest);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

fn measure() -> Result<()> {
    let runs = runs(4)?;
    let mut output = Output::from_args()?;
    let dir = tempfile::tempdir()?;
    let guest = TestGuest::new("vm", dir.path(), RAM_MIB, "write:64:0 vmferry.agent", &[]).with_agent();
    let running = Running(QemuBackend.start(&guest.spec, dir.path())?);
    let vm = &running.0;
    guest.console.wait_for("written_mib_per_s");
    println!("QEMU guest of {RAM_MIB} MiB under TCG, one processor, writing memory all the time");
    let [mut all, mut calibrate, mut used, mut free, mut alone, mut asked] =
        [(); 6].map(|()| Figures::default());
    all.push(ms(|| vm.enlighten(ACTIVE_WITHIN, PATIENCE).map(drop))?);
    for _ in 0..runs {
        calibrate.push(ms(|| {
            let knowledge = vm.calibrate(PATIENCE)?;
            assert_eq!(knowledge, FreeKnowledge::Exact);
            Ok(())
        })?);
        used.push(ms(|| vm.enlighten(ACTIVE_WITHIN, PATIENCE).map(drop))?);
        vm.pause()?;
        free.push(ms(|| {
            assert!(vm.free_while_paused().is_some());
            Ok(())
        })?);
        vm.resume()?;
        alone.push(rate(&guest.console, || thread::sleep(SPAN))?);
        asked.push(rate(&guest.console, || {
            let until = Instant::now() + SPAN;
            while Instant::now() < until {
                let next = Instant::now() + Duration::from_secs(1);
                vm.calibrate(PATIENCE)
                    .and_then(|_| vm.enlighten(ACTIVE_WITHIN, PATIENCE))
                    .unwrap_or_else(|error| panic!("{error}"));
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })?);
    }
    output.figures("classes of all memory", "ms", &all);
    output.figures("calibration", "ms", &calibrate);
    output.figures("classes of what is in use, once calibrated", "ms", &used);
    output.figures("free pages of the stopped guest", "ms", &free);
    output.figures("the guest writes", "MiB/s", &alone);
    output.figures("while its agent is asked for both once a second", "MiB/s", &asked);
    output.ratio("asked / alone", asked.median() / alone.median(), "about 1");
    output.finish()
}

fn ms(act: impl FnOnce() -> vmferry_guest::Result<()>) -> Result<f64> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// How fast the guest writes meanwhile, by its own word.
fn rate(console: &Console, meanwhile: impl FnOnce()) -> Result<f64> {
    let before = console.text().len();
    meanwhile();
    let text = console.text();
    let said: Vec<f64> = text[before..]
        .lines()
        .filter_map(|line| line.rsplit_once("written_mib_per_s=")?.1.trim().parse().ok())
        .collect();
    ensure!(!said.is_empty(), "the guest says nothing");
    Ok(said.iter().sum::<f64>() / said.len() as f64)
}
