//! Encodings of pages: what each gives and takes on one core, and the push of a guest over links of different rates with
//! each of them and with `auto`, in turn.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use vmferry_benches::{Figures, Output, completed, plain, runs};
use vmferry_core::report::Report;
use vmferry_core::{PAGE_SIZE, PageRun, Strategy};
use vmferry_guest::Vm;
use vmferry_guest_synth::{Fill, LoadConfig, SynthBackend, SynthConfig};
use vmferry_tests::{Link, Pair};
use vmferry_wire::{Coding, EncodedPages, PageDecoder, PageEncoder};

const MIB: f64 = (1 << 20) as f64;
/// Pages of a frame, as the page streams make them.
const FRAME_PAGES: u64 = 64;

fn main() -> Result<()> {
    let runs = runs(3)?;
    let mut output = Output::from_args()?;
    on_one_core(runs, &mut output)?;
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

/// Text, and what compresses to a half, without uniform pages.
fn on_one_core(runs: usize, output: &mut Output) -> Result<()> {
    let pair = Pair::with(|| Box::new(SynthBackend::new()));
    let vm = pair.launch(&SynthBackend::spec("content", &guest()));
    let pages = content(&*vm);
    println!(
        "{} MiB of a guest's memory on one core, {FRAME_PAGES} pages a frame",
        pages.len() >> 20
    );
    for (name, coding, level) in [
        ("lz4", Coding::Lz4, 0),
        ("zstd:-5", Coding::Zstd, -5),
        ("zstd:1", Coding::Zstd, 1),
        ("zstd:5", Coding::Zstd, 5),
        ("delta of a tenth", Coding::Delta, 0),
    ] {
        let (mut encode, mut decode, mut ratio) =
            (Figures::default(), Figures::default(), Figures::default());
        for _ in 0..runs {
            let took = round_trip(&pages, coding, level);
            encode.push(pages.len() as f64 / MIB / took.encode.as_secs_f64());
            decode.push(took.decoded_bytes as f64 / MIB / took.decode.as_secs_f64());
            ratio.push(pages.len() as f64 / took.bytes as f64);
        }
        output.figures(&format!("{name}: encode"), "MiB/s", &encode);
        output.figures(&format!("{name}: decode"), "MiB/s", &decode);
        output.figures(&format!("{name}: shorter by"), "times", &ratio);
    }
    Ok(())
}

/// The pages of a guest that are not uniform.
fn content(vm: &dyn Vm) -> Vec<u8> {
    let mut pages = Vec::new();
    let mut page = vec![0; PAGE_SIZE as usize];
    for number in 0..vm.ram().layout().pages() {
        if vm.ram().uniform_byte(number).is_none() {
            vm.ram().read(PageRun::single(number), &mut page);
            pages.extend_from_slice(&page);
        }
    }
    pages
}

struct Took {
    encode: Duration,
    decode: Duration,
    decoded_bytes: usize,
    bytes: usize,
}

fn round_trip(pages: &[u8], coding: Coding, level: i32) -> Took {
    let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
    let mut old = pages.to_vec();
    old.chunks_exact_mut(40).for_each(|bytes| bytes[..4].fill(0));
    let mut came = vec![0; (FRAME_PAGES * PAGE_SIZE) as usize];
    let mut took = Took {
        encode: Duration::ZERO,
        decode: Duration::ZERO,
        decoded_bytes: 0,
        bytes: 0,
    };
    for (new, old) in pages.chunks_exact(came.len()).zip(old.chunks_exact(came.len())) {
        let begun = Instant::now();
        let payload = match coding {
            Coding::Lz4 => encoder.lz4(new),
            Coding::Zstd => encoder.zstd(level, new),
            Coding::Delta => encoder.delta(old, new),
        };
        took.encode += begun.elapsed();
        took.bytes += payload.map_or(new.len(), <[u8]>::len);
        let Some(payload) = payload else { continue };
        let frame = EncodedPages {
            run: PageRun::new(0, FRAME_PAGES),
            round: 1,
            coding,
            len: payload.len() as u32,
            crc: coding.checksum(payload, new),
        };
        came.copy_from_slice(old);
        let begun = Instant::now();
        decoder
            .read(&mut &*payload, &frame, &mut came)
            .expect("what was just encoded");
        took.decode += begun.elapsed();
        took.decoded_bytes += came.len();
        assert!(black_box(&came) == new);
    }
    took
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
