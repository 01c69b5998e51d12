//! Encoding and decoding on one core, in frames as the page streams make them.
//!
//! The pages are a guest's: text, and static memory of which a half compresses. `raw` is what pages that cross as they are
//! take in user space where they carry a checksum, which those of a stopped guest do.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::Vm;
use vmferry_guest_synth::{Fill, LoadConfig, SynthBackend, SynthConfig};
use vmferry_memory::SharedMemory;
use vmferry_tests::Pair;
use vmferry_wire::{Coding, EncodedPages, PageDecoder, PageEncoder, crc32};

/// Pages of a frame.
const FRAME_PAGES: u64 = 64;
const FRAME_BYTES: usize = (FRAME_PAGES * PAGE_SIZE) as usize;
/// Frames of an iteration, from all over the guest: each has the same work to do.
const FRAMES: usize = 16;

const CODINGS: [(&str, Coding, i32); 5] = [
    ("lz4", Coding::Lz4, 0),
    ("zstd -5", Coding::Zstd, -5),
    ("zstd 1", Coding::Zstd, 1),
    ("zstd 5", Coding::Zstd, 5),
    ("delta of a tenth", Coding::Delta, 0),
];

pub(crate) fn bench(criterion: &mut Criterion) {
    let pages = content();
    let mut group = criterion.benchmark_group("pages on one core");
    group.throughput(Throughput::Bytes(pages.len() as u64));
    as_they_are(&mut group, &pages);
    uniform(&mut group);
    for (name, coding, level) in CODINGS {
        encoded(&mut group, &pages, name, coding, level);
    }
    group.finish();
}

/// Frames of a guest's pages that are not uniform.
fn content() -> Vec<u8> {
    let config = SynthConfig {
        loads: vec![LoadConfig::Compress {
            region_mib: 16,
            operations_per_s: Some(200),
        }],
        fill: Fill {
            mib: 32,
            zero_percent: 10,
            uniform_percent: 0,
            compressible_percent: 50,
        },
        seed: 5,
        ..SynthConfig::new(64 << 20)
    };
    let pair = Pair::with(|| Box::new(SynthBackend::new()));
    let vm = pair.launch(&SynthBackend::spec("content", &config));
    let full = not_uniform(&*vm);
    // Those that compress: what does not crosses as it is.
    let mut encoder = PageEncoder::default();
    let mut shrinks = |frame: &&[u8]| encoder.lz4(frame).is_some() && encoder.zstd(-5, frame).is_some();
    let frames: Vec<_> = full.chunks_exact(FRAME_BYTES).filter(&mut shrinks).collect();
    assert!(frames.len() >= FRAMES, "the guest has content");
    let every = frames.len() / FRAMES;
    frames
        .into_iter()
        .step_by(every)
        .take(FRAMES)
        .flatten()
        .copied()
        .collect()
}

fn not_uniform(vm: &dyn Vm) -> Vec<u8> {
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

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn as_they_are(group: &mut Group<'_>, pages: &[u8]) {
    let memory = memory();
    memory.write_at(0, pages);
    let mut buffer = vec![0; FRAME_BYTES];
    group.bench_function("raw: encode", |bencher| {
        bencher.iter(|| {
            for at in (0..memory.len()).step_by(FRAME_BYTES) {
                memory.read_at(at, &mut buffer);
                black_box(crc32(&buffer));
            }
        });
    });
    group.bench_function("raw: decode", |bencher| {
        bencher.iter(|| {
            for (at, frame) in (0..).step_by(FRAME_BYTES).zip(pages.chunks_exact(FRAME_BYTES)) {
                black_box(crc32(frame));
                memory
                    .write_through_file(at, frame)
                    .expect("a memfd can be written");
            }
        });
    });
}

/// What all bytes of a page are, and pages of one byte.
fn uniform(group: &mut Group<'_>) {
    let memory = memory();
    let mut buffer = Vec::new();
    group.bench_function("uniform: encode", |bencher| {
        bencher.iter(|| {
            for at in (0..memory.len()).step_by(PAGE_SIZE as usize) {
                assert!(memory.page_is_uniform(at).is_some());
            }
        });
    });
    group.bench_function("uniform: decode", |bencher| {
        bencher.iter(|| {
            for at in (0..memory.len()).step_by(FRAME_BYTES) {
                buffer.clear();
                buffer.resize(FRAME_BYTES, black_box(7));
                memory
                    .write_through_file(at, &buffer)
                    .expect("a memfd can be written");
            }
        });
    });
}

/// Memory for the pages of an iteration, all there.
fn memory() -> SharedMemory {
    let memory =
        SharedMemory::create("encodings-bench", (FRAMES * FRAME_BYTES) as u64).expect("a memfd can be made");
    memory.populate(0..memory.len()).expect("there is memory for it");
    memory
}

fn encoded(group: &mut Group<'_>, pages: &[u8], name: &str, coding: Coding, level: i32) {
    // The version that was sent before: the guest wrote a tenth of it since.
    let mut old = pages.to_vec();
    old.chunks_exact_mut(40).for_each(|bytes| bytes[..4].fill(0));
    let mut encoder = PageEncoder::default();
    let frames = || pages.chunks_exact(FRAME_BYTES).zip(old.chunks_exact(FRAME_BYTES));

    let payloads: Vec<_> = frames()
        .map(|(new, old)| {
            let payload = encode(&mut encoder, coding, level, old, new);
            payload.expect("these pages compress").to_vec()
        })
        .collect();
    let bytes: usize = payloads.iter().map(Vec::len).sum();
    println!(
        "{name}: shorter by {:.2} times",
        pages.len() as f64 / bytes as f64
    );
    group.bench_function(format!("{name}: encode"), |bencher| {
        bencher.iter(|| {
            for (new, old) in frames() {
                black_box(encode(&mut encoder, coding, level, old, new));
            }
        });
    });

    let headers: Vec<_> = frames()
        .zip(&payloads)
        .map(|((new, _), payload)| EncodedPages {
            run: PageRun::new(0, FRAME_PAGES),
            round: 1,
            coding,
            len: payload.len() as u32,
            crc: coding.checksum(payload, new),
        })
        .collect();
    let mut decoder = PageDecoder::default();
    let mut came = vec![0; FRAME_BYTES];
    let mut decode = |payload: &Vec<u8>, header: &EncodedPages, old: &[u8], new: Option<&[u8]>| {
        if coding == Coding::Delta {
            came.copy_from_slice(old);
        }
        decoder
            .read(&mut payload.as_slice(), header, &mut came)
            .expect("what was encoded");
        assert!(
            new.is_none_or(|new| came == new),
            "pages come out as they went in"
        );
    };
    for ((payload, header), (new, old)) in payloads.iter().zip(&headers).zip(frames()) {
        decode(payload, header, old, Some(new));
    }
    group.bench_function(format!("{name}: decode"), |bencher| {
        bencher.iter(|| {
            for ((payload, header), (_, old)) in payloads.iter().zip(&headers).zip(frames()) {
                decode(payload, header, old, None);
            }
        });
    });
}

fn encode<'a>(
    encoder: &'a mut PageEncoder,
    coding: Coding,
    level: i32,
    old: &[u8],
    new: &[u8],
) -> Option<&'a [u8]> {
    match coding {
        Coding::Lz4 => encoder.lz4(new),
        Coding::Zstd => encoder.zstd(level, new),
        Coding::Delta => encoder.delta(old, new),
    }
}
