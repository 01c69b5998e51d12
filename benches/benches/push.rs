//! Push throughput: one page stream from a synthetic guest over loopback, against `iperf3 -P 1`, in turn.

use anyhow::Result;
use vmferry_benches::{Figures, Output, completed, iperf, plain, runs};
use vmferry_core::Strategy;
use vmferry_guest_synth::{Fill, SynthBackend, SynthConfig};
use vmferry_tests::Pair;

const RAM_MIB: u64 = 2048;
const GIB: f64 = (1u64 << 30) as f64;

fn main() -> Result<()> {
    let runs = runs(5)?;
    let mut output = Output::from_args()?;
    let config = SynthConfig {
        fill: Fill {
            mib: RAM_MIB - 64,
            ..Fill::default()
        },
        ..SynthConfig::new(RAM_MIB << 20)
    };
    println!(
        "push of {} MiB of random pages over one loopback stream, GiB/s",
        RAM_MIB - 64
    );
    for strategy in [Strategy::PreCopy, Strategy::StopAndCopy, Strategy::PostCopyPush] {
        let (mut ours, mut theirs, mut memory) = (Figures::default(), Figures::default(), Figures::default());
        let (mut source_cpu, mut destination_cpu) = (Figures::default(), Figures::default());
        for _ in 0..runs {
            theirs.push(iperf::one_stream_bytes_per_s(2)? / GIB);
            let pair = Pair::with(|| Box::new(SynthBackend::new()));
            let vm = pair.launch(&SynthBackend::spec("push", &config));
            let report = completed(pair.migrate(&vm, plain(pair.request(strategy))))?;
            let seconds = match report.rounds.first() {
                Some(round) => round.ms / 1e3,
                None => (report.total_ms - report.execution_transfer_ms) / 1e3,
            };
            ours.push(report.bytes_on_wire as f64 / seconds / GIB);
            let gib = report.bytes_on_wire as f64 / GIB;
            source_cpu.push(report.cpu_seconds.source / gib);
            destination_cpu.push(report.cpu_seconds.destination / gib);
            let used = report.memory_bytes.source.max(report.memory_bytes.destination);
            memory.push(used as f64 / report.ram_bytes as f64 * 100.0);
        }
        output.figures(&format!("{strategy}: vmferry"), "GiB/s", &ours);
        output.figures(&format!("{strategy}: iperf3 -P 1"), "GiB/s", &theirs);
        let ratio = ours.median() / theirs.median();
        output.ratio(
            &format!("{strategy}: throughput, vmferry / iperf3"),
            ratio,
            "at least 0.7",
        );
        output.figures(&format!("{strategy}: CPU of the source"), "s/GiB", &source_cpu);
        output.figures(
            &format!("{strategy}: CPU of the destination"),
            "s/GiB",
            &destination_cpu,
        );
        output.figures(
            &format!("{strategy}: private memory of both sides together"),
            "% of guest RAM (wanted: at most 0.5 a side)",
            &memory,
        );
    }
    output.finish()
}
