//! How long a guest stands still for a checkpoint: idle against under load, against the size of its memory, and with nothing
//! protected beforehand. Then what a series of checkpoints costs the guest's load, with QEMU under TCG.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmferry_benches::{Figures, Output, runs};
use vmferry_checkpoint::take::{Session, TakeControl, TakeOptions};
use vmferry_core::take::{TakeOutcome, TakeReport};
use vmferry_guest::{Guest as _, Vm};
use vmferry_guest_synth::{LoadConfig, SynthBackend, SynthConfig};
use vmferry_store::{Store, StoreOptions};
use vmferry_tests::{Pair, TestGuest, need};

const MIB: u64 = 1 << 20;
/// From one checkpoint to the next.
const EVERY: Duration = Duration::from_millis(500);

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<()> {
    let mut output = Output::from_args()?;
    idle_and_loaded(&mut output)?;
    sizes(&mut output)?;
    throughput(&mut output)?;
    output.finish()
}

/// What was measured about checkpoints of one guest.
#[derive(Default)]
struct Pauses {
    full: Figures,
    incremental: Figures,
    p99_us: Figures,
    written: Figures,
}

/// A guest of 1 GiB.
fn idle_and_loaded(output: &mut Output) -> Result<()> {
    let loads = [("idle", "write:512:1"), ("under load", "write:256:200")];
    let mut medians = Vec::new();
    for (name, load) in loads {
        let pauses = qemu(1024, load)?;
        output.figures(&format!("1 GiB {name}: pause, all saved"), "ms", &pauses.full);
        output.figures(
            &format!("1 GiB {name}: pause, incremental"),
            "ms",
            &pauses.incremental,
        );
        output.figures(&format!("1 GiB {name}: write held up, p99"), "us", &pauses.p99_us);
        output.figures(
            &format!("1 GiB {name}: written in an interval"),
            "pages",
            &pauses.written,
        );
        medians.push((pauses.full.median(), pauses.incremental.median()));
    }
    output.ratio("idle: pause / 20 ms", medians[0].0 / 20.0, "at most 1");
    output.ratio(
        "pause under load / idle, all saved",
        medians[1].0 / medians[0].0,
        "at most 2",
    );
    output.ratio(
        "pause under load / idle, incremental",
        medians[1].1 / medians[0].1,
        "at most 2",
    );
    Ok(())
}

/// Guests of which half the memory is in use.
fn sizes(output: &mut Output) -> Result<()> {
    let mut medians = Vec::new();
    for mib in [256, 512, 1024, 2048] {
        let pauses = qemu(mib, &format!("write:{}:1", mib / 2))?;
        output.figures(&format!("{mib} MiB: pause, all saved"), "ms", &pauses.full);
        medians.push(pauses.full.median());
    }
    output.ratio("pause of 2 GiB / of 256 MiB", medians[3] / medians[0], "near 1");
    Ok(())
}

fn qemu(mib: u64, load: &str) -> Result<Pauses> {
    let mut pauses = Pauses::default();
    let dir = tempfile::tempdir()?;
    let guest = TestGuest::new("vm", dir.path(), mib, load, &[]);
    let pair = Pair::new();
    let vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    for _ in 0..runs(3)? {
        let store = Store::open("memory:", StoreOptions::default())?;
        let mut session = Session::begin(vm.clone(), store, TakeOptions::for_guest(mib * MIB))?;
        session.watch()?;
        pauses.full.push(take(&mut session)?.pause_ms);
        for _ in 0..3 {
            thread::sleep(EVERY);
            let report = take(&mut session)?;
            pauses.incremental.push(report.pause_ms);
            pauses.p99_us.push(report.faults.p99_us);
            pauses.written.push(report.written_pages as f64);
        }
    }
    vm.destroy();
    Ok(pauses)
}

fn take(session: &mut Session) -> Result<TakeReport> {
    let report = session.take(&TakeControl::default());
    ensure!(report.outcome == TakeOutcome::Completed, "{:?}", report.error);
    Ok(report)
}

/// Operations of a synthetic guest's key-value store without checkpoints and with one at every interval, in turn.
fn throughput(output: &mut Output) -> Result<()> {
    const WINDOW: Duration = Duration::from_secs(3);
    let config = SynthConfig {
        loads: vec![LoadConfig::KeyValue {
            region_mib: 128,
            get_percent: 80,
            zipf_exponent: 0.9,
            value_bytes: 512,
            operations_per_s: None,
        }],
        ..SynthConfig::new(256 * MIB)
    };
    let guest = SynthBackend::new().launch_guest(&SynthBackend::spec("kv", &config))?;
    let operations = || {
        guest
            .stats()
            .loads
            .iter()
            .map(|load| load.operations)
            .sum::<u64>()
    };
    let mut without = Figures::default();
    let mut with = [(); 2].map(|()| Figures::default());
    let every = [Duration::from_secs(1), Duration::from_millis(250)];
    for _ in 0..runs(3)? {
        let before = operations();
        thread::sleep(WINDOW);
        without.push((operations() - before) as f64 / WINDOW.as_secs_f64());
        for (every, with) in every.into_iter().zip(&mut with) {
            let vm: std::sync::Arc<dyn Vm> = guest.clone();
            let store = Store::open("memory:", StoreOptions::default())?;
            let mut session =
                Session::begin(vm, store, TakeOptions::for_guest(guest.ram().layout().bytes()))?;
            session.watch()?;
            take(&mut session)?;
            let (before, begun) = (operations(), Instant::now());
            while begun.elapsed() < WINDOW {
                let due = Instant::now() + every;
                take(&mut session)?;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            with.push((operations() - before) as f64 / begun.elapsed().as_secs_f64());
        }
    }
    output.figures("key-value, no checkpoints", "operations/s", &without);
    for (every, with) in every.into_iter().zip(&with) {
        let name = format!("key-value, a checkpoint every {} ms", every.as_millis());
        output.figures(&name, "operations/s", with);
        output.ratio(
            &format!("{name} / without"),
            with.median() / without.median(),
            "near 1",
        );
    }
    Ok(())
}
