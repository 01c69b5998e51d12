//! The simulator against reality: guests are recorded, their migrations simulated over the path as it was measured, and then
//! made, in turn; rounds side by side.
//!
//! What devices take is learned from a migration of the same kind before, as a daemon does.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vmferry_benches::{Figures, Output, completed, runs};
use vmferry_core::report::Report;
use vmferry_core::{MigrationRequest, Strategy};
use vmferry_guest::{GuestSpec, Vm};
use vmferry_guest_qemu::QemuBackend;
use vmferry_guest_synth::{Fill, LoadConfig, SynthBackend, SynthConfig};
use vmferry_runtime::calibrate;
use vmferry_runtime::recorder::record;
use vmferry_runtime::{RecordControl, RecordPlan, Request};
use vmferry_sim::{Outcome, PathModel, Simulator};
use vmferry_tests::{Console, Link, Pair, Requirement, TestGuest, require};
use vmferry_trace::{Plan, Trace};

const STRATEGIES: [Strategy; 4] = [
    Strategy::PreCopy,
    Strategy::PreCopyFilter,
    Strategy::PostCopyPush,
    Strategy::Hybrid,
];
/// Half a gigabit: what the relay carries beside everything else on two cores.
const LINK_BYTES_PER_S: u64 = 62_500_000;
const RECORDED: Duration = Duration::from_secs(5);
/// A guest that has just started does other things than it will do.
const SETTLE: Duration = Duration::from_secs(3);
const MIB: f64 = (1 << 20) as f64;
/// So many rounds are compared one by one: later ones are made by few runs.
const ROUNDS: usize = 3;

fn main() -> Result<()> {
    let mut output = Output::from_args()?;
    let mut errors = Errors::default();
    for (name, loads) in synthetic_loads() {
        let config = SynthConfig {
            loads,
            fill: Fill {
                mib: 96,
                zero_percent: 10,
                uniform_percent: 5,
                compressible_percent: 50,
            },
            ..SynthConfig::new(256 << 20)
        };
        let make = || {
            let pair = Pair::with(|| Box::new(SynthBackend::new()));
            let vm = pair.launch(&SynthBackend::spec("bench", &config));
            (pair, vm)
        };
        compare(name, &mut output, &mut errors, make)?;
    }
    if require::all(&[Requirement::Qemu, Requirement::Root, Requirement::Userfaultfd]) {
        qemu(&mut output, &mut errors)?;
    }
    errors.print(&mut output);
    output.finish()
}

fn synthetic_loads() -> [(&'static str, Vec<LoadConfig>); 3] {
    let write = |region_mib, rate| LoadConfig::Write {
        region_mib,
        rate_mib_per_s: Some(rate),
    };
    [
        ("writes 16 MiB at 10 MiB/s", vec![write(16, 10)]),
        ("writes 48 MiB at 150 MiB/s", vec![write(48, 150)]),
        (
            "key-value store",
            vec![LoadConfig::KeyValue {
                region_mib: 48,
                get_percent: 70,
                zipf_exponent: 0.9,
                value_bytes: 1024,
                operations_per_s: Some(4000),
            }],
        ),
    ]
}

fn qemu(output: &mut Output, errors: &mut Errors) -> Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    for load in ["write:16:20", "write:48:200"] {
        let mut number = 0;
        let make = || {
            number += 1;
            let of_run = dir.path().join(format!("{}-{number}", load.replace(':', "-")));
            std::fs::create_dir(&of_run).expect("a directory can be made");
            let guest = TestGuest::new("bench", &of_run, 256, load, &[]);
            launch_qemu(&guest.spec, &guest.console)
        };
        compare(&format!("QEMU {load}"), output, errors, make)?;
    }
    Ok(())
}

fn launch_qemu(spec: &GuestSpec, console: &Console) -> (Pair, Arc<dyn Vm>) {
    let pair = Pair::with(|| Box::new(QemuBackend));
    let vm = pair.launch(spec);
    console.wait_for("written_mib_per_s");
    (pair, vm)
}

/// Records, simulates and migrates guests of one kind by each strategy.
fn compare(
    name: &str,
    output: &mut Output,
    errors: &mut Errors,
    mut make: impl FnMut() -> (Pair, Arc<dyn Vm>),
) -> Result<()> {
    println!("{name}");
    let runs = runs(3)?;
    let mut earlier: Vec<Report> = Vec::new();
    // One more before, for what devices take.
    let (pair, vm) = make();
    earlier.push(completed(pair.migrate(
        &vm,
        request(&pair, &Link::to(&pair.endpoint), Strategy::PostCopyPush),
    ))?);
    drop(pair);
    for strategy in STRATEGIES {
        let (mut total, mut bytes) = (Figures::default(), Figures::default());
        let mut rounds: [Figures; ROUNDS] = Default::default();
        for _ in 0..runs {
            let (pair, vm) = make();
            let link = Link::to(&pair.endpoint);
            link.limit(LINK_BYTES_PER_S);
            thread::sleep(SETTLE);
            let trace = recorded(&vm)?;
            let mut path = measured(&link)?;
            path.learn_from(&earlier);
            let request = request(&pair, &link, strategy);
            let simulated = Simulator::new(&trace)?.run(&asked(&request), &path, 1)?;
            let real = completed(pair.migrate(&vm, request))?;
            side_by_side(strategy, &simulated, &real);
            errors.add(&simulated, &real);
            compare_rounds(&mut rounds, &simulated, &real);
            total.push(simulated.report.total_ms / real.total_ms);
            bytes.push(simulated.report.bytes_on_wire as f64 / real.bytes_on_wire as f64);
            earlier.push(real);
        }
        output.figures(
            &format!("{name}, {strategy}: total time, simulated / real"),
            "",
            &total,
        );
        output.figures(
            &format!("{name}, {strategy}: bytes, simulated / real"),
            "",
            &bytes,
        );
        for (round, pages) in rounds.iter().enumerate() {
            if !pages.values().is_empty() {
                let what = format!(
                    "{name}, {strategy}: pages of round {}, simulated / real",
                    round + 1
                );
                output.figures(&what, "", pages);
            }
        }
    }
    Ok(())
}

fn request(pair: &Pair, link: &Link, strategy: Strategy) -> Request {
    Request {
        to: link.endpoint().clone(),
        streams: Some(1),
        verify: false,
        ..pair.request(strategy)
    }
}

fn asked(request: &Request) -> MigrationRequest<()> {
    request.clone().directed_to(())
}

fn recorded(vm: &Arc<dyn Vm>) -> Result<Trace> {
    let plan = RecordPlan {
        length: RECORDED,
        interval: Duration::from_millis(50),
        plan: Plan::Within { budget_percent: 3.0 },
    };
    record(vm, &plan, None, &RecordControl::default()).context("the guest is recorded")
}

/// The path through the relay.
fn measured(link: &Link) -> Result<PathModel> {
    let dir = tempfile::tempdir()?;
    let measured = calibrate::measure(link.endpoint(), Duration::from_millis(800), dir.path())?;
    Ok(measured.path().0)
}

fn side_by_side(strategy: Strategy, simulated: &Outcome, real: &Report) {
    for (which, report) in [("simulated", &simulated.report), ("real", real)] {
        let rounds: Vec<String> = report
            .rounds
            .iter()
            .map(|round| format!("{} in {:.0} ms", round.pages_sent, round.ms))
            .collect();
        println!(
            "  {strategy} {which:9}: {:.0} ms, transfer {:.0} ms, down {:.1} ms, {:.1} MiB, {} faults; rounds: {}",
            report.total_ms,
            report.execution_transfer_ms,
            report.downtime_ms,
            report.bytes_on_wire as f64 / MIB,
            report.faults.network,
            rounds.join(", ")
        );
    }
}

/// Pages of the rounds that both made, one by one; the stop is the last of them.
fn compare_rounds(rounds: &mut [Figures; ROUNDS], simulated: &Outcome, real: &Report) {
    let both = simulated.report.rounds.iter().zip(&real.rounds);
    for (figures, (simulated, real)) in rounds.iter_mut().zip(both) {
        if real.pages_sent > 0 {
            figures.push(simulated.pages_sent as f64 / real.pages_sent as f64);
        }
    }
}

/// How far the simulations were off.
#[derive(Default)]
struct Errors {
    total: Figures,
    bytes: Figures,
    downtime_ms: Figures,
    downtime_within: Figures,
}

impl Errors {
    fn add(&mut self, simulated: &Outcome, real: &Report) {
        let off = |simulated: f64, real: f64| (simulated / real - 1.0).abs() * 100.0;
        self.total.push(off(simulated.report.total_ms, real.total_ms));
        self.bytes.push(off(
            simulated.report.bytes_on_wire as f64,
            real.bytes_on_wire as f64,
        ));
        let down = (simulated.report.downtime_ms - real.downtime_ms).abs();
        self.downtime_ms.push(down);
        let within = down <= 10.0 || down <= 0.25 * real.downtime_ms;
        self.downtime_within.push(if within { 100.0 } else { 0.0 });
    }

    fn print(&self, output: &mut Output) {
        output.figures(
            "error of total time (wanted: a median of at most 15)",
            "%",
            &self.total,
        );
        output.figures(
            "error of bytes (wanted: a median of at most 15)",
            "%",
            &self.bytes,
        );
        output.figures("error of the downtime", "ms", &self.downtime_ms);
        let within = self.downtime_within.values();
        let share = within.iter().sum::<f64>() / within.len().max(1) as f64;
        output.ratio(
            "downtime within 10 ms or 25 %, share of the runs",
            share / 100.0,
            "at least 0.5",
        );
    }
}
