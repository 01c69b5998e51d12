//! The file of a trace: what is written is read, and what is cut, damaged or made up is refused with the reason.

use proptest::prelude::*;
use vmferry_core::hints::{Class, Hints};
use vmferry_core::layout::MAX_RAM_BYTES;
use vmferry_core::sampling::Coverage;
use vmferry_core::{PageRun, RamBlock, RamLayout};
use vmferry_trace::{
    Blend, Content, Cost, GuestHints, Header, LoadMark, PageSet, Partial, Plan, Sample, Trace, TraceError,
};

const PAGES: u64 = 4096;

fn layout() -> RamLayout {
    let block = |name: &str, pages| RamBlock {
        name: name.into(),
        pages,
    };
    RamLayout::new(vec![block("ram", 3000), block("dimm", PAGES - 3000)]).unwrap()
}

fn trace(samples: u64) -> Trace {
    let header = Header {
        vm: "web-1".into(),
        backend: "qemu".into(),
        layout: layout(),
        started_unix_ms: 1_764_000_000_000,
        interval_us: 50_000,
        plan: Plan::Within { budget_percent: 3.0 },
        page_cost_ns: 4000,
        processors: 2,
        pinned_io: true,
        device_state_bytes: Some(210_000),
    };
    let mut trace = Trace::new(
        header,
        PageSet::from_runs([PageRun::new(0, 100), PageRun::new(2990, 20)]),
    );
    trace.content = Content {
        region_pages: 64,
        regions: vec![
            Blend {
                looked_at: 16,
                uniform: 4,
                lz4: 0.5,
                zstd: 0.25,
                zstd_5: 0.125,
            };
            64
        ],
        written: Blend::default(),
        delta: Some(0.0625),
    };
    for index in 0..samples {
        trace.samples.push(Sample {
            start_us: index * 50_000,
            end_us: (index + 1) * 50_000 - index % 2,
            burst: (index / 8) as u32,
            coverage: Coverage::one_in(1 << (index % 3), index as u32),
            dirty: PageSet::from_runs([PageRun::new(index % 100, 3), PageRun::new(200 + index % 700, 1)]),
            cpu_us: (index % 2 == 0).then_some(40_000),
        });
    }
    trace.loads = vec![LoadMark {
        at_us: 7,
        load_average: Some(0.5),
        memory_available_bytes: None,
        operations: Some(12),
    }];
    let mut hints = Hints::new(PAGES);
    hints.set(PageRun::new(0, 90), Class::KernelCode);
    hints.set(PageRun::new(1000, 1500), Class::Free);
    hints.set(PageRun::new(1200, 7), Class::PageTables);
    trace.hints = GuestHints::new(&hints, 31_000, true);
    trace.cost = Some(Cost {
        took_us: 1_000_000,
        cost_us: 25_000,
        scans: 20,
    });
    trace
}

fn bytes(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).unwrap();
    bytes
}

/// Format 1, as it was first released.
const GOLDEN: &str = include_str!("golden/format-1.txt");

#[test]
fn traces_of_format_1_are_read_for_good() {
    let hex: String = GOLDEN.split_whitespace().collect();
    let golden: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    // Nobody was asked for hints then.
    let expected = Trace {
        hints: None,
        ..trace(3)
    };
    assert!(Trace::read(&mut &golden[..]).unwrap() == expected);
}

#[test]
fn what_is_written_is_read_however_long() {
    for samples in [0, 1, 17, 20_000] {
        let whole = trace(samples);
        assert_eq!(
            Trace::read(&mut &bytes(&whole)[..]).unwrap(),
            whole,
            "{samples} samples"
        );
    }
    let long = bytes(&trace(20_000));
    assert!(
        long.len() < 20_000 * 20,
        "{} bytes for 20,000 samples",
        long.len()
    );
}

#[test]
fn a_trace_that_is_cut_short_is_an_error_and_its_beginning_is_usable() {
    // Several parts of samples.
    let long = trace(24_000);
    let whole = bytes(&long);
    let mut usable = 0;
    let cuts = (0..20)
        .chain((0..20).map(|part| whole.len() * part / 20))
        .chain([whole.len() - 1]);
    for cut in cuts {
        let part = &whole[..cut];
        let why = Trace::read(&mut &part[..]).unwrap_err();
        match Trace::read_partial(&mut &part[..]) {
            Ok(Partial { trace, problem }) => {
                usable += 1;
                assert!(
                    matches!(problem, Some(TraceError::CutShort { .. })),
                    "{problem:?}"
                );
                assert_eq!(trace.samples[..], long.samples[..trace.samples.len()]);
                assert!(why.to_string().contains("--partial"), "{why}");
            }
            Err(why) => assert!(
                matches!(why, TraceError::NoTrace | TraceError::NothingWhole),
                "{why}"
            ),
        }
    }
    assert!(usable > 10);
    let Partial { trace, .. } = Trace::read_partial(&mut &whole[..whole.len() - 30]).unwrap();
    assert!(trace.samples.len() > 15_000, "{}", trace.samples.len());
}

#[test]
fn other_files_and_later_formats_are_told_apart() {
    for other in [&b""[..], b"VMFTRACX\x01\0\0\0", b"\x7fELF", b"VMFTRAC"] {
        assert!(matches!(Trace::read(&mut &other[..]), Err(TraceError::NoTrace)));
    }
    let mut later = bytes(&trace(1));
    later[8] = 2;
    let why = Trace::read(&mut &later[..]).unwrap_err().to_string();
    assert!(why.contains("format 2") && why.contains("newer vmferry"), "{why}");
}

#[test]
fn a_trace_of_another_guest_is_told_by_its_memory() {
    let trace = trace(1);
    trace.check_of(&layout()).unwrap();
    let other = RamLayout::single("ram", PAGES * 4096).unwrap();
    let why = trace.check_of(&other).unwrap_err().to_string();
    assert!(why.contains("4096 pages in 2 blocks"), "{why}");
}

#[test]
fn samples_that_go_back_in_time_or_beyond_memory_are_refused() {
    let refused = |change: &dyn Fn(&mut Trace)| {
        let mut trace = trace(3);
        change(&mut trace);
        let error = Trace::read(&mut &bytes(&trace)[..]).unwrap_err();
        assert!(matches!(error, TraceError::Nonsense(_)), "{error}");
        error.to_string()
    };
    let why = refused(&|trace| trace.samples[2].start_us = 10);
    assert!(why.contains("do not follow each other"), "{why}");
    let why = refused(&|trace| trace.samples[1].dirty = PageSet::from_runs([PageRun::new(PAGES - 1, 2)]));
    assert!(why.contains("beyond RAM of 4096 pages"), "{why}");
    refused(&|trace| trace.resident = PageSet::from_runs([PageRun::new(PAGES, 1)]));
    refused(&|trace| trace.header.interval_us = 0);
    let why = refused(&|trace| trace.hints = GuestHints::new(&Hints::new(PAGES + 1), 1, true));
    assert!(why.contains("beyond RAM of 4096 pages"), "{why}");
    refused(&|trace| trace.header.vm = "a\nb".into());
    refused(&|trace| trace.content.regions[3].lz4 = f32::NAN);
    refused(&|trace| {
        // Together more than can be counted.
        for region in [0, 1] {
            trace.content.regions[region].looked_at = u32::MAX;
        }
    });
    let why = refused(&|trace| {
        trace.samples[2].start_us = u64::MAX - 1;
        trace.samples[2].end_us = u64::MAX;
    });
    assert!(why.contains("a year"), "{why}");
    refused(&|trace| {
        trace.header.plan = Plan::Within {
            budget_percent: f64::NAN,
        }
    });
}

/// A guest of 64 TiB, by its header.
fn huge() -> Trace {
    let mut huge = trace(0);
    huge.header.layout = RamLayout::single("ram", MAX_RAM_BYTES).unwrap();
    huge
}

#[test]
fn samples_that_found_more_than_they_looked_at_are_refused() {
    let mut huge = huge();
    let pages = huge.pages();
    let coverage = Coverage::one_in(64, 3);
    for dirty in [
        PageRun::new(0, pages),
        PageRun::new(64, 129),
        PageRun::new(pages - 200, 200),
    ] {
        huge.samples = vec![Sample {
            start_us: 0,
            end_us: 50_000,
            burst: 0,
            coverage,
            dirty: PageSet::from_runs([dirty]),
            cpu_us: None,
        }];
        let why = Trace::read(&mut &bytes(&huge)[..]).unwrap_err().to_string();
        assert!(why.contains("did not look at"), "{dirty:?}: {why}");
    }
    // All that can be seen, chunks side by side included.
    let mut small = trace(0);
    for stride in [2, 3, 16, 64] {
        for seed in 0..20 {
            let coverage = Coverage::one_in(stride, seed);
            let last_us = small.samples.last().map_or(0, |last| last.end_us);
            small.samples.push(Sample {
                start_us: last_us,
                end_us: last_us + 50_000,
                burst: 0,
                coverage,
                dirty: PageSet::from_runs(coverage.runs(PAGES)),
                cpu_us: None,
            });
        }
    }
    assert_eq!(Trace::read(&mut &bytes(&small)[..]).unwrap(), small);
}

/// A number for each page of it would take 64 GiB.
#[test]
fn a_file_that_claims_64_tib_is_summed_up_in_little_memory() {
    let mut huge = huge();
    let written = PageRun::new(1 << 30, 1 << 32);
    huge.samples = (0..3)
        .map(|index| Sample {
            start_us: index * 50_000,
            end_us: (index + 1) * 50_000,
            burst: 0,
            coverage: Coverage::ALL,
            dirty: PageSet::from_runs([written]),
            cpu_us: None,
        })
        .collect();
    let file = bytes(&huge);
    assert!(file.len() < 1000, "{} bytes", file.len());
    let summary = Trace::read(&mut &file[..]).unwrap().summary();
    for bytes in [summary.working_set_bytes, summary.written_bytes] {
        let off = bytes as f64 / written.bytes() as f64 - 1.0;
        assert!(off.abs() < 0.01, "{bytes} of {}", written.bytes());
    }
}

/// A guest that writes a quarter of its memory, in places all over it, seen by several looks at one page in 16.
#[test]
fn looks_at_other_parts_make_an_estimate_of_all_that_is_written() {
    let layout = RamLayout::single("ram", 1 << 30).unwrap();
    let pages = layout.pages();
    let is_written = |page: u64| (page / 64 * 0x9e37_79b9) >> 7 & 3 == 0;
    let true_pages = (0..pages).filter(|&page| is_written(page)).count() as f64;
    for looks in [1, 5, 40] {
        let mut trace = trace(0);
        trace.header.layout = layout.clone();
        for index in 0..looks * 4 {
            let coverage = Coverage::one_in(16, (index / 4) as u32);
            let seen = coverage.runs(pages).filter(|run| is_written(run.first));
            trace.samples.push(Sample {
                start_us: index * 50_000,
                end_us: (index + 1) * 50_000,
                burst: (index / 4) as u32,
                coverage,
                dirty: PageSet::from_runs(seen),
                cpu_us: None,
            });
        }
        let summary = trace.summary();
        for bytes in [summary.working_set_bytes, summary.written_bytes] {
            let off = bytes as f64 / 4096.0 / true_pages - 1.0;
            assert!(off.abs() < 0.25, "{looks} looks: {bytes} bytes, off by {off}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A flipped bit is found out, wherever it is; reserved bytes are nobody's.
    #[test]
    fn damage_is_found_out(at in 0usize..600, bit in 0u8..8) {
        let whole = trace(12);
        let mut damaged = bytes(&whole);
        let at = at % damaged.len();
        damaged[at] ^= 1 << bit;
        match Trace::read(&mut &damaged[..]) {
            Ok(read) => {
                prop_assert!((10..12).contains(&at), "byte {}", at);
                prop_assert_eq!(&read, &whole);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        if let Ok(Partial { trace, .. }) = Trace::read_partial(&mut &damaged[..]) {
            prop_assert_eq!(&trace.samples[..], &whole.samples[..trace.samples.len()]);
        }
    }

    /// Parts that somebody made up, with right checksums: refused or harmless.
    #[test]
    fn made_up_parts_are_refused_or_harmless(
        parts in prop::collection::vec((0u8..9, prop::collection::vec(any::<u8>(), 0..60), any::<bool>()), 0..6),
    ) {
        let mut file = bytes(&trace(2));
        let end = file.len() - 28;
        file.truncate(end);
        for (kind, content, lies) in parts {
            let payload = zstd::bulk::compress(&content, 1).unwrap();
            let len = if lies { u32::MAX } else { content.len() as u32 };
            let mut part = vec![kind, 0, 0, 0];
            part.extend((payload.len() as u32).to_le_bytes());
            part.extend(len.to_le_bytes());
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&part);
            hasher.update(&payload);
            part.extend(hasher.finalize().to_le_bytes());
            file.extend(part);
            file.extend(payload);
        }
        if let Ok(Partial { trace, .. }) = Trace::read_partial(&mut &file[..]) {
            let summary = trace.summary();
            prop_assert!(summary.samples == trace.samples.len());
        }
    }
}
