use vmferry_core::sampling::Coverage;
use vmferry_core::{PageRun, RamLayout};

use super::*;
use crate::header::Plan;

fn trace(samples: u64) -> Trace {
    let header = Header {
        vm: "vm".into(),
        backend: "synth".into(),
        layout: RamLayout::single("ram", 16 << 20).unwrap(),
        started_unix_ms: 0,
        interval_us: 1000,
        plan: Plan::Full,
        page_cost_ns: 0,
        processors: 0,
        pinned_io: false,
        device_state_bytes: None,
    };
    let mut trace = Trace::new(header, PageSet::default());
    trace.samples = (0..samples)
        .map(|index| Sample {
            start_us: index * 1000,
            end_us: index * 1000 + 1000,
            burst: 0,
            coverage: Coverage::ALL,
            dirty: PageSet::from_runs([PageRun::new(7, 3)]),
            cpu_us: None,
        })
        .collect();
    trace
}

fn read_within(bytes: &[u8], most: u64) -> Partial {
    Trace::read_within(&mut &*bytes, Budget::new(most)).unwrap()
}

#[test]
fn all_parts_together_take_no_more_memory_than_a_trace_may() {
    let whole = trace(20_000);
    let mut bytes = Vec::new();
    whole.write(&mut bytes).unwrap();
    let takes: u64 = whole.samples.iter().map(Sample::memory_bytes).sum();
    assert!(takes > 20 * bytes.len() as u64, "{takes} of {}", bytes.len());
    assert!(read_within(&bytes, 2 * takes).problem.is_none());
    let Partial { trace, problem } = read_within(&bytes, takes / 2);
    let why = problem.unwrap();
    assert!(
        matches!(why, TraceError::TooMuch { samples, .. } if samples == trace.samples.len()),
        "{why}"
    );
    assert!(why.to_string().contains("--partial"), "{why}");
    assert!(
        (4000..10_000).contains(&trace.samples.len()),
        "{}",
        trace.samples.len()
    );
    assert_eq!(trace.samples[..], whole.samples[..trace.samples.len()]);
}

#[test]
fn parts_that_nobody_knows_count_as_well() {
    let mut writer = Writer::new(Vec::new(), &trace(0).header, &PageSet::default()).unwrap();
    for _ in 0..4 {
        writer.part(99, &vec![0u8; 1 << 20]).unwrap();
    }
    let bytes = writer.finish(None).unwrap();
    assert!(read_within(&bytes, 5 << 20).problem.is_none());
    let problem = read_within(&bytes, 3 << 20).problem;
    assert!(matches!(problem, Some(TraceError::TooMuch { .. })), "{problem:?}");
}

#[test]
fn a_header_of_millions_of_blocks_is_refused_before_it_is_decoded() {
    let mut bytes = Vec::from(MAGIC);
    bytes.extend([1, 0, 0, 0]);
    // Text, text, and a list of blocks of no name and one page each: 32 bytes in memory for two in the file.
    let mut header = vec![0, 0, 0x80, 0x80, 0x80, 0x08];
    header.extend([0, 1].repeat(16 << 20));
    let payload = zstd::bulk::compress(&header, 1).unwrap();
    let mut part = vec![HEADER, 0, 0, 0];
    part.extend((payload.len() as u32).to_le_bytes());
    part.extend((header.len() as u32).to_le_bytes());
    part.extend(checksum(&part, &payload).to_le_bytes());
    bytes.extend(part);
    bytes.extend(payload);
    let why = Trace::read_partial(&mut &bytes[..]).unwrap_err();
    assert!(
        matches!(why, TraceError::TooLarge { most, .. } if most == 1 << 20),
        "{why}"
    );
}
