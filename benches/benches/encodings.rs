//! The push of a guest over links of different rates with each encoding of pages and with `auto`, in turn. What each gives and
//! takes on one core is in `micro`.

use anyhow::Result;
use vmferry_benches::{Figures, Output, completed, plain, runs};
use vmferry_core::Strategy;
use vmferry_core::report::Report;
use vmferry_guest_synth::{Fill, LoadConfig, SynthBackend, SynthConfig};
use vmferry_tests::{Link, Pair};

const MIB: f64 = (1 << 20) as f64;

fn main() -> Result<()> {
    let runs = runs(3)?;
    let mut output = Output::from_args()?;
    for (name, bytes_per_s) in [
        ("100 Mbit/s", Some(12_500_000)),
        ("1 Gbit/s", Some(125_000_000)),
        ("loopback", None),
    ] {
        over_a_link(name, bytes_per_s, runs, &mut output)?;
    }
    output.finish()
}

/// A guest that holds texts, as its load edits them, and static memory of which a half compresses.
fn guest() -> SynthConfig {
    SynthConfig {
        loads: vec![LoadConfig::Compress {
            region_mib: 32,
            operations_per_s: Some(200),
        }],
        fill: Fill {
            mib: 64,
            zero_percent: 10,
            uniform_percent: 0,
            compressible_percent: 50,
        },
        seed: 5,
        ..SynthConfig::new(128 << 20)
    }
}

fn over_a_link(link: &str, bytes_per_s: Option<u64>, runs: usize, output: &mut Output) -> Result<()> {
    println!("pre-copy of that guest over {link}, one stream");
    let encodings = ["raw", "lz4", "zstd", "auto"];
    let mut totals: Vec<_> = encodings.iter().map(|_| Figures::default()).collect();
    let mut bytes: Vec<_> = encodings.iter().map(|_| Figures::default()).collect();
    let mut cpu: Vec<_> = encodings.iter().map(|_| Figures::default()).collect();
    for _ in 0..runs {
        for (index, encoding) in encodings.iter().enumerate() {
            let report = migrate(encoding, bytes_per_s)?;
            totals[index].push(report.total_ms);
            bytes[index].push(report.bytes_on_wire as f64 / MIB);
            cpu[index].push(report.cpu_seconds.source);
        }
    }
    for (index, encoding) in encodings.iter().enumerate() {
        output.figures(&format!("{link}, {encoding}: total time"), "ms", &totals[index]);
        output.figures(&format!("{link}, {encoding}: on the wire"), "MiB", &bytes[index]);
        output.figures(
            &format!("{link}, {encoding}: CPU of the source"),
            "s",
            &cpu[index],
        );
    }
    let best = totals[..3]
        .iter()
        .map(Figures::median)
        .fold(f64::INFINITY, f64::min);
    output.ratio(
        &format!("{link}: total time, auto / the best of the others"),
        totals[3].median() / best,
        "at most 1.15",
    );
    Ok(())
}

fn migrate(encoding: &str, bytes_per_s: Option<u64>) -> Result<Report> {
    let pair = Pair::with(|| Box::new(SynthBackend::new()));
    let vm = pair.launch(&SynthBackend::spec("moved", &guest()));
    let mut request = plain(pair.request(Strategy::PreCopy));
    request.encoding = encoding.parse()?;
    if let Some(bytes_per_s) = bytes_per_s {
        let link = Link::to(&request.to);
        link.limit(bytes_per_s);
        request.to = link.endpoint().clone();
    }
    let report = completed(pair.migrate(&vm, request))?;
    if encoding == "auto" {
        println!("  auto: {:?}", report.encoding.pages);
    }
    Ok(report)
}
