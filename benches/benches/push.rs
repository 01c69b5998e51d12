//! Push throughput: one page stream from a synthetic guest over loopback, against `iperf3 -P 1`, in turn.

use anyhow::Result;
use vmferry_benches::{Figures, Pair, hosts, iperf};
use vmferry_core::Strategy;
use vmferry_guest_synth::{Fill, SynthBackend, SynthConfig};

const RAM_MIB: u64 = 2048;
const GIB: f64 = (1u64 << 30) as f64;

fn main() -> Result<()> {
    let runs = hosts::runs(5)?;
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
            let pair = Pair::new(|| Box::new(SynthBackend::new()))?;
            let vm = pair.launch(&SynthBackend::spec("push", &config))?;
            let report = pair.migrate(&vm, pair.request(strategy))?;
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
        println!(
            "{strategy}: vmferry {ours}, iperf3 {theirs}, ratio {:.2}",
            ours.median() / theirs.median()
        );
        println!("{strategy}: CPU seconds per GiB: source {source_cpu}, destination {destination_cpu}");
        println!("{strategy}: private memory of both sides together, % of guest RAM: {memory}");
    }
    Ok(())
}
