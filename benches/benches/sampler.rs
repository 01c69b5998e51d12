//! What learning about a guest costs it: guests that write 64 MiB in a loop as fast as they can, left alone, learned about
//! by the daemon's sampler, recorded as by `vmferry trace`, and scanned every 50 ms without a pause, in turn.
//!
//! Rates by the clock move with whatever else the machine does. So what a guest writes is counted by its CPU time as well:
//! faults are CPU time of the guest, and what others take from it is not. The sampler is measured over whole cycles of a
//! burst and the pause after it, the others for as long beside it.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmferry_benches::{Figures, Output, runs};
use vmferry_core::sampling::{Budget, SamplingState};
use vmferry_core::{PageBitmap, Tuning};
use vmferry_guest::{Backend as _, Vm};
use vmferry_guest_synth::{LoadConfig, SynthBackend, SynthConfig};
use vmferry_runtime::recorder::record;
use vmferry_runtime::{RecordControl, RecordPlan, Sampler};
use vmferry_tests::{Console, Pair, TestGuest, need};
use vmferry_trace::Plan;

const LOAD_MIB: u64 = 64;
/// Bursts with their pauses that a measurement of the sampler lasts.
const CYCLES: u64 = 2;
/// How often it is looked whether they are over, and the guest scanned where that is measured.
const STEP: Duration = Duration::from_millis(50);
/// Until the translator and the caches are warm.
const WARM_UP: Duration = Duration::from_secs(10);

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<()> {
    let mut output = Output::from_args()?;
    synthetic(&mut output)?;
    qemu(&mut output)?;
    output.finish()
}

fn synthetic(output: &mut Output) -> Result<()> {
    let backend = SynthBackend::new();
    let config = SynthConfig {
        loads: vec![LoadConfig::Write {
            region_mib: LOAD_MIB,
            rate_mib_per_s: None,
        }],
        ..SynthConfig::new(256 << 20)
    };
    let dir = tempfile::tempdir()?;
    let vm = backend.launch(&SynthBackend::spec("bench", &config), dir.path())?;
    let guest = backend.find("bench").context("it was just launched")?;
    // An operation is a page.
    let written = || guest.stats().operations as f64 / 256.0;
    let counted = compare("synthetic", output, &vm, &Subject::Counted(&written));
    vm.destroy();
    counted
}

fn qemu(output: &mut Output) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let guest = TestGuest::new("vm", dir.path(), 256, &format!("write:{LOAD_MIB}:0"), &[]);
    let pair = Pair::new();
    let vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    compare("QEMU", output, &vm, &Subject::Printed(&guest.console))
}

/// How a guest says what it wrote.
enum Subject<'a> {
    /// MiB so far.
    Counted(&'a dyn Fn() -> f64),
    /// MiB a second, once a second.
    Printed(&'a Console),
}

/// MiB a second of time, and of CPU time, of which the guest used so many seconds.
#[derive(Clone, Copy)]
struct Rate {
    by_clock: f64,
    by_cpu: f64,
    cpu_seconds: f64,
}

impl Subject<'_> {
    /// What the guest writes until `over`, which is asked every [`STEP`].
    fn rate(&self, vm: &Arc<dyn Vm>, mut over: impl FnMut() -> Result<bool>) -> Result<Rate> {
        let pid = vm.pid().context("a guest has a process")?;
        let from = match self {
            Self::Counted(written) => written(),
            Self::Printed(console) => console.text().len() as f64,
        };
        let (began, cpu) = (Instant::now(), cpu_seconds(pid)?);
        let mut next = began + STEP;
        while !over()? {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next = Instant::now() + STEP;
        }
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu);
        let by_clock = match self {
            Self::Counted(written) => (written() - from) / seconds,
            Self::Printed(console) => printed(&console.text()[from as usize..])?,
        };
        Ok(Rate {
            by_clock,
            by_cpu: by_clock * seconds / cpu,
            cpu_seconds: cpu,
        })
    }
}

/// The mean of the rates in what a guest printed; the first is of a second that began before.
fn printed(text: &str) -> Result<f64> {
    let rates: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split_once("written_mib_per_s=")?.1.trim().parse().ok())
        .skip(1)
        .collect();
    ensure!(!rates.is_empty(), "the guest reports no rate: {text:?}");
    Ok(rates.iter().sum::<f64>() / rates.len() as f64)
}

/// CPU time of a process, in hundredths.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a name in parentheses")?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

fn compare(name: &str, output: &mut Output, vm: &Arc<dyn Vm>, subject: &Subject<'_>) -> Result<()> {
    thread::sleep(WARM_UP);
    let [
        mut alone,
        mut estimate,
        mut sampled,
        mut sampled_cpu,
        mut scanned_cpu,
        mut page_ns,
        mut taken_ns,
        mut recorded_cpu,
        mut recorded_estimate,
    ] = [(); 9].map(|()| Figures::default());
    for _ in 0..runs(5)? {
        let sampler = Sampler::start(vm.clone(), &Tuning::default(), Budget::default(), None);
        let began = Instant::now();
        let mut report = sampler.report();
        let with = subject.rate(vm, || {
            report = sampler.report();
            // The cycles are over when the burst after them begins.
            Ok(report.bursts >= CYCLES && report.state == SamplingState::Burst)
        })?;
        let lasted = began.elapsed();
        drop(sampler);
        ensure!(report.problem.is_none(), "nothing was learned: {report:?}");
        let until = Instant::now() + lasted;
        let without = subject.rate(vm, || Ok(Instant::now() >= until))?;
        let (recorded, cost_percent) = recorded(vm, subject, lasted)?;
        recorded_cpu.push(lost_percent(recorded.by_cpu, without.by_cpu));
        recorded_estimate.push(cost_percent);
        let (always, pages) = scanned_always(vm, subject)?;
        alone.push(without.by_clock);
        estimate.push(report.cost_percent);
        sampled.push(lost_percent(with.by_clock, without.by_clock));
        sampled_cpu.push(lost_percent(with.by_cpu, without.by_cpu));
        let lost = lost_percent(always.by_cpu, without.by_cpu);
        scanned_cpu.push(lost);
        page_ns.push(lost / 100.0 * always.cpu_seconds * 1e9 / pages as f64);
        taken_ns.push(report.page_cost_us * 1e3);
    }
    println!("{name} guest that writes {LOAD_MIB} MiB in a loop, as fast as it goes:");
    let named = |what: &str| format!("{name}: {what}");
    output.figures(&named("left alone"), "MiB/s", &alone);
    output.figures(&named("lost to the sampler, by CPU time"), "%", &sampled_cpu);
    output.figures(&named("lost to the sampler, by the clock"), "%", &sampled);
    output.figures(&named("the sampler's own estimate of that"), "%", &estimate);
    output.figures(&named("lost to a recording, by CPU time"), "%", &recorded_cpu);
    output.figures(
        &named("the recording's own estimate of that"),
        "%",
        &recorded_estimate,
    );
    output.figures(
        &named("lost to a scan every 50 ms, by CPU time"),
        "%",
        &scanned_cpu,
    );
    output.figures(&named("cost of a page that a scan finds"), "ns", &page_ns);
    output.figures(&named("what the sampler takes for that"), "ns", &taken_ns);
    output.ratio(
        &named("lost to the sampler, by CPU time / budget of 3 %"),
        sampled_cpu.median() / Budget::default().as_percent(),
        "at most 1",
    );
    output.ratio(
        &named("lost to a recording, by CPU time / budget of 3 %"),
        recorded_cpu.median() / Budget::default().as_percent(),
        "at most 1",
    );
    Ok(())
}

/// The guest while it is recorded for `length` within the budget, and what the trace says that cost it, in percent.
fn recorded(vm: &Arc<dyn Vm>, subject: &Subject<'_>, length: Duration) -> Result<(Rate, f64)> {
    let plan = RecordPlan {
        length,
        interval: STEP,
        plan: Plan::Within {
            budget_percent: Budget::default().as_percent(),
        },
    };
    let recording = {
        let vm = vm.clone();
        thread::spawn(move || record(&vm, &plan, None, &RecordControl::default()))
    };
    let rate = subject.rate(vm, || Ok(recording.is_finished()))?;
    let trace = recording
        .join()
        .map_err(|_| anyhow::anyhow!("the recorder panicked"))??;
    let cost = trace.cost.context("it was recorded to its end")?;
    Ok((rate, cost.percent()))
}

/// The guest with a scan every [`STEP`], and how many pages these found.
fn scanned_always(vm: &Arc<dyn Vm>, subject: &Subject<'_>) -> Result<(Rate, u64)> {
    let mut tracker = vm.dirty_tracker()?;
    tracker.arm_running()?;
    let mut dirty = PageBitmap::new(vm.ram().layout().pages());
    let (began, mut pages) = (Instant::now(), 0);
    let rate = subject.rate(vm, || {
        dirty.clear();
        tracker.scan(&mut dirty)?;
        pages += dirty.count();
        Ok(began.elapsed() >= WARM_UP)
    })?;
    Ok((rate, pages))
}

fn lost_percent(with: f64, without: f64) -> f64 {
    (1.0 - with / without) * 100.0
}
